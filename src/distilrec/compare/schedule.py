"""Which jobs of a comparison run when, and where: worker processes that each do one at a time.

A worker is a process of its own: what it is killed for (memory, a fault in a library) ends one job, not the comparison. It ends
itself when the parent is gone, and what it leaves behind is resumed by whoever does the job next.

Order: teachers first, since most of the rest waits for them; then all trials on the first seed; then the other seeds, one seed of
everything before the next, so that a comparison that is broken off is a smaller one of the same kind. Times last, alone.
"""

import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from distilrec.compare.matrix import PLAIN, Combination, Matrix, Values
from distilrec.compare.work import Job, Workshop, as_job
from distilrec.errors import DistilrecError
from distilrec.progress import say

_ECHO_SECONDS = 30.0  # between two looks at what a running job says
_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        trained: (combination, seed) -> what a training gave, of the settings chosen.
        teachers: (data set, teacher) -> what a teacher gave.
        trials: combination -> every trial with its values and validation.
        timings: job's label -> times.
        failed: label -> why, in one line.
        skipped: labels of what time was too short for, or what another failure left without its footing.
    """

    trained: dict[tuple[Combination, int], dict[str, Any]] = field(default_factory=dict)
    teachers: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    trials: dict[Combination, list[dict[str, Any]]] = field(default_factory=dict)
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Plan:
    """What is left to do, and what of it may start now."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.outcome = matrix, Outcome()
        self._chosen: dict[Combination, Values] = {}
        self._waiting: list[Job] = []
        stored = {
            (one.dataset, one.teacher) for one in matrix.combinations if one.teacher and not matrix.in_rounds(one)
        }
        self._teachers = [key for key in dict.fromkeys((one.dataset, one.teacher) for one in matrix.combinations)
                          if key in stored]  # fmt: skip
        self._waiting += [Job("teacher", dataset, teacher) for dataset, teacher in self._teachers if teacher]
        first = matrix.settings.seeds[0]
        for one in matrix.combinations:
            trials = matrix.trials_of(one)
            self.outcome.trials[one] = []
            self._waiting += [
                Job(
                    "training", one.dataset, one.teacher, one, first, values, number=number if len(trials) > 1 else None
                )
                for number, values in enumerate(trials)
            ]
        for seed in matrix.settings.seeds[1:]:
            self._waiting += [Job("training", one.dataset, one.teacher, one, seed) for one in matrix.combinations]
        self.total = len(self._waiting)

    def next(self) -> Job | None:
        """Take the first job that may start; None if none may now."""
        for job in list(self._waiting):
            if self._hopeless(job):
                self._waiting.remove(job)
                self.outcome.skipped.append(job.label)
                continue
            if self._ready(job):
                self._waiting.remove(job)
                return self._settled(job)
        return None

    @property
    def left(self) -> int:
        """How many jobs have not been taken."""
        return len(self._waiting)

    def done(self, job: Job, found: dict[str, Any]) -> None:
        """Take in what a job gave."""
        if job.kind == "teacher" and job.teacher is not None:
            self.outcome.teachers[job.dataset, job.teacher] = found
            return
        if job.combination is None:
            return
        if job.seed != self.matrix.settings.seeds[0]:
            self.outcome.trained[job.combination, job.seed] = found
            return
        trials = self.outcome.trials[job.combination]
        trials.append({"number": job.number or 0, "values": job.values, "valid": found["valid"], "found": found})
        self._choose(job.combination)

    def fail(self, job: Job, reason: str) -> None:
        """Take in that a job failed."""
        self.outcome.failed[job.label] = reason
        if job.kind == "training" and job.combination is not None and job.seed == self.matrix.settings.seeds[0]:
            self._choose(job.combination)

    def give_up(self, running: Iterable[Job]) -> None:
        """Take in that there is no time for the rest."""
        self.outcome.skipped += [job.label for job in (*running, *self._waiting)]
        self._waiting = []
        for one in self.matrix.combinations:
            self._choose(one, at_once=True)

    def _choose(self, one: Combination, *, at_once: bool = False) -> None:
        """Settle what a combination is trained with, once all its trials are over: the best on validation, the first of equals."""
        trials = self.outcome.trials[one]
        over = len(trials) + sum(self._label_of(one, number) in self.outcome.failed for number in self._numbers(one))
        if not trials or (not at_once and over < len(self._numbers(one))) or one in self._chosen:
            return
        best = max(trials, key=lambda trial: (trial["valid"], -trial["number"]))
        self._chosen[one] = best["values"]
        self.outcome.trained[one, self.matrix.settings.seeds[0]] = best["found"]

    def _numbers(self, one: Combination) -> list[int | None]:
        count = len(self.matrix.trials_of(one))
        return [None] if count == 1 else list(range(count))

    def _label_of(self, one: Combination, number: int | None) -> str:
        return Job("training", one.dataset, one.teacher, one, self.matrix.settings.seeds[0], number=number).label

    def _start_of(self, job: Job) -> Combination | None:
        """Return the plain student whose settings must be known first."""
        one = job.combination
        if one is None or not self.matrix.kind(one.method).fine_tunes:
            return None
        return self.matrix.plain_of(one)

    def _ready(self, job: Job) -> bool:
        one = job.combination
        if one is None:
            return True
        if one.teacher and not self.matrix.in_rounds(one) and (one.dataset, one.teacher) not in self.outcome.teachers:
            return False
        if (start := self._start_of(job)) is not None and (start, job.seed) not in self.outcome.trained:
            return False
        return job.seed == self.matrix.settings.seeds[0] or one in self._chosen

    def _hopeless(self, job: Job) -> bool:
        """Whether what a job waits for has failed."""
        one, lost = job.combination, {*self.outcome.failed, *self.outcome.skipped}
        if one is None:
            return False
        if one.teacher and Job("teacher", one.dataset, one.teacher).label in lost and not self.matrix.in_rounds(one):
            return True
        first = self.matrix.settings.seeds[0]
        if job.seed != first and one not in self._chosen and self._over(one):
            return True
        start = self._start_of(job)
        if start is None or (start, job.seed) in self.outcome.trained:
            return False
        return self._over(start) if job.seed == first else replace(job, combination=start, teacher=None).label in lost

    def _over(self, one: Combination) -> bool:
        """Whether every trial of a combination has failed."""
        return all(self._label_of(one, number) in {*self.outcome.failed, *self.outcome.skipped}
                   for number in self._numbers(one))  # fmt: skip

    def _settled(self, job: Job) -> Job:
        """Put in the values that are known by now."""
        if job.combination is None:
            return job
        start, first = self._start_of(job), self.matrix.settings.seeds[0]
        plain = self._chosen.get(start, {}) if start is not None else {}
        values = job.values if job.seed == first else self._chosen[job.combination]
        return replace(job, values=values, plain=plain)

    def timings(self) -> list[Job]:
        """Return a job for every model whose speed is shown: one a combination, one a teacher that ranks."""
        seed = self.matrix.settings.seeds[0]
        jobs = [
            self._settled(Job("timing", dataset, teacher, seed=seed))
            for (dataset, teacher), found in self.outcome.teachers.items()
            if "folder" in found
        ]
        for one in self.matrix.combinations:
            if (one, seed) in self.outcome.trained:
                jobs.append(self._settled(Job("timing", one.dataset, one.teacher, one, seed, self._chosen[one])))
        return jobs


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: "Connection[Any, Any]"
    log: Path
    job: Job | None = None
    since: float = 0.0
    echoed: float = 0.0


class Workers:
    """Worker processes, started as they are needed.

    Args:
        matrix: the comparison.
        root: its folder.
        count: how many work at a time.
    """

    def __init__(self, matrix: Matrix, root: Path, count: int) -> None:
        self.matrix, self.root, self.count = matrix, root, count
        self._workers: list[_Worker | None] = [None] * count

    def run(self, plan: Plan, deadline: float) -> None:
        """Do all jobs of a plan, or as many as time allows (`time.monotonic` seconds)."""
        finished, spent = 0, deque[float](maxlen=50)
        while True:
            if time.monotonic() >= deadline:
                plan.give_up(self._stop())
                say(f"time is over: {finished} of {plan.total} jobs are done, the same command goes on with the rest.")
                return
            self._fill(plan)
            busy = [worker for worker in self._workers if worker is not None and worker.job is not None]
            if not busy:
                plan.give_up(())  # nothing is left, or nothing that could start
                return
            for worker in self._answered(busy, deadline):
                job, seconds, answer = self._take(worker)
                finished += 1
                if "error" in answer:
                    plan.fail(job, answer["error"])
                    say(f"[{finished}/{plan.total}] {job.label}: failed. {answer['error']}")
                    continue
                plan.done(job, answer["found"])
                spent.append(seconds)
                left = (plan.total - finished) * statistics.fmean(spent) / self.count
                said = f"validation {answer['found']['valid']:.4f}, " if "valid" in answer["found"] else ""
                say(f"[{finished}/{plan.total}] {job.label}: {said}{seconds:.0f} s; about {left / 60:.0f} min left")

    def time(self, plan: Plan, deadline: float) -> None:
        """Time ranking with every model of a plan, one after the other, with nothing beside them."""
        jobs = plan.timings()
        for place, job in enumerate(jobs):
            if time.monotonic() < deadline:
                worker = self._give(0, job)
                while not (over := self._answered([worker], deadline)) and time.monotonic() < deadline:
                    pass
                if over:
                    answer = self._take(worker)[2]
                    if "found" in answer:
                        plan.outcome.timings[job.label] = answer["found"]
                    else:
                        plan.fail(job, answer["error"])
                        say(f"{job.label}: failed. {answer['error']}")
                    continue
                self._stop()
            plan.outcome.skipped += [one.label for one in jobs[place:]]
            say(f"time is over: {len(jobs) - place} models were not timed, the same command does that.")
            return

    def close(self) -> None:
        """End all workers."""
        self._stop()

    def _fill(self, plan: Plan) -> None:
        for place in range(self.count):
            worker = self._workers[place]
            if worker is not None and worker.job is not None:
                continue
            job = plan.next()
            if job is None:
                return
            self._give(place, job)

    def _give(self, place: int, job: Job) -> _Worker:
        worker = self._workers[place]
        if worker is None or not worker.process.is_alive():
            worker = self._workers[place] = self._start(place)
        worker.job, worker.since, worker.echoed = job, time.monotonic(), time.monotonic()
        worker.pipe.send(asdict(job))
        return worker

    def _start(self, place: int) -> _Worker:
        ours, theirs = _SPAWN.Pipe()
        log = self.root / "logs" / f"worker-{place}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        settings = self.matrix.settings.model_dump(mode="json")
        process = _SPAWN.Process(
            target=_work, args=(settings, str(self.matrix.folder), str(self.root), place, self.count, str(log), theirs),
            daemon=True,
        )  # fmt: skip
        with _deaf():
            process.start()
        theirs.close()
        return _Worker(process, ours, log)

    def _answered(self, busy: list[_Worker], deadline: float) -> list[_Worker]:
        """Wait a while for any answer; meanwhile say what the running jobs say."""
        until = min(_ECHO_SECONDS, max(0.0, deadline - time.monotonic()))
        ready = set(wait([worker.pipe for worker in busy], timeout=until))
        for worker in busy:
            if (
                worker.pipe not in ready
                and time.monotonic() - worker.echoed >= _ECHO_SECONDS
                and worker.job is not None
            ):
                worker.echoed = time.monotonic()
                say(f"  {worker.job.label}: {_last_line(worker.log)}")
        return [worker for worker in busy if worker.pipe in ready]

    def _take(self, worker: _Worker) -> tuple[Job, float, dict[str, Any]]:
        job = worker.job
        if job is None:
            raise RuntimeError("a worker without a job has answered")
        worker.job = None
        try:
            answer: dict[str, Any] = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            answer = {"error": f"the worker died (exit code {worker.process.exitcode}); see {worker.log}."}
            self._workers[self._workers.index(worker)] = None
        return job, time.monotonic() - worker.since, answer

    def _stop(self) -> list[Job]:
        """End all workers; return the jobs that they were at."""
        running = []
        for place, worker in enumerate(self._workers):
            if worker is not None:
                worker.process.terminate()
                worker.process.join()
                worker.pipe.close()
                if worker.job is not None:
                    running.append(worker.job)
            self._workers[place] = None
        return running


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore Ctrl-C: a process started meanwhile inherits that. The parent is told too, and ends its workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "starting"
    return lines[-1].strip() if lines else "starting"


def _work(
    settings: dict[str, Any], folder: str, root: str, place: int, count: int, log: str, pipe: "Connection[Any, Any]"
) -> None:
    """Do jobs until there are no more; runs in a process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    with open(log, "a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):  # noqa: PTH123
        from distilrec.compare.matrix import CompareSettings

        matrix = Matrix(CompareSettings.model_validate(settings), Path(folder))
        workshop = Workshop(matrix, Path(root), max(1, (os.cpu_count() or 1) // count) if count > 1 else None)
        while True:
            try:
                job = as_job(pipe.recv())
            except EOFError:
                return
            say(f"== {job.label}")
            pipe.send(_answer(workshop, job))


def _answer(workshop: Workshop, job: Job) -> dict[str, Any]:
    try:
        return {"found": workshop.do(job)}
    except DistilrecError as error:
        say(error.line())
        return {"error": error.line()}
    except Exception as error:
        import traceback

        traceback.print_exc(file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}


def _end_with_parent() -> None:
    """End this process when the parent's has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


__all__ = ["PLAIN", "Outcome", "Plan", "Workers"]
