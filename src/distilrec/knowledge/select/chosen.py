"""What `select` shows and writes: a selection beside the difficulties it was made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilrec.data.split import Ints
from distilrec.files import write_json, write_with
from distilrec.knowledge.select.draw import Selection
from distilrec.knowledge.select.policies import Floats
from distilrec.panels import markup, panels


@dataclass(frozen=True, slots=True)
class Band:
    """Some examples of like difficulty: places from 1, range of difficulty, their probability together, and how many were drawn."""

    first: int
    last: int
    hardest: float
    easiest: float
    probability: float
    drawn: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """A selection with what it was made from.

    Attributes:
        examples: [n] ids of all that could be chosen.
        difficulty: [n].
        selection: what was chosen of them.
    """

    examples: Ints
    difficulty: Floats
    selection: Selection

    @property
    def order(self) -> Ints:
        """Places in `examples`, the hardest first."""
        return np.argsort(-self.difficulty, kind="stable")

    def bands(self, count: int) -> list[Band]:
        """Return the examples in `count` bands of like size, the hardest first."""
        drawn = np.isin(self.examples, self.selection.examples)
        found, first = [], 1
        for places in np.array_split(self.order, min(count, len(self.examples))):
            hard = self.difficulty[places]
            chance = float(np.exp(self.selection.log_p[places]).sum())
            found.append(Band(first, first + len(places) - 1, hard[0], hard[-1], chance, int(drawn[places].sum())))
            first += len(places)
        return found

    def write(self, folder: Path) -> None:
        """Write selection.txt (ids, one a line, in the order drawn) and selection.json (the account)."""
        text = "".join(f"{example}\n" for example in self.selection.examples)
        write_with(folder / "selection.txt", lambda part: part.write_text(text, encoding="utf-8"))
        account: dict[str, Any] = {**self.selection.account, "difficulty": "inconsistency"}
        write_json(folder / "selection.json", account)


def plot(chosen: Chosen) -> str:
    """Draw difficulty and probability by rank, with what was drawn; return SVG."""
    order, ranks = chosen.order, np.arange(1, len(chosen.examples) + 1)
    drawn = np.isin(chosen.examples[order], chosen.selection.examples)
    figure, left, right = panels()
    left.plot(ranks, chosen.difficulty[order], color="#44546a")
    left.plot(ranks[drawn], chosen.difficulty[order][drawn], "|", color="#c0392b", markersize=9, label="drawn")
    left.set_title("difficulty")
    left.legend(fontsize="small")
    with np.errstate(under="ignore"):
        right.plot(ranks, np.exp(chosen.selection.log_p[order]), color="#44546a")
    right.set_title(f"probability ({chosen.selection.policy})")
    for axis in (left, right):
        axis.set_xlabel("rank, the hardest first")
        axis.grid(alpha=0.3)
    return markup(figure)
