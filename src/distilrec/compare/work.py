"""One job of a comparison: a teacher with what it says, one training, or the timing of one model. All are kept and resumed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distilrec.compare.matrix import Combination, Matrix, Values
from distilrec.compare.settings import PLAIN
from distilrec.evaluation.groups import main_cutoff
from distilrec.evaluation.rank import rank_and_top, time_ranking
from distilrec.evaluation.stored import RANKS, write_ranks
from distilrec.files import read_json, write_json, write_with
from distilrec.knowledge.annotate import ACCOUNT
from distilrec.pipeline import Pipeline
from distilrec.pipeline.evaluate import parameters
from distilrec.pipeline.stage import Stage
from distilrec.training.loop import load_fit

TOP = "top.npy"  # [n, _DEEPEST] best items of every test example
RESULT = "result.json"
_TIMING = "timing.json"
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work that a worker does by itself.

    Attributes:
        kind: `teacher`: make it, ask it, rank with it; `training`: train and rank; `timing`: time ranking, nothing else running.
        dataset: label.
        teacher: label; None for a training without.
        combination: of a training or timing; None for a teacher.
        seed: of the training.
        values: of tuned settings.
        plain: those of the plain student, where the method starts from it.
        number: of the trial; None behind the tuning.
    """

    kind: Literal["teacher", "training", "timing"]
    dataset: str
    teacher: str | None = None
    combination: Combination | None = None
    seed: int = 0
    values: Values = field(default_factory=dict)
    plain: Values = field(default_factory=dict)
    number: int | None = None

    @property
    def label(self) -> str:
        """Return how it is called in messages."""
        if self.combination is None:
            return f"{self.dataset}/{self.teacher}" + " (time)" * (self.kind == "timing")
        what = "time" if self.kind == "timing" else f"seed {self.seed}"
        trial = f", trial {self.number + 1}" if self.number is not None else ""
        return f"{self.combination.label} ({what}{trial})"


class Workshop:
    """Does jobs, and keeps what they share (data, teachers) open from one to the next.

    Args:
        matrix: the comparison.
        root: its folder.
        threads: for torch, where the configuration does not say.
    """

    def __init__(self, matrix: Matrix, root: Path, threads: int | None = None) -> None:
        self.matrix, self.root, self.threads = matrix, root, threads
        self._taught: dict[tuple[str, str | None], Pipeline] = {}

    def do(self, job: Job) -> dict[str, Any]:
        """Do a job, or find it done; return what there is to know about it."""
        if job.kind == "teacher":
            return self._teach(job)
        run = self._run(job)
        if job.kind == "timing":
            return self._time(job, run)
        found = self._measured(run, *self._model(job, run))
        return found | {"asked": self._asked(run, job)} | self._rounds(run, job)

    def _model(self, job: Job, run: Pipeline) -> tuple[Any, Stage]:
        """Return what a job trains, or has trained, and the stage it lies in."""
        if job.combination is None:
            return run.teacher, run.stages["teacher"]
        if self.matrix.kind(job.combination.method).name == PLAIN:
            return run.student, run.stages.get("student-refit", run.stages["student"])
        return run.distilled, run.stages.get("distilled-refit", run.stages["distilled"])

    def shared(self, dataset: str, teacher: str | None) -> Pipeline:
        """Return the run that holds a data set, and a teacher over it if one is named."""
        key = (dataset, teacher)
        if key not in self._taught:
            of_data = None if teacher is None else self.shared(dataset, None)
            config = (
                self.matrix.data_config(dataset) if teacher is None else self.matrix.teacher_config(dataset, teacher)
            )
            run = Pipeline(self._with_threads(config), self.root / config.name)
            if of_data is not None:
                run.data = of_data.data
            self._taught[key] = run
        return self._taught[key]

    def _run(self, job: Job) -> Pipeline:
        one = job.combination
        if one is None:
            return self.shared(job.dataset, job.teacher)
        config = self.matrix.config(one, job.seed, job.values, job.plain)
        taught = self.shared(one.dataset, None if self.matrix.in_rounds(one) else one.teacher)
        return Pipeline(self._with_threads(config), self.root / self.matrix.run_name(one, job.seed), taught=taught)

    def _rounds(self, run: Pipeline, job: Job) -> dict[str, Any]:
        """Return what all half-steps of either side took, where teacher and student train in turn."""
        if job.combination is None or not self.matrix.in_rounds(job.combination):
            return {}
        course = run.alternation.course
        sides = {"seconds": course.students, "teacher_seconds": course.teachers}
        return {
            key: sum(
                max(half.made.seconds, load_fit(half.made.folder).seconds) for half in halves
            )  # of a resumed one, the fit's
            for key, halves in sides.items()
        }

    def _asked(self, run: Pipeline, job: Job) -> int | None:
        """Return how many examples a method learns from a teacher's stored answers; None where there are no such answers."""
        one = job.combination
        if one is None or one.teacher is None or self.matrix.in_rounds(one) or not self.matrix.needs(one.method):
            return None
        return len(run.knowledge.examples)

    def _with_threads(self, config: Any) -> Any:
        return config if config.threads is not None else config.model_copy(update={"threads": self.threads})

    def _teach(self, job: Job) -> dict[str, Any]:
        run = self.shared(job.dataset, job.teacher)
        _ = run.knowledge
        done = run.stages["knowledge"]
        account = read_json(done.folder / ACCOUNT)
        found: dict[str, Any] = {
            "usd": account.get("store", account).get("usd", 0.0),
            "knowledge_seconds": done.seconds,
            "rows": len(run.knowledge.examples),
        }
        if run.teacher_kind.asked == "positions":
            found |= self._measured(run, run.teacher, run.stages["teacher"])
        return found

    def _measured(self, run: Pipeline, model: Any, stage: Stage) -> dict[str, Any]:
        """Rank every test target with a model; keep ranks and best items in a stage of their own."""
        settings = run.config.evaluate
        fit = load_fit(stage.folder)

        def work(folder: Path, _key: str) -> None:
            examples = np.asarray(run.data.examples("test"))
            ranks, top = rank_and_top(
                model,
                run.data,
                examples,
                _DEEPEST,
                batch_tokens=settings.batch_tokens,
                filter_seen=settings.filter_seen,
            )
            write_with(folder / TOP, lambda part: _save(part, top.astype(np.int32)))
            write_ranks(folder / RANKS, examples, {"ranks": ranks}, run.data.fingerprint)
            write_json(folder / RESULT, {"parameters": parameters(model)})

        done = run.stage("measured", {"model": stage.key, "filter_seen": settings.filter_seen}, work)
        return {
            **read_json(done.folder / RESULT), "folder": str(done.folder), "valid": fit.best, "best_epoch": fit.best_epoch,
            "epochs": len(fit.history), "seconds": fit.seconds, "peak_rss_mb": stage.peak_rss_mb, "stage": stage.key,
        }  # fmt: skip

    def _time(self, job: Job, run: Pipeline) -> dict[str, Any]:
        """Time ranking with a model that is trained."""
        model, stage = self._model(job, run)
        path, settings = stage.folder / _TIMING, run.config.evaluate
        if not path.exists():
            timing = time_ranking(
                model, run.data, np.asarray(run.data.examples("test")),
                users=settings.timing_users, batch_tokens=settings.batch_tokens,
            )  # fmt: skip
            write_json(path, asdict(timing))
        found: dict[str, Any] = read_json(path)
        return found


def cutoff_of(metrics: list[str]) -> int:
    """Return the cutoff that groups of users are shown at."""
    return main_cutoff([int(metric.rpartition("@")[2]) for metric in metrics])


def as_job(content: Mapping[str, Any]) -> Job:
    """Return a job from what `asdict` made of it."""
    one = content["combination"]
    return Job(**{**content, "combination": None if one is None else Combination(**one)})


def _save(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        np.save(file, content, allow_pickle=False)
