"""Shared by tests of students that read every prefix of a history on its own: what is read, and two claims about it."""

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
def every_prefix_equals(student: S, lengths: Tensor, by_the_book: Callable[[S, Tensor, Tensor], Tensor]) -> None:
    """Claim that the states of all prefixes, and those at the ends, are what the equations say of each prefix alone."""
    table, some = student.item_vectors(), histories(len(lengths))
    states = student.encode(some, lengths, table)
    last = student.encode_last(some, lengths, table)
    for row, history in enumerate(some):
        for t in range(LENGTH):
            expected = by_the_book(student, history[: t + 1], table)
            torch.testing.assert_close(states[row, t], expected, rtol=1e-4, atol=1e-5)
            if t + 1 == lengths[row]:
                torch.testing.assert_close(last[row], expected, rtol=1e-4, atol=1e-5)


def gradients_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Student]) -> None:
    """Claim that it does not matter how many pairs of positions are formed at a time."""
    some, lengths = histories(6), torch.full((6,), LENGTH)

    def gradients(pair_numbers: int) -> list[Tensor]:
        monkeypatch.setattr(prefixes, "PAIR_NUMBERS", pair_numbers)
        student = make()
        student.encode(some, lengths, student.item_vectors()).square().sum().backward()
        return [parameter.grad for parameter in student.parameters() if parameter.grad is not None]

    whole = gradients(1 << 22)
    assert len(whole) > 3
    for one, other in zip(whole, gradients(300), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
