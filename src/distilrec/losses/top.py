"""The largest scores of a row, without sorting it.

The k largest of a row lie in the k blocks of columns with the largest maxima (and in what is left behind the last whole block),
so one reading for the maxima and a search of k blocks find them.
"""

import torch
from torch import Tensor

BLOCK = 64  # columns whose maximum is formed first


def best_columns(scores: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest numbers in each row of [t, N], best first, [t, k]."""
    if _few(scores, k):
        return scores.topk(k, dim=1).indices
    at, values, whole = _candidates(scores, k)
    found = values.topk(k, dim=1).indices
    inside = at.gather(1, (found // BLOCK).clamp_max(k - 1)) * BLOCK + found % BLOCK
    return torch.where(found < k * BLOCK, inside, found - k * BLOCK + whole)


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """Return the k-th largest number in each row of [t, N], [t, 1]; the least one where N is smaller than k."""
    k = min(k, scores.shape[1])
    values = scores if _few(scores, k) else _candidates(scores, k)[1]
    return values.topk(k, dim=1).values[:, -1:]


def _few(scores: Tensor, k: int) -> bool:
    return scores.shape[1] < 2 * k * BLOCK


def _candidates(scores: Tensor, k: int) -> tuple[Tensor, Tensor, int]:
    """Return the k blocks searched [t, k], their numbers with those behind the last whole block, and where these begin."""
    whole = scores.shape[1] // BLOCK * BLOCK
    blocks = scores[:, :whole].unflatten(1, (-1, BLOCK))
    # a CPU forms maxima of short stretches of 16-bit numbers one by one
    wide = blocks.float() if scores.dtype == torch.bfloat16 else blocks
    at = wide.amax(dim=2).topk(k, dim=1, sorted=False).indices
    values = blocks.gather(1, at[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return at, torch.cat([values, scores[:, whole:]], dim=1), whole
