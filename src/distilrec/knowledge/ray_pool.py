"""Workers on Ray (extra `ray`), on one machine or many, that do the jobs which this process hands out to them.

Nothing but jobs and results passes between them. A worker that is lost is replaced by a new one, and the jobs it had are done
again; the others go on meanwhile, even if there is no room for the new one. Workers see the same folders as this process.
"""

import logging
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, TypeVar

from distilrec.errors import DistilrecError, InputError
from distilrec.progress import say

_AHEAD = 2  # jobs a worker has at a time: one at work, one waiting, so that it never idles
_TRIES = 5  # a job that so many workers died over is the cause itself
_CONNECT_SECONDS = 10.0
_PATIENCE = 60.0  # seconds without a worker after which the user is told what is waited for

J = TypeVar("J")
R = TypeVar("R")


@contextmanager
def pool_of(make: Callable[[], Callable[[J], R]], workers: int) -> Iterator["Pool[J, R]"]:
    """Start workers, and end them with the block.

    They start on the Ray cluster that RAY_ADDRESS names; where it names none, on this machine, for as long as the block lasts.

    Args:
        make: gives what does a job; called once by each worker. It goes over to them, so it must hold no open files or models.
        workers: how many.

    Raises:
        InputError: Ray is not installed, or cannot be reached or started.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _join(ray)
    try:
        pool = Pool[J, R](ray, make, workers)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    # Ray tells its makers how it is used, unless it is told not to before it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            "Ray is not installed.", remedy='Run `pip install "distilrec[ray]"`, or leave annotate.engine at local.'
        ) from None
    return ray


def _join(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    _check(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        # Left to itself, Ray would look for any cluster that was ever started here, and wait for one that is gone.
        where = address or "local"
        ray.init(where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise _no_cluster(f"Ray cannot be reached or started ({_reason(error)}).") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there, and ours ends a run in good order


def _check(address: str) -> None:
    """See whether anybody is there; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(f"nobody answers at {address} ({getattr(error, 'strerror', None) or error}).") from None


def _no_cluster(problem: str) -> InputError:
    return InputError(
        problem,
        where="RAY_ADDRESS" if "RAY_ADDRESS" in os.environ else "",
        remedy="Start Ray there (`ray start --head`), or unset RAY_ADDRESS to have workers on this machine only.",
    )


class _Worker:
    """Lives in a process of its own."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: Path) -> None:
        self._make, self._folder = make, folder

    def load(self) -> None:
        """Get ready for jobs; not done by `__init__`, whose errors Ray takes for a lost worker."""
        try:
            os.chdir(self._folder)  # relative paths mean the same everywhere
        except OSError as error:
            raise InputError(
                f"a worker on {os.uname().nodename} does not see this folder ({error.strerror}).",
                where=str(self._folder),
                remedy="Run from a folder that all machines share, under the same path.",
            ) from None
        self._do = self._make()

    def do(self, job: Any) -> Any:
        return self._do(job)


class Pool(Generic[J, R]):
    """Some workers. Made by `pool_of`."""

    def __init__(self, ray: Any, make: Callable[[], Callable[[J], R]], workers: int) -> None:
        self._ray, self._make = ray, make
        self._losses = tuple(
            getattr(ray.exceptions, name)
            for name in ("RayActorError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError")
        )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, gpus = shares([(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes], workers)
        self._kind = ray.remote(_Worker).options(num_cpus=cores, num_gpus=gpus)
        self._starting: dict[Any, Any] = {}  # what tells that a worker is ready -> the worker
        self._ready: list[Any] = []
        self._died_starting = 0
        for _ in range(workers):
            self._start()

    def close(self) -> None:
        """End the workers, whatever they are at."""
        for worker in (*self._ready, *self._starting.values()):
            self._ray.kill(worker)
        self._ready, self._starting = [], {}

    def run(self, jobs: Sequence[J]) -> Generator[tuple[int, R], None, None]:
        """Do jobs and yield the place of each among `jobs` with its result, in the order they finish.

        Raises:
            DistilrecError: a job failed with an error of ours, or too many workers died over one.
        """
        waiting, died = deque(range(len(jobs))), Counter[int]()
        running: dict[Any, tuple[int, Any]] = {}  # by result: place of the job, worker; the oldest first
        while waiting or running:
            self._hand_out(jobs, waiting, running)
            done = self._next([*self._starting, *running])
            if done in self._starting:
                self._started(done)
                continue
            place, worker = running[done]
            try:
                result = self._get(done)
            except self._losses as error:
                if worker in self._ready:  # not noticed yet; what it was at is the oldest of what it had
                    suspect = next(first for first, other in running.values() if other == worker)
                    died[suspect] += 1
                    self._replace(worker, died[suspect], error)
                # A suspect at the end: should it be the cause, the others are done by then.
                (waiting.append if died[place] else waiting.appendleft)(place)
            else:
                yield place, result
            del running[done]

    def _hand_out(self, jobs: Sequence[J], waiting: deque[int], running: dict[Any, tuple[int, Any]]) -> None:
        for most in range(1, _AHEAD + 1):  # every worker one before any has two
            for worker in self._ready:
                if waiting and sum(other == worker for _, other in running.values()) < most:
                    place = waiting.popleft()
                    running[worker.do.remote(jobs[place])] = (place, worker)

    def _next(self, awaited: list[Any]) -> Any:
        """Wait until something is done; of several, return the one that stands first."""
        while True:
            done, _ = self._ray.wait(awaited, num_returns=1, timeout=_PATIENCE)
            if done:
                return done[0]
            if not self._ready:
                say("  no worker is ready yet: Ray has no room for one, or loading takes long (see `ray status`)")

    def _get(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, DistilrecError) else error from None

    def _start(self) -> None:
        worker = self._kind.remote(self._make, Path.cwd())
        self._starting[worker.load.remote()] = worker

    def _started(self, done: Any) -> None:
        try:
            self._get(done)
        except self._losses as error:
            self._ray.kill(self._starting.pop(done))
            self._died_starting += 1
            if self._died_starting < _TRIES:
                self._start()
            elif not self._ready and not self._starting:
                raise DistilrecError(
                    f"{_TRIES} workers died before they were ready ({_reason(error)}).",
                    remedy="Is distilrec installed on every machine, in the same version? See also Ray's logs.",
                ) from None
        else:
            self._ready.append(self._starting.pop(done))

    def _replace(self, worker: Any, deaths: int, error: Exception) -> None:
        self._ready.remove(worker)
        self._ray.kill(worker)  # one that only cannot be reached would keep its room
        if deaths == _TRIES:
            raise DistilrecError(
                f"{deaths} workers died over the same job ({_reason(error)}).",
                remedy="Look at their memory and at Ray's logs; lower annotate.batch_tokens or annotate.workers.",
            ) from None
        say("  a worker was lost; what it was at is done again")
        self._start()


def shares(machines: Sequence[tuple[float, float]], workers: int) -> tuple[float, float]:
    """Return the cores and GPUs of each worker: the most with which there is room for all of them, but one GPU at most.

    If any machine has GPUs, only those that have some take part: results of the others would differ.

    Args:
        machines: cores and GPUs of each.
        workers: how many.
    """
    with_gpus = [machine for machine in machines if machine[1] >= 1]
    taking_part = [(int(cores), int(gpus)) for cores, gpus in with_gpus or machines]
    of_gpu = Fraction(0)
    if with_gpus:
        of_gpu = next(size for size in _sizes(1) if sum(gpus // size for _, gpus in taking_part) >= workers)
    places = [(cores, gpus // of_gpu if of_gpu else workers) for cores, gpus in taking_part]
    most = max((cores for cores, _ in places), default=0)
    if most == 0:
        return 0.0, _rounded(of_gpu)  # nobody counts cores here
    # A machine with GPUs for workers but no core for them might leave fewer places than there are workers.
    wanted = min(workers, sum(room for cores, room in places if cores))
    fits = (size for size in _sizes(most) if sum(min(cores // size, room) for cores, room in places) >= wanted)
    return _rounded(next(fits)), _rounded(of_gpu)


def _sizes(most: int) -> Iterator[Fraction]:
    """Count down: most ... 2, 1, 1/2, 1/3 ..."""
    return chain((Fraction(size) for size in range(most, 0, -1)), (Fraction(1, parts) for parts in count(2)))


def _rounded(share: Fraction) -> float:
    return int(share * 10_000) / 10_000  # Ray counts in these steps; rounded up, shares would not fit


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(". ")[0].rstrip(".")[:200] if lines else type(error).__name__
