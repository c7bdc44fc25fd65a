"""Batches of histories with hardly any padding: lengths are bucketed, rows are sized by the number of items they hold.

Histories are padded on the right. A causal model needs no mask then: what stands behind a history's end is only ever looked
at by positions whose output nobody reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints


@dataclass(frozen=True, slots=True)
class Negatives:
    """Items that targets are told from.

    Attributes:
        items: [n] int64 shared by all targets, or [T, n].
        log_q: like `items`, log of the number of times an item is expected in a sample.
        log_q_targets: [T], the same for the targets.
    """

    items: Tensor
    log_q: Tensor
    log_q_targets: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Histories and the targets asked of them.

    Attributes:
        histories: [B, L] int64 item ids, right-padded with 0.
        lengths: [B] int64, at least 1.
        positions: [T] int64 into the flattened [B * L] outputs, the states from which targets are predicted.
        targets: [T] int64 item ids.
        examples: [T] int64 example ids of the targets.
        negatives: what the loss draws for the batch, if it draws anything.
    """

    histories: Tensor
    lengths: Tensor
    positions: Tensor
    targets: Tensor
    examples: Tensor
    negatives: Negatives | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        if self.targets.device == device:
            return self
        parts = {name: getattr(self, name) for name in ("histories", "lengths", "positions", "targets", "examples")}
        return replace(self, **{name: part.to(device, non_blocking=True) for name, part in parts.items()})


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of the flat items array that one forward pass reads.

    Attributes:
        start: [W] first input item (flat position).
        end: [W] one past the last input item; its target is the item at `end`.
        supervised_from: [W] first input whose next item is a target of this window.
    """

    start: Ints
    end: Ints
    supervised_from: Ints

    def __len__(self) -> int:
        return len(self.start)

    def where(self, wanted: npt.NDArray[np.bool_]) -> "Windows":
        """Return some of them, chosen by [W] bool."""
        return Windows(self.start[wanted], self.end[wanted], self.supervised_from[wanted])


def training_windows(
    dataset: Dataset, reach: int, stride: int | None, shift: npt.NDArray[np.int64] | int = 0
) -> Windows:
    """Cut the training part of each history into windows so that every next-item target is asked for exactly once.

    A history with at most `reach` inputs is one window. A longer one is cut every `stride` inputs; a window reads up to
    `reach` inputs and is asked only for targets that no earlier window was asked for, so each has at least `reach - stride`
    items of context beyond the start.

    Args:
        dataset: histories and their training cut.
        reach: most items a model reads.
        stride: distance of the cuts, 1..reach; None means half the reach.
        shift: [rows] or one number, 0..stride-1: the first cut comes that much earlier. Vary it by epoch.
    """
    stride = max(1, reach // 2) if stride is None else min(stride, reach)
    inputs = np.maximum(dataset.split.train_end - 1, 0)
    rows = np.flatnonzero(inputs > 0)
    inputs = inputs[rows]
    first_cut = np.broadcast_to(reach - np.asarray(shift) % stride, len(dataset.offsets) - 1)[rows]
    first_cut = np.where(inputs <= reach, inputs, first_cut)
    count = 1 + np.maximum(-(-(inputs - first_cut) // stride), 0)
    row = np.repeat(np.arange(len(rows)), count)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    end = np.minimum(first_cut[row] + nth * stride, inputs[row])
    supervised_from = np.where(nth == 0, 0, first_cut[row] + (nth - 1) * stride)
    base = np.asarray(dataset.offsets)[rows][row]
    return Windows(base + np.maximum(end - reach, 0), base + end, base + supervised_from)


def held_out_windows(dataset: Dataset, examples: Ints, reach: int) -> Windows:
    """Return one window per held-out example: up to `reach` items before its target, which alone is asked for."""
    start = np.maximum(dataset.offsets[dataset.rows_of(examples)], examples - reach)
    return Windows(start, np.asarray(examples), np.asarray(examples) - 1)


def plan(lengths: Ints, batch_tokens: int, generator: np.random.Generator | None) -> list[Ints]:
    """Group rows of like length into batches of at most `batch_tokens` items, padding included.

    Args:
        lengths: [W] length of each row.
        batch_tokens: rows times longest row stays below this (one row always fits).
        generator: shuffles which rows of like length meet, and the order of batches; None keeps both fixed.
    """
    order = np.arange(len(lengths)) if generator is None else generator.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    ordered, batches, first = lengths[order], [], 0
    while first < len(order):
        rows = max(1, batch_tokens // max(int(ordered[first]), 1))
        batches.append(order[first : first + rows])
        first += rows
    if generator is not None:
        generator.shuffle(batches)
    return batches


def make_batch(dataset: Dataset, windows: Windows, rows: Ints) -> Batch:
    """Gather the windows `rows` into one batch."""
    start, end = windows.start[rows], windows.end[rows]
    lengths = end - start
    columns = np.arange(lengths.max())
    place = start[:, None] + columns  # [B, L]
    inside = place < end[:, None]
    histories = np.where(inside, dataset.items[np.minimum(place, len(dataset.items) - 1)], 0)
    asked = inside & (place >= windows.supervised_from[rows][:, None])
    examples = place[asked] + 1
    as_tensor = torch.from_numpy
    return Batch(
        as_tensor(histories.astype(np.int64)),
        as_tensor(lengths.astype(np.int64)),
        as_tensor(np.flatnonzero(asked.ravel())),
        as_tensor(dataset.items[examples].astype(np.int64)),
        as_tensor(examples.astype(np.int64)),
    )


def single_positions(batch: Batch) -> Batch:
    """Return a batch with one row per position, its history ending there: for models that look at a whole history at once."""
    columns = batch.histories.shape[1]
    row, last = batch.positions // columns, batch.positions % columns
    inside = torch.arange(columns, device=last.device) <= last[:, None]
    lengths = last + 1
    return replace(
        batch,
        histories=torch.where(inside, batch.histories[row], 0),
        lengths=lengths,
        positions=torch.arange(len(row), device=last.device) * columns + last,
    )


def batches(dataset: Dataset, windows: Windows, groups: list[Ints]) -> Iterator[Batch]:
    """Yield one batch per group of window numbers."""
    for rows in groups:
        yield make_batch(dataset, windows, rows)
