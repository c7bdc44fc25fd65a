"""The largest scores of a row, without sorting it.

The k largest of a row lie in the k blocks of columns with the largest maxima (and in what is left behind the last whole block),
so one reading for the maxima and a search of k blocks find them.
"""

import torch
from torch import Tensor

BLOCK = 64  # columns whose maximum is formed first
_DEALT = 16  # columns in a group


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


def among_largest(scores: Tensor, picked: Tensor, k: int) -> Tensor:
    """Return whether `picked` [t, M], numbers of the rows of `scores` [t, N], are among their row's k largest, [t, M] bool.

    Columns are dealt into groups, c, c + C, c + 2 C and so on; the k-th largest maximum of a group is a bound from below, and only
    rows with a number above it are searched.
    """
    k = min(k, scores.shape[1])
    groups = scores.shape[1] // _DEALT
    if groups < 2 * k:
        return picked >= scores.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    whole = groups * _DEALT
    bounds, at = scores[:, :whole].unflatten(1, (_DEALT, groups)).amax(dim=1).topk(k, dim=1, sorted=False)
    found = picked >= bounds.amin(dim=1, keepdim=True)
    rows = found.any(dim=1).nonzero()[:, 0]
    if len(rows):
        columns = (at[rows, None, :] + torch.arange(0, whole, groups, device=at.device)[:, None]).flatten(1)
        some = scores if len(rows) == len(scores) else scores[rows]
        values = torch.cat([some.gather(1, columns), some[:, whole:]], dim=1)
        found[rows] = picked[rows] >= values.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    return found


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
