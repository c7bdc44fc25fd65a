"""Ask a local teacher: in this process, or several of its kind on Ray. One pass over a history answers all of its examples."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from distilrec.columns import EXAMPLE, ITEMS, SCORES
from distilrec.config import AnnotateSettings, CapSettings
from distilrec.data.batching import Windows, make_batch, plan, training_windows
from distilrec.data.dataset import Dataset, open_dataset
from distilrec.data.split import Ints
from distilrec.files import write_json
from distilrec.knowledge.budget import minutes_words
from distilrec.knowledge.store import KnowledgeWriter, writing
from distilrec.progress import Bar, bar
from distilrec.teachers.base import PositionTeacher

ACCOUNT = "account.json"


@dataclass(frozen=True, slots=True)
class Job:
    """What is computed together.

    Attributes:
        windows: [w] numbers of stretches of histories, of like length.
        wanted: [e] ids of the examples to answer for, ascending.
    """

    windows: Ints
    wanted: Ints


Answer = Callable[[Job], pl.DataFrame]


class Engine(Protocol):
    """Does jobs somewhere and yields what comes out of each, in any order. Closed in the middle, it stops."""

    def __call__(self, make: Callable[[], Answer], jobs: Sequence[Job]) -> Generator[pl.DataFrame, None, None]:
        """Do `jobs` with what `make` gives; called once by each worker."""


@dataclass(frozen=True)
class Answerer:
    """Makes the function that does jobs; goes over to workers, who share the folders but not the memory.

    Attributes:
        restore: gives the teacher, ready to rank.
        dataset: its folder.
        max_length: most history items that the teacher reads.
        top_k: how many items are stored of each example.
        tokens_per_item: what an item counts in a batch.
    """

    restore: Callable[[], PositionTeacher]
    dataset: Path
    max_length: int
    top_k: int
    tokens_per_item: int = 1

    def __call__(self) -> Answer:
        """Load teacher and data, and return what does a job."""
        teacher, dataset = self.restore(), open_dataset(self.dataset)
        windows = training_windows(dataset, self.max_length, None)
        return lambda job: answer(teacher, dataset, windows, job, self.top_k)


def here(make: Callable[[], Answer], jobs: Sequence[Job]) -> Generator[pl.DataFrame, None, None]:
    """Do the jobs in this process, one after another."""
    if not jobs:
        return
    work = make()
    for job in jobs:
        yield work(job)


def annotate(
    make: Answerer,
    item_vectors: Callable[[], Tensor | None],
    dataset: Dataset,
    examples: Ints,
    settings: AnnotateSettings,
    folder: Path,
    details: dict[str, Any],
    *,
    engine: Engine = here,
) -> dict[str, Any]:
    """Store the teacher's top K for training examples, and its item vectors. Resumes behind a killed run.

    What is computed together depends on the data, the examples and the settings alone, so a resumed run computes the very
    same batches that an unbroken one would have, and the stored rows come out equal.

    Args:
        make: gives what does the jobs; called only if something is left to do.
        item_vectors: computes the vectors, [N, D], or None; called only if none are stored.
        dataset: what to annotate.
        examples: ids of training examples, ascending.
        settings: sizes and caps.
        folder: the store.
        details: for the manifest.
        engine: where the jobs are done.

    Returns:
        What the store holds now, which also stands in account.json.
    """
    started = time.monotonic()
    with writing(folder, dataset, details) as writer:
        if not writer.has_item_vectors and (vectors := item_vectors()) is not None:
            writer.put_item_vectors(vectors)
        done = writer.done()
        jobs = [
            replace(job, wanted=left)
            for job in jobs_of(dataset, make.max_length, examples, settings.batch_tokens // make.tokens_per_item)
            if len(left := np.setdiff1d(job.wanted, done, assume_unique=True))
        ]
        jobs, stopped_by = _capped(jobs, settings.caps, len(done))
        with bar("annotate", len(examples)) as progress:
            progress.advance(len(np.intersect1d(examples, done, assume_unique=True)))
            ends = started + 60 * settings.caps.minutes if settings.caps.minutes is not None else None
            with closing(engine(make, jobs)) as frames:  # workers end with it, also where it is left in the middle
                finished = _store(frames, writer, settings, progress, ends)
        rows = len(writer.done())
        if not finished and rows < len(done) + sum(len(job.wanted) for job in jobs):
            stopped_by = minutes_words(settings.caps)
        account = {
            "rows_done": rows,
            "rows_total": len(examples),
            "usd": 0.0,
            "stopped_by": stopped_by,
            "seconds": time.monotonic() - started,
        }
        write_json(folder / ACCOUNT, account)
        return account


def _capped(jobs: list[Job], caps: CapSettings, done: int) -> tuple[list[Job], str | None]:
    """Return the jobs that fit under the cap of rows; the last one perhaps in part."""
    if caps.rows is None:
        return jobs, None
    room, kept = caps.rows - done, list[Job]()
    for job in jobs:
        if room <= 0:
            return kept, f"the cap of {caps.rows:,} rows"
        kept.append(job if len(job.wanted) <= room else replace(job, wanted=job.wanted[:room]))
        room -= len(job.wanted)
    return kept, f"the cap of {caps.rows:,} rows" if room < 0 else None


def _store(
    frames: Iterator[pl.DataFrame],
    writer: KnowledgeWriter,
    settings: AnnotateSettings,
    progress: Bar,
    ends: float | None,
) -> bool:
    """Write shards of what comes in; return whether it came to its end before the time did."""
    held: list[pl.DataFrame] = []
    written = time.monotonic()
    try:
        for frame in frames:
            held.append(frame)
            progress.advance(frame.height)
            now = time.monotonic()
            if sum(part.height for part in held) >= settings.shard_rows or now - written >= settings.shard_seconds:
                writer.append(pl.concat(held))
                held, written = [], now
            if ends is not None and now >= ends:
                return False
        return True
    finally:  # also where a run is interrupted: what was computed is kept
        if held:
            writer.append(pl.concat(held))


def jobs_of(dataset: Dataset, max_length: int, examples: Ints, batch_tokens: int) -> list[Job]:
    """Return the jobs that together answer for `examples` (ascending ids), each exactly once."""
    windows = training_windows(dataset, max_length, None)
    # Of a window, the ids supervised_from + 1 .. end are asked for.
    first = np.searchsorted(examples, windows.supervised_from, side="right")
    last = np.searchsorted(examples, windows.end, side="right")
    used = np.flatnonzero(last > first)
    jobs = []
    for group in plan((windows.end - windows.start)[used], batch_tokens, None):
        rows = used[group]
        wanted = np.sort(np.concatenate([examples[first[row] : last[row]] for row in rows]))
        jobs.append(Job(rows, wanted))
    return jobs


@torch.inference_mode()
def answer(teacher: PositionTeacher, dataset: Dataset, windows: Windows, job: Job, top_k: int) -> pl.DataFrame:
    """Do one job: a row for each example wanted."""
    batch = make_batch(dataset, windows, job.windows)
    kept = torch.from_numpy(np.isin(batch.examples.numpy(), job.wanted))
    batch = replace(batch, positions=batch.positions[kept], targets=batch.targets[kept], examples=batch.examples[kept])
    items, scores = teacher.rank(batch, min(top_k, dataset.n_items))
    return pl.DataFrame(
        {
            EXAMPLE: batch.examples.numpy(),
            ITEMS: pl.Series(items.to(torch.int32).cpu().numpy()).cast(pl.List(pl.Int32)),
            SCORES: pl.Series(scores.float().cpu().numpy()).cast(pl.List(pl.Float32)),
        }
    )
