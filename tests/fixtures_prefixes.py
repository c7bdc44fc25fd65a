"""Shared by tests of students that read every prefix of a history on its own: what is read, and how far two ways lie apart."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from distilrec.students import prefixes
from distilrec.students.base import Student

N_ITEMS, LENGTH = 15, 20
S = TypeVar("S", bound=Student)


def histories(rows: int) -> Tensor:
    return torch.randint(N_ITEMS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def apart_by_prefixes(student: S, lengths: Tensor, by_the_book: Callable[[S, Tensor, Tensor], Tensor]) -> float:
    """Return how far the states of all prefixes, and those at the ends, are from what the equations say of each prefix alone."""
    worst = 0.0
    table, some = student.item_vectors(), histories(len(lengths))
    states = student.encode(some, lengths, table)
    last = student.encode_last(some, lengths, table)
    for row, history in enumerate(some):
        for t in range(LENGTH):
            expected = by_the_book(student, history[: t + 1], table)
            worst = max(worst, apart(states[row, t], expected))
            if t + 1 == lengths[row]:
                worst = max(worst, apart(last[row], expected))
    return worst


def apart_by_pieces(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Student]) -> float:
    """Return how far gradients lie apart that are formed from many pairs of positions at a time, and from few."""
    some, lengths = histories(6), torch.full((6,), LENGTH)

    def gradients(pair_numbers: int) -> list[Tensor]:
        monkeypatch.setattr(prefixes, "PAIR_NUMBERS", pair_numbers)
        student = make()
        student.encode(some, lengths, student.item_vectors()).square().sum().backward()
        return [parameter.grad for parameter in student.parameters() if parameter.grad is not None]

    whole = gradients(1 << 22)
    assert len(whole) > 3
    return max(apart(one, other) for one, other in zip(whole, gradients(300), strict=True))


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest distance, 1 being what single precision explains; without end where something is no number."""
    return float(((found - expected).abs() / (1e-5 + 1e-4 * expected.abs())).nan_to_num(torch.inf).max())
