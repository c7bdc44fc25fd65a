"""What benchmarks/training.py tells a worker, and what the worker answers. Needs nothing but numpy: it runs in every environment.

A worker is started as `python WORKER.py JOB.json ANSWER.json`. It trains one model once, with the tool's own trainer, and
the clock here reads the time inside that trainer: after a warm-up, three windows of so many optimiser steps each, or whole
epochs after a first one. Batches come shuffled, so a window holds the mixture of an epoch.
"""

import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WINDOWS = 3
TOP = 20
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training: what on, of what model, timed how.

    Attributes:
        sequences: file of `user item item ...` lines, oldest item first.
        folder: scratch folder.
        loss: `ce` (over the whole catalogue) or `sampled_softmax`.
        batch_size: sequences of one optimiser step.
        negatives: sampled items of one target.
        steps: length of a window in optimiser steps; 0 means whole epochs.
        warmup: steps before the first window.
        epochs: how many to train when `steps` is 0; the first is left out of the median where there are more.
        rank: time the ranking of all users after training.
        quality: measure validation and test metrics after training.
        options: settings that only this tool knows.
    """

    sequences: str
    folder: str
    loss: str
    batch_size: int
    negatives: int
    width: int
    blocks: int
    heads: int
    inner_size: int
    max_length: int
    dropout: float
    learning_rate: float
    threads: int
    seed: int
    steps: int
    warmup: int
    epochs: int
    rank: bool
    quality: bool
    options: dict[str, Any]

    @property
    def total_steps(self) -> int:
        """Steps to train in all; -1 where epochs decide."""
        return self.warmup + WINDOWS * self.steps if self.steps else -1


def read_job() -> Job:
    """Read the job named on the command line, and go to its folder: some tools write where they are."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    os.chdir(job.folder)
    return job


def answer(job: Job, content: dict[str, Any], packages: tuple[str, ...]) -> None:
    """Write the answer where the command line says."""
    content |= {
        "loss": job.loss,
        "options": job.options,
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
    }
    Path(sys.argv[2]).write_text(json.dumps(content), encoding="utf-8")


def read_sequences(path: str) -> list[list[int]]:
    """Return each user's items, oldest first, numbered from 0 by first appearance in the file."""
    numbers: dict[str, int] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [[numbers.setdefault(item, len(numbers)) for item in line.split()[1:]] for line in lines]


class Clock:
    """Reads the time inside a training."""

    def __init__(self, job: Job) -> None:
        self.job, self.steps, self.marks = job, 0, list[float]()
        self.epochs: list[float] = []
        self._began = 0.0

    def step(self) -> bool:
        """Say that an optimiser step is done; the answer says whether it was the last one wanted."""
        self.steps += 1
        past = self.steps - self.job.warmup
        if self.job.steps and past >= 0 and past % self.job.steps == 0:
            self.marks.append(time.perf_counter())
        return self.steps == self.job.total_steps

    def epoch_begins(self) -> None:
        """Say that an epoch begins."""
        self._began = time.perf_counter()

    def epoch_ends(self) -> None:
        """Say that an epoch ended."""
        self.epochs.append(time.perf_counter() - self._began)

    def figures(self, steps_per_epoch: int) -> dict[str, Any]:
        """Return the seconds of an epoch, and the memory it took. Call it right after training."""
        if self.job.steps:
            windows = [later - earlier for earlier, later in zip(self.marks, self.marks[1:], strict=False)]
            epochs = [seconds / self.job.steps * steps_per_epoch for seconds in windows]
        else:
            epochs = self.epochs[1:] or self.epochs
        return {
            "mode": f"windows of {self.job.steps} steps" if self.job.steps else "whole epochs",
            "epoch_s": statistics.median(epochs),
            "epoch_s_each": epochs,
            "epochs": len(self.epochs),
            "steps_per_epoch": steps_per_epoch,
            "peak_rss_mb": peak_rss_mb(),
        }


def peak_rss_mb() -> float:
    """Return the largest resident memory so far, in MiB: of this process, plus its largest child."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / unit


def time_ranking(rank: Callable[[], object], users: int) -> dict[str, Any]:
    """Time `rank`, which finds the best items of all users, after one warm-up."""
    rank()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        rank()
        seconds.append(time.perf_counter() - began)
    return {"rank_users_per_s": users / statistics.median(seconds), "rank_s_each": seconds}


def metrics_of_lists(items: Ints, scores: npt.NDArray[Any], targets: list[int]) -> dict[str, float]:
    """Return HR@10 and NDCG@10 from each user's best 20 items, ties against the target.

    A rank of 10 or better is exact, since all items that score as high as its target stand in the list.

    Args:
        items: [users, 20] item numbers.
        scores: [users, 20].
        targets: one item a user.
    """
    if items.shape != (len(targets), TOP) or not np.isfinite(scores).all():
        raise ValueError(f"expected {len(targets)} lists of {TOP} finite scores, got {items.shape}")
    found = items == np.asarray(targets)[:, None]
    own = np.where(found, scores, np.inf).min(axis=1)
    ranks = (scores >= own[:, None]).sum(axis=1)
    ranks[~found.any(axis=1)] = TOP + 1
    return metrics_of_ranks(ranks)


def metrics_of_ranks(ranks: Ints) -> dict[str, float]:
    """Return HR@10 and NDCG@10 of ranks that start at 1."""
    hits = [int(rank) for rank in ranks if rank <= 10]
    return {"hr@10": len(hits) / len(ranks), "ndcg@10": sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks)}


def named(valid: dict[str, float], test: dict[str, float]) -> dict[str, float]:
    """Return both parts' metrics under the names of the results."""
    return {"valid_ndcg@10": valid["ndcg@10"], **test}
