"""RD: ranking distillation, the teacher's first items as further positives.

Tang and Wang, "Ranking Distillation: Learning Compact Ranking Models With High Performance for Recommender System", KDD 2018. For
example s, the teacher's items i at ranks r = 1..K among those that are not the target, and the student's scores y:
    w_a = exp(-r / position_decay), normalised over the K items                        position
    w_b = tanh(max(sharpness * (R_si - r), 0))                                         discrepancy of the student's rank R
    R   = floor(n (N - 1) / samples) + 1,   n of `samples` random items score higher than i
    w   = w_a in the first `warm_up_steps` steps, then w_a w_b, normalised over the K items
    L   = (1 - alpha) L_student(s, target) + alpha sum_i -w_si log sigma(y_si)
No gradient flows through w.

Deviations: (1) The random items are drawn without replacement, as in the paper, but once for the whole batch: scoring them is one
product then. Each estimate has the same distribution; those of one batch share their error. (2) Warm-up is counted in steps, which
do not depend on the size of the data; the published code counts epochs, 10 by default. (3) With `renormalise: false` w_a w_b is left
as it is, as in the published code, so that the part fades as the student comes to agree. (4) That code adds alpha = 1 times the part
to the whole of L_student; the default 0.5 here is the same up to a factor. (5) An example whose student ranks every item at least as
high as the teacher has no weights to normalise, and counts as 0.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.settings import Settings


class RDSettings(Settings):
    """Settings of RD. `alpha` is the teacher's share of the loss, 0 switches it off."""

    alpha: float = Field(0.5, ge=0, le=1)
    top_k: int = Field(10, ge=1)
    position_decay: float = Field(1.0, gt=0)
    sharpness: float = Field(0.1, ge=0)
    samples: int = Field(100, ge=1)
    warm_up_steps: int = Field(500, ge=0)
    renormalise: bool = True


class RD(Method):
    """Learns to score the teacher's first items high, most of all those that it ranks too low."""

    name = "rd"
    Settings = RDSettings
    needs = frozenset({"rankings"})
    settings: RDSettings
    knowledge: Knowledge
    steps: Tensor  # [] int64, batches trained on so far

    def __init__(self, settings: RDSettings, knowledge: Knowledge | None) -> None:
        super().__init__(settings, knowledge)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def needs_of(cls, settings: RDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.alpha > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts, settings = self.own_loss(batch, states, table), self.settings
        if settings.alpha == 0:
            return parts
        if self.training:
            self.steps += 1
        items, scores, asked = self.knowledge.rankings(batch.examples)
        rows = asked.nonzero()[:, 0]
        first = slice(settings.top_k + 1)  # one of them may be the target
        items, scores = items[rows, first], scores[rows, first]  # [R, K + 1]
        used = (scores > NOTHING) & (items != batch.targets[rows, None])
        ranks = used.cumsum(dim=1)
        used &= ranks <= settings.top_k
        known = states.index_select(0, rows)
        student = score(known, table, items)
        student = student.to(torch.promote_types(student.dtype, torch.float32))
        weights = self._weights(known.detach(), table.detach(), items, student.detach(), ranks, used)
        cost = (weights * functional.softplus(-student)).sum() / len(states)
        return {name: (1 - settings.alpha) * part for name, part in parts.items()} | {"ranking": settings.alpha * cost}

    def _weights(
        self, states: Tensor, table: Tensor, items: Tensor, student: Tensor, ranks: Tensor, used: Tensor
    ) -> Tensor:
        """Return w, [R, K + 1]; see `loss` for the others."""
        settings = self.settings
        decay = (1 - ranks).to(student.dtype) / settings.position_decay
        position = normalised(decay.masked_fill(~used, -torch.inf).exp())
        sample = torch.randperm(len(table), device=states.device)[: settings.samples]
        estimate = estimated_ranks(student, score(states, table, sample).to(student.dtype), items, sample, len(table))
        gap = (estimate - ranks).clamp_min(0).to(student.dtype)
        hybrid = position * torch.tanh(settings.sharpness * gap)
        if settings.renormalise:
            hybrid = normalised(hybrid)
        return torch.where(self.steps.to(states.device) > settings.warm_up_steps, hybrid, position)


def normalised(weights: Tensor) -> Tensor:
    """Return weights [R, K] by their sums; a row of zeros stays one."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def estimated_ranks(student: Tensor, sampled: Tensor, items: Tensor, sample: Tensor, n_items: int) -> Tensor:
    """Estimate the student's ranks of items from its scores of a sample, [R, K] int64, 1 the best.

    Args:
        student: [R, K] scores of the items.
        sampled: [R, n] scores of the sample.
        items: [R, K] item ids.
        sample: [n] item ids, all different.
        n_items: size N of the catalogue.
    """
    place = torch.full((n_items,), -1, device=sample.device)
    place[sample] = torch.arange(len(sample), device=sample.device)
    at = place[items]
    # An item that is in the sample must not be above itself because its score was rounded differently there.
    own = torch.where(at >= 0, sampled.gather(1, at.clamp_min(0)), student)
    above = torch.stack([(sampled > column[:, None]).sum(dim=1) for column in own.unbind(1)], dim=1)
    return above * (n_items - 1) // len(sample) + 1
