"""Measure trained models side by side and write results.json, the ranks and the report."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distilrec import __version__
from distilrec.config import Config, EvaluateSettings
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.evaluation.groups import by_history, by_popularity, group_rows, measure
from distilrec.evaluation.metrics import bootstrap_intervals, evaluate_ranks, list_metrics
from distilrec.evaluation.rank import rank_and_top, time_ranking
from distilrec.evaluation.report import Case, write_report
from distilrec.evaluation.stored import RANKS, write_ranks
from distilrec.files import write_json
from distilrec.progress import bar
from distilrec.training.loop import Fit

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "polars", "numpy")
_CASES, _HISTORY_SHOWN, _TOP_SHOWN = 3, 8, 5


@dataclass(frozen=True, slots=True)
class Entry:
    """A model to measure: its name, its role (student, teacher, distilled), itself, and how it was trained."""

    model: str
    role: str
    scorer: Any
    fit: Fit


def evaluate(dataset: Dataset, entries: list[Entry], config: Config, folder: Path) -> None:
    """Rank every test target under every model; write results.json, ranks.parquet and report.html into `folder`."""
    settings = config.evaluate
    examples = np.asarray(dataset.examples("test"))
    ranks, tops, rows = {}, {}, []
    deepest = max(*settings.cutoffs, _TOP_SHOWN)
    with bar("evaluate", len(entries) * len(examples)) as progress:
        for entry in entries:
            own, top = rank_and_top(
                entry.scorer,
                dataset,
                examples,
                deepest,
                batch_tokens=settings.batch_tokens,
                filter_seen=settings.filter_seen,
                ranked=partial(progress.advance, note=entry.role),
            )
            timing = time_ranking(
                entry.scorer, dataset, examples, users=settings.timing_users, batch_tokens=settings.batch_tokens
            )
            ranks[entry.role], tops[entry.model] = own, top[:, :_TOP_SHOWN].copy()
            rows.append(
                {
                    "model": entry.model,
                    "role": entry.role,
                    **figures(dataset, examples, own, top, settings, config.seed),
                    "parameters": parameters(entry.scorer),
                    "ms_per_user": timing.ms_per_user,
                    "latency_ms": timing.latency_ms,
                }
            )
    results = {
        "dataset": described(dataset, examples),
        "protocol": {
            "ranking": "whole catalogue, ties against the target",
            "history_filtered": settings.filter_seen,
            "trained_on": "train + validation" if config.train.refit or config.distil_settings().refit else "train",
            "selected_on": "validation",
            "interval": f"percentile bootstrap over users, {settings.bootstrap} resamples",
            "cold_targets": "counted; without_cold leaves them out",
        },
        "rows": rows,
        "versions": {
            "distilrec": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "seed": config.seed,
    }
    write_ranks(folder / RANKS, examples, ranks, dataset.fingerprint)
    write_json(folder / "results.json", results)
    curves = {entry.model: entry.fit.history for entry in entries}
    write_report(folder / "report.html", config.name, results, curves, cases(dataset, tops, examples, config.seed))


def figures(
    dataset: Dataset, examples: Ints, ranks: Ints, top: Ints, settings: EvaluateSettings, seed: int
) -> dict[str, Any]:
    """Return what is measured of one model: all examples, those with a warm target, groups, and the lists.

    Args:
        dataset: histories and training popularity.
        examples: [n] ids.
        ranks: [n] ranks of their targets.
        top: [n, K] best items, K at least the largest cutoff (or the catalogue's size).
        settings: cutoffs and number of resamples.
        seed: of the intervals.
    """
    draws = {"resamples": settings.bootstrap, "seed": seed}
    popularity, targets = dataset.popularity, dataset.items[examples].astype(np.int64)
    lengths = examples - dataset.offsets[dataset.rows_of(examples)]
    groups = {"history": by_history(lengths), "target_popularity": by_popularity(popularity, targets)}
    return {
        "metrics": evaluate_ranks(ranks, settings.cutoffs),
        "ci95": bootstrap_intervals(ranks, settings.cutoffs, **draws),
        "lists": list_metrics(top, popularity, settings.cutoffs),
        "without_cold": measure(ranks, settings.cutoffs, popularity[targets] > 0, **draws),
        "groups": {name: group_rows(some, ranks, settings.cutoffs, **draws) for name, some in groups.items()},
    }


def described(dataset: Dataset, examples: Ints) -> dict[str, Any]:
    """Return what results.json says about the data set."""
    counts = {key: dataset.manifest[key] for key in dataset.manifest if key.startswith(("n_", "items_"))}
    return {
        "name": dataset.manifest["source"],
        "fingerprint": dataset.fingerprint,
        **counts,
        "split": dataset.manifest["split"]["kind"],
        "cold_test_targets": int((dataset.popularity[dataset.items[examples]] == 0).sum()),
    }


def parameters(model: nn.Module) -> int:
    """Return the number of numbers a model ranks with."""
    return sum(parameter.numel() for parameter in model.parameters())


def cases(dataset: Dataset, tops: Mapping[str, Ints], examples: Ints, seed: int) -> list[Case]:
    """Pick a few test users and set their history beside each model's best items ([n, k], by name of the model)."""
    some = np.random.default_rng(seed).choice(len(examples), size=min(_CASES, len(examples)), replace=False)
    found = []
    for place in some:
        example = examples[place]
        row = int(dataset.rows_of(np.array([example]))[0])
        first = max(int(dataset.offsets[row]), int(example) - _HISTORY_SHOWN)
        found.append(
            Case(
                user=dataset.user_ids[row],
                history=[dataset.titles[item] for item in dataset.items[first:example]],
                target=dataset.titles[int(dataset.items[example])],
                recommended={model: [dataset.titles[item] for item in top[place]] for model, top in tops.items()},
            )
        )
    return found
