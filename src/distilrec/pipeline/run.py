"""A run: data -> plain student -> teacher -> knowledge -> distilled student -> evaluation, each stage on demand."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from distilrec.config import Config, Settings, TrainSettings, checked
from distilrec.data.dataset import Dataset, open_dataset
from distilrec.data.prepare import prepare
from distilrec.data.sources import fetch, fetch_llm
from distilrec.data.tables import check_file
from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import evaluate_ranks, metric_names
from distilrec.evaluation.rank import target_ranks
from distilrec.evaluation.stored import RANKS
from distilrec.files import locked, read_json, sha256_file, write_json
from distilrec.knowledge.annotate import annotate
from distilrec.knowledge.store import Knowledge, open_knowledge
from distilrec.methods import METHODS
from distilrec.methods.base import Method
from distilrec.pipeline.evaluate import Entry, evaluate
from distilrec.pipeline.stage import Stage, stage
from distilrec.progress import first_process, say
from distilrec.students import STUDENTS
from distilrec.students.base import Student, load_student, save_student
from distilrec.teachers import TEACHERS
from distilrec.teachers.e4srec import E4SRec, load_e4srec
from distilrec.teachers.llm import best_precision, llm_identity, load_llm, text_vectors
from distilrec.training.loop import Fit, OnValidation, fit, load_fit
from distilrec.training.tasks import Task

T = TypeVar("T")
_MODEL = "model.safetensors"


class Pipeline:
    """All stages of one configuration; asking for a stage does those before it.

    Args:
        config: the run's settings; names and settings of student, teacher and method are checked here, before any work.
        root: folder of the run, for example runs/demo.

    Raises:
        ConfigError: an unknown student, teacher, method, or one of their settings.
    """

    def __init__(self, config: Config, root: Path) -> None:
        self.config, self.root = config, root
        self.student_kind = named(STUDENTS, config.student.name, "student")
        self.method_kind = named(METHODS, config.method.name, "method")
        self.teacher_kind = named(TEACHERS, config.teacher.name, "teacher")
        self.student_settings = checked(self.student_kind.Settings, config.student.settings(), where="student")
        self.method_settings = checked(self.method_kind.Settings, config.method.settings(), where="method")
        self.teacher_settings = checked(self.teacher_kind.Settings, config.teacher.settings(), where="teacher")
        measured = metric_names(config.evaluate.cutoffs)
        for name, training in (("train", config.train), ("teach", config.teach), ("distil", config.distil_settings())):
            if training.select_by not in measured:
                raise ConfigError(
                    f"{name}.select_by: {training.select_by!r} is not measured.",
                    remedy=f"Choose one of {', '.join(measured)}.",
                )
        self.stages: dict[str, Stage] = {}
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    def _check_loss(self) -> None:
        """See, before any work for it, that the method can use the loss."""
        loss = self.config.distil_settings().loss.name or self.student_kind.default_loss
        usable = self.method_kind.losses
        if usable is not None and loss not in usable:
            raise ConfigError(
                f"the method {self.method_kind.name} does not work with the loss {loss}.",
                remedy=f"Set distil.loss.name (or train.loss.name) to one of {', '.join(sorted(usable))}.",
            )

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run's folder, so that no other process works in it."""
        if not first_process():  # of those that torchrun started, the first holds it for all
            return nullcontext()
        return locked(self.root / ".lock", "this run")

    def _stage(
        self, name: str, inputs: dict[str, Any], work: Callable[[Path, str], None], *, together: bool = False
    ) -> Stage:
        done = stage(self.root, name, {"seed": self.config.seed, **inputs}, work, together=together)
        self.stages[name] = done
        write_json(self.root / "config.json", self.config.model_dump(mode="json"))
        return done

    @cached_property
    def data(self) -> Dataset:
        """The prepared data set."""
        settings = self.config.data
        if settings.source is not None:
            fetched = fetch(settings.source)
            interactions, items = fetched.interactions, settings.items or fetched.items
        else:
            interactions, items = (
                settings.interactions or Path(),
                settings.items,
            )  # one of the two is given: DataSettings
        files = [path for path in (interactions, items) if path is not None]
        for path in files:
            check_file(path)
        inputs = {
            "files": [[path.name, sha256_file(path)] for path in files],
            "settings": settings.model_dump(mode="json", exclude={"interactions", "items"}),
        }

        def work(folder: Path, _key: str) -> None:
            prepare(interactions, items, settings, folder, seed=self.config.seed, say=say)

        done = self._stage("data", inputs, work)
        dataset = open_dataset(done.folder)
        if done.cached:
            for note in dataset.manifest["notes"]:
                say(f"  {note}")
        return dataset

    @cached_property
    def student(self) -> Student:
        """The plain student, trained."""
        return self._trained_student("student", self.config.train, METHODS["plain"], None, {"method": "plain"})

    @cached_property
    def distilled(self) -> Student:
        """The student trained by the configured method."""
        self._check_loss()
        knowledge = self.knowledge if self.method_kind.needs else None
        inputs: dict[str, Any] = {"method": self.method_kind.name, "method_settings": self.method_settings.model_dump()}
        if knowledge is not None:
            inputs["knowledge"] = self.stages["knowledge"].key
        return self._trained_student("distilled", self.config.distil_settings(), self.method_kind, knowledge, inputs)

    def _trained_student(
        self,
        name: str,
        training: TrainSettings,
        kind: type[Method],
        knowledge: Knowledge | None,
        inputs: dict[str, Any],
    ) -> Student:
        def work(folder: Path, key: str) -> None:
            student, outcome = self.fit_student(selecting, kind, knowledge, folder, label=f"train {name}", identity=key)
            say_fit(outcome, selecting)
            if first_process():
                save_student(student, folder / _MODEL)

        selecting = training.model_copy(update={"refit": False})
        done = self._stage(name, {**self.student_inputs(selecting), **inputs}, work, together=True)
        if training.refit:
            epochs = load_fit(done.folder).best_epoch

            def again(folder: Path, key: str) -> None:
                label = f"refit {name}"
                student = self._refit(selecting, kind, knowledge, folder, label=label, identity=key, epochs=epochs)
                if first_process():
                    save_student(student, folder / _MODEL)

            done = self._stage(f"{name}-refit", {"selected": done.key}, again, together=True)
        return load_student(done.folder / _MODEL, STUDENTS)

    def student_inputs(self, training: TrainSettings) -> dict[str, Any]:
        """Return what a student's training depends on, but for seed and method."""
        return {
            "data": self.data.fingerprint,
            "student": self.student_kind.name,
            "student_settings": self.student_settings.model_dump(),
            "train": _relevant(training),
            "filter_seen": self.config.evaluate.filter_seen,  # in validation, too: it decides which epoch is kept
        }

    def fit_student(
        self,
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
        student, method = self._new_student(kind, knowledge)
        seed = self.config.seed

        def validate(model: Any) -> dict[str, float]:
            return self._validate(model, training.validate_users)

        task = Task(student, self.data, training, seed=seed, validate=validate, method=method)
        outcome = fit(task, training, folder, label=label, identity=identity, seed=seed, on_validation=on_validation)
        return student, outcome

    def _refit(
        self,
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
        student, method = self._new_student(kind, knowledge)
        settings = training.model_copy(update={"epochs": epochs, "validate_every": epochs})
        measure = {training.select_by: 0.0}  # nothing is left to select by: the last epoch is kept
        seed, dataset = self.config.seed, self.data.with_validation()
        task = Task(student, dataset, settings, seed=seed, validate=lambda _model: measure, method=method)
        fit(task, settings, folder, label=label, identity=identity, seed=seed)
        return student

    def _new_student(self, kind: type[Method], knowledge: Knowledge | None) -> tuple[Student, Method]:
        torch.manual_seed(self.config.seed)
        student = self.student_kind(self.student_settings, self.data.n_items)
        method = kind(self.method_settings if kind is self.method_kind else kind.Settings(), knowledge)
        student.item_table = method.item_embedding(student.item_table)
        return student, method

    @cached_property
    def llm(self) -> Path:
        """Folder of the teacher's language model."""
        return fetch_llm(self.teacher_settings.llm)

    @property
    def precision(self) -> torch.dtype:
        """Number format that the language model runs in on this machine."""
        return best_precision(self.teacher_settings.precision)

    @cached_property
    def teacher(self) -> E4SRec:
        """The LLM recommender, trained, folded for ranking."""
        dataset, student, training = self.data, self.student, self.config.teach
        inputs = {
            "data": dataset.fingerprint,
            "student": self.stages.get("student-refit", self.stages["student"]).key,
            "teacher": self.teacher_kind.name,
            "settings": self.teacher_settings.model_dump(),
            "llm": llm_identity(self.llm),
            "precision": str(self.precision),
            "train": _relevant(training),
            "filter_seen": self.config.evaluate.filter_seen,  # in validation, too: it decides which epoch is kept
        }

        def work(folder: Path, key: str) -> None:
            llm, tokenizer = load_llm(self.llm, self.teacher_settings.layers, self.precision)
            torch.manual_seed(self.config.seed)
            teacher = E4SRec(self.teacher_settings, llm, tokenizer, student.item_vectors().detach())
            task = Task(teacher, dataset, training, seed=self.config.seed, validate=self._validate)
            outcome = fit(task, training, folder, label="train teacher", identity=key, seed=self.config.seed)
            say_fit(outcome, training)
            if first_process():
                teacher.save(folder, llm_identity(self.llm))

        done = self._stage("teacher", inputs, work, together=True)
        return load_e4srec(done.folder, self.llm)

    @cached_property
    def knowledge(self) -> Knowledge:
        """What the teacher says about the training examples, and item vectors read from item text."""
        dataset, settings = self.data, self.config.annotate
        teacher = self.teacher
        details = {
            "teacher": self.stages["teacher"].key,
            "settings": settings.model_dump(),
            "vectors": [llm_identity(self.llm), str(self.precision)],
        }

        def vectors() -> torch.Tensor:
            llm, tokenizer = load_llm(self.llm, precision=self.precision)
            return text_vectors(llm, tokenizer, dataset.texts)

        def work(folder: Path, _key: str) -> None:
            annotate(teacher, vectors, dataset, settings, folder, details)

        done = self._stage("knowledge", {"data": dataset.fingerprint, **details}, work)
        return open_knowledge(done.folder, dataset)

    def evaluate(self) -> dict[str, Any]:
        """Measure plain student, teacher and distilled student on the test examples; write results.json and report.html."""
        self._check_loss()
        teacher = self.config.teacher.name
        entries = [
            Entry(self.config.student.name, "student", self.student, self._fit_of("student")),
            Entry(f"{teacher} ({self.teacher_settings.llm})", "teacher", self.teacher, self._fit_of("teacher")),
            Entry(
                f"{self.config.student.name} + {self.config.method.name}",
                "distilled",
                self.distilled,
                self._fit_of("distilled"),
            ),
        ]
        inputs = {
            "stages": {name: done.key for name, done in self.stages.items()},
            "settings": self.config.evaluate.model_dump(),
        }

        def work(folder: Path, _key: str) -> None:
            evaluate(self.data, entries, self.config, folder)

        done = self._stage("evaluate", inputs, work)
        results: dict[str, Any] = read_json(done.folder / "results.json")
        results["stages"] = [
            {"name": one.name, "seconds": round(one.seconds, 3), "cached": one.cached} for one in self.stages.values()
        ]
        results["peak_rss_mb"] = round(max(one.peak_rss_mb for one in self.stages.values()), 1)
        results["ranks"] = f"{done.folder.name}/{RANKS}"  # where `distilrec evaluate A B` finds them
        write_json(self.root / "results.json", results)
        (self.root / "report.html").write_bytes((done.folder / "report.html").read_bytes())
        return results

    def _fit_of(self, name: str) -> Fit:
        return load_fit(self.stages[name].folder)

    def _validate(self, model: Any, users: int | None = None) -> dict[str, float]:
        settings = self.config.evaluate
        examples = self.data.examples("valid")
        if users is not None and users < len(examples):  # the same ones each time
            examples = np.sort(np.random.default_rng(0).permutation(examples)[:users])
        ranks = target_ranks(
            model, self.data, examples, batch_tokens=settings.batch_tokens, filter_seen=settings.filter_seen
        )
        return evaluate_ranks(ranks, settings.cutoffs)


def named(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry called `name`, or raise a ConfigError that lists what there is."""
    if name not in registry:
        raise ConfigError(f"unknown {what} {name!r}.", remedy=f"Known: {', '.join(registry)}.")
    return registry[name]


def say_fit(outcome: Fit, settings: TrainSettings) -> None:
    """Say in one line how a training went."""
    say(
        f"  {len(outcome.history)} epochs, best epoch {outcome.best_epoch} with validation {settings.select_by} {outcome.best:.4f}, "
        f"{outcome.seconds:.1f} s"
    )


def _relevant(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(exclude={"checkpoint_seconds"})
