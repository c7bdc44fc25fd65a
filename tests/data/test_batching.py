"""Windows, plans and batches against naive loops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.data.batching import (
    Batch,
    Windows,
    batches,
    held_out_windows,
    make_batch,
    plan,
    single_positions,
    training_windows,
)
from distilrec.data.dataset import Dataset
from distilrec.data.split import Split


def in_memory(lengths: list[int], train_end: list[int], n_items: int = 50) -> Dataset:
    """Build a data set whose items tell their flat position: the item at position p is (7 p + 3) mod n."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = ((7 * np.arange(offsets[-1]) + 3) % n_items).astype(np.int32)
    nothing = np.empty(0, dtype=np.int64)
    return Dataset(
        Path(),
        {"n_items": n_items},
        offsets,
        items,
        None,
        Split(np.asarray(train_end, dtype=np.int64), nothing, nothing, ""),
    )


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    lengths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=8))
    return in_memory(lengths, [draw(st.integers(0, length)) for length in lengths])


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, Any]:
    reach = draw(st.integers(1, 12))
    return {"reach": reach, "stride": draw(st.none() | st.integers(1, reach + 3)), "shift": draw(st.integers(0, 20))}


def training_positions(data: Dataset) -> list[int]:
    """Every training target: all but the first item of each history, before its cut."""
    return [
        int(start) + n
        for start, end in zip(data.offsets[:-1], data.split.train_end, strict=True)
        for n in range(1, int(end))
    ]


def asked(windows: Windows) -> list[int]:
    spans = zip(windows.supervised_from.tolist(), windows.end.tolist(), strict=True)
    return [place + 1 for first, end in spans for place in range(first, end)]


@given(data=datasets(), cut=cuts())
def test_every_training_target_is_asked_for_once_with_enough_context(data: Dataset, cut: dict[str, Any]) -> None:
    windows = training_windows(data, **cut)
    assert sorted(asked(windows)) == training_positions(data)
    reach = cut["reach"]
    stride = max(1, reach // 2) if cut["stride"] is None else min(cut["stride"], reach)
    rows = data.rows_of(windows.start)
    begin = data.offsets[rows]
    assert (windows.start >= begin).all()
    assert (
        windows.end <= begin + data.split.train_end[rows] - 1
    ).all()  # the target of the last input is trained on too
    assert ((windows.end - windows.start >= 1) & (windows.end - windows.start <= reach)).all()
    assert (windows.supervised_from >= windows.start).all()
    assert (windows.supervised_from < windows.end).all()
    context = windows.supervised_from - windows.start
    assert (context >= np.minimum(windows.supervised_from - begin, reach - stride)).all()


@given(data=datasets(), cut=cuts(), more=st.integers(0, 1000))
def test_shifts_of_each_row_do_not_mix(data: Dataset, cut: dict[str, Any], more: int) -> None:
    shift = (np.arange(data.n_rows) * 7 + more) % 11
    windows = training_windows(data, cut["reach"], cut["stride"], shift)
    assert sorted(asked(windows)) == training_positions(data)
    for row in range(data.n_rows):
        alone = training_windows(data, cut["reach"], cut["stride"], int(shift[row]))
        for name in ("start", "end", "supervised_from"):
            ours, theirs = ((getattr(w, name)[data.rows_of(w.start) == row]).tolist() for w in (windows, alone))
            assert ours == theirs


def test_windows_by_hand() -> None:
    data = in_memory([13], [11])  # 10 inputs
    windows = training_windows(data, reach=4, stride=3)
    assert windows.end.tolist() == [4, 7, 10]
    assert windows.start.tolist() == [0, 3, 6]
    assert windows.supervised_from.tolist() == [0, 4, 7]
    shifted = training_windows(data, reach=4, stride=3, shift=2)
    assert shifted.end.tolist() == [2, 5, 8, 10]
    assert shifted.start.tolist() == [0, 1, 4, 6]
    assert shifted.supervised_from.tolist() == [0, 2, 5, 8]
    assert len(shifted) == 4


def test_a_history_within_reach_is_one_window_whatever_the_shift() -> None:
    windows = training_windows(in_memory([6, 1, 3], [6, 1, 0]), reach=5, stride=2, shift=1)
    assert (windows.start.tolist(), windows.end.tolist()) == ([0], [5])


@given(data=datasets(), reach=st.integers(1, 30))
def test_held_out_windows_read_what_came_before(data: Dataset, reach: int) -> None:
    starts = set(data.offsets.tolist())
    examples = np.array([place for place in range(len(data.items)) if place not in starts], dtype=np.int64)
    windows = held_out_windows(data, examples, reach)
    assert asked(windows) == examples.tolist()
    for example, start, end in zip(examples, windows.start, windows.end, strict=True):
        row_start = max(place for place in starts if place <= example)
        assert (start, end) == (max(row_start, example - reach), example)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    tokens=st.integers(1, 120),
    seed=st.none() | st.integers(0, 9),
)
def test_a_plan_covers_all_rows_once_within_the_size(lengths: list[int], tokens: int, seed: int | None) -> None:
    sizes = np.array(lengths)
    groups = plan(sizes, tokens, None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for rows in groups:
        assert len(rows) == 1 or len(rows) * sizes[rows].max() <= tokens


def test_a_plan_follows_its_seed_alone() -> None:
    sizes = np.random.default_rng(0).integers(1, 50, 300)
    same, again, other = (
        [rows.tolist() for rows in plan(sizes, 200, np.random.default_rng(seed))] for seed in (1, 1, 2)
    )
    assert same == again
    assert same != other
    assert [len(rows) for rows in same] != sorted(len(rows) for rows in same)  # batches of all lengths take turns
    assert [rows.tolist() for rows in plan(sizes, 200, None)] == [rows.tolist() for rows in plan(sizes, 200, None)]


@pytest.mark.parametrize("seed", [None, 3])
def test_skewed_lengths_are_hardly_padded(seed: int | None) -> None:
    lengths = np.minimum(np.random.default_rng(1).zipf(1.6, 20_000), 200)
    groups = plan(lengths, 4096, None if seed is None else np.random.default_rng(seed))
    held = sum(len(rows) * lengths[rows].max() for rows in groups)
    padding = 1 - lengths.sum() / held
    assert padding < 0.05
    in_order = np.arange(len(lengths)).reshape(-1, 20)
    assert 1 - lengths.sum() / sum(20 * lengths[rows].max() for rows in in_order) > 0.5  # what it would be unsorted
    assert len(groups) < 1.1 * lengths.sum() / 4096 + 10


def naive_batch(data: Dataset, windows: Windows, rows: list[int]) -> tuple[list[Any], ...]:
    width = max(int(windows.end[row] - windows.start[row]) for row in rows)
    histories, lengths, positions, targets, examples = [], [], [], [], []
    for number, row in enumerate(rows):
        start, end = int(windows.start[row]), int(windows.end[row])
        history = [int(data.items[place]) for place in range(start, end)]
        histories.append(history + [0] * (width - len(history)))
        lengths.append(len(history))
        for place in range(int(windows.supervised_from[row]), end):
            positions.append(number * width + place - start)
            targets.append(int(data.items[place + 1]))
            examples.append(place + 1)
    return histories, lengths, positions, targets, examples


@given(data=datasets(), cut=cuts(), seed=st.integers(0, 9))
def test_batches_like_a_naive_loop(data: Dataset, cut: dict[str, Any], seed: int) -> None:
    windows = training_windows(data, **cut)
    if len(windows) == 0:
        return
    groups = plan(windows.end - windows.start, 24, np.random.default_rng(seed))
    for rows, batch in zip(groups, batches(data, windows, groups), strict=True):
        found = (batch.histories, batch.lengths, batch.positions, batch.targets, batch.examples)
        assert tuple(part.tolist() for part in found) == naive_batch(data, windows, rows.tolist())
        assert all(part.dtype == torch.int64 for part in found)


def test_a_batch_of_the_tiny_data_set_asks_for_the_next_item(tiny_dataset: Dataset) -> None:
    windows = training_windows(tiny_dataset, reach=8, stride=None)
    batch = make_batch(tiny_dataset, windows, np.arange(len(windows)))
    inputs = batch.histories.flatten()[batch.positions]
    assert torch.equal((inputs + 1) % 20, batch.targets)
    assert len(batch.targets) == tiny_dataset.manifest["n_train_targets"]
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.histories, batch.histories)
    held = held_out_windows(tiny_dataset, tiny_dataset.examples("test"), reach=8)
    last = make_batch(tiny_dataset, held, np.arange(len(held)))
    assert torch.equal(last.examples, torch.from_numpy(np.array(tiny_dataset.examples("test"))))
    assert last.lengths.tolist() == [min(8, length - 1) for length in np.diff(tiny_dataset.offsets)]


@given(data=datasets(), cut=cuts(), seed=st.integers(0, 9))
def test_single_positions_like_a_naive_loop(data: Dataset, cut: dict[str, Any], seed: int) -> None:
    windows = training_windows(data, **cut)
    if len(windows) == 0:
        return
    whole = make_batch(data, windows, np.arange(len(windows)))
    kept = torch.from_numpy(np.random.default_rng(seed).permutation(len(whole.targets)))[: 1 + len(whole.targets) // 2]
    whole = replace(whole, positions=whole.positions[kept], targets=whole.targets[kept], examples=whole.examples[kept])
    alone = single_positions(whole)
    columns = whole.histories.shape[1]
    assert alone.histories.shape == (len(kept), columns)
    for number, position in enumerate(whole.positions.tolist()):
        row, last = divmod(position, columns)
        before = whole.histories[row, : last + 1].tolist()
        assert alone.histories[number].tolist() == before + [0] * (columns - len(before))
        assert alone.lengths[number].item() == len(before)
        assert alone.positions[number].item() == number * columns + last
    assert torch.equal(alone.targets, whole.targets)
    assert torch.equal(alone.examples, whole.examples)


def test_single_positions_by_hand() -> None:
    histories = torch.tensor([[5, 6, 7], [8, 0, 0]])
    batch = Batch(histories, torch.tensor([3, 1]), torch.tensor([0, 2, 3]), *(torch.tensor([6, 9, 4]),) * 2)
    alone = single_positions(batch)
    assert alone.histories.tolist() == [[5, 0, 0], [5, 6, 7], [8, 0, 0]]
    assert alone.lengths.tolist() == [1, 3, 1]
    assert alone.positions.tolist() == [0, 5, 6]
    assert batch.histories.tolist() == [[5, 6, 7], [8, 0, 0]]  # the one it came from is left alone
