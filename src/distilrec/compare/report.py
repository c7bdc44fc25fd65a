"""Everything a comparison leaves behind: results.json, report.html, report.md, results.csv and table.tex in its folder."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from distilrec import __version__
from distilrec.compare.figures import measured, rows_of
from distilrec.compare.findings import advise, mark_front
from distilrec.compare.matrix import Matrix
from distilrec.compare.page import as_page
from distilrec.compare.plan import Outcome
from distilrec.compare.settings import dumped
from distilrec.compare.tables import as_csv, as_latex, as_markdown
from distilrec.data.dataset import Dataset
from distilrec.files import write_json, write_text
from distilrec.pipeline.evaluate import described

_LIBRARIES = ("torch", "transformers", "numpy", "scipy")


def write_comparison(matrix: Matrix, outcome: Outcome, datasets: Mapping[str, Dataset], folder: Path) -> dict[str, Any]:
    """Work out all figures and write them; return the content of results.json.

    Args:
        matrix: the comparison.
        outcome: of its jobs.
        datasets: label -> data, of those that anything was measured on.
        folder: to write into.
    """
    some = [one for one in measured(matrix, outcome) if one.dataset in datasets]
    rows = rows_of(matrix, some, outcome, datasets)
    metric = matrix.settings.metrics[0]
    mark_front(rows, metric)
    advice = [found for name in matrix.settings.datasets if (found := advise(name, rows, some, metric)) is not None]
    content: dict[str, Any] = {
        "name": matrix.settings.name,
        "datasets": list(matrix.settings.datasets),
        "metrics": matrix.settings.metrics,
        "rows": rows,
        "advice": [asdict(one) for one in advice],
        "family": sum(len(row.get("p_value", {})) for row in rows),
        "trials": [
            {**asdict(one), "trials": [{key: trial[key] for key in ("number", "values", "valid")} for trial in trials]}
            for one, trials in outcome.trials.items()
        ],
        "complete": not outcome.failed and not outcome.skipped,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "about": {name: _about(matrix, name, data) for name, data in datasets.items()},
        "versions": {
            "distilrec": __version__, "python": platform.python_version(), **{name: version(name) for name in _LIBRARIES},
        },
        "config": dumped(matrix.settings),
    }  # fmt: skip
    content["notes"] = _notes(matrix, content)
    write_json(folder / "results.json", content)
    write_text(folder / "report.html", as_page(content))
    write_text(folder / "report.md", as_markdown(content))
    write_text(folder / "results.csv", as_csv(content))
    write_text(folder / "table.tex", as_latex(content))
    return content


def _about(matrix: Matrix, name: str, dataset: Dataset) -> dict[str, Any]:
    found = described(dataset, np.asarray(dataset.examples("test")))
    return {**found, "history_filtered": matrix.data_config(name).evaluate.filter_seen}


def _notes(matrix: Matrix, content: Mapping[str, Any]) -> list[str]:
    settings = matrix.settings
    trials = settings.tune.trials if matrix.tuned else 1
    notes = [
        f"Every row was given the same split, the same catalogue to rank and the same seeds ({', '.join(map(str, settings.seeds))}); "
        f"epochs and settings were selected on validation, test was looked at once.",
        f"Tuning: {trials} trials for every row, the plain students included, on the first seed; the first as configured."
        if trials > 1
        else "Nothing was tuned here: every row, the plain students included, has the settings of the configuration.",
        "Models learn from the training part alone; the validation targets only stop and select.",
    ]
    short = [row for row in content["rows"] if row["student"] is not None and row["trials"] < trials]
    if short and trials > 1:
        notes.append(
            f"{len(short)} rows had fewer trials: their drawn settings coincide, failed, were not reached, or time was over."
        )
    fewer = [row for row in content["rows"] if row["student"] is not None and len(row["seeds"]) < len(settings.seeds)]
    if fewer:
        notes.append(f"{len(fewer)} rows have fewer seeds than wanted.")
    return notes + [f"Left out: {line}." for line in matrix.left_out]
