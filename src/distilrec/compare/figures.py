"""From what the jobs gave to rows that say how good, how sure, how fast and how dear.

A row's mean is over users and seeds. Its interval, and the test against the plain student, are those of `evaluation.crossed`: other
users and other seeds are both possible, and how far seeds lie apart is taken from all methods of a student together. The family for
Holm is all rows that are no plain student, times the tested metrics. Beside them stands the paired bootstrap over users alone, with
the trained models given, and Cohen's d_z of a single user's difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilrec.compare.matrix import Combination, Matrix
from distilrec.compare.plan import Outcome
from distilrec.compare.work import TOP, Job, cutoff_of
from distilrec.data.dataset import Dataset
from distilrec.evaluation.crossed import Crossed, SeedSpread, crossed, gains_of, interval_of, spread_of
from distilrec.evaluation.groups import Group, by_history, by_popularity
from distilrec.evaluation.metrics import Floats, Ints
from distilrec.evaluation.significance import NOT_SIGNIFICANT, Side, compare, holm
from distilrec.evaluation.stored import RANKS, read_ranks

LEVEL = 0.95
_SHOWN = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one combination, or a teacher by itself, gave over its seeds.

    Attributes:
        dataset: label.
        student: label; None for a teacher.
        method: label; None for a teacher.
        teacher: label, if there is one.
        side: ranks of the test targets by seed, in the order of `seeds`.
        seeds: of the trainings.
        tops: [n, 20] best items of each seed.
        found: what the workers said, by seed.
        values: settings that tuning chose.
        trials: how many settings were tried.
        timing: of the first seed; empty if it was not timed.
    """

    dataset: str
    student: str | None
    method: str | None
    teacher: str | None
    side: Side
    seeds: tuple[int, ...]
    tops: tuple[Ints, ...]
    found: tuple[dict[str, Any], ...]
    values: dict[str, Any]
    trials: int
    timing: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str | None, str | None, str | None]:
        """Return what names it."""
        return (self.dataset, self.student, self.method, self.teacher)


def measured(matrix: Matrix, outcome: Outcome) -> list[Measured]:
    """Read what the jobs left: combinations in the order of the matrix, then teachers that rank."""
    rows = []
    for one in matrix.combinations:
        seeds = [seed for seed in matrix.settings.seeds if (one, seed) in outcome.trained]
        if seeds:
            found = [outcome.trained[one, seed] for seed in seeds]
            trials = outcome.trials[one]
            best = max(trials, key=lambda trial: (trial["valid"], -trial["number"]), default=None)
            rows.append(
                _read(
                    (one.dataset, one.student, one.method, one.teacher), one.label, seeds, found,
                    values=best["values"] if best else {}, trials=len(trials), timing=_timing(outcome, one),
                )
            )  # fmt: skip
    for (dataset, teacher), found_one in outcome.teachers.items():
        if "folder" in found_one:
            timing = outcome.timings.get(Job("timing", dataset, teacher).label, {})
            seed = matrix.settings.seeds[0]
            rows.append(
                _read((dataset, None, None, teacher), f"{dataset}/{teacher}", [seed], [found_one], timing=timing)
            )
    return rows


def _timing(outcome: Outcome, one: Combination) -> Mapping[str, Any]:
    return outcome.timings.get(Job("timing", one.dataset, one.teacher, one).label, {})


def _read(
    key: tuple[str, str | None, str | None, str | None],
    name: str,
    seeds: Sequence[int],
    found: Sequence[dict[str, Any]],
    *,
    values: dict[str, Any] | None = None,
    trials: int = 0,
    timing: Mapping[str, Any],
) -> Measured:
    folders = [Path(one["folder"]) for one in found]
    ranks = [read_ranks(folder / RANKS).roles["ranks"] for folder in folders]
    tops = tuple(np.load(folder / TOP, allow_pickle=False) for folder in folders)
    return Measured(*key, Side(name, ranks), tuple(seeds), tops, tuple(found), values or {}, trials, timing)


class Spreads:
    """How far seeds lie apart, by data set and student, over all its methods.

    Args:
        some: what was measured.
    """

    def __init__(self, some: Sequence[Measured]) -> None:
        self._some = some
        self._found: dict[Any, SeedSpread | None] = {}

    def of(self, metric: str, *which: Measured) -> SeedSpread | None:
        """Return the spread in a metric over all methods of the students of these."""
        kinds = frozenset((one.dataset, one.student) for one in which if one.student is not None)
        if (metric, kinds) not in self._found:
            alike = [gains_of(one.side, metric) for one in self._some if (one.dataset, one.student) in kinds]
            self._found[metric, kinds] = spread_of(alike)
        return self._found[metric, kinds]


def rows_of(
    matrix: Matrix, some: Sequence[Measured], outcome: Outcome, datasets: Mapping[str, Dataset]
) -> list[dict[str, Any]]:
    """Return the rows of the report, best first within a data set.

    Args:
        matrix: the comparison.
        some: what was measured.
        outcome: for the costs of teachers.
        datasets: label -> data, for groups of users.
    """
    settings, by_key = matrix.settings, {one.key: one for one in some}
    rows, tests, spreads = [], [], Spreads(some)
    for one in some:
        row = _figures(one, settings.metrics, LEVEL, spreads)
        row |= _groups(one, datasets[one.dataset], settings.metrics, LEVEL)
        row |= _costs(one, outcome, in_rounds=_in_rounds(matrix, one))
        plain = by_key.get(_plain_key(matrix, one))
        if plain is not None and plain is not one:
            tests += [
                (
                    row,
                    metric,
                    crossed(plain.side, one.side, metric, level=LEVEL, spread=spreads.of(metric, one)),
                )
                for metric in settings.metrics
            ]
            row |= _effects(plain, one, settings.metrics)
            teacher = by_key.get((one.dataset, None, None, one.teacher))
            if teacher is not None:
                row |= learnt(plain, one, teacher, settings.metrics[0], datasets[one.dataset].n_items)
        rows.append(row)
    _put_tests(tests, LEVEL)
    _same_speed(rows)
    order = {name: place for place, name in enumerate(settings.datasets)}
    return sorted(rows, key=lambda row: (order[row["dataset"]], -row["metrics"][settings.metrics[0]]))


def _same_speed(rows: Sequence[dict[str, Any]]) -> None:
    """Give rows whose models are the same but for their numbers (a student of one size) the median of their times."""
    kept: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["student"] is not None and row["ms_per_user"] is not None:
            kept.setdefault((row["dataset"], row["student"], row["parameters"]), []).append(row)
    for alike in kept.values():
        for name in ("ms_per_user", "latency_ms"):
            middle = float(np.median([row[name] for row in alike]))
            for row in alike:
                row[name] = middle


def _plain_key(matrix: Matrix, one: Measured) -> tuple[str, str | None, str | None, str | None]:
    if one.student is None or one.method is None:
        return ("", None, None, None)
    plain = matrix.plain_of(Combination(one.dataset, one.student, one.method, one.teacher))
    return (plain.dataset, plain.student, plain.method, plain.teacher)


def _figures(one: Measured, metrics: Sequence[str], level: float, spreads: Spreads) -> dict[str, Any]:
    shown = list(dict.fromkeys([*metrics, *_SHOWN]))
    gains = {metric: gains_of(one.side, metric) for metric in shown}
    return {
        "dataset": one.dataset,
        "student": one.student,
        "method": one.method,
        "teacher": one.teacher,
        "metrics": {metric: float(gained.mean()) for metric, gained in gains.items()},
        "ci95": {metric: _interval(gained, level, spreads.of(metric, one)) for metric, gained in gains.items()},
        "seeds": list(one.seeds),
        "by_seed": {metric: [float(value) for value in gains[metric].mean(axis=1)] for metric in metrics},
        "valid": [round(float(found["valid"]), 6) for found in one.found],
        "values": one.values,
        "trials": one.trials,
    }


def _in_rounds(matrix: Matrix, one: Measured) -> bool:
    if one.student is None or one.method is None:
        return False
    return matrix.in_rounds(Combination(one.dataset, one.student, one.method, one.teacher))


def _costs(one: Measured, outcome: Outcome, *, in_rounds: bool) -> dict[str, Any]:
    """Return size, speed, time and money. A teacher that trains in rounds is the combination's own: nothing is shared or stored."""
    stored = one.teacher is not None and not in_rounds
    teacher = outcome.teachers.get((one.dataset, one.teacher or ""), {}) if stored else {}
    own = float(np.median([found.get("teacher_seconds", 0.0) for found in one.found]))
    asked = one.found[0].get("asked")
    usd = teacher.get("usd", 0.0)
    if asked is not None and usd and asked < teacher["rows"]:  # a method that asks about some only pays for those
        usd *= asked / teacher["rows"]
    return {
        "parameters": int(one.found[0]["parameters"]),
        "asked": asked,
        "ms_per_user": one.timing.get("ms_per_user"),
        "latency_ms": one.timing.get("latency_ms"),
        "train_seconds": float(np.median([found["seconds"] for found in one.found])),
        "teacher_seconds": own if in_rounds else teacher.get("seconds", 0.0) + teacher.get("knowledge_seconds", 0.0),
        "usd": usd,
    }


def _interval(gains: Floats, level: float, spread: SeedSpread | None = None) -> list[float]:
    """Return the interval of the mean of gains [seeds, n]; a metric lies between 0 and 1."""
    return [min(1.0, max(0.0, edge)) for edge in interval_of(gains, level=level, spread=spread)]


def _groups(one: Measured, dataset: Dataset, metrics: Sequence[str], level: float) -> dict[str, Any]:
    """Return hr and ndcg at the main cutoff for groups of test examples, over all seeds."""
    examples = np.asarray(dataset.examples("test"))
    lengths = examples - dataset.offsets[dataset.rows_of(examples)]
    targets = np.asarray(dataset.items)[examples].astype(np.int64)
    cutoff = cutoff_of(list(metrics))
    names = (f"hr@{cutoff}", f"ndcg@{cutoff}")
    gains = {metric: gains_of(one.side, metric) for metric in names}

    def described(group: Group) -> dict[str, Any]:
        own = {metric: gained[:, group.members] for metric, gained in gains.items()}
        sure = int(group.members.sum()) > 1
        return {
            "label": group.label, "range": [group.low, group.high], "n": int(group.members.sum()),
            "metrics": {metric: float(gained.mean()) for metric, gained in own.items()},
            "ci95": {metric: _interval(gained, level) if sure else None for metric, gained in own.items()},
        }  # fmt: skip

    kinds = {"history": by_history(lengths), "target_popularity": by_popularity(dataset.popularity, targets)}
    return {"groups": {kind: [described(group) for group in some] for kind, some in kinds.items()}}


def verdicts(p_values: Sequence[float], differences: Sequence[float], level: float) -> tuple[list[float], list[str]]:
    """Adjust p-values of a family after Holm; return them and what they say: better, worse or not significant."""
    adjusted = holm(p_values)
    alpha = round(1 - level, 12)
    said = [
        NOT_SIGNIFICANT if p >= alpha else ("better" if difference > 0 else "worse")
        for p, difference in zip(adjusted, differences, strict=True)
    ]
    return adjusted, said


def _put_tests(tests: Sequence[tuple[dict[str, Any], str, Crossed]], level: float) -> None:
    adjusted, said = verdicts([test.p for _, _, test in tests], [test.difference for _, _, test in tests], level)
    for (row, metric, test), p, verdict in zip(tests, adjusted, said, strict=True):
        row.setdefault("difference", {})[metric] = test.difference
        row.setdefault("difference_ci95", {})[metric] = list(test.interval)
        row.setdefault("p_value", {})[metric] = p
        row.setdefault("verdict", {})[metric] = verdict


def _effects(plain: Measured, one: Measured, metrics: Sequence[str]) -> dict[str, Any]:
    """Return what is said over users alone: effect size, and the p-value of the paired bootstrap, unadjusted."""
    found = [gap for metric in metrics for gap in compare(plain.side, [one.side], [metric])]
    return {
        "effect_size": {gap.metric: gap.effect_size for gap in found},
        "users_p": {gap.metric: gap.bootstrap_p for gap in found},
    }


def learnt(plain: Measured, one: Measured, teacher: Measured, metric: str, n_items: int) -> dict[str, Any]:
    """Return how much of the teacher came over: share of its gain kept, and how alike the best 20 items are, before and after.

    The share is None where the teacher is not surely above the plain student: a share of nothing says nothing. So are the others
    where the best 20 are the whole catalogue.
    """
    before, after, taught = (float(gains_of(side.side, metric).mean()) for side in (plain, one, teacher))
    gap = crossed(plain.side, teacher.side, metric)
    sure = gap.p < 0.05 and gap.difference > 0
    return {
        "transfer": (after - before) / (taught - before) if sure else None,
        "overlap": {
            name: overlap(side.tops, teacher.tops[0]) if side.tops[0].shape[1] < n_items else None
            for name, side in (("plain", plain), ("distilled", one))
        },
    }


def overlap(tops: Sequence[Ints], other: Ints) -> float:
    """Return the mean share of the best items [n, k] that are among another model's [n, k], over users and seeds."""
    return float(np.mean([(top[:, :, None] == other[:, None, :]).any(axis=2).mean() for top in tops]))
