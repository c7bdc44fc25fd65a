"""Cross-entropy over the whole catalogue, for one or several weighted targets per state, in bounded memory.

For states h [T, d], item table E [N, d], items i_m and weights w_m (m = 1..M) of one state:
    loss = (1 / T) sum_t sum_m w_tm (logsumexp_n(h_t . e_n) - h_t . e_{i_tm})
With M = 1 and w = 1 this is the plain cross-entropy. Both gradients are formed while the logits of a chunk are at hand,
so that no more than `chunk` x N numbers ever exist and no product is done twice:
    d/dlogits = (sum_m w_m) softmax - sum_m w_m onehot(i_m)
The DRO term of DROS can be added to it, or stand alone, from the same logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distilrec.losses.dro import Robust, dro_terms, rows_at_a_time

Weigh = Callable[[Tensor, Tensor, slice], Tensor]
# 8 MiB of float32 logits: small enough to stay near the caches, large enough for fast products
CHUNK_ELEMENTS = 1 << 21
_SURE = 1e-30  # a probability above it has all its digits


class _CatalogueLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        items: Tensor,
        weights: Tensor | None,
        weigh: Weigh | None,
        entropy: bool,
        robust: Robust | None,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        total, n_items = len(states), len(table)
        grad_states = torch.empty_like(states)
        grad_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        parts = states.new_zeros(2, items.shape[1], dtype=torch.float64)
        states, table = states.to(dtype), table.to(dtype)
        buffer = states.new_empty(min(chunk, total), n_items)
        for first in range(0, total, chunk):
            rows = slice(first, min(first + chunk, total))
            logits = torch.mm(states[rows], table.T, out=buffer[: rows.stop - rows.start])
            picked = logits.gather(1, items[rows])  # [t, M]
            if weigh is not None:
                weight = weigh(logits, picked, rows)
            else:
                weight = torch.ones_like(picked) if weights is None else weights[rows]
            rowwise = None  # the factor of each row's gradient: applied to d columns, not to N
            if robust is not None:
                parts += _shifted_in_place(logits, picked, items[rows], weight, states[rows], table, entropy, robust)
            elif entropy:
                whole = _softmax_in_place(logits, picked, items[rows], states[rows], table)  # [t, 1]
                picked = picked.to(whole.dtype)
                parts[0] += (weight * (whole - picked)).sum(dim=0, dtype=torch.float64)
                if weigh is not None or weights is not None or items.shape[1] > 1:
                    rowwise = weight.sum(dim=1, keepdim=True)
                    weight = weight / rowwise.where(rowwise > 0, 1.0)
                add_at(logits, items[rows], -weight)
            if grad_states.dtype == dtype:
                torch.mm(logits, table, out=grad_states[rows])
            else:
                grad_states[rows] = logits @ table
            if rowwise is not None:
                grad_states[rows] *= rowwise
            if grad_table is not None:  # a frozen table needs none
                by = states[rows] if rowwise is None else (states[rows] * rowwise).to(dtype)
                if grad_table.dtype == dtype:
                    grad_table.addmm_(logits.T, by)
                else:
                    grad_table += logits.T @ by
        ctx.save_for_backward(grad_states.div_(total), None if grad_table is None else grad_table.div_(total))
        parts = (parts / total).to(torch.promote_types(grad_states.dtype, torch.float32))
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _parts: Tensor) -> tuple[Tensor | None, ...]:
        states, table = ctx.saved_tensors
        by_table = None if table is None else scaled((table,), grad)[0]
        return scaled((states,), grad)[0], by_table, *(None,) * 7


def add_at(matrix: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Add `values` [t, M] to the contiguous [t, N] `matrix` at `columns` [t, M], in place, a repeated one as often as it comes.

    `scatter_add_` does the same; where numbers have 16 bits it widens the whole matrix on a CPU, and narrows it again, so that a
    repeated column is rounded once there and each time here.
    """
    places = columns + torch.arange(0, matrix.numel(), matrix.shape[1], device=columns.device)[:, None]
    matrix.view(-1).index_add_(0, places.view(-1), values.to(matrix.dtype).reshape(-1))
    return matrix


def scaled(gradients: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return gradients times the scalar `grad`, without touching them where it is 1, as in a sum of losses."""
    if grad.device.type == "cpu" and grad.item() == 1.0:
        return list(gradients)
    return [gradient * grad for gradient in gradients]


def _softmax_in_place(logits: Tensor, picked: Tensor, items: Tensor, states: Tensor, table: Tensor) -> Tensor:
    """Turn logits [t, N] into probabilities and return each row's logsumexp, [t, 1].

    The row is in the cache while its maximum, sum and quotients are formed; the logsumexp is read off an item of known logit,
    or, where that item's probability is too small to say, off the likeliest one.
    """
    best, place = picked.max(dim=1, keepdim=True)  # [t, 1]
    at = items.gather(1, place)
    torch.softmax(logits, dim=1, out=logits)
    wide = torch.promote_types(logits.dtype, torch.float32)
    share = logits.gather(1, at).to(wide)
    whole = best.to(wide) - share.log()
    lost = ~(share > _SURE)[:, 0]
    if lost.any():
        likely, top = logits[lost].max(dim=1)
        whole[lost] = ((states[lost] * table[top]).sum(dim=1) - likely.log())[:, None].to(whole.dtype)
    return whole


def _shifted_in_place(
    logits: Tensor,
    picked: Tensor,
    items: Tensor,
    weights: Tensor,
    states: Tensor,
    table: Tensor,
    entropy: bool,
    robust: Robust,
) -> Tensor:
    """Turn logits [t, N] into the gradient of the DRO term, and of the cross-entropy beside it; return the parts of both, [2, M].

    On a CPU all is done to a few rows before the next: each number is read a dozen times.
    """
    parts = picked.new_zeros(2, items.shape[1], dtype=torch.float64)
    wide = torch.promote_types(logits.dtype, torch.float32)  # the term's exponents are squares
    step = rows_at_a_time(logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for first in range(0, len(logits), step):
        rows = slice(first, first + step)
        scores, weight = logits[rows].to(wide), weights[rows].to(wide)
        terms, gradient = dro_terms(scores, items[rows], weight, robust)
        parts[1] += terms.sum(dim=0, dtype=torch.float64)
        if entropy:
            whole = _softmax_in_place(logits[rows], picked[rows], items[rows], states[rows], table)
            parts[0] += (weight * (whole - picked[rows])).sum(dim=0, dtype=torch.float64)
            gradient.addcmul_(logits[rows].to(wide), weight.sum(dim=1, keepdim=True))
            gradient.scatter_add_(1, items[rows], -weight)
        logits[rows] = gradient
    return parts


def catalogue_loss(
    states: Tensor,
    table: Tensor,
    items: Tensor,
    weights: Tensor | None,
    *,
    weigh: Weigh | None = None,
    entropy: bool = True,
    robust: Robust | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses over the catalogue for several weighted targets per state, from one scoring of it.

    Args:
        states: [T, d].
        table: [N, d] item vectors.
        items: [T, M] int64 item ids.
        weights: [T, M]; they need not sum to 1. None: all are 1, and M is 1.
        weigh: called as weigh(logits [t, N], logits of the items [t, M], rows) -> weights [t, M] of a chunk, where weights depend
            on the scores; no gradient flows through it, and it must not change the logits.
        entropy: whether the cross-entropy is a part of the loss.
        robust: what the DRO term needs, if it is a part.
        chunk_elements: at most this many logits exist at a time.
        dtype: of the logits and the products around them; the table's own by default. Sums over chunks keep the table's.

    Returns:
        The loss (with gradients for states and table), and its shares without gradient, [2, M]: cross-entropy and DRO term of
        each column.
    """
    if len(states) == 0:
        raise ValueError("no states to compute a loss for")
    chunk = max(1, chunk_elements // len(table))
    with torch.autocast(states.device.type, enabled=False):
        loss, parts = _CatalogueLoss.apply(
            states, table, items, weights, weigh, entropy, robust, chunk, dtype or table.dtype
        )
    return loss, parts


def weighted_cross_entropy(
    states: Tensor,
    table: Tensor,
    items: Tensor,
    weights: Tensor | None,
    *,
    weigh: Weigh | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the catalogue for several weighted targets per state: the loss, and its share per column, [M].

    Arguments as in `catalogue_loss`.
    """
    loss, parts = catalogue_loss(states, table, items, weights, weigh=weigh, chunk_elements=chunk_elements, dtype=dtype)
    return loss, parts[0]


def cross_entropy(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mean cross-entropy of the targets ([T] int64) over the catalogue, chunked."""
    loss, _ = weighted_cross_entropy(states, table, targets[:, None], None, chunk_elements=chunk_elements, dtype=dtype)
    return loss


@torch.no_grad()
def scan(
    states: Tensor,
    table: Tensor,
    items: Tensor,
    look: Weigh,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    dtype: torch.dtype | None = None,
) -> None:
    """Score the catalogue chunk by chunk and call `look` as `catalogue_loss` calls its `weigh`; for losses that do not score it."""
    chunk, dtype = max(1, chunk_elements // len(table)), dtype or table.dtype
    states, table = states.to(dtype), table.to(dtype)
    for first in range(0, len(states), chunk):
        rows = slice(first, min(first + chunk, len(states)))
        logits = states[rows] @ table.T
        look(logits, logits.gather(1, items[rows]), rows)
