"""Asks teachers on several workers, of one machine or many, by Ray (extra `ray`).

The driver hands out what is to be asked and is the only one that writes the store, so one lock, one budget and one journal hold
for all. Teacher and data set must lie where every machine can read them.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter, methodcaller
from typing import Any

import polars as pl

from distilrec.knowledge.annotate import Answer, Job
from distilrec.knowledge.ray_pool import Pool, pool_of
from distilrec.teachers.backends.base import Batched, Prompt, Reply


def over_ray(make: Callable[[], Answer], jobs: Sequence[Job], *, workers: int) -> Generator[pl.DataFrame, None, None]:
    """Do jobs on `workers` Ray workers and yield what comes out of each, in the order they finish.

    Args:
        make: gives what does a job; called once by each worker.
        jobs: what to do.
        workers: how many.

    Raises:
        InputError: Ray is not installed, or cannot be reached.
        DistilrecError: a job failed with an error of ours, or too many workers died over one.
    """
    if not jobs:
        return
    with pool_of(make, min(workers, len(jobs))) as pool:
        for _, frame in pool.run(jobs):
            yield frame


@contextmanager
def backend_over_ray(open_backend: Callable[[], Batched], workers: int) -> Iterator["RayBackend"]:
    """Open a backend on each of `workers` Ray workers; they end with the block.

    Args:
        open_backend: opens it; called once by each worker.
        workers: how many.

    Raises:
        InputError: Ray is not installed, or cannot be reached.
    """
    with pool_of(_Opener(open_backend), workers) as pool:
        yield RayBackend(pool, workers)


class RayBackend:
    """A `SideBySide` backend; this process holds no model, so also what is asked about one goes to a worker."""

    def __init__(self, pool: Pool[Callable[[Batched], Any], Any], workers: int) -> None:
        self._pool, self.workers = pool, workers

    @cached_property
    def model(self) -> str:
        """See `Batched.model`."""
        found: str = self._ask(attrgetter("model"))
        return found

    def identity(self) -> dict[str, Any]:
        """See `Served.identity`."""
        found: dict[str, Any] = self._ask(methodcaller("identity"))
        return found

    def count_tokens(self, prompt: Prompt) -> int:
        """See `Served.count_tokens`."""
        found: int = self._ask(methodcaller("count_tokens", prompt))
        return found

    def count_text(self, text: str) -> int:
        """See `Served.count_text`."""
        found: int = self._ask(methodcaller("count_text", text))
        return found

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See `Batched.complete`."""
        return dict(self.complete_all([prompts]))[0]

    def complete_all(self, batches: Sequence[Sequence[Prompt]]) -> Iterator[tuple[int, list[Reply]]]:
        """See `SideBySide.complete_all`."""
        return self._pool.run([methodcaller("complete", list(batch)) for batch in batches])

    def _ask(self, job: Callable[[Batched], Any]) -> Any:
        return dict(self._pool.run([job]))[0]


class _Opener:
    """Opens a backend in a worker, and gives what asks it."""

    def __init__(self, open_backend: Callable[[], Batched]) -> None:
        self._open = open_backend

    def __call__(self) -> Callable[[Callable[[Batched], Any]], Any]:
        backend = self._open()
        return lambda job: job(backend)
