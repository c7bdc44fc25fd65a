"""Teacher and student in rounds inside a run: each half-step a stage of its own, so that a killed run goes on in the one it was in."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distilrec.config import TrainSettings
from distilrec.errors import ConfigError
from distilrec.files import write_with
from distilrec.knowledge.peer import Peer, peer_of
from distilrec.knowledge.store import Knowledge
from distilrec.methods import METHODS
from distilrec.methods.base import Method
from distilrec.pipeline.stage import Stage
from distilrec.pipeline.student import MODEL, relevant, say_fit
from distilrec.progress import first_process, say
from distilrec.students import STUDENTS
from distilrec.students.base import Student, load_student, save_student
from distilrec.teachers.base import Materials
from distilrec.training.checkpoint import restore, snapshot
from distilrec.training.loop import fit, load_fit
from distilrec.training.rounds import Course, Half, alternate
from distilrec.training.tasks import Task

if TYPE_CHECKING:
    from distilrec.pipeline.run import Pipeline

_WEIGHTS = "weights.safetensors"  # the student before folding, and what the method owns
_STATES = "peer_states.bin"
_MOMENTS = "moments.safetensors"  # of the optimiser


class Alternation:
    """Both sides of a method with rounds.

    Args:
        run: its data, settings, plain student and kind of teacher.
        led: rounds of another run on the same data, whose teachers are taken as they are, round by round, so that only the
            student trains: one set of teachers for several seeds of the student.
    """

    def __init__(self, run: "Pipeline", led: "Alternation | None" = None) -> None:
        self.run, self._led = run, led
        if led is not None and led.run.data.fingerprint != run.data.fingerprint:
            raise ValueError("the rounds that lead are of other data")
        rounds = run.method_kind.rounds_of(run.method_settings)
        if rounds is None:
            raise ValueError(f"{run.method_kind.name} has no rounds")
        self.rounds = rounds
        plain = run.config.distil_settings().model_copy(update={"refit": False})
        self._plain = plain
        self._precision = torch.bfloat16 if plain.precision == "bfloat16" else torch.float32
        epochs = plain.epochs if rounds.student_anew else rounds.student_epochs  # anew: a training like any other
        self._learning = plain.model_copy(update={"epochs": epochs})
        self._teaching = run.config.teach.model_copy(update={"epochs": rounds.teacher_epochs})

    @cached_property
    def course(self) -> Course[Stage]:
        """Every half-step, done."""
        start = self._start()
        rounds = self.rounds.count if self._led is None else min(self.rounds.count, self._led.course.rounds)
        measured = start, load_fit(start.folder).best
        course = alternate(
            rounds,
            measured,
            self._teach,
            self._learn,
            self._start_teacher(start),
            student_first=self.rounds.student_first,
        )
        for half in course.teachers:
            _forget(half)
        for half in course.students:
            _forget(half)
        best = course.best_student, course.best_teacher
        say(
            f"  {course.rounds} rounds: the student is best after round {best[0].number} (validation {best[0].measure:.4f}), "
            f"the teacher after round {best[1].number} ({best[1].measure:.4f})"
        )
        self.run.stages["distilled"], self.run.stages["teacher"] = (half.made for half in best)
        return course

    @property
    def student(self) -> Student:
        """The student of its best round, folded."""
        return load_student(self.course.best_student.made.folder / MODEL, STUDENTS)

    @property
    def teacher(self) -> Any:
        """The teacher of its best round, ready to be asked."""
        return self.run.teaching.restored(self.course.best_teacher.made)()

    def _start(self) -> Stage:
        """Train the student before the first round: on the targets alone, with the method's item table.

        Where that table is the student's own, this is the plain student, which is not trained again.
        """
        run = self.run
        if self._vectors is None and self._plain == run.config.train.model_copy(update={"refit": False}):
            _ = run.student
            return run.stages["student"]
        inputs = {**run.student_inputs(self._plain), **self._of_method()}

        def work(folder: Path, key: str) -> None:
            plain = METHODS["plain"]
            student, _ = self._new_student()
            self._fit_student(
                student, plain(plain.Settings(), None), self._plain, folder, key, "train student, round 0"
            )

        return run.stage("student-round-0", inputs, work, together=True)

    def _start_teacher(self, student: Stage) -> tuple[Stage, float] | None:
        """Train the teacher before the first round: on the targets alone, with the student's item vectors as its ID embeddings."""
        epochs = self.rounds.teacher_start_epochs
        if epochs == 0:
            return None
        if self._led is not None:
            return _of_round(self._led, 0)
        training = self.run.config.teach.model_copy(update={"epochs": epochs})
        return self._fit_teacher(0, None, student, training, alone=True)

    def _teach(self, number: int, before: Stage | None, student: Stage) -> tuple[Stage, float]:
        """Train the teacher for one half-step, unless it is given."""
        if self._led is not None:
            return _of_round(self._led, number)
        return self._fit_teacher(number, before, student, self._teaching)

    def _fit_teacher(
        self, number: int, before: Stage | None, student: Stage, training: TrainSettings, *, alone: bool = False
    ) -> tuple[Stage, float]:
        """Train the teacher from where it was; `alone`: on the targets, whatever the method."""
        run, kind, settings = self.run, self.run.teacher_kind, self.run.teacher_settings
        identity = kind.inputs(settings, self._materials(student))
        identity.pop("student", None)
        inputs = {
            **({} if alone else self._of_method()), **identity, "teacher": kind.name, "teacher_settings": settings.model_dump(),
            "before": before.key if before else None, "student": student.key, "round": number,
            "train": relevant(training), "filter_seen": run.config.evaluate.filter_seen,
        }  # fmt: skip

        def work(folder: Path, key: str) -> None:
            materials = self._materials(student)
            fresh = before is None
            teacher = kind.create(settings, materials) if fresh else kind.reopen(before.folder, settings, materials)  # type: ignore[union-attr]
            if not fresh and self.rounds.refresh and hasattr(teacher, "inject"):
                teacher.inject(materials.id_embeddings())
            side = None
            if not alone:
                _, method = self._new_student()
                side = method.refine_teacher(self._peer(load_student(student.folder / MODEL, STUDENTS), student))
            seed = self._seed(number)
            task = Task(teacher, run.data, training, seed=seed, validate=self._validate_teacher, method=side)
            label = f"train teacher, round {number}"
            outcome = fit(task, training, folder, label=label, identity=key, seed=seed, **_after(before, folder))
            say_fit(outcome, training)
            if first_process():
                teacher.save(folder, identity.get("llm", ""))

        done = run.stage(f"teacher-round-{number}", inputs, work, together=True)
        return done, load_fit(done.folder).best

    def _learn(self, number: int, teacher: Stage, before: Stage) -> tuple[Stage, float]:
        """Train the student for one half-step."""
        run = self.run
        start = None if self.rounds.student_anew else before
        inputs = {
            **run.student_inputs(self._learning), **self._of_method(),
            "before": None if start is None else start.key, "teacher": teacher.key, "round": number,
        }  # fmt: skip

        def work(folder: Path, key: str) -> None:
            student, method = self._new_student()
            method.learn_from(self._peer(run.teaching.restored(teacher)(), teacher))
            self._fit_student(
                student,
                method,
                self._learning,
                folder,
                key,
                f"train student, round {number}",
                start,
                self._seed(number),
            )

        done = run.stage(f"student-round-{number}", inputs, work, together=True)
        return done, load_fit(done.folder).best

    def _fit_student(
        self,
        student: Student,
        method: Method,
        training: TrainSettings,
        folder: Path,
        key: str,
        label: str,
        before: Stage | None = None,
        seed: int | None = None,
    ) -> None:
        run, seed = self.run, self.run.config.seed if seed is None else seed

        def validate(model: Any) -> dict[str, float]:
            return run._validate(model, training.validate_users)

        task = Task(student, run.data, training, seed=seed, validate=validate, method=method)
        if before is not None and before.name == "student":
            student.load_state_dict(load_student(before.folder / MODEL, STUDENTS).state_dict())
        elif before is not None:
            restore(task, load_file(before.folder / _WEIGHTS))
        outcome = fit(
            task, training, folder, label=label, identity=key, seed=seed, **_after(before, folder, keep_first=False)
        )
        say_fit(outcome, training)
        if first_process():
            weights = {name: value.contiguous() for name, value in snapshot(task).items()}
            write_with(folder / _WEIGHTS, lambda part: save_file(weights, part))
            save_student(student, folder / MODEL)

    def _new_student(self) -> tuple[Student, Method]:
        run = self.run
        torch.manual_seed(run.config.seed)
        student = run.student_kind(run.student_settings, run.data.n_items)
        method = run.method_kind(run.method_settings, self._vectors)
        student.item_table = method.item_embedding(student.item_table)
        return student, method

    @cached_property
    def _vectors(self) -> Knowledge | None:
        """Item vectors, where the method needs some: in rounds nothing else of the teacher is stored."""
        run = self.run
        if "item_vectors" not in run.method_kind.needs_of(run.method_settings):
            return None
        if run.config.annotate.vectors is None and run.teacher_kind.trained == "student":
            raise ConfigError(
                f"in rounds {run.method_kind.name} needs item vectors that are there before the teacher is trained.",
                remedy="Set annotate.vectors, or method.embedding_weight=0.",
            )
        no_student = replace(run.teaching.materials(), student_key=lambda: "")
        details = {**run.teaching.details(None), "of": run.teacher_kind.inputs(run.teacher_settings, no_student)}

        def work(folder: Path, _key: str) -> None:
            vectors = run.teaching.vectors(None)
            if vectors is None:
                raise ConfigError(
                    f"the teacher {run.teacher_kind.name} gives no item vectors.", remedy="Set annotate.vectors."
                )
            write_with(folder / _WEIGHTS, lambda part: save_file({"item_vectors": vectors.contiguous()}, part))

        done = run.stage("vectors", {"data": run.data.fingerprint, **details}, work)
        return Knowledge.of_vectors(load_file(done.folder / _WEIGHTS)["item_vectors"])

    def _peer(self, model: Any, of: Stage) -> Peer:
        """Freeze a trained model; its states lie beside it, until the rounds are over."""
        return peer_of(
            model.eval(),
            self.run.data,
            of.folder / _STATES,
            dtype=self._precision,
            hide_seen=self.run.config.evaluate.filter_seen,
            label=f"read training histories with the {of.name.partition('-')[0]}",
        )

    def _materials(self, student: Stage) -> Materials:
        def vectors() -> Tensor:
            return load_student(student.folder / MODEL, STUDENTS).item_vectors().detach()

        return replace(self.run.teaching.materials(), id_embeddings=vectors, student_key=lambda: student.key)

    def _of_method(self) -> dict[str, Any]:
        vectors = self._vectors
        return {
            "method": self.run.method_kind.name,
            "method_settings": self.run.method_settings.model_dump(),
            "vectors": None if vectors is None else self.run.stages["vectors"].key,
        }

    def _seed(self, number: int) -> int:
        """Return the seed of a round, so that its batches come in another order than those of the one before."""
        return self.run.config.seed + 1000 * number

    def _validate_teacher(self, model: Any) -> dict[str, float]:
        return self.run._validate(model, self._teaching.validate_users)


def _of_round(led: Alternation, number: int) -> tuple[Stage, float]:
    """Return the teacher of a round, and its measure."""
    half = next(half for half in led.course.teachers if half.number == number)
    return half.made, half.measure


def _after(before: Stage | None, folder: Path, *, keep_first: bool = True) -> dict[str, Any]:
    """Return how a training goes on from the one before it: with its moments, and as it was where that is better.

    `keep_first`: whether what comes before the first round keeps moments. A plain student has none, nor has one trained like it.
    """
    if before is None:
        return {"keep": folder / _MOMENTS} if keep_first else {}
    moments = before.folder / _MOMENTS
    return {"keep": folder / _MOMENTS, "continued": moments if moments.exists() else None, "judge_start": True}


def _forget(half: Half[Stage]) -> None:
    """Delete what only a later half-step needs. What precedes the first round is shared with other variants of the method."""
    (half.made.folder / _STATES).unlink(missing_ok=True)
    if half.number > 0:
        (half.made.folder / _MOMENTS).unlink(missing_ok=True)
