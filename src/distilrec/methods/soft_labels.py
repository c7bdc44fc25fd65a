"""Soft labels: the student's distribution over items is drawn to the teacher's, both softened by a temperature.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. For example s with the teacher's items i and scores
c_si, the student's scores y_si and a temperature T:
    q_s = softmax_i(c_si / T)      p_s = softmax_n(y_sn / T)
    L   = L_student(s, target) + weight * T^2 * KL(q_s || p_s)
    KL(q || p) = sum_i q_i (log q_i - log p_i)
T^2 keeps the size of the gradient, which falls with 1 / T^2, about the same for every T.

Deviations: (1) Only the teacher's top K is stored, so q is spread over these items alone; the mass that a teacher gave to others is
shared out among them in proportion. `over: catalogue` takes p over all items, as the paper does: items that the teacher did not list
are pushed down as if it gave them nothing. `over: top_k` takes p over the stored items too: it teaches their order and distances, and
says nothing of the others. (2) The paper names no defaults: it averages the two losses with a weight and picks T, 1 to 20, by task.
Here the sum is L_student + weight * KL, whose gradient is that of such an average up to a factor.

Over the catalogue KL is a weighted cross-entropy less the teacher's entropy. With T = 1 and the loss `ce` it comes from the pass over
the catalogue that the target needs anyway; else it costs a second pass, over the examples that the teacher was asked about.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.catalogue import weighted_cross_entropy
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.settings import Settings


class SoftLabelsSettings(Settings):
    """Settings of soft labels; a weight of 0 switches them off. `top_k` null takes every stored item."""

    weight: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    over: Literal["catalogue", "top_k"] = "catalogue"
    top_k: int | None = Field(None, ge=1)


class SoftLabels(Method):
    """Learns the teacher's distribution over its items."""

    name = "soft_labels"
    Settings = SoftLabelsSettings
    needs = frozenset({"rankings", "scores"})
    settings: SoftLabelsSettings
    knowledge: Knowledge

    @classmethod
    def needs_of(cls, settings: SoftLabelsSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        settings = self.settings
        if settings.weight == 0:
            return self.own_loss(batch, states, table)
        items, scores, asked = self.knowledge.rankings(batch.examples)
        items, scores = items[:, : settings.top_k], scores[:, : settings.top_k]
        wide = torch.promote_types(states.dtype, torch.float32)
        teacher = torch.softmax(scores.to(wide) / settings.temperature, dim=1)  # [T, K], 0 behind the end of a list
        if settings.over == "catalogue" and settings.temperature == 1 and self._own_is_cross_entropy():
            return self._in_one_pass(batch, states, table, items, teacher * asked[:, None])
        parts = self.own_loss(batch, states, table)
        rows = asked.nonzero()[:, 0]
        if len(rows) == 0:
            return parts | {"soft": states.new_zeros(())}
        softened = states.index_select(0, rows) / settings.temperature
        items, teacher, there = items[rows], teacher[rows], scores[rows] > NOTHING
        if settings.over == "top_k":
            divergence = listed_divergence(score(softened, table, items).to(wide), teacher, there)
        else:
            crossed, _ = weighted_cross_entropy(softened, table, items, teacher, dtype=self._dtype())
            divergence = crossed - entropy(teacher)
        factor = settings.weight * settings.temperature**2 * len(rows) / len(states)
        return parts | {"soft": factor * divergence}

    def _in_one_pass(
        self, batch: Batch, states: Tensor, table: Tensor, items: Tensor, teacher: Tensor
    ) -> dict[str, Tensor]:
        every = torch.cat([batch.targets[:, None], items], dim=1)  # [T, 1 + K]
        weights = torch.cat([torch.ones_like(teacher[:, :1]), self.settings.weight * teacher], dim=1)
        total, shares = weighted_cross_entropy(states, table, every, weights, dtype=self._dtype())
        soft = shares[1:].sum()  # without gradient: that of both parts flows through the first
        return {"target": total - soft, "soft": soft - self.settings.weight * entropy(teacher)}

    def _own_is_cross_entropy(self) -> bool:
        return self.objective is None or self.objective.settings.name == "ce"

    def _dtype(self) -> torch.dtype | None:
        return None if self.objective is None else self.objective.dtype


def entropy(shares: Tensor) -> Tensor:
    """Return the mean entropy of distributions [T, K] in nats; a row of zeros has none."""
    each: Tensor = torch.special.entr(shares)
    return each.sum(dim=1).mean()


def listed_divergence(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """Return the mean of KL(teacher || softmax(student)) over lists.

    Args:
        student: [T, K] scores, by the temperature.
        teacher: [T, K] distributions, 0 where not `there`.
        there: [T, K] bool, False behind the end of a list; each list has an item.
    """
    log_p = torch.log_softmax(student.masked_fill(~there, NOTHING), dim=1)
    crossed = (teacher * -log_p.masked_fill(~there, 0.0)).sum(dim=1)
    return crossed.mean() - entropy(teacher)
