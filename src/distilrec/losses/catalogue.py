"""Cross-entropy over the whole catalogue, for one or several weighted targets per state, in bounded memory.

For states h [T, d], item table E [N, d], items i_m and weights w_m (m = 1..M) of one state:
    loss = (1 / T) sum_t sum_m w_tm (logsumexp_n(h_t . e_n) - h_t . e_{i_tm})
With M = 1 and w = 1 this is the plain cross-entropy. Both gradients are formed while the logits of a chunk are at hand,
so that no more than `chunk` x N numbers ever exist and no product is done twice:
    d/dlogits = (sum_m w_m) softmax - sum_m w_m onehot(i_m)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Weigh = Callable[[Tensor, Tensor, slice], Tensor]
# 8 MiB of float32 logits: small enough to stay near the caches, large enough for fast products
CHUNK_ELEMENTS = 1 << 21


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, items: Tensor, weights: Tensor, weigh: Weigh | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        total, n_items = len(states), len(table)
        grad_states = torch.empty_like(states)
        grad_table = torch.zeros_like(table)
        by_column = states.new_zeros(items.shape[1], dtype=torch.float64)
        buffer = states.new_empty(min(chunk, total), n_items)
        for first in range(0, total, chunk):
            rows = slice(first, min(first + chunk, total))
            logits = torch.mm(states[rows], table.T, out=buffer[: rows.stop - rows.start])
            picked = logits.gather(1, items[rows])  # [t, M]
            weight = weights[rows] if weigh is None else weigh(logits, picked, rows)
            top = logits.amax(dim=1, keepdim=True)
            logits.sub_(top).exp_()
            mass = logits.sum(dim=1, keepdim=True)
            by_column += (weight * (mass.log() + top - picked)).sum(dim=0, dtype=torch.float64)
            logits.mul_(weight.sum(dim=1, keepdim=True) / mass)
            logits.scatter_add_(1, items[rows], -weight)
            torch.mm(logits, table, out=grad_states[rows])
            grad_table.addmm_(logits.T, states[rows])
        ctx.save_for_backward(grad_states.div_(total), grad_table.div_(total))
        parts = (by_column / total).to(states.dtype)
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _parts: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_states, grad_table = ctx.saved_tensors
        return grad_states * grad, grad_table * grad, None, None, None, None


def weighted_cross_entropy(
    states: Tensor,
    table: Tensor,
    items: Tensor,
    weights: Tensor,
    *,
    weigh: Weigh | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the catalogue for several weighted targets per state.

    Args:
        states: [T, d].
        table: [N, d] item vectors.
        items: [T, M] int64 item ids.
        weights: [T, M]; they need not sum to 1.
        weigh: called as weigh(logits [t, N], logits of the items [t, M], rows) -> weights [t, M] of a chunk, where weights depend
            on the scores; no gradient flows through it, and it must not change the logits.
        chunk_elements: at most this many logits exist at a time.

    Returns:
        The loss (with gradients for states and table), and its share per column m, [M], without gradient.
    """
    if len(states) == 0:
        raise ValueError("no states to compute a loss for")
    chunk = max(1, chunk_elements // len(table))
    loss, parts = _WeightedCrossEntropy.apply(states, table, items, weights, weigh, chunk)
    return loss, parts


def cross_entropy(states: Tensor, table: Tensor, targets: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """Mean cross-entropy of the targets ([T] int64) over the catalogue, chunked."""
    ones = torch.ones(len(targets), 1, dtype=states.dtype, device=states.device)
    loss, _ = weighted_cross_entropy(states, table, targets[:, None], ones, chunk_elements=chunk_elements)
    return loss
