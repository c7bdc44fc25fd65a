"""FTD against hand-computed numbers and its equation written out pair by pair, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.losses.objective import Objective
from distilrec.methods.base import Method
from distilrec.methods.ftd import FTD, FTDSettings
from distilrec.methods.item_vectors import principal
from distilrec.methods.topology import full_topology, unit
from fixtures_vectors import NAMED, batch, knowledge, ready, student, teacher


def ftd(vectors: Tensor | None = None, **changes: Any) -> Method:
    return ready(FTD(FTDSettings.model_validate(changes), knowledge(teacher() if vectors is None else vectors)))


def parts_of(**changes: Any) -> dict[str, Tensor]:
    return ftd(**changes).loss(batch(), *student())


def cosine(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum() / (left.square().sum() * right.square().sum()).sqrt()


def test_full_topology_by_hand() -> None:
    # The teacher: alike 1 with itself, 0 across. The student: 0.6 across. Two of four pairs are off by 0.6.
    said = torch.tensor([[5.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    seen = torch.tensor([[2.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert full_topology(seen, said).item() == pytest.approx(0.36 / 2)
    assert full_topology(-seen, said).item() == pytest.approx(0.36 / 2)
    assert full_topology(seen, 9 * seen).item() == pytest.approx(0)


def test_by_hand() -> None:
    # Standardised: (-1, -1) and (1, 1), whose cosine is -1; the student's is 0.6. Two of four pairs are off by 1.6.
    said = torch.tensor([[4.0, -1.0], [6.0, 7.0]], dtype=torch.float64)
    method = FTD(FTDSettings(weight=3.0), knowledge(said))
    method.objective = Objective(LossSettings(name="ce"), torch.ones(2))
    asked = Batch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), torch.tensor([7]))
    table = torch.tensor([[2.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    parts = method.loss(asked, torch.zeros(1, 2, dtype=torch.float64), table)
    assert parts["topology"].item() == pytest.approx(3 * 2.56 / 2)
    assert parts["target"].item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("changes", [{}, {"weight": 2.5}, {"width": 4}, {"width": None}])
def test_loss_and_gradients_equal_the_equation(changes: dict[str, Any]) -> None:
    settings, (states, table) = FTDSettings.model_validate(changes), student()
    wanted = principal(teacher(), settings.width)
    total = torch.zeros((), dtype=torch.float64)
    for i in NAMED:
        for j in NAMED:
            total = total + (cosine(wanted[i], wanted[j]) - cosine(table[i], table[j])) ** 2
    expected = settings.weight * total / len(NAMED) ** 2
    found = ftd(**changes).loss(batch(), states, table)["topology"]
    torch.testing.assert_close(found, expected)
    (got,), (want,) = torch.autograd.grad(found, table), torch.autograd.grad(expected, table)
    torch.testing.assert_close(got, want)
    assert got.abs().sum(dim=1).nonzero()[:, 0].tolist() == NAMED


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_no_matrix_of_pairs_makes_no_difference(n: int, width: int, wanted: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(n, width, dtype=torch.float64, generator=generator, requires_grad=True)
    said = torch.randn(n, wanted, dtype=torch.float64, generator=generator)
    expected = (unit(seen) @ unit(seen).T - unit(said) @ unit(said).T).square().mean()
    found = full_topology(seen, said)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, seen), torch.autograd.grad(expected, seen))


def test_gradient_by_differences() -> None:
    seen = student()[1][:7, :3].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda vectors: full_topology(vectors, teacher()[:7]), (seen,))


def test_single_precision_is_enough() -> None:
    """The sums of squares are far larger than their difference."""
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(2000, 64, generator=generator, dtype=torch.float64) + 3
    seen = (said + 0.3 * torch.randn(2000, 64, generator=generator, dtype=torch.float64)).requires_grad_()
    exact = full_topology(seen, said)
    near = full_topology(single := seen.detach().float().requires_grad_(), said.float())
    assert exact.item() < 2e-4  # of cosines near 1
    assert near.item() == pytest.approx(exact.item(), abs=1e-6)
    (want,), (got,) = torch.autograd.grad(exact, seen), torch.autograd.grad(near, single)
    assert (got - want).norm() < 1e-2 * want.norm()


def test_half_precision_around_it_changes_nothing() -> None:
    seen, said = student()[1].detach().float(), teacher().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full_topology(seen, said), plain := full_topology(seen, said))
    assert torch.equal(plain, full_topology(seen, said))


def test_items_without_a_vector_of_any_length() -> None:
    seen, said = student()[1].detach().clone(), teacher()
    seen[1], said[2] = 0.0, 0.0
    seen.requires_grad_()
    found = full_topology(seen, said)
    assert torch.isfinite(found)
    assert torch.isfinite(torch.autograd.grad(found, seen)[0]).all()


def test_every_setting_and_the_teacher_count() -> None:
    variants = [{}, {"weight": 2.0}, {"width": 3}, {"vectors": teacher(1)}]
    found = [parts_of(**variant)["topology"].item() for variant in variants]
    assert len({round(value, 9) for value in found}) == len(variants), found
    assert len({parts_of(**variant)["target"].item() for variant in variants}) == 1
    # All directions say of cosines what all dimensions say.
    assert parts_of(width=None)["topology"].item() == pytest.approx(found[0])
