"""RRD: relaxed ranking distillation, the order of some of the teacher's items, above items that it did not list.

Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020. For example s, K interesting items
i_1..i_K are drawn from the teacher's list, the one at rank r with chance ~ exp(-r / rank_decay), without replacement, and put in the
teacher's order; L uninteresting items j are drawn from all that are not on the list, uniformly. With the student's scores y:
    L = L_student(s, target) - weight * sum_{k=1..K} log( exp(y_{i_k}) / (sum_{m=k..K} exp(y_{i_m}) + sum_j exp(y_j)) )
the Plackett-Luce likelihood of the interesting items in this order, above all uninteresting ones, among which no order is asked.
The target is neither the one nor the other, as the paper draws from what a user did not interact with; ranks do not count it.

Deviations: (1) Items are drawn anew in each step, not once an epoch. (2) The uninteresting items are drawn for the whole batch, with
replacement: scoring them is one product then, and gathering some for each example can cost more than scoring a catalogue of some
thousand items. Where one of them is on an example's list, or is its target, it is left out there, so that an example may see slightly
fewer than L. (3) The paper tunes K, L, rank_decay and the weight for each data set. The sum over K items weighs about as much as K
cross-entropies, so the default weight brings 10 of them down to about one.
"""

import torch
from pydantic import Field
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.methods.drawing import draw, listed_among
from distilrec.settings import Settings


class RRDSettings(Settings):
    """Settings of RRD; a weight of 0 switches it off."""

    weight: float = Field(0.1, ge=0)
    interesting: int = Field(10, ge=1)
    uninteresting: int = Field(40, ge=1)
    rank_decay: float = Field(10.0, gt=0)


class RRD(Method):
    """Learns the order of the teacher's items, and that they stand above the others."""

    name = "rrd"
    Settings = RRDSettings
    needs = frozenset({"rankings"})
    settings: RRDSettings
    knowledge: Knowledge

    @classmethod
    def needs_of(cls, settings: RRDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts, settings = self.own_loss(batch, states, table), self.settings
        if settings.weight == 0:
            return parts
        items, scores, asked = self.knowledge.rankings(batch.examples)
        rows = asked.nonzero()[:, 0]
        items, there, targets = items[rows], scores[rows] > NOTHING, batch.targets[rows, None]
        places, drawn = draw_in_order(there & (items != targets), settings.interesting, settings.rank_decay)
        others = torch.randint(len(table), (settings.uninteresting,), device=states.device)
        fit = ~listed_among(others, items, there) & (others != targets)  # [R, L]
        known = states.index_select(0, rows)
        above, below = score(known, table, items.gather(1, places)), score(known, table, others)
        wide = torch.promote_types(above.dtype, torch.float32)
        cost = list_costs(above.to(wide), drawn, below.to(wide), fit).sum() / len(states)
        return parts | {"ranking": settings.weight * cost}


def draw_in_order(there: Tensor, count: int, decay: float) -> tuple[Tensor, Tensor]:
    """Draw places of lists without replacement, early ones more often, and put them in the order of the list.

    Args:
        there: [R, K] bool, False for places that are not to be drawn and do not count as ranks.
        count: how many to draw.
        decay: by how many ranks the chance falls to 1/e.

    Returns:
        Places [R, min(count, K)], ascending, and [R, min(count, K)] bool: False where a list had no more to give; these come last.
    """
    ranks = there.cumsum(dim=1)
    places, drawn = draw((-ranks / decay).masked_fill(~there, -torch.inf), count)
    ordered = torch.where(drawn, places, there.shape[1]).sort(dim=1).values
    drawn = ordered < there.shape[1]
    return ordered.where(drawn, 0), drawn


def list_costs(above: Tensor, drawn: Tensor, below: Tensor, fit: Tensor) -> Tensor:
    """Return minus the log-likelihood of each list, [R].

    Args:
        above: [R, K] scores of the items to be ranked, in the order wanted.
        drawn: [R, K] bool, False for places that do not count.
        below: [R, L] scores of the items to be ranked below, in any order.
        fit: [R, L] bool, False for those that do not count.
    """
    nothing = torch.finfo(above.dtype).min / 4  # finite: a list with nothing below it must not make the gradient NaN
    behind = below.masked_fill(~fit, nothing).logsumexp(dim=1, keepdim=True)
    upwards = torch.cat([behind, above.masked_fill(~drawn, nothing).flip(1)], dim=1)
    contest = upwards.logcumsumexp(dim=1)[:, 1:].flip(1)  # [R, K], of each item and all behind it
    return (contest - above).masked_fill(~drawn, 0.0).sum(dim=1)
