"""A student as teacher: what it says is what the student scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distilrec.config import Config, TrainSettings
from distilrec.data.batching import Batch, make_batch, training_windows
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, InputError
from distilrec.evaluation.rank import target_ranks
from distilrec.pipeline import Pipeline
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import Student, build_student, save_student
from distilrec.teachers.base import Materials
from distilrec.teachers.conventional import Conventional, ConventionalSettings

REACH = 8
SMALL = {"hidden_size": 8, "max_length": REACH, "dropout": 0.3}
KINDS = ["sasrec", "gru4rec", "bert4rec", "stamp"]


def student(name: str, n_items: int = 20) -> Student:
    torch.manual_seed(1)
    built = build_student(name, SMALL, n_items, STUDENTS)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3.0)  # as if something had been learnt
    return built.eval()


def asked(dataset: Dataset) -> Batch:
    windows = training_windows(dataset, REACH, None)
    return make_batch(dataset, windows, np.arange(len(windows))[::3])


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_it_says_the_log_probabilities_of_the_student(name: str, tiny_dataset: Dataset) -> None:
    """Each place asked for is answered as if the history ended there, whether the student is causal or not."""
    model, batch = student(name), asked(tiny_dataset)
    items, scores = Conventional(model).rank(batch, 20)
    table, columns = model.item_vectors(), batch.histories.shape[1]
    assert len(items) == len(batch.positions)
    for place, position in enumerate(batch.positions.tolist()):
        row, last = divmod(position, columns)
        state = model.encode_last(batch.histories[row : row + 1, : last + 1], torch.tensor([last + 1]), table)[0]
        expected = torch.log_softmax(table @ state, dim=0)
        torch.testing.assert_close(scores[place], expected.sort(descending=True).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(expected[items[place]], scores[place], rtol=1e-4, atol=1e-5)


def test_both_ways_of_reading_are_there() -> None:
    assert {STUDENTS[name].causal for name in KINDS} == {True, False}


def test_scores_are_probabilities(tiny_dataset: Dataset) -> None:
    _, scores = Conventional(student("sasrec")).rank(asked(tiny_dataset), 20)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(scores)))


@pytest.mark.parametrize("name", KINDS)
def test_restored_it_is_the_student_that_was_saved(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = student(name)
    save_student(model, tmp_path / "model.safetensors")
    settings = checked(ConventionalSettings, {"recommender": {"name": name, **SMALL}}, where="teacher")
    materials = Materials(tiny_dataset, 0, lambda: torch.empty(0), lambda: "")
    teacher = Conventional.restore(tmp_path, settings, materials)
    assert not teacher.training
    assert not teacher.student.training
    assert teacher.max_length == Conventional.reach(settings) == REACH
    examples = tiny_dataset.examples("test")
    assert (
        target_ranks(teacher, tiny_dataset, examples).tolist() == target_ranks(model, tiny_dataset, examples).tolist()
    )
    vectors = Conventional.knowledge_vectors(tmp_path, settings, materials)
    assert vectors is not None
    assert torch.equal(vectors, model.item_vectors())
    assert not vectors.requires_grad
    assert Conventional.inputs(settings, materials) == {}


def test_the_default_is_a_larger_sasrec() -> None:
    settings = ConventionalSettings()
    assert (settings.recommender.name, settings.recommender.settings()) == ("sasrec", {"hidden_size": 128})
    assert Conventional.reach(settings) == STUDENTS["sasrec"].Settings().max_length


def test_nothing_saved(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Conventional.restore(tmp_path, ConventionalSettings(), Materials(tiny_dataset, 0, lambda: torch.empty(0), str))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("files")
    rows = ["user_id,item_id,timestamp"]
    rows += [f"u{user},i{(3 * user + n) % 20:02d},{100 * n + user}" for user in range(20) for n in range(5 + user % 7)]
    (folder / "log.csv").write_text("\n".join(rows))
    train = TrainSettings(epochs=1, batch_tokens=128).model_dump()
    return {
        "data": {"interactions": str(folder / "log.csv"), "filters": {"k_core_user": 1, "k_core_item": 1}},
        "student": {"name": "gru4rec", "hidden_size": 4, "max_length": REACH},
        "train": train,
        "teacher": {"name": "conventional", "recommender": {"name": "sasrec", **SMALL}},
        "annotate": {"top_k": 5},
    }


def test_in_a_run_it_is_trained_as_students_are_and_asked(content: dict[str, Any], tmp_path: Path) -> None:
    run = Pipeline(checked(Config, content, where="test"), tmp_path)
    knowledge = run.knowledge
    assert len(knowledge.examples) == run.data.manifest["n_train_targets"]
    assert knowledge.items.shape == (len(knowledge.examples), 5)
    assert knowledge.item_vectors is not None
    assert knowledge.item_vectors.shape == (20, 8)
    assert isinstance(run.teacher, Conventional)
    assert run.teacher.student.settings.hidden_size == 8
    items, scores = run.teacher.rank(asked(run.data), 5)
    said_items, said_scores, there = knowledge.rankings(asked(run.data).examples)
    assert there.all()
    torch.testing.assert_close(said_scores, scores, rtol=1e-4, atol=1e-5)
    assert (said_items == items).float().mean() > 0.99


@pytest.mark.parametrize(
    ("recommender", "said"),
    [
        ({"name": "nosuch"}, "nosuch"),
        ({"name": "sasrec", "hiden_size": 8}, "hiden_size"),
    ],
)
def test_a_recommender_that_there_is_not(
    recommender: dict[str, Any], said: str, content: dict[str, Any], tmp_path: Path
) -> None:
    changed = {**content, "teacher": {"name": "conventional", "recommender": recommender}}
    with pytest.raises(ConfigError, match=said):
        _ = Pipeline(checked(Config, changed, where="test"), tmp_path).knowledge
