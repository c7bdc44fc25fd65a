"""UnKD: pairs in the teacher's order, drawn inside groups of items of like popularity.

Chen et al., "Unbiased Knowledge Distillation for Recommendation", WSDM 2023. Items are ordered by their number of training
interactions and cut into groups g = 1..G that hold equal shares of all interactions. For example s, pairs S_g are drawn inside
each group: both items from the teacher's order of that group, the one at rank r = 1, 2, ... (within the group) with chance
~ exp(-r / rank_decay), and i is the better placed of the two:
    L = L_student(s, target) + weight / G * sum_g 1 / |S_g| sum_{(i, j) in S_g} -log sigma(y_si - y_sj)
The target is left out of the order, as the paper leaves out what a user interacted with.

Deviations: (1) Only the teacher's top K is stored, on which a group may have few items or none. All that is known of the others
is that they come after. So a group's order is its stored items and then a tail, which is drawn with the chance of all the ranks
it stands for; the item that stands for it is drawn from the group uniformly, one for a pair and shared by the batch (one
product). Where it is no item of the tail the pair is dropped, and tails are drawn as much more often. A pair from the tail alone
has no known order and is dropped; so is a pair of one item with itself, which the paper draws again. (2) A group without a pair of
known order counts as 0. (3) Pairs are drawn anew in each step, not once an epoch.
(4) An item whose interactions cross the border of two groups goes where their middle lies, so that a group may hold somewhat
more than its share, and none where one item has the share of several.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.methods.drawing import listed_among
from distilrec.settings import Settings


class UnKDSettings(Settings):
    """Settings of UnKD; a weight of 0 switches it off. `pairs` are split evenly over the groups."""

    weight: float = Field(1.0, ge=0)
    groups: int = Field(4, ge=1)
    pairs: int = Field(32, ge=1)
    rank_decay: float = Field(20.0, gt=0)
    tail: bool = True


class UnKD(Method):
    """Learns the teacher's order of items that are about equally popular."""

    name = "unkd"
    Settings = UnKDSettings
    needs = frozenset({"rankings"})
    settings: UnKDSettings
    knowledge: Knowledge
    _groups: Tensor | None = None  # [N], of the popularity below
    _grouped: Tensor | None = None

    @classmethod
    def needs_of(cls, settings: UnKDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts, settings = self.own_loss(batch, states, table), self.settings
        if settings.weight == 0:
            return parts
        groups = self._groups_of_items(states.device)
        items, scores, asked = self.knowledge.rankings(batch.examples)
        there = (scores > NOTHING) & asked[:, None]  # [T, K]
        missing = there & (items != batch.targets[:, None])
        sizes = groups.bincount(minlength=settings.groups).float()
        others = sizes - functional.one_hot(groups[batch.targets], settings.groups)  # [T, G]
        weights = rank_weights(groups[items], missing, others, settings.rank_decay, tail=settings.tail)  # [T, G, K + 1]
        behind_list = others - (weights[:, :, :-1] > 0).sum(dim=2)
        weights[:, :, -1] *= sizes / behind_list.clamp_min(
            1
        )  # so much more often, since those that do not fit are dropped
        each = -(-settings.pairs // settings.groups)
        better, worse, known = draw_pairs(weights, each)  # [T, G, n]
        tails = draw_members(groups, sizes, each)  # [G, n]
        unfit = listed_among(tails.flatten(), items, there) | (tails.flatten() == batch.targets[:, None])  # [T, G n]
        known &= ~(unfit.view(known.shape) & (worse == items.shape[1]))
        listed = score(states, table, items).to(table.dtype)
        behind = score(states, table, tails.flatten()).to(table.dtype)
        cost = pair_costs(listed, behind, better, worse).masked_fill(~known, 0.0)
        by_group = cost.sum(dim=2) / known.sum(dim=2).clamp_min(1)
        return parts | {"ranking": settings.weight * by_group.mean()}

    def _groups_of_items(self, device: torch.device) -> Tensor:
        if self.objective is None:
            raise ValueError("the method unkd needs to know how popular items are, and no training has told it")
        if self._groups is None or self._grouped is not self.objective.popularity:
            self._grouped = self.objective.popularity
            self._groups = popularity_groups(self._grouped, self.settings.groups)
        self._groups = self._groups.to(device)
        return self._groups


def popularity_groups(popularity: Tensor, groups: int) -> Tensor:
    """Return the group of each item, [N] int64: 0 for the most popular, each with the same share of all interactions.

    Args:
        popularity: [N] number of training interactions.
        groups: how many.
    """
    order = popularity.argsort(descending=True, stable=True)
    count = popularity[order].to(torch.float64)
    middle = count.cumsum(0) - count / 2
    found = torch.empty_like(order)
    found[order] = (middle * groups / count.sum().clamp_min(1)).long().clamp_max(groups - 1)
    return found


def rank_weights(groups: Tensor, there: Tensor, sizes: Tensor, decay: float, *, tail: bool) -> Tensor:
    """Return how often each place is drawn in each group, up to a factor per group.

    Args:
        groups: [T, K] group of the item at each place of the teacher's list.
        there: [T, K] bool, False for places that are not to be drawn.
        sizes: [G] number of items that may be drawn, or [T, G].
        decay: by how many ranks the chance falls to 1/e.
        tail: whether the items behind the list are drawn.

    Returns:
        [T, G, K + 1]; the last place stands for all items of the group behind the list.
    """
    member = (groups[:, None, :] == torch.arange(sizes.shape[-1], device=groups.device)[:, None]) & there[:, None, :]
    before = member.cumsum(dim=2) - 1  # ranks of the group that come earlier
    listed = torch.where(member, torch.exp(-before / decay), 0.0)
    count = member.sum(dim=2)  # [T, G]
    rest = (sizes - count).clamp_min(0) if tail else torch.zeros_like(listed[:, :, 0])
    step = torch.tensor(-1 / decay, dtype=listed.dtype, device=listed.device)
    behind = torch.exp(count * step) * torch.expm1(rest * step) / torch.expm1(step)  # a geometric series
    return torch.cat([listed, behind[:, :, None]], dim=2)


def draw_pairs(weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pairs of places, each place in proportion to its weight.

    Args:
        weights: [T, G, K + 1], see `rank_weights`.
        count: pairs for each example and group.

    Returns:
        The better place, the worse place (K: the tail) and whether that is an order, [T, G, count] each.
    """
    bounds = weights.cumsum(dim=2)
    spots = torch.rand(*weights.shape[:2], 2 * count, device=weights.device, dtype=weights.dtype) * bounds[:, :, -1:]
    places = torch.searchsorted(bounds, spots, right=True).clamp_max(weights.shape[2] - 1)
    drawn = weights.gather(2, places) > 0
    one, two = places.split(count, dim=2)
    return torch.minimum(one, two), torch.maximum(one, two), (one != two) & drawn[..., :count] & drawn[..., count:]


def draw_members(groups: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Draw `count` items of each group, uniformly; [G, count]. A group without items gives items of another."""
    ordered = groups.argsort(stable=True)
    spots = torch.rand(len(sizes), count, device=groups.device, dtype=torch.float64) * sizes[:, None]
    places = spots.long() + (sizes.cumsum(0) - sizes).long()[:, None]
    return ordered[places.clamp_max(len(groups) - 1)]


def pair_costs(listed: Tensor, behind: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Return -log sigma(y_i - y_j) for pairs of places.

    Args:
        listed: [T, K] the student's scores of the teacher's items.
        behind: [T, G n] its scores of the items that stand for the tails.
        better: [T, G, n] places.
        worse: [T, G, n] places; K is the tail.
    """
    width, shape = listed.shape[1], better.shape
    better, worse = better.flatten(1), worse.flatten(1)
    high = listed.gather(1, better.clamp_max(width - 1))
    low = torch.where(worse == width, behind, listed.gather(1, worse.clamp_max(width - 1)))
    return functional.softplus(low - high).view(shape)
