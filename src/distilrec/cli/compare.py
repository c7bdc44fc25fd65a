"""`distilrec compare`: a matrix of students, methods, teachers and seeds becomes one report."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from distilrec.cli.stages import Log, Out, Texts
from distilrec.errors import ConfigError
from distilrec.files import locked
from distilrec.progress import console, say

if TYPE_CHECKING:
    from distilrec.compare.matrix import Matrix


def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="YAML file with the matrix (docs/compare.md says what it holds); or, beside --interactions, key=value "
            "settings that all runs share, for example data.columns.user=customer."
        ),
    ] = None,
    interactions: Log = None,
    items: Texts = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Trainings at a time, one a device or share of the cores.")
    ] = 1,
    budget_minutes: Annotated[
        float | None, typer.Option("--budget-minutes", min=0, help="Stop in good order when so many are over.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option("--mlflow", help="Tracking address to log every row to, too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be trained; train nothing.")] = False,
    out: Out = Path("runs"),
) -> None:
    """Compare students, methods and teachers over seeds; OUT/NAME/report.html says which to take.

    Without a file, --interactions and --items are compared on: three students, plain and taught by a small language model.
    """
    from distilrec.compare.plan import Plan
    from distilrec.compare.report import write_comparison
    from distilrec.compare.work import Workshop  # torch loads only for who compares
    from distilrec.compare.workers import Workers

    matrix = _matrix(words or [], interactions, items)
    plan = Plan(matrix)
    root = out / matrix.settings.name
    for line in matrix.left_out:
        say(f"left out: {line}")
    tune = matrix.settings.tune
    if not matrix.tuned and tune.model_fields_set:
        searched = tune.space or tune.students or tune.methods
        why = "is 1, the configuration as it stands" if searched else "has no space, students or methods to search"
        say(f"nothing is tuned: tune{'.trials' if searched else ''} {why}.")
    say(
        f"{len(matrix.combinations)} combinations, {tune.trials if matrix.tuned else 1} trials each and "
        f"{len(matrix.settings.seeds)} seeds: {plan.total} jobs"
    )
    if dry_run:
        for one in matrix.combinations:
            say(f"  {one.label}")
        return
    if mlflow is not None:
        from distilrec.compare.tracking import need_mlflow

        need_mlflow()
    deadline = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    with locked(root / ".lock", "this comparison"):
        shared = Workshop(matrix, root)
        # What is wrong with the data is said now, not by a worker.
        datasets = {name: shared.shared(name, None).data for name in matrix.settings.datasets}
        workers = Workers(matrix, root, jobs)
        try:
            workers.run(plan, deadline)
            workers.time(plan, deadline)
        finally:
            workers.close()
        if not plan.outcome.trained:
            reasons = next(iter(plan.outcome.failed.values()), "no training ended in time.")
            raise ConfigError(
                f"nothing was measured: {reasons}", remedy=f"{root / 'logs'} says more; the same command goes on."
            )
        content = write_comparison(matrix, plan.outcome, datasets, root)
    _show(content, root)
    if mlflow is not None:
        from distilrec.compare.tracking import log_rows

        log_rows(content, mlflow)
    if content["failed"]:
        raise typer.Exit(3)  # a report all the same, but a script should know that it is not whole


def _matrix(words: list[str], interactions: Path | None, items: Path | None) -> "Matrix":
    """Return what a file says is compared, or the matrix for a log."""
    from distilrec.compare.matrix import matrix_for_log, read_matrix

    paths = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if len(paths) + (interactions is not None) != 1:
        raise ConfigError(
            "what is compared must come from one place.",
            remedy="Give a YAML file, or --interactions LOG with --items ITEMS.",
        )
    if interactions is not None:
        return matrix_for_log(interactions, items, settings)
    if items is not None:
        raise ConfigError(
            "--items belongs to --interactions.", remedy="Name the files under datasets in the YAML file."
        )
    if settings:
        raise ConfigError(
            f"{settings[0]} belongs to --interactions.", remedy="Write what all runs share under base in the YAML file."
        )
    return read_matrix(Path(paths[0]))


def _show(content: dict[str, Any], root: Path) -> None:
    from distilrec.compare.findings import name_of

    metric = content["metrics"][0]
    for dataset in content["datasets"]:
        table = Table(box=None, pad_edge=False)
        table.add_column(dataset)
        for title in (*content["metrics"], "against plain", "p", "ms/user"):
            table.add_column(title, justify="right")
        for row in (row for row in content["rows"] if row["dataset"] == dataset):
            tested = metric in row.get("verdict", {})
            table.add_row(
                name_of(row),
                *(
                    f"{row['metrics'][m]:.4f} [{row['ci95'][m][0]:.4f}, {row['ci95'][m][1]:.4f}]"
                    for m in content["metrics"]
                ),
                f"{row['difference'][metric]:+.4f} {row['verdict'][metric]}" if tested else "",
                f"{row['p_value'][metric]:.4f}" if tested else "",
                "" if row["ms_per_user"] is None else f"{row['ms_per_user']:.3f}",
            )
        console.print(table, markup=False)
    for label, reason in content["failed"].items():
        say(f"failed: {label}: {reason}")
    for advice in content["advice"]:
        say(f"{advice['dataset']}: {' '.join(advice['words'])}")
    say(f"{root / 'results.json'}\n{root / 'report.html'}")
