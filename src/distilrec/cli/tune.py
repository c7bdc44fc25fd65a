"""`distilrec tune`: search the settings of the plain student on validation."""

from pathlib import Path
from typing import Annotated

import typer

from distilrec.cli.stages import Log, Name, Out, Texts, Words, read_words


def tune(
    words: Words = None,
    interactions: Log = None,
    items: Texts = None,
    *,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Finished trials in total, those of earlier calls included.")
    ],
    minutes: Annotated[float | None, typer.Option("--minutes", min=0, help="Stop when so many are over.")] = None,
    space: Annotated[
        Path | None, typer.Option("--space", help="What to search: key: {low, high, log, step} or a list.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Give up trials that lag behind.")] = True,
    name: Name = None,
    out: Out = Path("runs"),
) -> None:
    """Search the settings of the plain student; the best ones lie in OUT/NAME/tune/best.yaml."""
    config = read_words(words or [], interactions, items, name)
    from distilrec.pipeline import Pipeline  # torch loads only once the settings are known to be right
    from distilrec.pipeline.space import need_optuna, read_space
    from distilrec.pipeline.tune import tune as search

    need_optuna()
    pipeline = Pipeline(config, out / config.name)
    searched = read_space(space, pipeline.student_kind)
    with pipeline.lock():
        search(pipeline, searched, trials=trials, minutes=minutes, prune=prune)
