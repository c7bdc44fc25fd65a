"""Hint against hand-computed numbers and its equation written out item by item, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.losses.objective import Objective
from distilrec.methods.base import Method
from distilrec.methods.hint import Hint, HintSettings
from distilrec.methods.item_vectors import principal
from distilrec.students.base import ItemTable
from fixtures_vectors import N_ITEMS, NAMED, WIDTH, batch, knowledge, ready, student, teacher


def hint(vectors: Tensor | None = None, **changes: Any) -> Method:
    return ready(Hint(HintSettings.model_validate(changes), knowledge(teacher() if vectors is None else vectors)))


def parts_of(**changes: Any) -> dict[str, Tensor]:
    return hint(**changes).loss(batch(), *student())


def test_by_hand() -> None:
    # Standardised, the teacher says 1 and -1. The projection 2 s + 1/2 of 1/4 and -1 says 1 and -3/2.
    method = Hint(HintSettings(weight=3.0, width=None), knowledge(torch.tensor([[4.0], [2.0]], dtype=torch.float64)))
    method.objective = Objective(LossSettings(name="ce"), torch.ones(2))
    method.item_embedding(ItemTable(2, 1))
    method.double()
    with torch.no_grad():
        method.project.weight.fill_(2.0)
        method.project.bias.fill_(0.5)
    asked = Batch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), torch.tensor([7]))
    table = torch.tensor([[0.25], [-1.0]], dtype=torch.float64)
    parts = method.loss(asked, torch.zeros(1, 1, dtype=torch.float64), table)
    assert parts["hint"].item() == pytest.approx(3 * 0.25 / 2)
    assert parts["target"].item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("changes", [{}, {"weight": 2.5}, {"width": 4}, {"width": None}])
def test_loss_and_gradients_equal_the_equation(changes: dict[str, Any]) -> None:
    method, (states, table) = hint(**changes), student()
    settings = HintSettings.model_validate(changes)
    assert isinstance(method, Hint)
    weight, bias = method.project.weight, method.project.bias
    wanted = principal(teacher(), settings.width)
    total = torch.zeros((), dtype=torch.float64)
    for item in NAMED:
        for place in range(wanted.shape[1]):
            total = total + (wanted[item, place] - (weight[place] * table[item]).sum() - bias[place]) ** 2
    expected = settings.weight * total / (len(NAMED) * wanted.shape[1])
    found = method.loss(batch(), states, table)["hint"]
    torch.testing.assert_close(found, expected)
    inputs = (table, weight, bias)
    for got, want in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_only_items_that_the_batch_names_are_drawn() -> None:
    _, table = student()
    (gradient,) = torch.autograd.grad(hint().loss(batch(), student()[0], table)["hint"], table)
    assert gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() == NAMED


def test_every_setting_and_the_teacher_count() -> None:
    variants = [{}, {"weight": 2.0}, {"width": 3}, {"width": None}, {"vectors": teacher(1)}]
    found = [parts_of(**variant)["hint"].item() for variant in variants]
    assert len({round(value, 9) for value in found}) == len(variants), found
    assert len({parts_of(**variant)["target"].item() for variant in variants}) == 1


def test_a_teacher_that_is_a_projection_of_the_student_is_met() -> None:
    _, table = student()
    method = hint((table @ torch.randn(WIDTH, 4, dtype=torch.float64)).detach())
    assert isinstance(method, Hint)
    ones = torch.cat([table.detach(), torch.ones(N_ITEMS, 1, dtype=torch.float64)], dim=1)
    solved = torch.linalg.lstsq(ones, method.teacher).solution
    with torch.no_grad():
        method.project.weight.copy_(solved[:-1].T)
        method.project.bias.copy_(solved[-1])
    assert method.loss(batch(), student()[0], table)["hint"].item() == pytest.approx(0, abs=1e-20)
