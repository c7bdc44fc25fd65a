"""Split histories into training, validation and test examples.

An example is one target with all that came before it in its history. Its id is the target's position in the flat `items`
array, so it stays the same as long as the dataset does. Each history is cut once: its items before `train_end` may be
trained on; held-out targets lie behind that.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from distilrec.config import SplitSettings
from distilrec.errors import InputError

Ints = npt.NDArray[np.int64]

LEAK_NOTE = (
    "leave-one-out holds out each user's last items whenever they happened: training sees other users' later behaviour. "
    "Use data.split.kind=global_time where that matters."
)


@dataclass(frozen=True, slots=True)
class Split:
    """Which examples belong where.

    Attributes:
        train_end: [rows] per history, the number of leading items that may be trained on.
        valid: [n] example ids of validation targets, ascending.
        test: [m] example ids of test targets, ascending.
        note: what the user should know about this split, or "".
    """

    train_end: Ints
    valid: Ints
    test: Ints
    note: str


def split(offsets: Ints, times: npt.NDArray[np.float64] | None, settings: SplitSettings, seed: int) -> Split:
    """Split histories given by `offsets` ([rows + 1], into the flat item array).

    Raises:
        InputError: the split needs times and there are none, or a part would be empty.
    """
    if settings.kind == "leave_one_out":
        result = _leave_one_out(offsets)
    elif settings.kind == "global_time":
        result = _global_time(offsets, _needed(times, settings.kind), *settings.shares())
    elif settings.kind == "last_sessions":
        result = _last_sessions(offsets, _needed(times, settings.kind), *settings.shares())
    else:
        result = _random_sessions(offsets, *settings.shares(), np.random.default_rng(seed))
    sizes = {
        "training": int(np.maximum(result.train_end - 1, 0).sum()),
        "validation": len(result.valid),
        "test": len(result.test),
    }
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        raise InputError(
            f"the split {settings.kind} leaves no {' and no '.join(empty)} example.",
            remedy="Give more data, loosen data.filters, or choose another data.split.kind.",
        )
    return result


def _needed(times: npt.NDArray[np.float64] | None, kind: str) -> npt.NDArray[np.float64]:
    if times is None:
        raise InputError(
            f"the split {kind} needs a time column and the log has none.",
            remedy="Name it with data.columns.time=NAME or use data.split.kind=leave_one_out.",
        )
    return times


def _leave_one_out(offsets: Ints) -> Split:
    lengths, ends = np.diff(offsets), offsets[1:]
    held = lengths >= 3  # with fewer, nothing would be left to learn from or to rank by
    return Split(np.where(held, lengths - 2, lengths), ends[held] - 2, ends[held] - 1, LEAK_NOTE)


def _global_time(offsets: Ints, times: npt.NDArray[np.float64], train: float, valid: float) -> Split:
    is_target = np.ones(len(times), dtype=bool)
    is_target[offsets[:-1]] = False
    targets = np.flatnonzero(is_target)
    if len(targets) == 0:
        return Split(np.zeros(len(offsets) - 1, dtype=np.int64), targets, targets, "")
    ordered = np.sort(times[targets], kind="stable")
    # Cuts are moments, not counts: examples of one moment never fall on both sides.
    first_valid = ordered[min(round(len(ordered) * train), len(ordered) - 1)]
    first_test = ordered[min(round(len(ordered) * (train + valid)), len(ordered) - 1)]
    before = np.concatenate([[0], np.cumsum(times < first_valid)])
    train_end = before[offsets[1:]] - before[offsets[:-1]]
    moment = times[targets]
    in_valid = (moment >= first_valid) & (moment < first_test)
    return Split(train_end, targets[in_valid], targets[moment >= first_test], "")


def _random_sessions(offsets: Ints, train: float, valid: float, generator: np.random.Generator) -> Split:
    rows = generator.permutation(len(offsets) - 1)
    return _by_session(offsets, rows, round(len(rows) * train), round(len(rows) * (train + valid)))


def _last_sessions(offsets: Ints, times: npt.NDArray[np.float64], train: float, valid: float) -> Split:
    rows = np.argsort(times[offsets[:-1]], kind="stable")
    # Shares as they are written: in floats 0.7 + 0.1 falls short of 0.8, and a cut would move by a whole session.
    first, both = Fraction(str(train)), Fraction(str(train)) + Fraction(str(valid))
    return _by_session(offsets, rows, int(len(rows) * first), int(len(rows) * both))


def _by_session(offsets: Ints, rows: Ints, first_valid: int, first_test: int) -> Split:
    """Train on whole sessions before place `first_valid` of `rows`; the last item of each later one is a target."""
    lengths = np.diff(offsets)
    train_end = np.zeros(len(rows), dtype=np.int64)
    train_end[rows[:first_valid]] = lengths[rows[:first_valid]]
    last = offsets[1:] - 1
    has_history = lengths >= 2
    valid_rows, test_rows = (part[has_history[part]] for part in (rows[first_valid:first_test], rows[first_test:]))
    return Split(train_end, np.sort(last[valid_rows]), np.sort(last[test_rows]), "")
