"""A run: data -> plain student -> teacher -> knowledge -> distilled student -> evaluation, each stage on demand."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilrec.config import Config, TrainSettings
from distilrec.data.dataset import Dataset, open_dataset
from distilrec.data.prepare import prepare
from distilrec.data.sources import fetch
from distilrec.data.tables import check_file
from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import evaluate_ranks, metric_names
from distilrec.evaluation.rank import target_ranks
from distilrec.evaluation.stored import RANKS
from distilrec.files import locked, read_json, sha256_file, write_json
from distilrec.knowledge.store import Knowledge
from distilrec.methods import METHODS
from distilrec.methods.base import Method
from distilrec.pipeline.alternating import Alternation
from distilrec.pipeline.beforehand import look_for_key
from distilrec.pipeline.evaluate import Entry, evaluate
from distilrec.pipeline.names import named
from distilrec.pipeline.stage import Stage, stage, stage_folder
from distilrec.pipeline.student import PLAIN, fit_student, student_inputs, trained_student
from distilrec.pipeline.teaching import Teaching
from distilrec.progress import first_process, say
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import Student
from distilrec.teachers import TEACHERS
from distilrec.training.loop import Fit, OnValidation, load_fit


class Pipeline:
    """All stages of one configuration; asking for a stage does those before it.

    Args:
        config: the run's settings; names and settings of student, teacher and method are checked here, before any work.
        root: folder of the run, for example runs/demo.
        taught: another run over the same data whose stored knowledge this one learns from, in place of a teacher of its own;
            a method that asks about some examples only is given what was said about those.

    Raises:
        ConfigError: an unknown student, teacher, method, or one of their settings.
    """

    def __init__(self, config: Config, root: Path, *, taught: "Pipeline | None" = None) -> None:
        self.config, self.root, self.taught = config, root, taught
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

    def _check_teacher(self) -> None:
        """See, before any work for it, that the teacher gives what the method learns from, and can be made."""
        gives = self.teacher_kind.gives | ({"item_vectors"} if self.config.annotate.vectors is not None else set())
        if missing := self.needs - gives:
            named = " and ".join(sorted(missing)).replace("_", " ")
            vectors = ", set annotate.vectors for item vectors" * ("item_vectors" in missing)
            raise ConfigError(
                f"the method {self.method_kind.name} needs {named}, which the teacher {self.teacher_kind.name} does not give.",
                remedy=f"Choose another teacher or method{vectors}, or switch off what learns from them: "
                f"docs/methods/{self.method_kind.name}.md.",
            )
        if self.needs or self.teacher_kind.asked == "positions":
            _ = self.teaching.looked
        if self.needs:
            look_for_key(self.teaching)

    @property
    def needs(self) -> frozenset[str]:
        """What the method reads of stored knowledge. One with rounds reads rankings where the teacher cannot take part."""
        needs = self.method_kind.needs_of(self.method_settings)
        return (
            needs
            if self.method_kind.rounds_of(self.method_settings) is None or self._in_rounds
            else needs | {"rankings"}
        )

    @property
    def _in_rounds(self) -> bool:
        """Whether teacher and student train in turn: the method has rounds, the teacher can be trained and scores the catalogue."""
        able = "logits" in self.teacher_kind.gives and hasattr(self.teacher_kind, "reopen")
        return able and self.method_kind.rounds_of(self.method_settings) is not None

    @cached_property
    def alternation(self) -> Alternation:
        """Teacher and student in rounds."""
        return Alternation(self)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run's folder, so that no other process works in it."""
        if not first_process():  # of those that torchrun started, the first holds it for all
            return nullcontext()
        return locked(self.root / ".lock", "this run")

    def stage(
        self, name: str, inputs: dict[str, Any], work: Callable[[Path, str], None], *, together: bool = False
    ) -> Stage:
        """Do a stage of this run, unless it is done; see `stage`."""
        done = stage(self.root, name, {"seed": self.config.seed, **inputs}, work, together=together)
        self.stages[name] = done
        write_json(self.root / "config.json", self.config.model_dump(mode="json"))
        return done

    def stage_folder(self, name: str, inputs: dict[str, Any]) -> Path:
        """Return where a stage with these inputs lies, done or not."""
        return stage_folder(self.root, name, {"seed": self.config.seed, **inputs})

    @cached_property
    def data(self) -> Dataset:
        """The prepared data set."""
        if self.taught is not None:
            return self.taught.data
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

        done = self.stage("data", inputs, work)
        dataset = open_dataset(done.folder)
        if done.cached:
            for note in dataset.manifest["notes"]:
                say(f"  {note}")
        return dataset

    @cached_property
    def student(self) -> Student:
        """The plain student, trained."""
        return trained_student(self, "student", self.config.train, METHODS["plain"], None, PLAIN)

    @cached_property
    def distilled(self) -> Student:
        """The student trained by the configured method."""
        self._check_teacher()
        if self._in_rounds:
            return self.alternation.student
        if self.method_kind.rounds_of(self.method_settings) is not None:
            teacher, method = self.teacher_kind.name, self.method_kind.name
            say(f"the teacher {teacher} cannot train in rounds: {method} learns from its stored rankings, once")
        knowledge = self.knowledge if self.needs else None
        inputs: dict[str, Any] = {"method": self.method_kind.name, "method_settings": self.method_settings.model_dump()}
        if knowledge is not None:
            inputs["knowledge"] = [self.stages["knowledge"].key, knowledge.digest]
            if self.config.evaluate.filter_seen:  # what will never be recommended is not learnt either
                knowledge = knowledge.without(self.data, "history")
        return trained_student(self, "distilled", self.config.distil_settings(), self.method_kind, knowledge, inputs)

    def student_inputs(self, training: TrainSettings) -> dict[str, Any]:
        """Return what the student's training depends on, but for seed and method."""
        return student_inputs(self, training, self.student_kind, self.student_settings)

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
        return fit_student(
            self, training, kind, knowledge, folder, label=label, identity=identity, on_validation=on_validation
        )

    @cached_property
    def teaching(self) -> Teaching:
        """The teacher's side of the run."""
        return Teaching(self)

    @cached_property
    def teacher(self) -> Any:
        """The teacher, trained if it is one that is trained, ready to be asked; None if there is nothing to ask."""
        _ = self.teaching.looked
        return self.alternation.teacher if self._in_rounds else self.teaching.teacher()

    @cached_property
    def knowledge(self) -> Knowledge:
        """What the teacher says about the training examples, and item vectors."""
        if self.taught is None:
            return self.teaching.knowledge()
        knowledge = self.taught.knowledge
        self.stages["knowledge"] = self.taught.stages["knowledge"]
        stored = knowledge.examples
        hardness = (self.taught if self.teacher_kind.trained == "student" else self).teaching.difficulty
        chosen = self.method_kind.select(self.method_settings, self.data, stored, hardness)
        return knowledge if len(chosen) == len(stored) else knowledge.only(chosen)

    def evaluate(self) -> dict[str, Any]:
        """Measure plain student, teacher and distilled student on the test examples; write results.json and report.html."""
        self._check_teacher()
        entries = [
            Entry(self.config.student.name, "student", self.student, self._fit_of("student")),
            *self._teacher_entry(),
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

        done = self.stage("evaluate", inputs, work)
        results: dict[str, Any] = read_json(done.folder / "results.json")
        once = {one.key: one for one in self.stages.values()}  # what rounds bring forth is there under two names
        results["stages"] = [
            {"name": one.name, "seconds": round(one.seconds, 3), "cached": one.cached} for one in once.values()
        ]
        results["peak_rss_mb"] = round(max(one.peak_rss_mb for one in self.stages.values()), 1)
        results["settings"] = self.config.model_dump(mode="json")  # config.json is of the last command in this folder
        results["ranks"] = f"{done.folder.name}/{RANKS}"  # where `distilrec evaluate A B` finds them
        write_json(self.root / "results.json", results)
        (self.root / "report.html").write_bytes((done.folder / "report.html").read_bytes())
        return results

    def _teacher_entry(self) -> list[Entry]:
        """Return the teacher, if it is one that scores the catalogue; others cost too much, or were asked elsewhere."""
        if self.teacher_kind.asked != "positions":
            return []
        name, llm = self.config.teacher.name, getattr(self.teacher_settings, "llm", None)
        return [Entry(f"{name} ({llm})" if llm else name, "teacher", self.teacher, self._fit_of("teacher"))]

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
