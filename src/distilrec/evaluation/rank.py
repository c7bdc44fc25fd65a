"""Rank targets among the whole catalogue without sorting it.

rank = 1 + number of other items that score at least as high as the target: ties count against the model.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distilrec.data.batching import held_out_windows, make_batch, plan
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.errors import TrainingError

_SCORES = 1 << 22  # scores held at a time: 16 MiB of float32


class Scorer(Protocol):
    """Anything that scores an item as state . vector: students, and teachers with a prediction layer."""

    @property
    def max_length(self) -> int:
        """Most history items read."""

    def item_vectors(self) -> Tensor:
        """[N, d]."""

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """[B, d] states after the last item; `table` is what `item_vectors` gave."""


@torch.inference_mode()
def target_ranks(
    model: Scorer, dataset: Dataset, examples: Ints, *, batch_tokens: int = 16_384, filter_seen: bool = False
) -> npt.NDArray[np.int64]:
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
    windows = held_out_windows(dataset, examples, model.max_length)
    ranks = np.zeros(len(examples), dtype=np.int64)
    table = model.item_vectors()
    chunk = max(1, _SCORES // len(table))
    for rows in plan(windows.end - windows.start, batch_tokens, None):
        batch = make_batch(dataset, windows, rows).to(table.device)
        states = model.encode_last(batch.histories, batch.lengths, table)
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            scores = states[part] @ table.T  # [t, N]
            targets = batch.targets[part, None]
            own = scores.gather(1, targets)
            if not torch.isfinite(own).all():
                raise TrainingError(
                    "the model's scores are not numbers.", remedy="Lower train.learning_rate and train again."
                )
            if filter_seen:
                _hide_seen(scores, dataset, examples[rows[part]])
            scores.scatter_(1, targets, -torch.inf)
            ranks[rows[part]] = (
                1 + (scores >= own).sum(dim=1).cpu().numpy() + torch.isnan(scores).sum(dim=1).cpu().numpy()
            )
    return ranks


def _hide_seen(scores: Tensor, dataset: Dataset, examples: Ints) -> None:
    starts = dataset.offsets[dataset.rows_of(examples)]
    counts = examples - starts
    row = np.repeat(np.arange(len(examples)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
    seen = torch.from_numpy(dataset.items[place].astype(np.int64)).to(scores.device)
    scores[torch.from_numpy(row).to(scores.device), seen] = -torch.inf


@torch.inference_mode()
def top_items(model: Scorer, dataset: Dataset, examples: Ints, k: int, *, batch_tokens: int = 16_384) -> Ints:
    """Return each example's k best items, [n, k], best first."""
    windows = held_out_windows(dataset, examples, model.max_length)
    k = min(k, dataset.n_items)
    best = np.zeros((len(examples), k), dtype=np.int64)
    table = model.item_vectors()
    chunk = max(1, _SCORES // len(table))
    for rows in plan(windows.end - windows.start, batch_tokens, None):
        batch = make_batch(dataset, windows, rows).to(table.device)
        states = model.encode_last(batch.histories, batch.lengths, table)
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            best[rows[part]] = (states[part] @ table.T).topk(k, dim=1).indices.cpu().numpy()
    return best


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
