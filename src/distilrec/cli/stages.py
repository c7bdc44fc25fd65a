"""The verbs that do stages of a run. Each does the stages before it too, unless they are done already."""

import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.errors import ConfigError
from distilrec.progress import console, say

Words = Annotated[
    list[str] | None, typer.Argument(help="A configuration file and key=value settings, for example train.epochs=5.")
]
Log = Annotated[Path | None, typer.Option("--interactions", help="Log of interactions, any supported format.")]
Texts = Annotated[Path | None, typer.Option("--items", help="Item ids and titles.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; its folder is OUT/NAME.")]
Out = Annotated[Path, typer.Option("--out", help="Folder that holds runs.")]


def prepare(
    words: Words = None, interactions: Log = None, items: Texts = None, name: Name = None, out: Out = Path("runs")
) -> None:
    """Read, filter, map and split the data."""
    _do(words, interactions, items, name, out, lambda run: run.data)


def train(
    words: Words = None, interactions: Log = None, items: Texts = None, name: Name = None, out: Out = Path("runs")
) -> None:
    """Train the plain student."""
    _do(words, interactions, items, name, out, lambda run: run.student)


def teach(
    words: Words = None, interactions: Log = None, items: Texts = None, name: Name = None, out: Out = Path("runs")
) -> None:
    """Train the LLM teacher."""
    _do(words, interactions, items, name, out, lambda run: run.teacher)


def annotate(
    words: Words = None,
    interactions: Log = None,
    items: Texts = None,
    name: Name = None,
    out: Out = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate tokens and cost; send no prompt.")] = False,
    selection: Annotated[
        Path | None, typer.Option(help="File of ids of the examples to ask about, one a line.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray for several workers.")] = None,
) -> None:
    """Store what the teacher says about the training examples. Caps: annotate.caps.usd=5, .rows, .tokens, .minutes."""
    given = {"annotate.selection": selection, "annotate.engine": engine}
    further = [f"{key}={_quoted(value)}" for key, value in given.items() if value is not None]
    asked: Callable[[Any], object] = (lambda run: _say_all(run.teaching.estimate())) if dry_run else _knowledge
    _do([*(words or []), *further], interactions, items, name, out, asked)


def _knowledge(run: Any) -> object:
    return run.knowledge


def _say_all(lines: list[str]) -> None:
    for line in lines:
        say(line)


def distil(
    words: Words = None, interactions: Log = None, items: Texts = None, name: Name = None, out: Out = Path("runs")
) -> None:
    """Train the student with the teacher's knowledge."""
    _do(words, interactions, items, name, out, lambda run: run.distilled)


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A configuration file and key=value settings; or two or more sets of ranks, RUN[:ROLE] or a file."
        ),
    ] = None,
    interactions: Log = None,
    items: Texts = None,
    name: Name = None,
    out: Out = Path("runs"),
    metrics: Annotated[list[str] | None, typer.Option(help="Of a comparison; default: hr@10,ndcg@10.")] = None,
    resamples: Annotated[int | None, typer.Option(min=100, help="Draws of a comparison's bootstrap.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of these draws.")] = None,
    target: Annotated[Path | None, typer.Option("--json", help="File to write a comparison to.")] = None,
) -> None:
    """Measure plain student, teacher and distilled student; write results.json and report.html.

    With two or more runs or files of ranks instead of a configuration: compare them user by user, the first is the baseline.
    """
    from distilrec.cli import compare_ranks as pairs

    of_run = (interactions, items, name)
    if of_run == (None, None, None) and pairs.is_comparison(words or []):
        pairs.compare_ranks(
            words or [],
            metrics=metrics or pairs.METRICS,
            resamples=pairs.RESAMPLES if resamples is None else resamples,
            seed=pairs.SEED if seed is None else seed,
            target=target,
        )
        return
    if (metrics, resamples, seed, target) != (None, None, None, None):
        raise ConfigError(
            "--metrics, --resamples, --seed and --json are of a comparison.",
            remedy="Name two or more runs or files of ranks, or set evaluate.cutoffs, evaluate.bootstrap and seed instead.",
        )
    _do(words, interactions, items, name, out, lambda run: show(run.evaluate(), run.root))


def run(
    words: Words = None, interactions: Log = None, items: Texts = None, name: Name = None, out: Out = Path("runs")
) -> None:
    """Do every stage that is not done yet, and report."""
    _do(words, interactions, items, name, out, lambda run: show(run.evaluate(), run.root))


VERBS: tuple[Callable[..., None], ...] = (prepare, train, teach, annotate, distil, evaluate, run)


def read_words(words: Sequence[str], interactions: Path | None, items: Path | None, name: str | None) -> Config:
    """Turn a verb's arguments into settings: defaults, then the file, then the options and key=value words."""
    paths = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if len(paths) > 1:
        raise ConfigError(
            f"one configuration file is expected, got {', '.join(paths)}.", remedy="Write settings as key=value."
        )
    if interactions is not None:
        overrides += [f"data.interactions={_quoted(interactions)}", "data.source=null"]
    if items is not None:
        overrides.append(f"data.items={_quoted(items)}")
    if name is not None:
        overrides.append(f"name={_quoted(name)}")
    elif interactions is not None and not paths and not any(word.startswith("name=") for word in words):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", interactions.name.split(".")[0]).strip("-._")
        overrides.append(f"name={_quoted(plain or 'run')}")
    if (
        not paths
        and interactions is None
        and not any(word.startswith(("data.source=", "data.interactions=")) for word in overrides)
    ):
        raise ConfigError(
            "there are no data.", remedy="Give --interactions FILE --items FILE, or a configuration file."
        )
    base = yaml.safe_load(files("distilrec").joinpath("defaults.yaml").read_text(encoding="utf-8"))
    return load_config(Path(paths[0]) if paths else None, overrides, base)


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)  # so that YAML reads a file called 2024 or `a: b` as text


def show(results: dict[str, Any], root: Path) -> None:
    """Print the table of a run."""
    metrics = [metric for metric in ("hr@10", "ndcg@10", "mrr@10") if metric in results["rows"][0]["metrics"]]
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for title in (*metrics, "parameters", "ms/user"):
        table.add_column(title, justify="right")
    for row in results["rows"]:
        cells = [f"{row['metrics'][m]:.4f} [{row['ci95'][m][0]:.4f}, {row['ci95'][m][1]:.4f}]" for m in metrics]
        table.add_row(f"{row['model']} ({row['role']})", *cells, f"{row['parameters']:,}", f"{row['ms_per_user']:.3f}")
    console.print(table, markup=False)
    say(f"{root / 'results.json'}\n{root / 'report.html'}")


def _do(
    words: list[str] | None,
    interactions: Path | None,
    items: Path | None,
    name: str | None,
    out: Path,
    work: Callable[[Any], object],
) -> None:
    config = read_words(words or [], interactions, items, name)
    from distilrec.pipeline import Pipeline  # torch loads only once the settings are known to be right

    pipeline = Pipeline(config, out / config.name)
    with pipeline.lock():
        work(pipeline)
