"""Training of a run's teacher: a language model over the catalogue or on text, a large student, or one that is trained already."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilrec.config import TrainSettings
from distilrec.data.dataset import open_dataset
from distilrec.errors import FingerprintError, InputError
from distilrec.files import hash_json, sha256_file
from distilrec.pipeline.names import named
from distilrec.pipeline.stage import Stage
from distilrec.pipeline.student import MODEL, fit_conventional, plain_folder, relevant, say_fit, student_inputs
from distilrec.progress import first_process, say
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import Student
from distilrec.teachers.base import Materials, PositionTeacher
from distilrec.training.loop import fit

if TYPE_CHECKING:
    from distilrec.pipeline.teaching import Teaching


def given(teaching: "Teaching", folder: Path) -> Stage:
    """Return a teacher that was trained before as if it were a stage of this run."""
    files = trained_files(folder)
    kept = [[path.name, sha256_file(path)] for path in files if path.name != "stage.json"]
    done = Stage("teacher", hash_json(kept), folder, 0.0, True, 0.0)
    teacher: Any = teaching.restored(done)()
    if (found := len(teacher.item_vectors())) != teaching.run.data.n_items:
        raise FingerprintError(
            f"the teacher knows {found:,} items and the data set has {teaching.run.data.n_items:,}.", where=str(folder),
            remedy="Take a teacher that was trained on these data.",
        )  # fmt: skip
    teaching.run.stages["teacher"] = done
    say(f"teacher: taken from {folder}")
    return done


def trained_files(folder: Path) -> list[Path]:
    """Return the files of a teacher that was trained before.

    Raises:
        InputError: there is none in the folder.
    """
    files = [path for path in sorted(folder.glob("*")) if path.suffix in (".json", ".safetensors")]
    if not any(path.name == "teacher.json" for path in files):
        raise InputError(
            "this folder holds no trained teacher (no teacher.json).", where=str(folder),
            remedy="Give the folder of a teacher's stage, RUN/teacher-KEY or RUN/teacher-round-N-KEY.",
        )  # fmt: skip
    return files


def train_llm(teaching: "Teaching", task_kind: Callable[..., Any], *, without: int | None = None) -> Stage:
    """Train a language model; `without`: the part of the histories that it does not see (`annotate.folds`)."""
    run, training, materials = teaching.run, teaching.run.config.teach, teaching.materials()
    inputs = {
        "data": run.data.fingerprint,
        "teacher": teaching.kind.name,
        "settings": teaching.settings.model_dump(),
        **teaching.kind.inputs(teaching.settings, materials),
        "train": relevant(training),
        "filter_seen": run.config.evaluate.filter_seen,  # in validation, too: it decides which epoch is kept
    }

    def validate(model: Any) -> dict[str, float]:
        return run._validate(model, training.validate_users)

    name, part = "teacher", {}
    if without is not None:
        name, part = f"teacher-without-{without}", {"histories": teaching.parts != without}
        inputs["without"] = [without, run.config.annotate.folds]

    def work(folder: Path, key: str) -> None:
        teacher = teaching.kind.create(teaching.settings, materials)
        task = task_kind(teacher, run.data, training, seed=run.config.seed, validate=validate, **part)
        outcome = fit(task, training, folder, label=f"train {name}", identity=key, seed=run.config.seed)
        say_fit(outcome, training)
        if first_process():
            teacher.save(folder, inputs["llm"])

    return run.stage(name, inputs, work, together=True)


def train_student(teaching: "Teaching") -> Stage:
    """Train the conventional recommender that the teacher is, or builds on."""
    if teaching.settings.recommender is None:
        return teaching.student_stage()
    run = teaching.run
    kind, settings, plain, inputs = _recommender(teaching)

    def work(folder: Path, key: str) -> None:
        fit_conventional(run, kind, settings, plain, folder, label="train recommender", identity=key)

    return run.stage("teacher", inputs, work, together=True)


def recommender_trained(teaching: "Teaching") -> bool:
    """Return whether the conventional recommender that a teacher builds on is trained already."""
    if teaching.settings.recommender is None:
        folder = plain_folder(teaching.run)
    else:
        folder = teaching.run.stage_folder("teacher", _recommender(teaching)[3])
    return (folder / MODEL).exists()


def _recommender(teaching: "Teaching") -> tuple[type[Student], Any, TrainSettings, dict[str, Any]]:
    """Return the recommender's kind and settings, how it is trained, and what its stage depends on."""
    run, choice = teaching.run, teaching.settings.recommender
    kind: type[Student] = named(STUDENTS, choice.name, "student")
    settings = checked(kind.Settings, choice.settings(), where="teacher.recommender")
    plain = run.config.train.model_copy(update={"refit": False})
    return kind, settings, plain, student_inputs(run, plain, kind, settings)


@dataclass(frozen=True)
class Restore:
    """Loads a trained teacher from its folder, in whatever process it is called."""

    name: str
    settings: Any
    folder: Path
    dataset: Path
    seed: int

    def __call__(self) -> PositionTeacher:
        """Load it."""
        from distilrec.teachers import TEACHERS

        materials = Materials(open_dataset(self.dataset), self.seed, _none, _none)
        teacher: PositionTeacher = TEACHERS[self.name].restore(self.folder, self.settings, materials)
        return teacher


def _none() -> Any:
    raise RuntimeError("a trained teacher needs no student")
