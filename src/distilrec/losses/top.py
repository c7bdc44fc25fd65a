"""The largest scores of a row, without sorting it.

The k largest of a row lie in the k blocks of columns with the largest maxima (and in what is left behind the last whole block),
so one reading for the maxima and a search of k blocks find them.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 64  # columns whose maximum is formed first
_DEALT = 16  # columns in a group
_FEW_THREADS, _MANY = 2, 20


def best_columns(scores: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest numbers in each row of [t, N], best first, [t, k]."""
    if _few(scores, k):
        return scores.topk(k, dim=1).indices
    at, values, whole = _candidates(scores, k)
    found = values.topk(k, dim=1).indices
    inside = at.gather(1, (found // BLOCK).clamp_max(k - 1)) * BLOCK + found % BLOCK
    return torch.where(found < k * BLOCK, inside, found - k * BLOCK + whole)


def among_largest(scores: Tensor, picked: Tensor, k: int) -> Tensor:
    """Return whether `picked` [t, M], numbers of the rows of `scores` [t, N], are among their row's k largest, [t, M] bool.

    Columns are dealt into groups, c, c + C, c + 2 C and so on; the k-th largest maximum of a group is a bound from below, and only
    rows with a number above it are searched.
    """
    k = min(k, scores.shape[1])
    groups = scores.shape[1] // _DEALT
    if groups < 2 * k:
        return picked >= _kth(scores, k)
    whole = groups * _DEALT
    bounds, at = _leading_groups(scores[:, :whole].unflatten(1, (_DEALT, groups)), k)
    found = picked >= bounds
    rows = found.any(dim=1).nonzero()[:, 0]
    if len(rows):
        columns = (at[rows, None, :] + torch.arange(0, whole, groups, device=at.device)[:, None]).flatten(1)
        behind = torch.arange(whole, scores.shape[1], device=at.device).expand(len(rows), -1)
        places = torch.cat([columns, behind], dim=1).add_(rows[:, None] * scores.shape[1])
        # scores[rows] would copy whole rows for the sake of a few numbers
        values = scores.reshape(-1).index_select(0, places.view(-1)).view_as(places)
        found[rows] = picked[rows] >= _kth(values, k)
    return found


def _kth(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest number of each row of [t, n], k <= n, [t, 1]."""
    if not _by_numpy(values, k):
        return values.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    place = values.shape[1] - k
    parted = np.partition(_wide(values), place, axis=1)[:, place, None]
    return torch.from_numpy(parted).to(values.dtype)


def _leading_groups(dealt: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k-th largest maximum over the groups of [t, _DEALT, C], [t, 1], and the groups of the k largest, [t, k]."""
    if not _by_numpy(dealt, k):
        values, at = dealt.amax(dim=1).topk(k, dim=1, sorted=False)
        return values.amin(dim=1, keepdim=True), at
    # read as whole numbers, which is faster, the bits of numbers that are not negative stand in the same order
    if dealt.dtype == torch.bfloat16:
        bounds, at = _parted(dealt.view(torch.int16).amax(dim=1).view(torch.bfloat16), k)
        if not (bounds < 0).any():  # then a group of negative numbers alone, whose maximum is wrong, is not among the k
            return bounds, at
    return _parted(dealt.amax(dim=1), k)


def _by_numpy(values: Tensor, k: int) -> bool:
    """Return whether numpy's selection, by vector instructions in one thread, is ahead of torch's, whose cost grows with k."""
    return values.device.type == "cpu" and torch.get_num_threads() <= (1 if k < _MANY else _FEW_THREADS)


def _parted(maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
    place = maxima.shape[1] - k
    at = torch.from_numpy(np.argpartition(_wide(maxima), place, axis=1)[:, place:])
    return maxima.gather(1, at[:, :1]), at


def _wide(values: Tensor) -> npt.NDArray[np.floating]:
    found: npt.NDArray[np.floating] = values.to(torch.promote_types(values.dtype, torch.float32)).numpy()
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
