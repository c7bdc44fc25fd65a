"""Hint against hand-computed numbers and its equation written out item by item, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import LossSettings, TrainSettings, checked
from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods.base import Method
from distilrec.methods.hint import Hint, HintSettings
from distilrec.methods.item_vectors import principal
from distilrec.methods.plain import Plain, PlainSettings
from distilrec.students import STUDENTS
from distilrec.students.base import ItemTable, build_student
from distilrec.training.tasks import Task

N_ITEMS, WIDTH = 15, 6
NAMED = [2, 3, 4, 5, 8, 9, 12]


def batch() -> Batch:
    """Names the items `NAMED`: behind the ends of histories stand 0 and 7, and one item is masked."""
    histories = torch.tensor([[3, 4, 3, 8], [5, -1, 0, 7]])
    targets = torch.tensor([4, 9, 12, 2, 9])
    return Batch(histories, torch.tensor([4, 2]), torch.tensor([0, 1, 2, 4, 5]), targets, torch.arange(5))


def knowledge(vectors: Tensor | None) -> Knowledge:
    nothing = np.empty((0, 0))
    return Knowledge({}, np.empty(0, dtype=np.int64), nothing.astype(np.int64), nothing, vectors)


def teacher(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_ITEMS, 11, generator=generator, dtype=torch.float64) * 3 + 2


def student(seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(5, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    return states, table


def ready(method: Method, loss: str = "ce", width: int = WIDTH) -> Method:
    torch.manual_seed(0)
    method.objective = Objective(LossSettings(name=loss), torch.arange(1, N_ITEMS + 1))
    table = ItemTable(N_ITEMS, width)
    assert method.item_embedding(table) is table
    return method.double()


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


@pytest.mark.parametrize("loss", ["ce", "dro", "bce", "sampled_softmax"])
def test_weight_zero_is_the_plain_method(loss: str) -> None:
    for said in (None, knowledge(teacher())):
        method = ready(Hint(HintSettings(weight=0), said), loss)
        plain = ready(Plain(PlainSettings(), None), loss)
        assert not list(method.parameters())
        assert not list(method.buffers())
        found = []
        for kind in (method, plain):
            torch.manual_seed(3)
            asked = kind.required_objective().draw(batch())
            states, table = student()
            parts = kind.loss(asked, states, table)
            found.append([*parts.values(), *torch.autograd.grad(sum(parts.values()), (states, table))])
        assert all(torch.equal(got, want) for got, want in zip(*found, strict=True))


def test_missing_item_vectors() -> None:
    assert Hint.needs_of(HintSettings()) == {"item_vectors"}
    assert not Hint.needs_of(HintSettings(weight=0))
    with pytest.raises(InputError, match="hint needs item vectors and this teacher gave none"):
        Hint(HintSettings(), knowledge(None))
    with pytest.raises(InputError, match="item_vectors.*Annotate first"):
        Hint(HintSettings(), None)


@pytest.mark.parametrize("settings", [{"weight": -1}, {"width": 0}, {"wieght": 1}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(HintSettings, settings, where="method")


@pytest.mark.parametrize("student_name", list(STUDENTS))
def test_with_every_student(student_name: str, tiny_dataset: Dataset) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "max_length": 12, "dropout": 0.0}
    model = build_student(student_name, settings, tiny_dataset.n_items, STUDENTS)
    before = set(model.state_dict())
    method = Hint(HintSettings(), knowledge(torch.randn(tiny_dataset.n_items, 9)))
    model.item_table = method.item_embedding(model.item_table)
    train = TrainSettings(batch_tokens=256)
    task = Task(model, tiny_dataset, train, seed=0, validate=lambda _model: {}, method=method)
    parts = task(next(task.epoch(1)[1](0)))
    torch.stack(list(parts.values())).sum().backward()
    assert all(torch.isfinite(part) for part in parts.values())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in task.parameters())
    assert set(model.state_dict()) == before
