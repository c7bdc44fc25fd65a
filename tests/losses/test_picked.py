"""Scores of picked items against the plain product of gathered vectors."""

import pytest
import torch
from torch import Tensor

from distilrec.losses import picked
from distilrec.losses.picked import score


def naive(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
    return (table[items] * states[:, None, :]).sum(dim=2)


def made(rows: int, each: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(rows, 5, generator=generator, dtype=dtype, requires_grad=True)
    table = torch.randn(7, 5, generator=generator, dtype=dtype, requires_grad=True)
    return (
        states,
        table,
        torch.randint(7, (rows, each), generator=generator),
    )  # 7 items: many are picked again and again


@pytest.mark.parametrize("near", [1, 60, 1 << 18])
@pytest.mark.parametrize(("rows", "each"), [(1, 1), (1, 9), (11, 1), (11, 4), (12, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_gathered_product(
    monkeypatch: pytest.MonkeyPatch, near: int, rows: int, each: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(picked, "_NEAR_ELEMENTS", near)
    states, table, items = made(rows, each, dtype)
    expected, found = naive(states, table, items), score(states, table, items)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    wanted = torch.autograd.grad((expected * weights).sum(), (states, table))
    for one, other in zip(torch.autograd.grad((found * weights).sum(), (states, table)), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_gradients_against_differences() -> None:
    states, table, items = made(6, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda s, t: score(s, t, items), (states, table))


def test_gradients_of_an_expanded_upstream_and_of_turned_items() -> None:
    """Neither the gradient that comes in nor the ids need lie in memory in the usual order."""
    states, table, items = made(6, 6, torch.float64)
    turned = items.T
    assert not turned.is_contiguous()
    found = torch.autograd.grad(score(states, table, turned).sum(), (states, table))
    wanted = torch.autograd.grad(naive(states, table, turned).sum(), (states, table))
    assert all(torch.allclose(one, other) for one, other in zip(found, wanted, strict=True))


def test_only_the_gradients_that_are_asked_for() -> None:
    states, table, items = made(6, 4, torch.float64)
    of_table = torch.autograd.grad(score(states.detach(), table, items).sum(), table)[0]
    assert torch.allclose(of_table, torch.autograd.grad(naive(states, table, items).sum(), table)[0])
    of_states = torch.autograd.grad(score(states, table.detach(), items).sum(), states)[0]
    assert torch.allclose(of_states, torch.autograd.grad(naive(states, table, items).sum(), states)[0])


def test_shared_items_and_none_at_all() -> None:
    states, table, items = made(6, 4, torch.float64)
    assert torch.allclose(score(states, table, items[0]), naive(states, table, items[:1].expand(6, -1)))
    for empty in (items[:, :0], items[:0]):
        assert score(states[: len(empty)], table, empty).shape == empty.shape


def test_ids_outside_the_catalogue_are_refused() -> None:
    states, table, items = made(6, 4, torch.float64)
    with pytest.raises(IndexError):
        score(states, table, items.clone().fill_(7))
