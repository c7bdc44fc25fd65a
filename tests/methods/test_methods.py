"""What every method must do. A new line in METHODS is tested without a change here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distilrec.config import TrainSettings
from distilrec.data.dataset import Dataset
from distilrec.knowledge.store import Knowledge
from distilrec.methods import METHODS
from distilrec.methods.base import Method
from distilrec.students import STUDENTS
from distilrec.students.base import Student, build_student
from distilrec.training.loop import Fit, fit
from distilrec.training.tasks import Task

SETTINGS = TrainSettings(epochs=1, batch_tokens=256, learning_rate=0.01, select_by="zero")
DISTILLING = [name for name, kind in METHODS.items() if kind.needs]


@pytest.fixture(scope="module")
def knowledge(tiny_dataset: Dataset) -> Knowledge:
    """What a teacher might have said about every training example: it knows the rule, and is sure of the next item."""
    starts, cuts = tiny_dataset.offsets[:-1], tiny_dataset.split.train_end
    examples = np.concatenate([np.arange(start + 1, start + cut) for start, cut in zip(starts, cuts, strict=True)])
    items = (
        np.asarray(tiny_dataset.items)[examples - 1].astype(np.int64)[:, None] + np.arange(1, 6)
    ) % tiny_dataset.n_items
    scores = np.tile(-np.arange(5, dtype=np.float32), (len(examples), 1))
    angle = torch.arange(tiny_dataset.n_items) / tiny_dataset.n_items * 2 * torch.pi
    return Knowledge({}, examples, items, scores, torch.stack([angle.sin(), angle.cos(), angle.sin() * 3], dim=1))


def make(name: str, dataset: Dataset, knowledge: Knowledge, student: str = "sasrec") -> tuple[Student, Method]:
    torch.manual_seed(0)
    kind = METHODS[name]
    model = build_student(student, {"hidden_size": 16, "max_length": 12, "dropout": 0.0}, dataset.n_items, STUDENTS)
    method = kind(kind.Settings(), knowledge if kind.needs else None)
    model.item_table = method.item_embedding(model.item_table)
    return model, method


def task_of(model: Student, method: Method, dataset: Dataset) -> Task:
    return Task(model, dataset, SETTINGS, seed=0, validate=lambda _model: {"zero": 0.0}, method=method)


@pytest.mark.parametrize("name", list(METHODS))
def test_registered_under_its_own_name(name: str) -> None:
    assert METHODS[name].name == name
    assert METHODS[name].__doc__
    assert METHODS[name].needs <= {"rankings", "scores", "item_vectors"}


@pytest.mark.parametrize("student", list(STUDENTS))
@pytest.mark.parametrize("name", list(METHODS))
def test_parts_are_finite_and_the_gradient_reaches_everything(
    name: str, student: str, tiny_dataset: Dataset, knowledge: Knowledge
) -> None:
    model, method = make(name, tiny_dataset, knowledge, student)
    task = task_of(model, method, tiny_dataset)
    _, batches_from = task.epoch(1)
    parts = task(next(batches_from(0)))
    assert "target" in parts
    assert all(part.shape == () and torch.isfinite(part) for part in parts.values())
    torch.stack(list(parts.values())).sum().backward()
    for key, parameter in task.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", list(METHODS))
def test_it_asks_about_everything_unless_it_says_otherwise(
    name: str, tiny_dataset: Dataset, knowledge: Knowledge
) -> None:
    _, method = make(name, tiny_dataset, knowledge)
    examples = np.arange(5)
    chosen = method.select(method.settings, tiny_dataset, examples, lambda ids: np.zeros(len(ids)))
    if METHODS[name].select.__func__ is Method.select.__func__:
        assert list(chosen) == list(examples)
    else:
        assert len(chosen) > 0
        assert set(chosen) <= set(examples)


@pytest.mark.parametrize("name", DISTILLING)
def test_distilling_gives_another_student(
    name: str, tiny_dataset: Dataset, knowledge: Knowledge, tmp_path: Path
) -> None:
    def trained(name: str) -> tuple[Student, Fit]:
        model, method = make(name, tiny_dataset, knowledge)
        task = task_of(model, method, tiny_dataset)
        outcome = fit(task, SETTINGS, tmp_path / name, label=name, identity=name, seed=0)
        return model.folded(), outcome

    plain, plain_fit = trained("plain")
    distilled, distilled_fit = trained(name)
    assert plain_fit.history[0]["loss"] != distilled_fit.history[0]["loss"]
    assert (plain.item_vectors() - distilled.item_vectors()).abs().max() > 1e-3
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in distilled.parameters())
