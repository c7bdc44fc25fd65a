"""ALKDRec: a trained student is tuned on an LLM's rankings of a few sessions, chosen before the LLM is asked.

Du et al., "Active Large Language Model-based Knowledge Distillation for Session-based Recommendation", AAAI 2025. For the chosen
examples s, the teacher's items v at ranks 1..25, and for each a negative v' drawn uniformly from the items not in the list:
    L = - mean_s sum_v alpha_v log sigma(y_sv - y_sv'),   alpha_v = 3 for ranks 1-5, 2 for 6-15, 1 for 16-25
The student starts as the plain one; nothing but the chosen examples is trained on. Which examples are chosen: `knowledge.select`.

Deviations: the mean over examples is taken, not the sum, so that the learning rate does not depend on the batch; the loss on the
targets can be kept beside it (`target_weight`), which the paper does not do; the policy is the exact optimum of the paper's game
unless told otherwise.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.knowledge.select import GainSettings, select
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.settings import Settings

_TRIES = 4  # draws of a negative that stands in the list


class ALKDRecSettings(Settings):
    """Settings of ALKDRec.

    `policy`, `budget`, `gains`: which examples are asked about, how many, and what is assumed of the answers (see `knowledge.select`);
    `budget` null asks about all. `bands`: the last rank of each band; `band_weights`: alpha of each. `target_weight`: of the
    student's own loss on the targets of the same examples.
    """

    policy: Literal["maxmin", "alkdrec", "rad_bc", "random", "hardest", "easiest"] = "maxmin"
    budget: int | None = Field(500, ge=1)
    gains: GainSettings = GainSettings()
    selection_seed: int = Field(0, ge=0)
    bands: tuple[int, ...] = (5, 15, 25)
    band_weights: tuple[float, ...] = (3.0, 2.0, 1.0)
    target_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _bands_fit(self) -> "ALKDRecSettings":
        if (
            len(self.bands) != len(self.band_weights)
            or list(self.bands) != sorted(set(self.bands))
            or self.bands[:1] < (1,)
        ):
            raise ValueError("bands must be rising ranks from 1 on, with one of band_weights each")
        if min(self.band_weights) < 0:
            raise ValueError("band_weights must not be below 0")
        return self

    def alphas(self) -> Tensor:
        """Return alpha of each rank, [K]."""
        widths = torch.tensor(self.bands).diff(prepend=torch.zeros(1, dtype=torch.int64))
        return torch.tensor(self.band_weights).repeat_interleave(widths)


class ALKDRec(Method):
    """Tunes a trained student on the rankings of chosen examples."""

    name = "alkdrec"
    Settings = ALKDRecSettings
    needs = frozenset({"rankings"})
    fine_tunes: ClassVar[bool] = True
    settings: ALKDRecSettings
    knowledge: Knowledge

    @classmethod
    def select(
        cls,
        settings: ALKDRecSettings,
        dataset: Dataset,
        examples: Ints,
        difficulty: Callable[[Ints], Any] | None = None,
    ) -> Ints:
        """See `Method.select`."""
        if settings.budget is None or settings.budget >= len(examples):
            return examples
        if difficulty is None:
            raise ValueError("alkdrec chooses by difficulty, and nothing says how hard examples are")
        chosen = select(
            examples,
            difficulty(examples),
            settings.policy,
            settings.budget,
            seed=settings.selection_seed,
            settings=settings.gains,
        )
        return chosen.examples

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        alphas = self.settings.alphas().to(states)
        items, scores, asked = self.knowledge.rankings(batch.examples)
        items, scores = items[:, : len(alphas)], scores[:, : len(alphas)]
        there = (scores > NOTHING) & asked[:, None]
        negatives = outside(items, there, len(table))
        gap = score(states, table, items) - score(states, table, negatives)  # [T, K]
        cost = functional.softplus(-gap) * alphas[: items.shape[1]] * there
        parts = {"ranking": cost.sum() / len(states)}
        if self.settings.target_weight > 0:
            own = self.own_loss(batch, states, table)
            parts = {name: self.settings.target_weight * part for name, part in own.items()} | parts
        else:
            parts = {"target": torch.zeros_like(parts["ranking"])} | parts
        return parts


def outside(items: Tensor, there: Tensor, n_items: int) -> Tensor:
    """Draw an item that is not in the list for each place of lists [T, K], uniformly, [T, K].

    Where the list leaves hardly an item, one of its own may remain after some tries; it then says nothing or little.
    """
    listed = items.masked_fill(~there, -1)
    drawn = torch.randint(n_items, items.shape, device=items.device)
    for _ in range(_TRIES):
        inside = (drawn[:, :, None] == listed[:, None, :]).any(dim=2)
        if not inside.any():
            break
        drawn = torch.where(inside, torch.randint(n_items, items.shape, device=items.device), drawn)
    return drawn
