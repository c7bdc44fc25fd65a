"""Does the jobs of an annotation on several workers, of one machine or many, by Ray (extra `ray`).

The driver hands out jobs and is the only one that writes the store, so one lock, one budget and one journal hold for all. A
worker that is lost is started again, and only the jobs it had at the time are done again. Workers see the same folders: teacher
and data set must lie where every machine can read them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from distilrec.errors import DistilrecError, InputError
from distilrec.knowledge.annotate import Answer, Job
from distilrec.progress import say

_AHEAD = 2  # jobs a worker has at a time: one at work, one waiting, so that it never idles
_TRIES = 5  # a job that so many workers died over is the cause itself


def over_ray(make: Callable[[], Answer], jobs: Sequence[Job], *, workers: int) -> Iterator[pl.DataFrame]:
    """Do jobs on `workers` Ray actors and yield what comes out of each, in the order they finish.

    Args:
        make: gives what does a job; called once by each worker.
        jobs: what to do.
        workers: how many.

    Raises:
        InputError: Ray is not installed.
        DistilrecError: a job failed with an error of ours, or too many workers died over one.
    """
    if not jobs:
        return
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", configure_logging=False)
    try:
        yield from _Pool(ray, make, min(workers, len(jobs))).run(jobs)
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "Ray is not installed.", remedy='Run `pip install "distilrec[ray]"`, or leave annotate.engine at local.'
        ) from None
    return ray


class _Worker:
    """Lives in a process of its own."""

    def __init__(self, make: Callable[[], Answer]) -> None:
        self._answer = make()

    def do(self, job: Job) -> pl.DataFrame:
        return self._answer(job)


class _Pool:
    def __init__(self, ray: Any, make: Callable[[], Answer], workers: int) -> None:
        self._ray = ray
        cores = max(1.0, ray.cluster_resources().get("CPU", 1.0))
        gpus = ray.cluster_resources().get("GPU", 0.0)
        options = {"num_cpus": min(1.0, cores / workers), "num_gpus": min(1.0, gpus / workers), "max_restarts": -1}
        kind = ray.remote(_Worker).options(**options)
        self._actors = [kind.remote(make) for _ in range(workers)]

    def run(self, jobs: Sequence[Job]) -> Iterator[pl.DataFrame]:
        waiting = deque((job, 1) for job in jobs)
        running: dict[Any, tuple[Job, int, Any]] = {}
        try:
            while waiting or running:
                self._hand_out(waiting, running)
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                job, tries, _actor = running.pop(done)
                frame = self._result(done, job, tries)
                if frame is None:
                    waiting.appendleft((job, tries + 1))
                else:
                    yield frame
        finally:
            for actor in self._actors:
                self._ray.kill(actor)

    def _hand_out(self, waiting: deque[tuple[Job, int]], running: dict[Any, tuple[Job, int, Any]]) -> None:
        for _ in range(_AHEAD):
            for actor in self._actors:
                busy = sum(one is actor for _job, _tries, one in running.values())
                if waiting and busy < _AHEAD:
                    job, tries = waiting.popleft()
                    running[actor.do.remote(job)] = (job, tries, actor)

    def _result(self, done: Any, job: Job, tries: int) -> pl.DataFrame | None:
        """Return what came out of a job; None if its worker was lost and it is to be done again."""
        try:
            frame: pl.DataFrame = self._ray.get(done)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.WorkerCrashedError):
            if tries >= _TRIES:
                raise DistilrecError(
                    f"{tries} workers died over the same {len(job.wanted)} examples.",
                    remedy="See their memory and Ray's logs; lower annotate.batch_tokens or annotate.workers.",
                ) from None
            say("  a worker was lost; what it had at the time is done again")
            return None
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, DistilrecError) else error from None
        return frame
