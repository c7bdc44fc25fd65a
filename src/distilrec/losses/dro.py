"""The DRO term of DROS, over the whole catalogue.

Yang et al., "A Generic Learning Framework for Sequential Recommendation with Distribution Shifts", SIGIR 2023. For scores y,
the target t and item propensities p:
    l_t = log( sum_j exp(p_j y_j^2 / beta) - exp(p_t y_t^2 / beta) + exp(p_t (y_t - 1)^2 / beta) )
p_i is the share of i among training interactions, each count raised by 1, to the power 0.05. With several weighted targets m of
one state the terms share their sum over the catalogue: with a_j = p_j y_j^2 / beta, b_m = p_m (y_m - 1)^2 / beta and
M_m = sum_(j not m) exp(a_j) + exp(b_m),
    l = sum_m w_m log M_m
    d l / d y_j = (2 p_j / beta) ( y_j exp(a_j) sum_(m not j) w_m / M_m  +  (y_j - 1) sum_(m = j) w_m exp(b_m) / M_m )

Deviations: DROS adds the term to a binary cross-entropy; here `base` says to what, by default to the cross-entropy over the
catalogue. The largest exponent is taken out of each sum, which the published code does not do (it overflows), and the sum without
m is formed without m where m leads, not as a difference (which loses all digits there): the items that are no target are summed
once, and each target adds the other targets to it. A dozen readings of N numbers a row make up its cost: `rows_at_a_time` is how many
rows a core's own cache holds meanwhile.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_POWER = 0.05
_NEAR_ELEMENTS = 3 << 17  # 1.5 MiB of float32


@dataclass(frozen=True, slots=True)
class Robust:
    """What the DRO term needs.

    Attributes:
        propensity: [N], see `propensities`.
        beta: temperature.
        weight: of the term in the loss.
    """

    propensity: Tensor
    beta: float
    weight: float


def propensities(counts: Tensor) -> Tensor:
    """Return p of each item, [N], from its number of training interactions."""
    raised = counts.to(torch.float32) + 1
    return (raised / raised.sum()) ** _POWER


def rows_at_a_time(n_items: int) -> int:
    """Return for how many rows of scores a CPU should form the terms together: what fits a core's own cache."""
    return max(1, _NEAR_ELEMENTS // n_items)


def dro_terms(scores: Tensor, items: Tensor, weights: Tensor, robust: Robust) -> tuple[Tensor, Tensor]:
    """Return the weighted terms and their derivative by the scores, for some rows.

    Args:
        scores: [t, N] float, left as they are.
        items: [t, M] int64, the targets; repeats are allowed.
        weights: [t, M].
        robust: see there.

    Returns:
        [t, M] w_m l_m times `robust.weight`, and [t, N].
    """
    scale = robust.propensity.to(scores.dtype) / robust.beta
    picked, own_scale = scores.gather(1, items), scale[items]  # [t, M]
    own, near = picked.square() * own_scale, (picked - 1).square() * own_scale  # a, b of the targets
    mass = torch.mul(scores, scores).mul_(scale)  # a, [t, N]; then the shares of the items that are no target
    mass.scatter_(1, items, -torch.inf)
    top = mass.amax(dim=1, keepdim=True)  # -inf where every item is a target
    torch.softmax(mass, dim=1, out=mass)
    largest = mass.amax(dim=1, keepdim=True)  # share, which is exp(top - others)
    others = (top - largest.log()).where(top > -torch.inf, top)  # [t, 1]
    if items.shape[1] >= scores.shape[1]:
        mass.nan_to_num_()  # shares of nothing
    weights = robust.weight * weights
    if items.shape[1] == 1:
        total, slope = torch.logaddexp(others, near), torch.zeros_like(near)
    else:
        total, slope = _among_several(own, near, others, items, weights, scores)
    gradient = mass.mul_(scores).mul_((weights * (others - total).exp()).sum(dim=1, keepdim=True)).mul_(2 * scale)
    change = weights * (near - total).exp() * (picked - 1) + slope * picked
    return weights * total, gradient.scatter_add_(1, items, 2 * own_scale * change)


def _among_several(
    own: Tensor, near: Tensor, others: Tensor, items: Tensor, weights: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log M_m and what the sums of the other targets add to each target's slope, both [t, M].

    The leader, the target with the largest a, is left out of its own sum by summing the rest; from a sum that holds it, any other may
    be taken away and costs a bit at most. So no [t, M, M] is formed. An item that comes n times counts as n n-ths.
    """
    counts = torch.zeros_like(scores)
    times = counts.scatter_add_(1, items, torch.ones_like(own)).gather(1, items)
    weight_of_item = counts.scatter_(1, items, 0.0).scatter_add_(1, items, weights).gather(1, items)
    lead, leader = own.max(dim=1, keepdim=True)  # [t, 1]
    leads = items == items.gather(1, leader)
    once = own - times.log()
    rest = once.masked_fill(leads, -torch.inf)
    reference = torch.maximum(lead, others)
    whole = (others - reference).exp() + (lead - reference).exp() + (rest - reference).exp().sum(dim=1, keepdim=True)
    without = reference + (whole - (own - reference).exp()).log()
    without = without.where(~leads, torch.logaddexp(others, rest.logsumexp(dim=1, keepdim=True)))
    total = torch.logaddexp(without, near)
    pulls = (lead - total).exp().masked_fill(leads, 0.0)  # of the others, whose totals are at least `lead`
    pull = (weights * pulls).sum(dim=1, keepdim=True)
    beside = (own - lead).exp() * (pull - weight_of_item * pulls).clamp_min(0)
    by_leader = weight_of_item.gather(1, leader) * (own - total.gather(1, leader)).exp()
    return total, torch.where(leads, pull, beside + by_leader) / times
