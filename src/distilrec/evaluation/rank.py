"""Rank targets among the whole catalogue without sorting it.

rank = 1 + number of other items that score at least as high as the target: ties count against the model.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distilrec.data.batching import held_out_windows, make_batch, plan
from distilrec.data.dataset import Dataset, history_items
from distilrec.data.split import Ints
from distilrec.errors import TrainingError
from distilrec.losses.top import BLOCK, best_columns

_SCORES = 1 << 22  # scores held at a time: 16 MiB of float32
_LEAST_ROWS, _MOST_SCORES = 16, 1 << 27  # but so many users share one reading of the table, up to 512 MiB of scores


class Scorer(Protocol):
    """Anything that scores an item as state . vector: students, and teachers with a prediction layer."""

    @property
    def max_length(self) -> int:
        """Most history items read."""

    def item_vectors(self) -> Tensor:
        """[N, d]."""

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """[B, d] states after the last item; `table` is what `item_vectors` gave."""


class DirectScorer(Protocol):
    """A model that scores the catalogue in its own way: the training-free baselines."""

    n_items: int

    @property
    def max_length(self) -> int:
        """Most history items read."""

    def score(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """[B, N] scores after right-padded histories [B, L]."""


@torch.inference_mode()
def target_ranks(
    model: Scorer | DirectScorer,
    dataset: Dataset,
    examples: Ints,
    *,
    batch_tokens: int = 16_384,
    filter_seen: bool = False,
) -> Ints:
    """Return the rank of each example's target among all items, [n], best is 1.

    Args:
        model: what to rank with, in evaluation mode.
        dataset: histories.
        examples: ids of the held-out examples; an example's history is all before its target.
        batch_tokens: history items per batch.
        filter_seen: take items of the whole history (other than the target) out of the ranking.

    Raises:
        TrainingError: a score is not a number.
    """
    return rank_and_top(model, dataset, examples, 0, batch_tokens=batch_tokens, filter_seen=filter_seen)[0]


@torch.inference_mode()
def top_items(
    model: Scorer | DirectScorer,
    dataset: Dataset,
    examples: Ints,
    k: int,
    *,
    batch_tokens: int = 16_384,
    filter_seen: bool = False,
) -> Ints:
    """Return each example's k best items, [n, k], best first; with `filter_seen` none of its history."""
    k = min(k, dataset.n_items)
    best = np.zeros((len(examples), k), dtype=np.int64)
    for places, _, scores in _scored(model, dataset, examples, batch_tokens):
        if filter_seen:
            _hide_seen(scores, dataset, examples[places])
        best[places] = best_columns(scores, k).cpu().numpy()
    return best


@torch.inference_mode()
def rank_and_top(
    model: Scorer | DirectScorer,
    dataset: Dataset,
    examples: Ints,
    k: int,
    *,
    batch_tokens: int = 16_384,
    filter_seen: bool = False,
    ranked: Callable[[int], None] = lambda _count: None,
) -> tuple[Ints, Ints]:
    """Return the ranks of the targets, [n], and each example's k best items, [n, k], from one scoring of the catalogue.

    See `target_ranks` and `top_items`. A target that stands in its own history keeps its rank under `filter_seen`, but is
    not among the best items then. `ranked` is told how many more examples are done, for progress.
    """
    k = min(k, dataset.n_items)
    ranks = np.zeros(len(examples), dtype=np.int64)
    best = np.zeros((len(examples), k), dtype=np.int64)
    for places, targets, scores in _scored(model, dataset, examples, batch_tokens):
        own = scores.gather(1, targets)
        if not torch.isfinite(own).all():
            raise TrainingError(
                "the model's scores are not numbers.", remedy="Lower train.learning_rate and train again."
            )
        if filter_seen:
            _hide_seen(scores, dataset, examples[places])
        if k:
            best[places] = best_columns(scores, k).cpu().numpy()
        scores.scatter_(1, targets, own)
        ranks[places] = scores.shape[1] - _count(scores < own)  # what is not below counts: ties, the target, no numbers
        ranked(len(places))
    return ranks, best


def _scored(
    model: Scorer | DirectScorer, dataset: Dataset, examples: Ints, batch_tokens: int
) -> Iterator[tuple[Ints, Tensor, Tensor]]:
    """Yield places in `examples`, their targets [t, 1] and scores [t, N], which the next step overwrites.

    Columns behind the catalogue's end, if any, hold -inf, so that their number is a multiple of `BLOCK`.
    """
    windows = held_out_windows(dataset, examples, model.max_length)
    n_items = dataset.n_items
    chunk = max(1, _SCORES // n_items, _LEAST_ROWS if n_items * _LEAST_ROWS <= _MOST_SCORES else 1)
    table = padded = buffer = None
    if hasattr(model, "encode_last"):
        table = model.item_vectors()  # type: ignore[union-attr]
        padded = functional.pad(table, (0, 0, 0, -n_items % BLOCK)) if n_items > BLOCK else table
        buffer = table.new_empty(min(chunk, len(examples)), len(padded))
    for rows in plan(windows.end - windows.start, batch_tokens, None):
        batch = make_batch(dataset, windows, rows)
        if table is not None:
            batch = batch.to(table.device)
            states = model.encode_last(batch.histories, batch.lengths, table)  # type: ignore[union-attr]
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            if padded is None or buffer is None:
                scores = model.score(batch.histories[part], batch.lengths[part])  # type: ignore[union-attr]
            else:
                scores = torch.mm(states[part], padded.T, out=buffer[: len(rows[part])])
                scores[:, n_items:] = -torch.inf
            yield rows[part], batch.targets[part, None], scores


def _count(flags: Tensor) -> Ints:
    """Return how many of [t, N] are true in each row."""
    if flags.device.type == "cpu":  # numpy counts bytes many at a time, torch would widen them first
        return np.array([np.count_nonzero(row) for row in flags.numpy()], dtype=np.int64)
    counted: Ints = flags.sum(dim=1).cpu().numpy()
    return counted


def _hide_seen(scores: Tensor, dataset: Dataset, examples: Ints) -> None:
    row, seen = (torch.from_numpy(part).to(scores.device) for part in history_items(dataset, examples))
    scores[row, seen] = -torch.inf


@dataclass(frozen=True, slots=True)
class Timing:
    """How long recommending takes, in milliseconds.

    Attributes:
        ms_per_user: top 10 for many users, per user (median of the repeats).
        latency_ms: one user alone (median over users).
    """

    ms_per_user: float
    latency_ms: float


def time_ranking(
    model: Scorer,
    dataset: Dataset,
    examples: Ints,
    *,
    users: int,
    batch_tokens: int,
    repeats: int = 3,
    single: int = 30,
) -> Timing:
    """Time top-10 recommendation over the whole catalogue, after one warm-up, for at most `users` users in `examples`."""
    generator = np.random.default_rng(0)
    some = np.sort(generator.permutation(examples)[:users])
    top_items(model, dataset, some[: max(1, len(some) // 8)], 10, batch_tokens=batch_tokens)
    bulk = []
    for _ in range(repeats):
        started = time.perf_counter()
        top_items(model, dataset, some, 10, batch_tokens=batch_tokens)
        bulk.append((time.perf_counter() - started) / len(some) * 1e3)
    alone = []
    for example in some[:single]:
        started = time.perf_counter()
        top_items(model, dataset, np.array([example]), 10)
        alone.append((time.perf_counter() - started) * 1e3)
    return Timing(statistics.median(bulk), statistics.median(alone))
