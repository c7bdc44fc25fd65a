"""Worker processes that do the jobs of a comparison, one at a time each.

A worker is a process of its own: what it is killed for (memory, a fault in a library) ends one job, not the comparison. It ends
itself when the parent is gone, and what it leaves behind is resumed by whoever does the job next.
"""

import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from distilrec.compare.matrix import Matrix
from distilrec.compare.plan import Plan
from distilrec.compare.settings import CompareSettings
from distilrec.compare.work import Job, Workshop, as_job
from distilrec.errors import DistilrecError
from distilrec.progress import say

_ECHO_SECONDS = 30.0  # between two looks at what a running job says
_FOUND_DONE = 1.0  # seconds; a job that takes less was done before, and tells nothing of how long the others will take
_SPAWN = multiprocessing.get_context("spawn")


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
                if seconds > _FOUND_DONE:
                    spent.append(seconds)
                said = f"validation {answer['found']['valid']:.4f}, " if "valid" in answer["found"] else ""
                say(f"[{finished}/{plan.total}] {job.label}: {said}{seconds:.0f} s{self._left(plan, finished, spent)}")

    def _left(self, plan: Plan, finished: int, spent: Collection[float]) -> str:
        if not spent:
            return ""
        return f"; about {(plan.total - finished) * statistics.fmean(spent) / self.count / 60:.0f} min left"

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # again: polars, when it is imported, puts a handler in its place
    threading.Thread(target=_end_with_parent, daemon=True).start()
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    with open(log, "a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):  # noqa: PTH123
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
