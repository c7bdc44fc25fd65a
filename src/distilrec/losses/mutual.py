"""Cross-entropy plus the divergence from another model's distribution, weighted sample by sample: how two models teach each other.

LLMD4Rec: Wu et al., "Bidirectional Knowledge Distillation for Enhancing Sequential Recommendation with Large Language Models",
arXiv 2505.18120. For a state with own logits z, the other model's logits o, target t and temperature T:
    l = CE(z, t) + lambda w KL(p || q),   p = softmax(o / T),   q = softmax(z / T)
    w = clip(1 + (r - r_o) / max(r_o, 1)) if r > r_o else clip(1 - (r_o - r) / max(r, 1)),   clip(x) = max(0, min(2, x))
r and r_o are the ranks of the target under this model and the other: one learns where the other ranks the truth better. With
`squared` the divergence counts T^2 times, so that its gradient keeps its size whatever T is. Then
    dl / dz = softmax(z) - onehot(t) + lambda w s / T (q - p),   s = T^2 or 1
Where only the other's first K items are known with their probabilities, all others are one cell whose mass is what is left, of p
and q alike; the divergence is the one between these K + 1 cells, which is never above the whole one. At T other than 1 the mass of
that cell is taken as spread evenly over its items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilrec.losses.catalogue import CHUNK_ELEMENTS, add_at

_NEVER = -1e4  # a logit that no softmax feels, and that leaves no infinity in a product
_LEAST = 1e-30  # of the last cell: no division by nothing


@dataclass(frozen=True, slots=True)
class Whole:
    """What the other model says of a chunk of states: `logits` [t, N]; they are overwritten. -inf: never recommended."""

    logits: Tensor


@dataclass(frozen=True, slots=True)
class Leading:
    """The other model's first items of a chunk of states.

    Attributes:
        items: [t, K] int64, each once a row.
        log_probabilities: [t, K]; -inf where there is no item.
        ranks: [t] the target's rank under the other model; K + 1 where it is not known.
        known: [t] bool, whether anything was said about a state; if not, its target alone counts.
    """

    items: Tensor
    log_probabilities: Tensor
    ranks: Tensor
    known: Tensor


Other = Callable[[slice], Whole | Leading]


@dataclass(frozen=True, slots=True)
class Mutual:
    """How the divergence counts: temperature T, whether by T^2, whether by the ranks of the target (w, else 1), and lambda."""

    temperature: float = 1.0
    squared: bool = False
    adaptive: bool = True
    weight: float = 1.0

    @property
    def slope(self) -> float:
        """What the gradient of the divergence is multiplied with, lambda s / T."""
        return self.factor / self.temperature

    @property
    def factor(self) -> float:
        """What the divergence is multiplied with, lambda s."""
        return self.weight * (self.temperature**2 if self.squared else 1.0)


def sample_weights(own: Tensor, other: Tensor) -> Tensor:
    """Return w for ranks [t] of the target under the model that learns and the one it learns from; 1 is the best rank, 0 <= w <= 2."""
    own, other = own.double(), other.double()
    behind = 1 + (own - other) / other.clamp_min(1)
    ahead = 1 - (other - own) / own.clamp_min(1)
    return torch.where(own > other, behind, ahead).clamp(0, 2)


def ranks_of(logits: Tensor, own: Tensor) -> Tensor:
    """Return the rank of the item with logit `own` [t, 1] in [t, N], [t] int64: how many are at least as high, itself counted."""
    reached = logits >= own
    if reached.device.type != "cpu":
        return reached.sum(dim=1)
    counts = [np.count_nonzero(row) for row in reached.numpy()]  # bytes, many at a time; torch would widen them first
    return torch.tensor(counts, dtype=torch.int64)


class _MutualLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        targets: Tensor,
        other: Other,
        how: Mutual,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        total = len(states)
        grad_states = torch.empty_like(states)
        grad_table = torch.zeros_like(table)
        parts = states.new_zeros(2, dtype=torch.float64)
        states, table = states.to(dtype), table.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        buffer = states.new_empty(min(chunk, total), len(table))
        for first in range(0, total, chunk):
            rows = slice(first, min(first + chunk, total))
            logits = torch.mm(states[rows], table.T, out=buffer[: rows.stop - rows.start])
            target = targets[rows, None]
            own = logits.gather(1, target)
            ranks = ranks_of(logits, own) if how.adaptive else None
            said = other(rows)
            if isinstance(said, Whole):
                divergence, coefficient, entropy = _whole(logits, own.to(wide), target, ranks, said, how)
            else:
                divergence, coefficient, entropy = _leading(logits, own.to(wide), ranks, said, how)
            parts[0] += entropy.sum(dtype=torch.float64)
            parts[1] += (coefficient * divergence).sum(dtype=torch.float64)
            add_at(logits, target, torch.full_like(own, -1.0))
            grad_states[rows] = logits @ table
            if grad_table.dtype == dtype:
                grad_table.addmm_(logits.T, states[rows])
            else:
                grad_table += logits.T @ states[rows]
        ctx.save_for_backward(grad_states.div_(total), grad_table.div_(total))
        parts = (parts / total).to(torch.promote_types(grad_states.dtype, torch.float32))
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _parts: Tensor) -> tuple[Tensor | None, ...]:
        states, table = ctx.saved_tensors
        return states * grad, table * grad, *(None,) * 5


def _softmax(logits: Tensor, wide: torch.dtype) -> Tensor:
    """Turn [t, N] into probabilities and return each row's logsumexp, [t, 1]."""
    top, place = logits.max(dim=1, keepdim=True)
    torch.softmax(logits, dim=1, out=logits)
    return top.to(wide) - logits.gather(1, place).to(wide).log()


def _whole(
    logits: Tensor, own: Tensor, target: Tensor, ranks: Tensor | None, said: Whole, how: Mutual
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits into the gradient but for its onehot; return divergence, its coefficient and cross-entropy, [t, 1] each."""
    others = said.logits
    weight = torch.ones_like(own)
    if ranks is not None:
        weight = sample_weights(ranks, ranks_of(others, others.gather(1, target))).to(own)[:, None]
    p = others.clamp_min_(_NEVER)
    if how.temperature != 1:
        p = p.div_(how.temperature)
    cooled = logits if how.temperature == 1 else logits / how.temperature
    gap = p - cooled
    level = _softmax(p, own.dtype)
    cross = gap.mul_(p).sum(dim=1, keepdim=True, dtype=own.dtype)
    whole = _softmax(logits, own.dtype)
    coefficient = weight * how.slope
    if how.temperature == 1:
        divergence = cross - level + whole
        logits.mul_((1 + coefficient).to(logits.dtype))
    else:
        divergence = cross - level + _softmax(cooled, own.dtype)
        logits.addcmul_(cooled, coefficient.to(logits.dtype))
    logits.addcmul_(p, -coefficient.to(logits.dtype))
    return divergence, weight * how.factor, whole - own


def _leading(
    logits: Tensor, own: Tensor, ranks: Tensor | None, said: Leading, how: Mutual
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `_whole` where only the first K items are known."""
    n_others = logits.shape[1] - (said.log_probabilities > -torch.inf).sum(dim=1, keepdim=True)
    p, rest = _cells(said.log_probabilities.to(own.dtype), n_others, how.temperature)  # [t, K], [t, 1]
    weight = torch.ones_like(own) if ranks is None else sample_weights(ranks, said.ranks).to(own)[:, None]
    weight = weight * said.known[:, None]
    there = said.log_probabilities > -torch.inf
    cooled = logits if how.temperature == 1 else logits / how.temperature
    picked = cooled.gather(1, said.items).to(own.dtype)
    whole = _softmax(logits, own.dtype)
    level = whole if how.temperature == 1 else _softmax(cooled, own.dtype)
    # The last cell is summed up, not what is left of 1: where the student is sure, half-precise numbers leave nothing or less.
    listed = cooled.gather(1, said.items).where(there, 0.0)
    add_at(cooled, said.items, -listed)
    left = cooled.sum(dim=1, keepdim=True, dtype=own.dtype)
    q = listed.to(own.dtype)
    total = left + q.sum(dim=1, keepdim=True)
    q, left = q / total, (left / total).clamp_min(_LEAST)
    terms = torch.special.xlogy(p, p) - p * (picked - level).where(there, 0.0)
    divergence = terms.sum(dim=1, keepdim=True) + torch.special.xlogy(rest, rest) - rest * left.log()
    coefficient = weight * how.slope
    share = coefficient * (1 - rest / left)  # of each item in the last cell
    change = coefficient * (q - p)
    if how.temperature == 1:
        logits.mul_((1 + share).to(logits.dtype))
        change = change + q
    else:
        logits.addcmul_(cooled, share.to(logits.dtype))
    add_at(logits, said.items, change.where(there, 0.0))
    return divergence, weight * how.factor, whole - own


def _cells(log_probabilities: Tensor, n_others: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the first items [t, K] and of all others together [t, 1] at a temperature."""
    mass = log_probabilities.exp()
    rest = (1 - mass.sum(dim=1, keepdim=True)).clamp_min(0)
    if temperature == 1:
        total = mass.sum(dim=1, keepdim=True) + rest
        return mass / total, rest / total
    even = rest / n_others.clamp_min(1)
    cooled = torch.cat([(log_probabilities / temperature).exp(), n_others * even.pow(1 / temperature)], dim=1)
    cooled = cooled / cooled.sum(dim=1, keepdim=True)
    return cooled[:, :-1], cooled[:, -1:]


def mutual_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    other: Other,
    how: Mutual,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus divergence over the catalogue, in bounded memory: no more than a few chunks of logits exist at a time.

    Args:
        states: [T, d] of the model that learns.
        table: [N, d] its item vectors.
        targets: [T] int64.
        other: what the other model says of a chunk of states, given their rows.
        how: see `Mutual`.
        chunk_elements: at most this many logits of a model exist at a time.
        dtype: of the logits and the products around them; the table's own by default.

    Returns:
        The loss, with gradients for states and table, and its two parts without gradient, [2].
    """
    if len(states) == 0:
        raise ValueError("no states to compute a loss for")
    chunk = max(1, chunk_elements // len(table))
    with torch.autocast(states.device.type, enabled=False):
        loss, parts = _MutualLoss.apply(states, table, targets, other, how, chunk, dtype or table.dtype)
    return loss, parts
