"""Attention over prefixes: in pieces it is what it is as a whole, and the pieces stay small."""

import pytest
import torch
from torch import Tensor

from distilrec.students import prefixes
from distilrec.students.prefixes import last_items, over_prefixes

BATCH, LENGTH, WIDTH = 5, 23, 3


def attend(queries: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
    """A sum over pairs that no product of matrices gives."""
    return torch.sin(queries[:, :, None] * memory[:, None]).masked_fill(~visible[..., None], 0).sum(dim=2)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries, memory = torch.randn(2, BATCH, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), memory.requires_grad_()


@pytest.mark.parametrize("pair_numbers", [1, 70, 500, 1 << 22])
def test_in_pieces_as_one_position_at_a_time(monkeypatch: pytest.MonkeyPatch, pair_numbers: int) -> None:
    monkeypatch.setattr(prefixes, "PAIR_NUMBERS", pair_numbers)
    queries, memory = inputs()
    out = over_prefixes(attend, queries, memory, WIDTH)
    everything = torch.ones(1, 1, dtype=torch.bool)
    naive = torch.stack(
        [attend(queries[:, t : t + 1], memory[:, : t + 1], everything.expand(1, t + 1))[:, 0] for t in range(LENGTH)],
        dim=1,
    )
    torch.testing.assert_close(out, naive)
    weights = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * weights).sum(), [queries, memory])
    expected = torch.autograd.grad((naive * weights).sum(), [queries, memory])
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("pair_numbers", [69, 200, 2000])
def test_pieces_stay_below_the_bound_forwards_and_backwards(monkeypatch: pytest.MonkeyPatch, pair_numbers: int) -> None:
    monkeypatch.setattr(prefixes, "PAIR_NUMBERS", pair_numbers)
    sizes: list[int] = []

    def measured(queries: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        sizes.append(len(queries) * visible.numel() * WIDTH)
        return attend(queries, memory, visible)

    queries, memory = inputs()
    out = over_prefixes(measured, queries, memory, WIDTH)
    once = sum(sizes)
    assert once < BATCH * LENGTH * LENGTH * WIDTH  # what lies ahead is partly left out
    out.sum().backward()
    assert max(sizes) <= pair_numbers
    assert sum(sizes) == 2 * once  # computed again instead of kept


def test_what_fits_at_once_is_computed_once() -> None:
    calls: list[int] = []

    def counted(queries: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        calls.append(1)
        return attend(queries, memory, visible)

    queries, memory = (part[:, :10] for part in inputs())
    over_prefixes(counted, queries, memory, WIDTH).sum().backward()
    assert len(calls) == 1


def test_last_items() -> None:
    histories = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    items, exists = last_items(histories, torch.tensor([4, 2]), 3)
    assert exists.tolist() == [[True, True, True], [True, True, False]]
    assert items[0].tolist() == [4, 3, 2]
    assert items[1, :2].tolist() == [6, 5]
