"""Scores of each state's own items, y_tm = h_t . e_{i_tm}, without their vectors side by side.

A gather [T, M, d] and its gradient touch d numbers for each score, in memory that is far from the core. Here a chunk of them is
gathered into one buffer that stays near, and the gradients are weighted sums of rows, which need no gather at all:
    dh_t = sum_m g_tm e_{i_tm}        de_n = sum_{t, m: i_tm = n} g_tm h_t
the second after one sort of the ids.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_NEAR_ELEMENTS = 1 << 18  # 1 MiB of float32


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, items: Tensor) -> Tensor:
        ctx.save_for_backward(states, table, items)
        each, width = items.shape[1], table.shape[1]
        chunk = max(1, _NEAR_ELEMENTS // (each * width))
        buffer = table.new_empty(min(chunk, len(items)) * each, width)
        flat, found = items.reshape(-1), []
        for first in range(0, len(items), chunk):
            few = flat[first * each : (first + chunk) * each]
            vectors = torch.index_select(table, 0, few, out=buffer[: len(few)]).view(-1, each, width)
            found.append(torch.bmm(states[first : first + chunk, None], vectors.transpose(1, 2))[:, 0])
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        states, table, items = ctx.saved_tensors
        grad = grad.contiguous()
        of_states = of_table = None
        if ctx.needs_input_grad[0]:
            of_states = functional.embedding_bag(items.contiguous(), table, per_sample_weights=grad, mode="sum")
        if ctx.needs_input_grad[1]:
            flat = items.reshape(-1)
            order = flat.argsort(stable=True)
            ends = flat.bincount(minlength=len(table)).cumsum(0)
            of_table = functional.embedding_bag(
                order // items.shape[1], states, functional.pad(ends, (1, 0)),
                mode="sum", per_sample_weights=grad.view(-1)[order], include_last_offset=True,
            )  # fmt: skip
        return of_states, of_table, None


def score(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Score some items, never the whole catalogue.

    Args:
        states: [T, d].
        table: [N, d] item vectors.
        items: [n] ids for all states, or [T, n] of each its own.

    Returns:
        [T, n] state times item vector.
    """
    if items.dim() == 1:
        return states @ table[items].T
    fits = states.dtype == table.dtype and table.dtype in (torch.float32, torch.float64)
    if items.numel() and fits and table.device.type == "cpu":
        scores: Tensor = _Picked.apply(states.contiguous(), table.contiguous(), items)
        return scores
    return torch.bmm(table[items], states[:, :, None])[:, :, 0]
