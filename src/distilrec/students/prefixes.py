"""Attention of every position over its own prefix, where each (position, item) pair needs more than one product of numbers.

The fused kernel of self-attention never holds such pairs; STAMP and Atten-Mixer need them. Here they exist for a few rows
at a time only, in training too: where they are many, the backward pass computes them again.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
PAIR_NUMBERS = 1 << 22  # numbers held at a time for pairs: 16 MiB of float32
_ROWS = 16  # positions at a time: so few that the half of all pairs which looks ahead is mostly left out


def over_prefixes(attend: Attend, queries: Tensor, memory: Tensor, pair_width: int) -> Tensor:
    """Apply `attend` to every position and its prefix, for at most `PAIR_NUMBERS` numbers of pairs (or one row) at a time.

    Args:
        attend: called as attend(queries [b, r, ...], memory [b, n, w], visible [r, n] bool) -> [b, r, d]; no randomness in it.
        queries: [B, L, ...] one query (or several) per position.
        memory: [B, L, w] what is attended to.
        pair_width: numbers that `attend` holds for each (position, item) pair.

    Returns:
        [B, L, d].
    """
    total, length = memory.shape[:2]
    rows = max(1, min(_ROWS, length, PAIR_NUMBERS // (length * pair_width)))
    batch = max(1, PAIR_NUMBERS // (rows * length * pair_width))
    again = torch.is_grad_enabled() and total * length * length * pair_width > PAIR_NUMBERS
    place = torch.arange(length, device=memory.device)
    parts = []
    for start in range(0, total, batch):
        some = slice(start, start + batch)
        columns = []
        for first in range(0, length, rows):
            end = min(first + rows, length)
            chunk = (queries[some, first:end], memory[some, :end], place[:end] <= place[first:end, None])
            columns.append(
                checkpoint(attend, *chunk, use_reentrant=False, preserve_rng_state=False) if again else attend(*chunk)
            )
        parts.append(torch.cat(columns, dim=1))
    return torch.cat(parts)


def last_items(histories: Tensor, lengths: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return the last `columns` items of each history, the latest first, and which of them exist.

    Args:
        histories: [B, L] int64, right-padded.
        lengths: [B] int64, 1..L.
        columns: how many.

    Returns:
        [B, columns] int64 items (anything where there is none) and [B, columns] bool.
    """
    place = lengths[:, None] - 1 - torch.arange(columns, device=lengths.device)
    return histories.gather(1, place.clamp_min(0)), place >= 0
