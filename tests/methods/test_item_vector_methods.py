"""What every method that learns from item vectors must do, whatever its equation."""

from typing import Any

import pytest
import torch

from distilrec.config import TrainSettings
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, InputError
from distilrec.methods.base import Method
from distilrec.methods.de import DE
from distilrec.methods.ftd import FTD
from distilrec.methods.hint import Hint
from distilrec.methods.htd import HTD
from distilrec.methods.plain import Plain, PlainSettings
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import build_student
from distilrec.training.tasks import Task
from fixtures_vectors import batch, knowledge, ready, student, teacher

KINDS: list[type[Method]] = [DE, FTD, Hint, HTD]
WRONG: dict[type[Method], list[dict[str, Any]]] = {
    DE: [{"weight": -1}, {"experts": 0}, {"end_temperature": 0}, {"anneal_steps": 0}, {"sample": 0}, {"exprts": 1}],
    FTD: [{"weight": -1}, {"width": 0}, {"wieght": 1}],
    Hint: [{"weight": -1}, {"width": 0}, {"wieght": 1}],
    HTD: [{"weight": -1}, {"gamma": 1}, {"groups": 0}, {"temperature": 0}, {"level": "both"}, {"gama": 0.5}],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["ce", "dro", "bce", "sampled_softmax"])
def test_weight_zero_is_the_plain_method(kind: type[Method], loss: str) -> None:
    for said in (None, knowledge(teacher())):
        method = ready(kind(kind.Settings(weight=0), said), loss)
        plain = ready(Plain(PlainSettings(), None), loss)
        assert not list(method.parameters())
        assert not list(method.buffers())
        found = []
        for one in (method, plain):
            torch.manual_seed(3)
            asked = one.required_objective().draw(batch())
            states, table = student()
            parts = one.loss(asked, states, table)
            found.append([*parts.values(), *torch.autograd.grad(sum(parts.values()), (states, table))])
        assert all(torch.equal(got, want) for got, want in zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_item_vectors(kind: type[Method]) -> None:
    assert kind.needs_of(kind.Settings()) == {"item_vectors"}
    assert not kind.needs_of(kind.Settings(weight=0))
    with pytest.raises(InputError, match=f"{kind.name} needs item vectors and this teacher gave none"):
        kind(kind.Settings(), knowledge(None))
    with pytest.raises(InputError, match="item_vectors.*Annotate first"):
        kind(kind.Settings(), None)


@pytest.mark.parametrize(("kind", "settings"), [(kind, settings) for kind, some in WRONG.items() for settings in some])
def test_wrong_settings(kind: type[Method], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(kind.Settings, settings, where="method")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("student_name", list(STUDENTS))
def test_with_every_student(kind: type[Method], student_name: str, tiny_dataset: Dataset) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "max_length": 12, "dropout": 0.0}
    model = build_student(student_name, settings, tiny_dataset.n_items, STUDENTS)
    before = set(model.state_dict())
    method = kind(kind.Settings(), knowledge(torch.randn(tiny_dataset.n_items, 9)))
    model.item_table = method.item_embedding(model.item_table)
    train = TrainSettings(batch_tokens=256)
    task = Task(model, tiny_dataset, train, seed=0, validate=lambda _model: {}, method=method)
    parts = task(next(task.epoch(1)[1](0)))
    torch.stack(list(parts.values())).sum().backward()
    assert all(torch.isfinite(part) for part in parts.values())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in task.parameters())
    assert set(model.state_dict()) == before
