"""A teacher's item vectors, made ready to learn from: centred, brought to one scale, and cut to the directions that matter.

An LLM's hidden states share a large mean, differ from each other in scale by dimension, and mostly lie in few directions. With
Z [N, D] standardised and Z = U S V^T its singular value decomposition, `principal` gives the first k columns of U S V-rotated
coordinates, scaled by S^-w: w = 0 keeps the variance of each direction (a rotation of Z, if k = D), w = 1 gives all the same.
"""

import torch
from torch import Tensor

from distilrec.data.batching import Batch

_EXACT = 1024  # up to so many dimensions the decomposition is exact and takes less than a second
_SPARE, _PASSES = 32, 4
_NOISE = 1e-5  # directions of less variance than this, squared, beside the greatest are rounding errors


def standardised(vectors: Tensor) -> Tensor:
    """Return vectors [N, D] with mean 0 and deviation 1 in every dimension; constant dimensions become 0."""
    centred = vectors - vectors.mean(dim=0)
    deviation = centred.std(dim=0, correction=0)
    return torch.where(deviation > 1e-6, centred / deviation.clamp_min(1e-6), 0.0)


def principal(vectors: Tensor, width: int | None, *, whiten: float = 0.0) -> Tensor:
    """Return the standardised vectors in their `width` principal directions, [N, min(width, N, D)], mean square 1.

    Args:
        vectors: [N, D], as a teacher gave them.
        width: how many directions to keep; None: the standardised vectors as they are, every dimension of them.
        whiten: w above, 0 to 1.
    """
    standard = standardised(vectors)
    if width is None:
        return standard
    coordinates = standard @ directions(standard, min(width, *standard.shape))
    deviation = coordinates.square().mean(dim=0).sqrt()
    least = deviation[0] * _NOISE
    coordinates = coordinates * torch.where(deviation > least, deviation.clamp_min(1e-12) ** -whiten, 0.0)
    scale = coordinates.square().mean().sqrt()
    return coordinates / scale.clamp_min(1e-12)


def directions(centred: Tensor, count: int) -> Tensor:
    """Return the `count` directions of most variance of [N, D], [D, count], orthonormal, the first with the most.

    Exact up to 1,024 items or dimensions; above, by subspace iteration from a fixed start, which loses little of the variance.
    """
    n, width = centred.shape
    if min(n, width) <= _EXACT or count > min(n, width) // 2:
        exact = centred.double()
        _, found = torch.linalg.eigh(exact.T @ exact if width <= n else exact @ exact.T)
        found = found.flip(1)[:, :count]
        # The items' side leads to orthogonal directions of unequal length, of which the last may be next to nothing.
        return (found if width <= n else torch.linalg.qr(exact.T @ found).Q).to(centred.dtype)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(width, count + _SPARE, generator=generator).to(centred)
    for _ in range(_PASSES):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    _, order = torch.linalg.eigh((centred @ basis).T @ (centred @ basis))
    return basis @ order.flip(1)[:, :count]


def items_of(batch: Batch, n_items: int) -> Tensor:
    """Return the items that a batch's histories and targets name, [U] ascending, each once.

    Found by marking them in the catalogue: histories that overlap name an item many times, and sorting them would take longer.
    """
    place = torch.arange(batch.histories.shape[1], device=batch.histories.device)
    real = (place < batch.lengths[:, None]) & (batch.histories >= 0)  # neither padding nor a mask
    named = torch.zeros(n_items + 1, dtype=torch.bool, device=batch.targets.device)
    named.index_fill_(0, batch.histories.masked_fill(~real, n_items).flatten(), True)
    named.index_fill_(0, batch.targets, True)
    return named[:n_items].nonzero()[:, 0]
