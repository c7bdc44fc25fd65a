"""Splits: nothing held out may be trained on, sizes by hand, time order, seeds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.config import SplitSettings
from distilrec.data.split import LEAK_NOTE, Split, split
from distilrec.errors import InputError

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30)
SHARES = st.sampled_from([(0.8, 0.1), (0.6, 0.2), (0.5, 0.25), (0.34, 0.33)])


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def try_split(
    kind: str,
    offsets: np.ndarray,
    times: np.ndarray | None = None,
    shares: tuple[float, float] | None = None,
    seed: int = 1,
) -> Split | None:
    train, valid = shares or (None, None)
    try:
        return split(offsets, times, SplitSettings(kind=kind, train=train, valid=valid), seed)  # type: ignore[arg-type]
    except InputError as error:
        assert "leaves no" in error.problem
        return None


def training_targets(offsets: np.ndarray, parts: Split) -> list[int]:
    return [
        int(start) + n for start, end in zip(offsets[:-1], parts.train_end, strict=True) for n in range(1, int(end))
    ]


def check_no_leak(offsets: np.ndarray, parts: Split) -> None:
    """Each training position lies in its row and before every held-out target of the row; each target has a history."""
    lengths = np.diff(offsets)
    assert parts.train_end.shape == lengths.shape
    assert ((parts.train_end >= 0) & (parts.train_end <= lengths)).all()
    held = np.concatenate([parts.valid, parts.test])
    assert len(np.unique(held)) == len(held)
    for row, (start, end) in enumerate(pairwise(offsets)):
        targets = held[(held >= start) & (held < end)]
        assert (targets > start).all()
        assert (targets >= start + parts.train_end[row]).all()
    for part in (parts.valid, parts.test):
        assert (np.diff(part) > 0).all()
        assert ((part >= 0) & (part < offsets[-1])).all()


def test_leave_one_out_by_hand() -> None:
    parts = split(offsets_of([5, 2, 3, 1, 4]), None, SplitSettings(), seed=0)
    assert parts.train_end.tolist() == [3, 2, 1, 1, 2]  # histories of one or two items are trained on whole
    assert parts.valid.tolist() == [3, 8, 13]
    assert parts.test.tolist() == [4, 9, 14]
    assert parts.note == LEAK_NOTE


@given(lengths=LENGTHS)
def test_leave_one_out_holds_out_the_last_two(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    parts = try_split("leave_one_out", offsets)
    if parts is None:
        assert max(lengths) < 4 if all(length != 2 for length in lengths) else max(lengths) < 3
        return
    check_no_leak(offsets, parts)
    long = [row for row, length in enumerate(lengths) if length >= 3]
    assert parts.test.tolist() == [offsets[row + 1] - 1 for row in long]
    assert parts.valid.tolist() == [offsets[row + 1] - 2 for row in long]


def test_global_time_by_hand() -> None:
    # Targets (all but the first item of a row) in order of time: 1 2 3 4 5 6 7 8 9 10; cuts behind 8 and 9 of 10.
    times = np.array([0, 1, 3, 5, 9, 0, 2, 4, 6, 7, 8, 10.0])
    parts = split(offsets_of([5, 7]), times, SplitSettings(kind="global_time"), seed=0)
    assert parts.train_end.tolist() == [4, 6]
    assert parts.valid.tolist() == [4]
    assert parts.test.tolist() == [11]
    assert parts.note == ""


def test_global_time_never_parts_one_moment() -> None:
    times = np.array([0, 1, 2, 3, 3, 0, 3, 3, 4, 5.0])  # targets: 1 2 3 3 3 3 4 5, a cut by count would part the threes
    parts = split(offsets_of([5, 5]), times, SplitSettings(kind="global_time", train=0.5, valid=0.3), seed=0)
    assert parts.train_end.tolist() == [3, 1]
    assert parts.valid.tolist() == [3, 4, 6, 7]
    assert parts.test.tolist() == [8, 9]


@given(data=st.data(), lengths=LENGTHS, shares=SHARES)
def test_global_time_trains_before_it_validates_before_it_tests(
    data: st.DataObject, lengths: list[int], shares: tuple[float, float]
) -> None:
    offsets = offsets_of(lengths)
    moments = st.integers(0, data.draw(st.sampled_from([3, 100])))
    times = np.concatenate([np.sort(data.draw(st.lists(moments, min_size=n, max_size=n))) for n in lengths]).astype(
        float
    )
    parts = try_split("global_time", offsets, times, shares)
    if parts is None:
        return
    check_no_leak(offsets, parts)
    trained = training_targets(offsets, parts)
    assert times[trained].max() < times[parts.valid].min()
    assert times[parts.valid].max() < times[parts.test].min()
    # What may be trained on as context is no later either, and every target is somewhere.
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) < np.repeat(parts.train_end, lengths)
    assert times[inside].max() < times[parts.valid].min()
    targets = set(range(int(offsets[-1]))) - set(offsets[:-1].tolist())
    assert {*trained, *parts.valid.tolist(), *parts.test.tolist()} == targets
    # No smaller test part than asked for, unless the cuts fall together: ties go to the later side.
    assert len(parts.test) >= len(targets) - round(len(targets) * sum(shares))


@given(lengths=LENGTHS, shares=SHARES, seed=st.integers(0, 5))
def test_random_sessions_hold_out_whole_sessions(lengths: list[int], shares: tuple[float, float], seed: int) -> None:
    offsets = offsets_of(lengths)
    parts = try_split("random_sessions", offsets, shares=shares, seed=seed)
    if parts is None:
        return
    check_no_leak(offsets, parts)
    last = offsets[1:] - 1
    held = np.concatenate([parts.valid, parts.test])
    assert set(held.tolist()) <= set(last.tolist())
    assert (parts.train_end[np.isin(last, held)] == 0).all()
    trained = np.flatnonzero(parts.train_end)
    assert (parts.train_end[trained] == np.asarray(lengths)[trained]).all()


def test_last_sessions_by_hand() -> None:
    # First moments 5 1 3 1 9: in order of time rows 1, 3 (a tie, so the order of rows), 2, 0, 4; cuts behind 3 and 4 of 5.
    times = np.array([5, 6, 1, 50, 60, 3, 4, 1, 1, 9, 10, 11.0])
    parts = split(offsets_of([2, 3, 2, 2, 3]), times, SplitSettings(kind="last_sessions"), seed=0)
    assert parts.train_end.tolist() == [0, 3, 2, 2, 0]
    assert parts.valid.tolist() == [1]
    assert parts.test.tolist() == [11]
    assert parts.note == ""


@pytest.mark.parametrize(
    ("sessions", "train", "valid", "sizes"),
    [
        (12_323, 0.6, 0.2, (7393, 2465, 2465)),  # floor(7393.8), floor(9858.4): HetRec's published cut
        (10, 0.7, 0.1, (7, 1, 2)),  # 0.7 + 0.1 is 0.7999999999999999 in floats
        (10, 0.1, 0.2, (1, 2, 7)),  # and 0.1 + 0.2 is 0.30000000000000004
        (100, 0.29, 0.28, (29, 28, 43)),  # 100 * 0.29 is 28.999999999999996
        (7, 0.5, 0.25, (3, 2, 2)),
    ],
)
def test_sizes_of_last_sessions(sessions: int, train: float, valid: float, sizes: tuple[int, int, int]) -> None:
    times = np.repeat(np.arange(sessions, dtype=float), 2)
    settings = SplitSettings(kind="last_sessions", train=train, valid=valid)
    parts = split(offsets_of([2] * sessions), times, settings, seed=0)
    assert (np.count_nonzero(parts.train_end), len(parts.valid), len(parts.test)) == sizes
    assert parts.train_end.tolist() == [2] * sizes[0] + [0] * (sizes[1] + sizes[2])  # the first in time
    assert parts.test.tolist() == [2 * row + 1 for row in range(sizes[0] + sizes[1], sessions)]


@given(data=st.data(), lengths=LENGTHS, shares=SHARES)
def test_last_sessions_hold_out_the_latest(
    data: st.DataObject, lengths: list[int], shares: tuple[float, float]
) -> None:
    offsets = offsets_of(lengths)
    starts = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths))), dtype=float)
    times = np.repeat(starts, lengths) + np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    parts = try_split("last_sessions", offsets, times, shares)
    if parts is None:
        return
    check_no_leak(offsets, parts)
    trained = np.flatnonzero(parts.train_end)
    valid, test = (np.searchsorted(offsets, part, side="right") - 1 for part in (parts.valid, parts.test))
    assert (parts.train_end[trained] == np.asarray(lengths)[trained]).all()
    assert max((starts[row], row) for row in trained) < min((starts[row], row) for row in valid)
    assert max((starts[row], row) for row in valid) < min((starts[row], row) for row in test)
    assert set(np.concatenate([parts.valid, parts.test]).tolist()) <= set((offsets[1:] - 1).tolist())


def test_sizes_of_random_sessions() -> None:
    parts = split(offsets_of([4] * 50), None, SplitSettings(kind="random_sessions"), seed=7)
    assert (np.count_nonzero(parts.train_end), len(parts.valid), len(parts.test)) == (30, 10, 10)
    parts = split(offsets_of([4] * 50), None, SplitSettings(kind="random_sessions", train=0.8, valid=0.1), seed=7)
    assert (np.count_nonzero(parts.train_end), len(parts.valid), len(parts.test)) == (40, 5, 5)


def test_a_session_of_one_item_is_no_target() -> None:
    parts = split(offsets_of([4, 1] * 20), None, SplitSettings(kind="random_sessions"), seed=3)
    assert set(np.concatenate([parts.valid, parts.test]) % 5) == {3}


def test_the_seed_decides_random_sessions() -> None:
    offsets = offsets_of([3] * 40)
    same, again, other = (split(offsets, None, SplitSettings(kind="random_sessions"), seed) for seed in (1, 1, 2))
    for name in ("train_end", "valid", "test"):
        assert getattr(same, name).tolist() == getattr(again, name).tolist()
    assert same.test.tolist() != other.test.tolist()


def test_sizes_of_global_time() -> None:
    lengths, times = [11] * 10, np.tile(np.arange(11.0), 10) * 1000 + np.repeat(np.arange(10.0), 11)
    parts = split(offsets_of(lengths), times, SplitSettings(kind="global_time"), seed=0)
    assert (len(training_targets(offsets_of(lengths), parts)), len(parts.valid), len(parts.test)) == (80, 10, 10)


@pytest.mark.parametrize("kind", ["global_time", "last_sessions"])
def test_some_splits_need_a_clock(kind: str) -> None:
    with pytest.raises(InputError, match=rf"{kind} needs a time column.*data\.columns\.time=NAME"):
        split(offsets_of([5, 5]), None, SplitSettings(kind=kind), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "lengths", "empty"),
    [
        ("leave_one_out", [2, 2], "no validation and no test example"),
        ("leave_one_out", [3, 3], "no training example"),
        ("random_sessions", [4], "no validation and no test example"),
        ("last_sessions", [4, 4], "no validation example"),
        ("global_time", [1, 1], "no training and no validation and no test example"),
        ("global_time", [2], "no training and no validation example"),
    ],
)
def test_an_empty_part_is_refused(kind: str, lengths: list[int], empty: str) -> None:
    times = np.arange(sum(lengths), dtype=float)
    with pytest.raises(InputError, match=f"the split {kind} leaves {empty}"):
        split(offsets_of(lengths), times, SplitSettings(kind=kind), seed=0)  # type: ignore[arg-type]
