"""A small matrix, and what its jobs would have left: ranks chosen by hand, in files as a worker writes them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distilrec.compare.figures import Measured
from distilrec.compare.matrix import Combination, Matrix
from distilrec.compare.plan import Outcome
from distilrec.compare.settings import CompareSettings
from distilrec.compare.work import TOP, Job
from distilrec.data.dataset import Dataset
from distilrec.evaluation.significance import Side
from distilrec.evaluation.stored import RANKS, write_ranks
from distilrec.settings import checked

Key = tuple[str | None, str | None, str | None]  # labels of student, method and teacher


def tiny(data: dict[str, Any]) -> dict[str, Any]:
    """Return 2 students x 4 methods, 2 trials each on seed 1, then seed 2: 1 teacher and 24 trainings."""
    return {
        "name": "tiny",
        "base": {
            "train": {"epochs": 2, "batch_tokens": 64, "learning_rate": 0.01},
            "teach": {"epochs": 2, "batch_tokens": 256, "validate_users": 8, "learning_rate": 0.01},
            "annotate": {"top_k": 5},
            "evaluate": {"filter_seen": True, "timing_users": 4},
        },
        "datasets": {"toy": {"data": deepcopy(data)}},
        "students": {
            "sasrec": {"hidden_size": 8, "max_length": 8, "blocks": 1, "heads": 1},
            "fpmc": {"hidden_size": 8, "max_length": 8},
        },
        "methods": {
            "plain": None,
            "soft_labels": None,
            "alkdrec": {"budget": 20},
            "llmd4rec": {"rounds": 1, "student_epochs": 2},
        },
        "teachers": {
            "big": {"name": "conventional", "recommender": {"name": "gru4rec", "hidden_size": 12, "max_length": 8}}
        },
        "seeds": [1, 2],
        "tune": {"trials": 2, "space": {"train.learning_rate": {"low": 0.005, "high": 0.05, "log": True}}},
    }


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    """Write a comparison as a user would."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def matrix_of(**changes: Any) -> Matrix:
    """Return a matrix of data set `toy`, student `a`, teacher `big`, plain and soft_labels; no file is read."""
    content = {
        "datasets": {"toy": {"data": {"interactions": "log.csv"}}},
        "students": {"a": {"name": "sasrec"}},
        "methods": {"plain": None, "soft_labels": None},
        "teachers": {"big": {"name": "conventional"}},
        "seeds": [1, 2],
        "metrics": ["hr@1"],
    }
    return Matrix(checked(CompareSettings, {**content, **changes}, where="test"))


def side_of(
    student: str | None,
    method: str | None,
    teacher: str | None,
    ranks: Sequence[Sequence[int]],
    *,
    tops: Sequence[Sequence[Sequence[int]]] | None = None,
    timing: Mapping[str, Any] | None = None,
    **found: Any,
) -> Measured:
    """Return what was measured of a combination: one list of ranks a seed, and its best items."""
    seeds = tuple(range(1, len(ranks) + 1))
    best = (
        [np.zeros((len(ranks[0]), 1), dtype=np.int64)] * len(ranks) if tops is None else [np.array(one) for one in tops]
    )
    said = {"parameters": 100, "seconds": 60.0, "valid": 0.5, "asked": None, **found}
    name = "/".join(part for part in ("toy", student, method, teacher) if part)
    return Measured(
        "toy", student, method, teacher, Side(name, [np.array(one) for one in ranks]), seeds, tuple(best),
        (said,) * len(seeds), {}, 1, timing or {},
    )  # fmt: skip


def outcome_of(
    matrix: Matrix, dataset: Dataset, folder: Path, some: Mapping[Key, Sequence[Sequence[int]]], **found: Any
) -> Outcome:
    """Write ranks as jobs do, one list a seed, and return what they would have reported. No student: it is a teacher.

    Every best list is item 0 alone. Times are 1, 2, 3 ... ms a user in the order of `some`.
    """
    outcome, examples = Outcome(), np.asarray(dataset.examples("test"))
    (name,) = matrix.settings.datasets
    for place, ((student, method, teacher), by_seed) in enumerate(some.items()):
        reports = []
        for seed, ranks in zip(matrix.settings.seeds, by_seed, strict=False):
            own = folder / f"measured-{place}-{seed}"
            own.mkdir(parents=True)
            write_ranks(own / RANKS, examples, {"ranks": np.array(ranks)}, dataset.fingerprint)
            np.save(own / TOP, np.zeros((len(examples), 1), dtype=np.int32))
            report = {"parameters": 1000 + place, "valid": 0.25, "seconds": 60.0, "asked": None, "folder": str(own)}
            reports.append({**report, **found})
        timing = {"ms_per_user": float(place + 1), "latency_ms": 10.0 * (place + 1)}
        if student is None or method is None:
            assert teacher is not None
            outcome.teachers[name, teacher] = {"usd": 1.5, "knowledge_seconds": 30.0, "rows": 40, **reports[0]}
            outcome.timings[Job("timing", name, teacher).label] = timing
            continue
        one = Combination(name, student, method, teacher)
        outcome.trained |= {(one, seed): report for seed, report in zip(matrix.settings.seeds, reports, strict=False)}
        outcome.trials[one] = [{"number": 0, "values": {}, "valid": 0.25, "found": reports[0]}]
        outcome.timings[Job("timing", name, teacher, one).label] = timing
    return outcome
