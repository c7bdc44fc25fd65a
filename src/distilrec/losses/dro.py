"""The DRO term of DROS, over the whole catalogue in bounded memory.

Yang et al., "A Generic Learning Framework for Sequential Recommendation with Distribution Shifts", SIGIR 2023. For scores y,
the target t and item propensities p:
    l = log( sum_j exp(p_j y_j^2 / beta) - exp(p_t y_t^2 / beta) + exp(p_t (y_t - 1)^2 / beta) )
The mean over targets is returned. p_i is the share of i among training interactions, each count raised by 1, to the power
0.05. With s = softmax over the exponents, d l / d y_j = 2 p_j y_j s_j / beta for j other than t, and
2 p_t (y_t - 1) s_t / beta for the target: formed chunk by chunk, like the cross-entropy's.

Deviation: the sum is formed with the largest exponent taken out, which the published code does not do (it overflows).
"""

from typing import Any

import torch
from torch import Tensor

from distilrec.losses.catalogue import CHUNK_ELEMENTS, scaled

_POWER = 0.05


class _DRO(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, targets: Tensor, propensity: Tensor, beta: float, chunk: int
    ) -> Tensor:
        total = len(states)
        grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
        value = states.new_zeros((), dtype=torch.float64)
        scale = propensity / beta
        for first in range(0, total, chunk):
            rows = slice(first, min(first + chunk, total))
            scores = states[rows] @ table.T
            wanted = targets[rows, None]
            scores.scatter_add_(
                1, wanted, -torch.ones_like(wanted, dtype=scores.dtype)
            )  # distance from 1 for the target
            exponents = scores.square().mul_(scale)
            top = exponents.amax(dim=1, keepdim=True)
            exponents.sub_(top).exp_()
            mass = exponents.sum(dim=1, keepdim=True)
            value += (mass.log() + top).sum(dtype=torch.float64)
            gradient = exponents.div_(mass).mul_(scores).mul_(2 * scale)
            torch.mm(gradient, table, out=grad_states[rows])
            grad_table.addmm_(gradient.T, states[rows])
        ctx.save_for_backward(grad_states.div_(total), grad_table.div_(total))
        return (value / total).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled(ctx.saved_tensors, grad), None, None, None, None


def dro(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    propensity: Tensor,
    *,
    beta: float,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Return the mean DRO term.

    Args:
        states: [T, d].
        table: [N, d] item vectors.
        targets: [T] int64.
        propensity: [N], see `propensities`.
        beta: temperature.
        chunk_elements: at most this many scores exist at a time.
    """
    loss: Tensor = _DRO.apply(states, table, targets, propensity, beta, max(1, chunk_elements // len(table)))
    return loss


def propensities(counts: Tensor) -> Tensor:
    """Return p of each item, [N], from its number of training interactions."""
    raised = counts.to(torch.float32) + 1
    return (raised / raised.sum()) ** _POWER
