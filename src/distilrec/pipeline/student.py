"""Training of students inside a run: what their training depends on, the training itself, and the refit behind it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distilrec.config import TrainSettings
from distilrec.data.split import Ints
from distilrec.knowledge.store import Knowledge
from distilrec.methods import METHODS
from distilrec.methods.base import Method
from distilrec.progress import first_process, say
from distilrec.settings import Settings
from distilrec.students import STUDENTS
from distilrec.students.base import Student, load_student, save_student
from distilrec.training.loop import Fit, OnValidation, fit, load_fit
from distilrec.training.tasks import Task

if TYPE_CHECKING:
    from distilrec.pipeline.run import Pipeline

MODEL = "model.safetensors"
PLAIN = {"method": "plain"}  # what a plain student's stage depends on, beside the student and its training


def student_inputs(run: "Pipeline", training: TrainSettings, kind: type[Student], settings: Any) -> dict[str, Any]:
    """Return what a student's training depends on, but for seed and method."""
    return {
        "data": run.data.fingerprint,
        "student": kind.name,
        "student_settings": settings.model_dump(),
        "train": relevant(training),
        "filter_seen": run.config.evaluate.filter_seen,  # in validation, too: it decides which epoch is kept
    }


def trained_student(
    run: "Pipeline",
    name: str,
    training: TrainSettings,
    kind: type[Method],
    knowledge: Knowledge | None,
    inputs: dict[str, Any],
) -> Student:
    """Return the run's student, trained by a method in stages called `name` and, if it is refitted, `name`-refit."""

    def work(folder: Path, key: str) -> None:
        student, outcome = run.fit_student(selecting, kind, knowledge, folder, label=f"train {name}", identity=key)
        say_fit(outcome, selecting)
        if first_process():
            save_student(student, folder / MODEL)

    if kind.fine_tunes:
        _ = run.student
        inputs = {**inputs, "start": run.stages.get("student-refit", run.stages["student"]).key}
    selecting = training.model_copy(update={"refit": False})
    done = run.stage(name, {**run.student_inputs(selecting), **inputs}, work, together=True)
    if training.refit:
        epochs = load_fit(done.folder).best_epoch

        def again(folder: Path, key: str) -> None:
            student = _refit(
                run, selecting, kind, knowledge, folder, label=f"refit {name}", identity=key, epochs=epochs
            )
            if first_process():
                save_student(student, folder / MODEL)

        done = run.stage(f"{name}-refit", {"selected": done.key}, again, together=True)
    return load_student(done.folder / MODEL, STUDENTS)


def plain_folder(run: "Pipeline") -> Path:
    """Return where the run's plain student lies before any refit, trained or not."""
    selecting = run.config.train.model_copy(update={"refit": False})
    return run.stage_folder("student", {**run.student_inputs(selecting), **PLAIN})


def fit_student(
    run: "Pipeline",
    training: TrainSettings,
    kind: type[Method],
    knowledge: Knowledge | None,
    folder: Path,
    *,
    label: str,
    identity: str,
    on_validation: OnValidation | None = None,
) -> tuple[Student, Fit]:
    """Train a new student of the configured kind in `folder`, or go on with what is there; see `fit`."""
    student, method = _new_student(run, kind, knowledge)
    return student, _fit(
        run, student, method, training, folder, label, identity, on_validation, _asked(kind, knowledge)
    )


def fit_conventional(
    run: "Pipeline",
    kind: type[Student],
    settings: Any,
    training: TrainSettings,
    folder: Path,
    *,
    label: str,
    identity: str,
) -> None:
    """Train a student of another kind or size than the run's on the targets alone, and save it in `folder`."""
    torch.manual_seed(run.config.seed)
    student = kind(settings, run.data.n_items)
    plain = METHODS["plain"]
    outcome = _fit(run, student, plain(plain.Settings(), None), training, folder, label, identity)
    say_fit(outcome, training)
    if first_process():
        save_student(student, folder / MODEL)


def _fit(
    run: "Pipeline",
    student: Student,
    method: Method,
    training: TrainSettings,
    folder: Path,
    label: str,
    identity: str,
    on_validation: OnValidation | None = None,
    examples: Ints | None = None,
) -> Fit:
    """Train on the run's training targets, or `examples` among them, selecting on its validation targets."""
    seed = run.config.seed

    def validate(model: Any) -> dict[str, float]:
        return run._validate(model, training.validate_users)

    task = Task(student, run.data, training, seed=seed, validate=validate, method=method, examples=examples)
    return fit(
        task,
        training,
        folder,
        label=label,
        identity=identity,
        seed=seed,
        on_validation=on_validation,
        judge_start=method.fine_tunes,
    )


def _refit(
    run: "Pipeline",
    training: TrainSettings,
    kind: type[Method],
    knowledge: Knowledge | None,
    folder: Path,
    *,
    label: str,
    identity: str,
    epochs: int,
) -> Student:
    """Train anew on training and validation targets together, for as many epochs as were best without the latter."""
    student, method = _new_student(run, kind, knowledge)
    settings = training.model_copy(update={"epochs": epochs, "validate_every": max(epochs, 1)})
    measure = {training.select_by: 0.0}  # nothing is left to select by: the last epoch is kept
    seed, dataset = run.config.seed, run.data.with_validation()
    task = Task(
        student,
        dataset,
        settings,
        seed=seed,
        validate=lambda _model: measure,
        method=method,
        examples=_asked(kind, knowledge),
    )
    fit(task, settings, folder, label=label, identity=identity, seed=seed)
    return student


def _new_student(run: "Pipeline", kind: type[Method], knowledge: Knowledge | None) -> tuple[Student, Method]:
    torch.manual_seed(run.config.seed)
    student = run.student_kind(run.student_settings, run.data.n_items)
    method = kind(run.method_settings if kind is run.method_kind else kind.Settings(), knowledge)
    if kind.fine_tunes:
        student.load_state_dict(run.student.state_dict())
    student.item_table = method.item_embedding(student.item_table)
    return student, method


def _asked(kind: type[Method], knowledge: Knowledge | None) -> Ints | None:
    """Return the examples to train on, where a method trains on nothing else than what the teacher was asked about."""
    return knowledge.examples if kind.fine_tunes and knowledge is not None else None


def say_fit(outcome: Fit, settings: TrainSettings) -> None:
    """Say in one line how a training went."""
    best = (
        f"best epoch {outcome.best_epoch} with" if outcome.best_epoch else "none better than the start, which is kept:"
    )
    say(
        f"  {len(outcome.history)} epochs, {best} validation {settings.select_by} {outcome.best:.4f}, {outcome.seconds:.1f} s"
    )


def relevant(settings: Settings) -> dict[str, Any]:
    """Return the settings that a training's result depends on."""
    return settings.model_dump(exclude={"checkpoint_seconds"})
