"""The DRO term of DROS, over the whole catalogue.

Yang et al., "A Generic Learning Framework for Sequential Recommendation with Distribution Shifts", SIGIR 2023. For scores y,
the target t and item propensities p:
    l_t = log( sum_j exp(p_j y_j^2 / beta) - exp(p_t y_t^2 / beta) + exp(p_t (y_t - 1)^2 / beta) )
p_i is the share of i among training interactions, each count raised by 1, to the power 0.05. With several weighted targets m of
one state the terms share their sum over the catalogue: with a_j = p_j y_j^2 / beta, b_m = p_m (y_m - 1)^2 / beta and
M_m = sum_(j not m) exp(a_j) + exp(b_m),
    l = sum_m w_m log M_m
    d l / d y_j = (2 p_j / beta) ( y_j exp(a_j) sum_(m not j) w_m / M_m  +  (y_j - 1) sum_(m = j) w_m exp(b_m) / M_m )

Deviation: the largest exponent is taken out of each sum, which the published code does not do (it overflows), and the sum without
m is formed without m, not as a difference (which loses all digits once one score leads): the items that are no target are summed
once, and each target adds the other targets to it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_POWER = 0.05


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
    mass = scores.square().mul_(scale)  # a, [t, N]; then exp(a - top) of the items that are no target
    own, near = mass.gather(1, items), (picked - 1).square() * own_scale  # a, b of the targets
    mass.scatter_(1, items, -torch.inf)
    top = mass.amax(dim=1, keepdim=True).clamp_min(0)  # a is at least 0; -inf is left where every item is a target
    others = mass.sub_(top).exp_().sum(dim=1, keepdim=True).log() + top  # [t, 1]
    same = items[:, :, None] == items[:, None, :]  # [t, M, M]
    repeated = same.tril(-1).any(dim=2)  # a repeated item counts once
    beside = own[:, None, :].masked_fill(same | repeated[:, None, :], -torch.inf)  # of m: the other targets
    total = torch.cat([others[:, :, None].expand(-1, items.shape[1], -1), near[:, :, None], beside], dim=2).logsumexp(2)
    weights = robust.weight * weights  # [t, M]; total is log M_m
    gradient = mass.mul_(scores).mul_(2 * scale).mul_((weights * (top - total).exp()).sum(dim=1, keepdim=True))
    change = weights * (near - total).exp() * (picked - 1)
    change += (weights[:, :, None] * (beside - total[:, :, None]).exp()).sum(dim=1) * picked
    return weights * total, gradient.scatter_add_(1, items, 2 * own_scale * change)
