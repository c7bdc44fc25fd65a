"""Measure trained models side by side and write results.json, the ranks and the report."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import nn

from distilrec import __version__
from distilrec.columns import EXAMPLE
from distilrec.config import Config
from distilrec.data.dataset import Dataset
from distilrec.evaluation.metrics import bootstrap_intervals, evaluate_ranks
from distilrec.evaluation.rank import target_ranks, time_ranking, top_items
from distilrec.evaluation.report import Case, write_report
from distilrec.files import write_json, write_with
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
    ranks, rows = {}, []
    with bar("evaluate", len(entries)) as progress:
        for entry in entries:
            own = target_ranks(
                entry.scorer, dataset, examples, batch_tokens=settings.batch_tokens, filter_seen=settings.filter_seen
            )
            timing = time_ranking(
                entry.scorer, dataset, examples, users=settings.timing_users, batch_tokens=settings.batch_tokens
            )
            ranks[entry.role] = own
            rows.append(
                {
                    "model": entry.model,
                    "role": entry.role,
                    "metrics": evaluate_ranks(own, settings.cutoffs),
                    "ci95": bootstrap_intervals(own, settings.cutoffs, resamples=settings.bootstrap, seed=config.seed),
                    "parameters": parameters(entry.scorer),
                    "ms_per_user": timing.ms_per_user,
                    "latency_ms": timing.latency_ms,
                }
            )
            progress.advance(note=entry.role)
    counts = {key: dataset.manifest[key] for key in dataset.manifest if key.startswith(("n_", "items_"))}
    results = {
        "dataset": {
            "name": dataset.manifest["source"],
            "fingerprint": dataset.fingerprint,
            **counts,
            "split": dataset.manifest["split"]["kind"],
            "cold_test_targets": int((dataset.popularity[dataset.items[examples]] == 0).sum()),
        },
        "protocol": {
            "ranking": "whole catalogue, ties against the target",
            "history_filtered": settings.filter_seen,
            "trained_on": "train",
            "selected_on": "validation",
            "interval": f"percentile bootstrap over users, {settings.bootstrap} resamples",
        },
        "rows": rows,
        "versions": {
            "distilrec": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "seed": config.seed,
    }
    frame = pl.DataFrame({EXAMPLE: examples, **ranks})
    write_with(folder / "ranks.parquet", lambda part: frame.write_parquet(part))
    write_json(folder / "results.json", results)
    curves = {entry.model: entry.fit.history for entry in entries}
    write_report(folder / "report.html", config.name, results, curves, cases(dataset, entries, examples, config.seed))


def parameters(model: nn.Module) -> int:
    """Return the number of numbers a model ranks with."""
    return sum(parameter.numel() for parameter in model.parameters())


def cases(dataset: Dataset, entries: list[Entry], examples: np.ndarray[Any, Any], seed: int) -> list[Case]:
    """Pick a few test users and set their history beside each model's best items."""
    some = np.random.default_rng(seed).choice(examples, size=min(_CASES, len(examples)), replace=False)
    tops = {entry.model: top_items(entry.scorer, dataset, some, _TOP_SHOWN) for entry in entries}
    found = []
    for place, example in enumerate(some):
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
