"""What every teacher must do, whatever is inside it. A new line in TEACHERS is tested without a change here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import TrainSettings
from distilrec.data.batching import Batch, make_batch, training_windows
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import evaluate_ranks
from distilrec.evaluation.rank import target_ranks
from distilrec.methods import METHODS
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import save_student
from distilrec.teachers import TEACHERS
from distilrec.teachers.base import Asked, Materials, PositionTeacher, Trained
from distilrec.teachers.llm import llm_identity
from distilrec.training.loop import fit
from distilrec.training.tasks import Task
from distilrec.training.text import TextTask

REACH, N_ITEMS = 8, 20
DOCS = Path(__file__).parents[2] / "docs" / "teachers"
# What makes a teacher small, by the name of the setting, wherever a teacher has one of that name.
SMALL: dict[str, Any] = {
    "max_length": REACH,
    "lora_rank": 2,
    "precision": "float32",
    "max_new": 5,
    "beams": 3,
    "recommender": {"name": "sasrec", "hidden_size": 8, "max_length": REACH},
}
# Kinds that answer in two ways are tested in both.
VARIANTS: dict[str, dict[str, Any]] = {
    "conventional, not causal": {"recommender": {"name": "bert4rec", "hidden_size": 8, "max_length": REACH}},
    "bigrec, popularity": {"gamma": 2.0},
}
ANSWERING = [name for name, kind in TEACHERS.items() if kind.asked == "positions"]
TRAINING = TrainSettings(epochs=1, batch_tokens=256, learning_rate=0.001, select_by="hr@5")


@dataclass(frozen=True)
class Made:
    """A teacher after its training, and what it left behind."""

    kind: Any
    settings: Any
    teacher: PositionTeacher
    materials: Materials
    folder: Path

    def restored(self) -> PositionTeacher:
        restored: PositionTeacher = self.kind.restore(self.folder, self.settings, self.materials)
        return restored


def settings_of(kind: Any, llm: Path, **changes: Any) -> Any:
    small = {name: value for name, value in {**SMALL, "llm": str(llm)}.items() if name in kind.Settings.model_fields}
    return checked(kind.Settings, {**small, **changes}, where="teacher")


def train(kind: Any, settings: Any, materials: Materials, folder: Path) -> Any:
    """Train for one epoch as the pipeline does, save, and return the teacher."""
    dataset = materials.dataset

    def validate(model: Any) -> dict[str, float]:
        return evaluate_ranks(target_ranks(model, dataset, dataset.examples("valid")[:10]), [5])

    def run(task: Task | TextTask) -> None:
        outcome = fit(task, TRAINING, folder, label="teach", identity="x", seed=0)
        assert len(outcome.history) == 1
        assert np.isfinite(outcome.best)

    if kind.trained == "student":
        choice = settings.recommender
        student_kind = STUDENTS[choice.name]
        torch.manual_seed(0)
        student = student_kind(student_kind.Settings.model_validate(choice.settings()), dataset.n_items)
        plain = METHODS["plain"]
        run(Task(student, dataset, TRAINING, seed=0, validate=validate, method=plain(plain.Settings(), None)))
        save_student(student, folder / "model.safetensors")
        return kind(student).eval()
    teacher = kind.create(settings, materials)
    with torch.no_grad():  # LoRA starts as nothing at all; a random model's texts would all be alike
        for name, parameter in teacher.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    task_kind = {"catalogue": Task, "text": TextTask}[kind.trained]
    run(task_kind(teacher, dataset, TRAINING, seed=0, validate=validate))
    teacher.save(folder, llm_identity(Path(settings.llm)))
    return teacher.eval()


@pytest.fixture(scope="module", params=[*ANSWERING, *VARIANTS])
def made(
    request: pytest.FixtureRequest, tiny_llm: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    kind = TEACHERS[request.param.split(",")[0]]
    settings = settings_of(kind, tiny_llm, **VARIANTS.get(request.param, {}))
    ids = torch.randn(tiny_dataset.n_items, 8, generator=torch.Generator().manual_seed(0))
    materials = Materials(tiny_dataset, 0, lambda: ids, lambda: "plain student")
    folder = tmp_path_factory.mktemp("trained")
    return Made(kind, settings, train(kind, settings, materials, folder), materials, folder)


def some(dataset: Dataset, rows: int = 7) -> Batch:
    """Windows of all lengths, long ones cut out of the middle of histories among them; asked for at many places each."""
    windows = training_windows(dataset, REACH, None)
    lengths = windows.end - windows.start
    rows_of_length = [np.flatnonzero(lengths == length)[:2] for length in range(1, REACH + 1)]
    chosen = np.concatenate([*rows_of_length, np.flatnonzero(windows.supervised_from > windows.start)[:3]])
    return make_batch(dataset, windows, np.random.default_rng(0).permutation(np.unique(chosen))[:rows])


def at(batch: Batch, kept: Tensor) -> Batch:
    parts = {name: getattr(batch, name)[kept] for name in ("positions", "targets", "examples")}
    return replace(batch, **parts)


def said(teacher: PositionTeacher, batch: Batch) -> Tensor:
    """Return the score of every item, [T, N]: two teachers that agree on them agree, whatever the order of near ties."""
    items, scores = teacher.rank(batch, N_ITEMS)
    return torch.zeros(len(items), N_ITEMS).scatter(1, items.cpu(), scores.cpu())


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def test_items_are_distinct_and_scores_descend(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    for k in (1, 5, N_ITEMS):
        items, scores = made.teacher.rank(batch, k)
        assert items.shape == scores.shape == (len(batch.positions), k)
        assert (items.dtype, scores.dtype) == (torch.int64, torch.float32)
        assert all(len(set(row)) == k for row in items.tolist())
        assert items.min() >= 0
        assert items.max() < N_ITEMS
        assert torch.isfinite(scores).all()
        assert (scores[:, 1:] <= scores[:, :-1]).all()


def test_the_first_of_many_are_the_best(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    few, many = made.teacher.rank(batch, 4), made.teacher.rank(batch, N_ITEMS)
    close(few[1], many[1][:, :4])
    close(said(made.teacher, batch).gather(1, few[0]), few[1])


def test_more_than_the_catalogue(made: Made, tiny_dataset: Dataset) -> None:
    items, scores = made.teacher.rank(some(tiny_dataset), 10_000)
    assert [sorted(row) for row in items.tolist()] == [list(range(N_ITEMS))] * len(items)
    assert scores.shape == items.shape


def test_asked_twice_it_says_the_same(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    first, second = (made.teacher.rank(batch, 6) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_histories_count(made: Made, tiny_dataset: Dataset) -> None:
    answers = said(made.teacher, some(tiny_dataset, rows=14))
    assert len(answers.round(decimals=3).unique(dim=0)) > 1


def test_company_changes_nothing(made: Made, tiny_dataset: Dataset) -> None:
    """Neither other histories, nor longer ones, nor other places of the same history."""
    batch = some(tiny_dataset)
    together, columns = said(made.teacher, batch), batch.histories.shape[1]
    for place, position in enumerate(batch.positions.tolist()):
        row, last = divmod(position, columns)
        history = batch.histories[row : row + 1, : last + 1]
        single = batch.targets[place : place + 1]
        alone = Batch(history, torch.tensor([last + 1]), torch.tensor([last]), single, single)
        close(said(made.teacher, alone)[0], together[place])


def test_some_places_of_a_batch_are_answered_like_all(made: Made, tiny_dataset: Dataset) -> None:
    """Also where no place of a history is asked for."""
    batch = some(tiny_dataset)
    whole, columns = said(made.teacher, batch), batch.histories.shape[1]
    rows = batch.positions // columns
    choices = [torch.arange(len(rows)) % 3 == 0, rows == rows[-1], rows % 2 == 1, rows == 0]
    assert len(rows.unique()) > 3
    for kept in choices:
        close(said(made.teacher, at(batch, kept)), whole[kept])


def test_the_target_is_not_looked_at(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    other = replace(batch, targets=(batch.targets + 3) % N_ITEMS, examples=torch.zeros_like(batch.examples))
    assert torch.equal(said(made.teacher, batch), said(made.teacher, other))


def test_later_items_are_not_looked_at(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    before, columns = said(made.teacher, batch), batch.histories.shape[1]
    generator = torch.Generator().manual_seed(1)
    for cut in range(columns - 1):
        later = torch.arange(columns) > cut
        others = torch.randint(N_ITEMS, batch.histories.shape, generator=generator)
        inside = torch.arange(columns) < batch.lengths[:, None]
        changed = replace(batch, histories=torch.where(later & inside, others, batch.histories))
        asked_before = batch.positions % columns <= cut
        close(said(made.teacher, changed)[asked_before], before[asked_before])


def test_what_stands_behind_a_history_is_not_looked_at(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    outside = torch.arange(batch.histories.shape[1]) >= batch.lengths[:, None]
    assert outside.any()
    close(said(made.teacher, replace(batch, histories=batch.histories + 7 * outside)), said(made.teacher, batch))


def test_saved_and_restored_it_says_the_same(made: Made, tiny_dataset: Dataset) -> None:
    batch = some(tiny_dataset)
    first, second = made.restored(), made.restored()
    close(said(first, batch), said(made.teacher, batch))
    assert torch.equal(said(first, batch), said(second, batch))
    assert isinstance(first, PositionTeacher)
    assert not getattr(first, "training", False)


def test_it_reads_as_far_as_it_says(made: Made) -> None:
    assert made.teacher.max_length == made.kind.reach(made.settings) == made.restored().max_length == REACH


def test_what_it_depends_on_can_be_written_down(made: Made) -> None:
    inputs = made.kind.inputs(made.settings, made.materials)
    assert all(isinstance(value, str) for value in inputs.values())
    assert inputs == made.kind.inputs(made.settings, made.materials)


def test_item_vectors(made: Made, tiny_dataset: Dataset) -> None:
    assert "item_vectors" in made.kind.gives
    vectors = made.kind.knowledge_vectors(made.folder, made.settings, made.materials)
    assert vectors.shape[0] == N_ITEMS
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()
    assert not vectors.requires_grad


def test_it_is_measured_like_a_student(made: Made, tiny_dataset: Dataset) -> None:
    """The ranks of held-out targets are those of its own rankings: counting ties against it, as everywhere."""
    examples = tiny_dataset.examples("test")[:8]
    ranks = target_ranks(made.teacher, tiny_dataset, examples)
    for example, rank in zip(examples.tolist(), ranks.tolist(), strict=True):
        start = max(int(tiny_dataset.offsets[tiny_dataset.rows_of(np.array([example]))[0]]), example - REACH)
        history = torch.from_numpy(tiny_dataset.items[start:example].astype(np.int64))[None]
        nothing = torch.zeros(1, dtype=torch.int64)
        last = torch.tensor([history.shape[1] - 1])
        scores = said(made.teacher, Batch(history, last + 1, last, nothing, nothing))[0]
        own = scores[tiny_dataset.items[example]]
        # Sums in another order differ in their last digits, which may decide near ties.
        assert int((scores > own + 1e-4).sum()) + 1 <= rank <= int((scores >= own - 1e-4).sum())


@pytest.mark.parametrize("name", list(TEACHERS))
def test_what_every_kind_declares(name: str) -> None:
    kind = TEACHERS[name]
    assert kind.name == name
    assert kind.__doc__
    assert kind.asked in get_args(Asked)
    assert kind.trained in get_args(Trained)
    assert kind.gives
    assert kind.gives <= {"rankings", "scores", "item_vectors", "logits"}
    assert ("rankings" in kind.gives) == (kind.asked != "nothing")
    assert kind.asked != "positions" or kind.trained != "nothing"
    needed: list[Callable[..., Any]] = [kind.knowledge_vectors]
    if kind.asked == "positions":
        needed += [kind.restore, kind.reach, kind.inputs]
        assert kind.tokens_per_item >= 1
    if kind.trained in ("catalogue", "text"):
        needed += [kind.create]
    assert all(callable(function) for function in needed)


@pytest.mark.parametrize("name", list(TEACHERS))
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'no_such_setting'"):
        checked(TEACHERS[name].Settings, {"no_such_setting": 1}, where="teacher")


@pytest.mark.parametrize("name", list(TEACHERS))
def test_every_kind_has_a_page(name: str) -> None:
    assert f"# {name}" in (DOCS / f"{name}.md").read_text(encoding="utf-8").lower()
