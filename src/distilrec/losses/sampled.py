"""Losses of a target against sampled items. Tensors in, a scalar out; nothing here knows a model or how items were drawn.

With y the target's score, z_j those of its negatives (j = 1..n) and sigma the logistic function:
    sampled softmax   -log exp(y') / (exp(y') + sum_j exp(z'_j)); y' and z'_j are scores less the logarithm of how often the
                      item is expected in the sample (Jean et al., ACL 2015), or plain scores
    BCE               -(log sigma(y) + sum_j log sigma(-z_j)) / (n + 1)            (SASRec, ICDM 2018, has n = 1)
    gBCE              -(b log sigma(y) + sum_j log sigma(-z_j)) / (n + 1),  b = a (t (1 - 1/a) + 1/a),  a = n / (N - 1)
                      (Petrov and Macdonald, "gSASRec", RecSys 2023; t between 0, plain BCE, and 1)
    BPR               -sum_j log sigma(y - z_j) / n                                (Rendle et al., UAI 2009)

A negative may be hidden (it is the target itself, or stands in the history): it has no part in the loss, nor in n.
`each_...` give the loss of several positives of one state, [T, M], against the same negatives; where such a positive is drawn as a
negative too, it is taken out again: its share in the sum is known from its own score.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distilrec.losses.catalogue import scaled


def sampled_softmax(
    positive: Tensor,
    negative: Tensor,
    hidden: Tensor | None = None,
    *,
    log_q_positive: Tensor | None = None,
    log_q_negative: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the targets among themselves and their negatives, the mean over T.

    Args:
        positive: [T] scores of the targets.
        negative: [T, n] scores of the negatives.
        hidden: [T, n] bool, negatives to leave out.
        log_q_positive: [T] log of the expected number of times that the target is in the sample; None: no correction.
        log_q_negative: [n] or [T, n], the same for the negatives.
    """
    if log_q_positive is not None:
        positive = positive - log_q_positive
    if log_q_negative is not None:
        negative = negative - log_q_negative
    return each_sampled_softmax(positive[:, None], negative, hidden).mean()


def each_sampled_softmax(
    positive: Tensor,
    negative: Tensor,
    hidden: Tensor | None,
    repeats: Tensor | None = None,
    as_negative: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each positive among itself and the negatives, [T, M]; scores are corrected already.

    Args:
        positive: [T, M].
        negative: [T, n].
        hidden: [T, n] bool, negatives to leave out.
        repeats: [T, M], how often a positive is among the negatives that count.
        as_negative: [T, M], the score that it has there.
    """
    if hidden is not None:
        negative = negative.masked_fill(hidden, -torch.inf)
    mass = negative.logsumexp(dim=1, keepdim=True)
    if repeats is not None and as_negative is not None:
        drawn = repeats > 0
        share = repeats * (as_negative - mass).where(drawn, -torch.inf).exp()
        mass = mass + torch.log1p(-share.clamp_max(1 - 1e-6))
    return torch.logaddexp(positive, mass) - positive


class _SharedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        targets: Tensor,
        negatives: Tensor,
        hidden: Tensor,
        log_q_positive: Tensor | None,
        log_q_negative: Tensor | None,
    ) -> Tensor:
        """Form loss and both gradients in one go; no two of the [T, n] numbers live at once."""
        wanted, others = table[targets], table[negatives]
        positive = (states * wanted).sum(dim=1, keepdim=True)  # [T, 1]
        negative = states @ others.T  # [T, n]
        if log_q_positive is not None:
            positive = positive - log_q_positive[:, None]
        if log_q_negative is not None:
            negative.sub_(log_q_negative)
        negative.masked_fill_(hidden, -torch.inf)
        top = torch.maximum(negative.amax(dim=1, keepdim=True), positive)
        negative.sub_(top).exp_()
        own = (positive - top).exp()
        mass = negative.sum(dim=1, keepdim=True) + own
        loss = (mass.log() + top - positive).mean()
        total = len(states)
        negative.div_(mass * total)
        pull = own.div_(mass).sub_(1).div_(total)  # [T, 1]
        grad_states = torch.addcmul(negative @ others, wanted, pull)
        grad_table = torch.zeros_like(table)
        grad_table.index_add_(0, negatives, negative.T @ states).index_add_(0, targets, states * pull)
        ctx.save_for_backward(grad_states, grad_table)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled(ctx.saved_tensors, grad), None, None, None, None, None


def shared_sampled_softmax(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    hidden: Tensor,
    *,
    log_q_positive: Tensor | None = None,
    log_q_negative: Tensor | None = None,
) -> Tensor:
    """`sampled_softmax` where all targets share their negatives, gradients formed along with the loss.

    Args:
        states: [T, d].
        table: [N, d] item vectors.
        targets: [T] rows of the table.
        negatives: [n] rows of the table.
        hidden: [T, n] bool, negatives to leave out.
        log_q_positive: [T], see `sampled_softmax`.
        log_q_negative: [n].
    """
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(table.dtype)
        loss: Tensor = _SharedSoftmax.apply(states, table, targets, negatives, hidden, log_q_positive, log_q_negative)
    return loss


def bce(positive: Tensor, negative: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over T. Shapes as in `sampled_softmax`."""
    return each_bce(positive[:, None], negative, hidden).mean()


def gbce(
    positive: Tensor, negative: Tensor, hidden: Tensor | None = None, *, n_items: int, calibration: float
) -> Tensor:
    """Binary cross-entropy whose positive part is weakened against overconfidence, the mean over T.

    Args:
        positive: [T] scores of the targets.
        negative: [T, n] scores of the negatives.
        hidden: [T, n] bool, negatives to leave out.
        n_items: size N of the catalogue.
        calibration: t, 0 (plain BCE) to 1.
    """
    return each_gbce(positive[:, None], negative, hidden, n_items=n_items, calibration=calibration).mean()


def bpr(positive: Tensor, negative: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Pairwise logistic loss, the mean over T. Shapes as in `sampled_softmax`."""
    return each_bpr(positive[:, None], negative, hidden).mean()


def each_bce(positive: Tensor, negative: Tensor, hidden: Tensor | None, repeats: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each positive, [T, M]. Shapes as in `each_sampled_softmax`."""
    return _weighted_bce(positive, negative, hidden, repeats, positive.new_ones(()))


def each_gbce(
    positive: Tensor,
    negative: Tensor,
    hidden: Tensor | None,
    repeats: Tensor | None = None,
    *,
    n_items: int,
    calibration: float,
) -> Tensor:
    """Generalised binary cross-entropy of each positive, [T, M]; see `gbce`."""
    share = _counts(negative, hidden, repeats).clamp_min(1) / max(n_items - 1, 1)  # a
    return _weighted_bce(positive, negative, hidden, repeats, share * (calibration * (1 - 1 / share) + 1 / share))


def each_bpr(positive: Tensor, negative: Tensor, hidden: Tensor | None, repeats: Tensor | None = None) -> Tensor:
    """Pairwise logistic loss of each positive, [T, M]. Shapes as in `each_sampled_softmax`."""
    columns = []
    for column in range(positive.shape[1]):  # [T, n] at a time
        each = functional.softplus(negative - positive[:, column, None])
        columns.append(_sum(each, hidden))
    whole = torch.cat(columns, dim=1)
    if repeats is not None:  # a score against itself
        whole = whole - repeats.to(whole.dtype) * math.log(2)
    return whole / _counts(negative, hidden, repeats).clamp_min(1)


def _weighted_bce(
    positive: Tensor, negative: Tensor, hidden: Tensor | None, repeats: Tensor | None, weight: Tensor
) -> Tensor:
    against = _sum(functional.softplus(negative), hidden)
    if repeats is not None:
        against = against - repeats * functional.softplus(positive)
    return (weight * functional.softplus(-positive) + against) / (1 + _counts(negative, hidden, repeats))


def _sum(each: Tensor, hidden: Tensor | None) -> Tensor:
    """Return the sum over the negatives that count, [T, 1]."""
    return (each if hidden is None else each.masked_fill(hidden, 0.0)).sum(dim=1, keepdim=True)


def _counts(negative: Tensor, hidden: Tensor | None, repeats: Tensor | None) -> Tensor:
    """Return how many negatives each positive has, [T, M] or [T, 1]."""
    there = torch.ones_like(negative[:, :1]) * negative.shape[1]
    count = there if hidden is None else (~hidden).sum(dim=1, keepdim=True).to(negative.dtype)
    return count if repeats is None else count - repeats
