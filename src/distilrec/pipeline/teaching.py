"""The teacher's side of a run: what is trained, who is asked, and where the answers are kept."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distilrec.data.split import Ints
from distilrec.errors import ConfigError
from distilrec.evaluation.rank import top_items
from distilrec.files import hash_json, read_json, write_json
from distilrec.knowledge.annotate import ACCOUNT, Answerer, Engine, annotate, here
from distilrec.knowledge.budget import still_stands
from distilrec.knowledge.examples import chosen_examples
from distilrec.knowledge.select import Chosen, difficulties, select
from distilrec.knowledge.store import Knowledge, KnowledgeWriter, open_knowledge, writing
from distilrec.pipeline.asking import ask_ranker, estimate_ranker
from distilrec.pipeline.beforehand import look_beforehand, look_for_key
from distilrec.pipeline.stage import Stage
from distilrec.pipeline.student import MODEL
from distilrec.pipeline.teacher_training import Restore, given, train_llm, train_student
from distilrec.progress import say
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import load_student
from distilrec.teachers.base import Materials, PositionTeacher
from distilrec.teachers.llm import best_device
from distilrec.teachers.recorded import read_recorded
from distilrec.teachers.text import TextSettings, TextTeacher
from distilrec.training.tasks import Task
from distilrec.training.text import TextTask

if TYPE_CHECKING:
    from distilrec.pipeline.run import Pipeline

_WANTED = "wanted.json"


class Teaching:
    """Training and asking of the configured teacher; which of both there is to do follows from the kind of teacher."""

    def __init__(self, run: "Pipeline") -> None:
        self.run = run
        self.kind, self.settings = run.teacher_kind, run.teacher_settings

    def materials(self) -> Materials:
        """Return what teachers are made from."""
        run = self.run
        return Materials(
            dataset=run.data,
            seed=run.config.seed,
            id_embeddings=lambda: run.student.item_vectors(),
            student_key=lambda: self.student_stage().key,
        )

    def student_stage(self) -> Stage:
        """Train the run's plain student and return the stage it lies in."""
        _ = self.run.student
        return self.run.stages.get("student-refit", self.run.stages["student"])

    @cached_property
    def looked(self) -> None:
        """That the teacher can be made, as far as it shows before any training; see `look_beforehand`."""
        look_beforehand(self)

    @cached_property
    def trained(self) -> Stage | None:
        """The stage that the teacher is trained in, done; None if it is one that is not trained."""
        if self.kind.trained == "nothing":
            return None
        _ = self.looked
        if (folder := getattr(self.settings, "trained", None)) is not None:
            return given(self, folder)
        if self.kind.trained == "student":
            return train_student(self)
        return train_llm(self, TextTask if self.kind.trained == "text" else Task)

    @cached_property
    def parted(self) -> list[Stage]:
        """The stages of teachers that were each trained without one part of the histories, done."""
        if self.kind.trained != "catalogue":
            raise ConfigError(
                f"annotate.folds is for teachers that are trained over the catalogue, and {self.kind.name} is not.",
                remedy="Set annotate.folds=1.",
            )
        _ = self.looked
        return [train_llm(self, Task, without=part) for part in range(self.run.config.annotate.folds)]

    @property
    def parts(self) -> Ints:
        """The part that each history belongs to, [rows]."""
        rows = len(self.run.data.offsets) - 1
        order = np.random.default_rng(self.run.config.seed).permutation(rows)
        return np.asarray(order % self.run.config.annotate.folds)

    def teacher(self) -> Any:
        """Return the teacher, ready to be asked; None where others are asked, or nobody."""
        done = self.trained
        return self.restored(done)() if self.kind.asked == "positions" and done is not None else None

    def restored(self, done: Stage) -> Callable[[], PositionTeacher]:
        """Return what loads the trained teacher, here or in a worker."""
        return Restore(
            self.run.config.teacher.name, self.settings, done.folder, self.run.data.folder, self.run.config.seed
        )

    def examples(self) -> Ints:
        """Return the ids of the examples to ask about, ascending."""
        chosen = self.candidates()
        return np.sort(self.run.method_kind.select(self.run.method_settings, self.run.data, chosen, self.difficulty))

    def candidates(self) -> Ints:
        """Return the ids of the examples that could be asked about, before a method chooses among them."""
        default = "last" if self.kind.asked == "prompts" else "all"
        return chosen_examples(self.run.data, self.run.config.annotate, default, self.run.config.seed)

    def choose(self, policy: str | None, budget: int | None, seed: int | None) -> Chosen:
        """Choose examples by their difficulty; what is None is taken from the method's settings, where it has them."""
        own = self.run.method_settings
        policy = policy or str(getattr(own, "policy", "maxmin"))
        examples = self.candidates()
        wanted = budget or getattr(own, "budget", 500) or len(examples)
        seed = getattr(own, "selection_seed", 0) if seed is None else seed
        hard = self.difficulty(examples)
        made = select(examples, hard, policy, wanted, seed=seed, settings=getattr(own, "gains", None))
        return Chosen(examples, hard, made)

    def estimate_of(self, selection: Path) -> list[str]:
        """Say what asking about the examples in a file would take."""
        annotate = self.run.config.annotate.model_copy(
            update={"selection": selection, "selection_by": "example", "sample": None}
        )
        config = self.run.config.model_copy(update={"annotate": annotate})
        return type(self.run)(config, self.run.root).teaching.estimate()

    def difficulty(self, examples: Ints) -> Any:
        """Return how hard examples [n] are for the conventional recommender that the teacher builds on, or for the plain student."""
        own = self.kind.trained == "student"
        model = load_student(_trained(self.trained).folder / MODEL, STUDENTS) if own else self.run.student
        return difficulties(model.to(best_device()), self.run.data, examples)

    def details(self, trained: Stage | None) -> dict[str, Any]:
        """Return what the stored answers depend on, beside the data."""
        settings = self.run.config.annotate
        own = {} if self.kind.asked == "file" else {"settings": self._recorded_settings()}
        details = {"teacher": self.kind.name, "asked": settings.content(), **own, **self._files()}
        if settings.folds > 1:
            details["trained"] = [stage.key for stage in self.parted]
        elif trained is not None:
            details["trained"] = trained.key
        elif self.kind.asked == "nothing":
            details |= self.kind.inputs(self.settings, self.materials())
        if (vectors_by := getattr(self.kind, "vectors_by", None)) is not None:
            details["vectors_by"] = vectors_by
        if settings.vectors is not None:
            own_settings = checked(TextSettings, settings.vectors, where="annotate.vectors")
            details["vectors"] = {
                "settings": own_settings.model_dump(),
                **TextTeacher.inputs(own_settings, self.materials()),
            }
        return details

    def _recorded_settings(self) -> dict[str, Any]:
        secretless: Callable[[Any], dict[str, Any]] = getattr(
            self.kind, "recorded_settings", lambda s: s.model_dump(mode="json")
        )
        return secretless(self.settings)

    def _files(self) -> dict[str, Any]:
        """Return what identifies files that a teacher's answers are read from."""
        identify = getattr(self.kind, "files", None)
        return {} if identify is None else {"files": identify(self.settings)}

    def vectors(self, trained: Stage | None) -> torch.Tensor | None:
        """Return the item vectors to store: of a text teacher if one is set for them, else the teacher's own."""
        choice, materials = self.run.config.annotate.vectors, self.materials()
        if choice is not None:
            settings = checked(TextSettings, choice, where="annotate.vectors")
            return TextTeacher.knowledge_vectors(None, settings, materials)
        folder = None if trained is None else trained.folder
        found: torch.Tensor | None = self.kind.knowledge_vectors(folder, self.settings, materials)
        return found

    def knowledge(self) -> Knowledge:
        """Ask about what has not been asked yet, and return what is stored of the wanted examples; a store may hold others, too."""
        run = self.run
        look_for_key(self)
        trained = self.parted[0] if run.config.annotate.folds > 1 else self.trained
        details = self.details(trained)

        def work(folder: Path, _key: str) -> None:
            ask = {
                "positions": self._ask_positions,
                "prompts": self._ask_prompts,
                "file": self._import,
                "nothing": self._only_vectors,
            }[self.kind.asked]
            ask(folder, details, trained)
            self._remember(folder)

        done = run.stage("knowledge", {"data": run.data.fingerprint, **details}, work)
        if done.cached and not self._complete(done.folder):
            say(f"knowledge: more is wanted than {done.folder} holds")
            work(done.folder, done.key)
        stored = open_knowledge(done.folder, run.data)
        return stored if self.kind.asked in ("file", "nothing") else stored.only(self._wanted)

    def estimate(self) -> list[str]:
        """Say what asking would take, without asking anybody. What costs nothing and is not done yet is done first: the recommender
        of a ranker is trained.
        """
        if self.kind.asked != "prompts":
            wanted = 0 if self.kind.asked in ("file", "nothing") else len(self.examples())
            return [f"{wanted:,} examples to ask a {self.kind.name} about, which runs here: no tokens are paid for"]
        trained = self.trained
        folder = self.run.stage_folder("knowledge", {"data": self.run.data.fingerprint, **self.details(trained)})
        return estimate_ranker(self, folder if folder.exists() else None, trained).lines()

    @cached_property
    def _wanted(self) -> Ints:
        """Return the ids of the examples that the store should hold; none where nobody is asked."""
        return np.empty(0, np.int64) if self.kind.asked in ("file", "nothing") else self.examples()

    def _complete(self, folder: Path) -> bool:
        """Whether a store needs no look: it holds the examples wanted now, or a cap that still stands ended filling it with them."""
        if not (folder / _WANTED).exists() or not (folder / ACCOUNT).exists():
            return False
        before, account = read_json(folder / _WANTED), read_json(folder / ACCOUNT)
        if before["examples"] != hash_json(self._wanted.tolist()):
            return not self._missing(folder)  # an earlier run may have asked about others, and about these
        stopped_by = account.get("stopped_by") or account.get("run", {}).get("stopped_by") or ""
        same_caps = before["caps"] == self.run.config.annotate.caps.model_dump()
        return bool(before["missing"] == 0 or (same_caps and still_stands(stopped_by)))

    def _remember(self, folder: Path) -> None:
        """Write down what was wanted of a store, and how much of it is missing."""
        content = {
            "examples": hash_json(self._wanted.tolist()),
            "missing": self._missing(folder),
            "caps": self.run.config.annotate.caps.model_dump(),
        }
        write_json(folder / _WANTED, content)

    def _missing(self, folder: Path) -> int:
        """Return of how many wanted examples nothing is stored."""
        return len(np.setdiff1d(self._wanted, KnowledgeWriter(folder).done(), assume_unique=True))

    def _ask_positions(self, folder: Path, details: dict[str, Any], trained: Stage | None) -> None:
        own, examples = _trained(trained), self.examples()
        settings, dataset = self.run.config.annotate, self.run.data
        elsewhere = settings.engine == "ray" or self.run._in_rounds
        turns: list[tuple[Callable[[], PositionTeacher], Ints]] = [
            (self.restored(own) if elsewhere else (lambda: self.run.teacher), examples)
        ]
        if settings.folds > 1:  # each turn asks about what is left of the parts before it, and then about its own
            part = self.parts[dataset.rows_of(examples)]
            turns = [(self.restored(stage), examples[part <= number]) for number, stage in enumerate(self.parted)]
        for restore, asked in turns:
            reach = self.kind.reach(self.settings)
            make = Answerer(restore, dataset.folder, reach, settings.top_k, self.kind.tokens_per_item)
            account = annotate(
                make, lambda: self.vectors(own), dataset, asked, settings, folder, details, engine=self._engine()
            )
            if account["stopped_by"]:  # the teachers of the parts to come must not be asked about this one
                break
        say(
            f"  {account['rows_done']:,} rows stored"
            + (f", stopped by {account['stopped_by']}" * bool(account["stopped_by"]))
        )

    def _engine(self) -> Engine:
        settings = self.run.config.annotate
        if settings.engine == "local":
            return here
        from distilrec.knowledge.ray_engine import over_ray

        return partial(over_ray, workers=settings.workers)

    def _ask_prompts(self, folder: Path, details: dict[str, Any], trained: Stage | None) -> None:
        ask_ranker(self, folder, details, trained)

    def top_items(self, trained: Stage | None) -> Callable[[Ints, int], Ints]:
        """Return what gives the recommender's best items of examples, those of the history left out."""
        model = load_student(_trained(trained).folder / MODEL, STUDENTS).to(best_device())
        return lambda examples, k: top_items(model, self.run.data, np.asarray(examples), k, filter_seen=True)

    def _import(self, folder: Path, details: dict[str, Any], _trained: Stage | None) -> None:
        recorded = read_recorded(self.settings, self.run.data)
        for line in recorded.report.lines():
            say(f"  {line}")
        with writing(folder, self.run.data, details) as writer:
            vectors = recorded.vectors if self.run.config.annotate.vectors is None else self.vectors(None)
            if vectors is not None and not writer.has_item_vectors:
                writer.put_item_vectors(vectors)
            if recorded.frame.height and len(writer.done()) == 0:
                writer.append(recorded.frame)
            rows = len(writer.done())
            account = {"rows_done": rows, "rows_total": rows, "report": recorded.report.as_json()}
            write_json(folder / ACCOUNT, account)

    def _only_vectors(self, folder: Path, details: dict[str, Any], _trained: Stage | None) -> None:
        with writing(folder, self.run.data, details) as writer:
            if not writer.has_item_vectors and (vectors := self.vectors(None)) is not None:
                writer.put_item_vectors(vectors)
            write_json(folder / ACCOUNT, {"rows_done": 0, "rows_total": 0})


def _trained(stage: Stage | None) -> Stage:
    if stage is None:
        raise RuntimeError("this kind of teacher is asked, but nothing says how it is trained")
    return stage
