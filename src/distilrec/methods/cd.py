"""CD: collaborative distillation, the teacher's scores as soft targets on items sampled by rank.

Lee et al., "Collaborative Distillation for Top-N Recommendation", ICDM 2019. For example s with the teacher's items i at ranks
r = 1, 2, ... and teacher scores c_si, a set S of items without the target is drawn, an item at rank r with chance
~ exp(-r / rank_decay), and
    q_si = sigma((c_si + bias) / temperature)
    L    = L_student(s, target) + weight / |S| * sum_{i in S} -(q_si log sigma(y_si) + (1 - q_si) log(1 - sigma(y_si)))
where y are the student's scores.

Deviations: (1) Only the teacher's top K is stored. `listed` items are drawn from it, without replacement, and `unlisted` items
from all others, uniformly and shared by the batch (one product); their score is the least one stored for s less `unlisted_gap`.
(2) The paper's teachers give logits around 0. An LLM gives log-probabilities, which are all far below 0, or minus distances,
which have any scale: sigma would be next to 0 on every item. So scores are first brought to mean 0 and deviation 1, over all
that is stored (`calibration: all`, which keeps that a teacher is surer of one example than of another), or over those of the
example. Temperature and bias then act on deviations. (3) Items are drawn anew in each step and by the teacher's rank: the
student-guided variant would need the student's ranking of the whole catalogue for every example. A rank is the place on the stored
list, the target's counted where the teacher lists it.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.methods.drawing import draw, listed_among
from distilrec.settings import Settings

_SPREAD = 1e-6  # scores that differ by less are taken to be alike


class CDSettings(Settings):
    """Settings of CD; a weight of 0 switches it off."""

    weight: float = Field(0.5, ge=0)
    listed: int = Field(10, ge=1)
    unlisted: int = Field(10, ge=0)
    rank_decay: float = Field(10.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    bias: float = 0.0
    unlisted_gap: float = Field(1.0, ge=0)
    calibration: Literal["all", "example", "none"] = "all"


class CD(Method):
    """Learns the teacher's scores of some of its items as soft targets."""

    name = "cd"
    Settings = CDSettings
    needs = frozenset({"rankings", "scores"})
    settings: CDSettings
    knowledge: Knowledge

    def __init__(self, settings: CDSettings, knowledge: Knowledge | None) -> None:
        super().__init__(settings, knowledge)
        self._centre, self._spread = 0.0, 1.0
        if settings.calibration == "all" and settings.weight > 0 and knowledge is not None:
            stored = knowledge.scores[np.isfinite(knowledge.scores)].astype(np.float64)
            spread = float(stored.std())
            self._centre, self._spread = float(stored.mean()), spread if spread > _SPREAD else 1.0

    @classmethod
    def needs_of(cls, settings: CDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts, settings = self.own_loss(batch, states, table), self.settings
        if settings.weight == 0:
            return parts
        items, scores, asked = self.knowledge.rankings(batch.examples)
        there = (scores > NOTHING) & asked[:, None]  # [T, K]
        teacher = self._calibrated(scores.to(table.dtype), there)
        ranks = torch.arange(1, items.shape[1] + 1, device=items.device)
        missing = (items != batch.targets[:, None]) & there  # feedback that is missing: the target is known
        places, drawn = draw((-ranks / settings.rank_decay).where(missing, -torch.inf), settings.listed)
        student = score(states, table, items.gather(1, places)).to(table.dtype)
        cost = self._cost(student, teacher.gather(1, places)).masked_fill(~drawn, 0.0).sum(dim=1)
        count = drawn.sum(dim=1)
        if settings.unlisted > 0:
            others = torch.randint(len(table), (settings.unlisted,), device=states.device)
            fit = asked[:, None] & ~listed_among(others, items, there) & (others != batch.targets[:, None])
            least = teacher.masked_fill(~there, torch.inf).amin(dim=1, keepdim=True).where(asked[:, None], 0.0)
            student = score(states, table, others).to(table.dtype)  # [T, n]
            cost = cost + self._cost(student, least - settings.unlisted_gap).masked_fill(~fit, 0.0).sum(dim=1)
            count = count + fit.sum(dim=1)
        return parts | {"soft": settings.weight * (cost / count.clamp_min(1)).mean()}

    def _calibrated(self, scores: Tensor, there: Tensor) -> Tensor:
        """Bring scores [T, K] to mean 0 and deviation 1, as the settings say."""
        if self.settings.calibration != "example":
            return (scores - self._centre) / self._spread
        count = there.sum(dim=1, keepdim=True).clamp_min(1)
        centred = scores - scores.where(there, 0.0).sum(dim=1, keepdim=True) / count
        spread = (centred.where(there, 0.0).square().sum(dim=1, keepdim=True) / count).sqrt()
        return torch.where(spread > _SPREAD, centred / spread.clamp_min(_SPREAD), 0.0)

    def _cost(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the cross-entropy of the soft targets for student scores [T, n] and teacher scores of that shape."""
        soft = torch.sigmoid((teacher + self.settings.bias) / self.settings.temperature)
        return functional.softplus(student) - soft * student  # = -(q log sigma(y) + (1 - q) log sigma(-y))
