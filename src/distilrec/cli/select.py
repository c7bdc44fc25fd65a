"""`distilrec select`: choose which examples to ask an expensive teacher about, before anybody is asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from distilrec.cli.stages import Log, Name, Out, Texts, Words, read_words
from distilrec.files import write_with
from distilrec.progress import console, say

if TYPE_CHECKING:
    from distilrec.knowledge.select import Chosen

_BANDS = 10  # rows of the table: tenths of the examples, by difficulty


def select(
    words: Words = None,
    interactions: Log = None,
    items: Texts = None,
    name: Name = None,
    out: Out = Path("runs"),
    policy: Annotated[
        str | None,
        typer.Option(help="maxmin, alkdrec, rad_bc, random, hardest or easiest; default: the method's, or maxmin."),
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="How many; default: the method's, or 500.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the draw. More later keeps what was drawn before.")
    ] = None,
) -> None:
    """Choose examples to ask about: writes selection.txt for `annotate --selection`, and asks nobody."""
    config = read_words(words or [], interactions, items, name)
    from distilrec.knowledge.select import plot
    from distilrec.pipeline import Pipeline  # torch loads only once the settings are known to be right

    run = Pipeline(config, out / config.name)
    with run.lock():
        chosen = run.teaching.choose(policy, budget, seed)
        folder = run.root
        chosen.write(folder)
        drawn = plot(chosen)
        write_with(folder / "selection.svg", lambda part: part.write_text(drawn, encoding="utf-8"))
        show(chosen)
        for line in run.teaching.estimate_of(folder / "selection.txt"):
            say(f"  {line}")
    say(f"{folder / 'selection.txt'}\n{folder / 'selection.json'}\n{folder / 'selection.svg'}")


def show(chosen: "Chosen") -> None:
    """Print tenths of the examples, the hardest first: how hard they are, what chance they had, how many were drawn."""
    table = Table(box=None, pad_edge=False)
    for title in ("examples", "difficulty", "probability", "drawn"):
        table.add_column(title, justify="right")
    for row in chosen.bands(_BANDS):
        spread = f"{row.hardest:.4f} to {row.easiest:.4f}"
        table.add_row(f"{row.first:,}-{row.last:,}", spread, f"{row.probability:.4f}", f"{row.drawn:,}")
    console.print(table, markup=False)
    account: Any = chosen.selection.account
    gain = account["guaranteed_gain"]
    taken = f"{account['selected']:,} of {account['examples']:,} examples"
    promise = "" if gain is None else f"; guaranteed gain {gain:.3g} of the hardest one's"
    say(f"  {account['policy']}: {taken}; it may draw the {account['cut']:,} hardest{promise}")
