"""A catalogue of a million items: an epoch, the cost of a step against a smaller catalogue, and full ranking, with their memory.

    python benchmarks/scale.py            # writes results/scale.json

The log is synthetic: histories of 20 items, drawn from a Zipf-like popularity, each next item near the one before with
probability 1/2. Every measurement runs in a process of its own, so that its peak memory is its own. Student: SASRec, 64 wide,
2 blocks, sampled softmax with 256 shared negatives, batches of 4,096 history items.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from distilrec.config import DataSettings, LossSettings, TrainSettings
from distilrec.data.dataset import Dataset, open_dataset
from distilrec.data.prepare import prepare
from distilrec.evaluation.rank import rank_and_top
from distilrec.files import write_json
from distilrec.methods.plain import Plain, PlainSettings
from distilrec.pipeline.stage import peak_rss_mb
from distilrec.students.sasrec import SASRec, SASRecSettings
from distilrec.training.loop import fit
from distilrec.training.optim import RowAdamW
from distilrec.training.tasks import Task

LENGTH, BATCH_TOKENS, THREADS = 20, 4096, 2


def main() -> None:
    """Run every measurement in a process of its own and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--few-items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=10_000, help="users to rank")
    parser.add_argument("--steps", type=int, default=60, help="steps timed in a round")
    parser.add_argument("--work", type=Path, default=None, help="folder for the synthetic data, kept")
    parser.add_argument("--out", type=Path, default=Path("results/scale.json"))
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        found: dict[str, Any] = {}
        for part in ("prepare", "steps", "epoch", "rank"):
            found[part] = alone(part, arguments, work)
            print(part, json.dumps(found[part]), flush=True)
    settings = {"items": arguments.items, "interactions": arguments.interactions, "few_items": arguments.few_items}
    write_json(
        arguments.out,
        {"command": "python benchmarks/scale.py", "settings": settings | {"threads": THREADS}, **found},
    )


def alone(part: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run one part in a new process."""
    words = [sys.executable, __file__, "--part", part, "--work", str(work)]
    for name in ("items", "interactions", "few_items", "users", "steps"):
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make(folder: Path, items: int, interactions: int) -> None:
    """Write a synthetic log and prepare it."""
    if (folder / "manifest.json").exists():
        return
    generator = np.random.default_rng(0)
    users = interactions // LENGTH
    popular = np.minimum((items ** generator.random((users, LENGTH)) - 1).astype(np.int64), items - 1)
    near = generator.random((users, LENGTH)) < 0.5
    for place in range(1, LENGTH):  # histories in a column each step: no loop over users
        popular[:, place] = np.where(near[:, place], (popular[:, place - 1] + 1) % items, popular[:, place])
    missing = np.setdiff1d(np.arange(items), popular[:, : LENGTH - 2])
    popular.ravel()[generator.permutation(popular.size)[: len(missing)]] = missing  # every item occurs
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), LENGTH),
            "item_id": popular.ravel(),
            "timestamp": np.arange(interactions) % LENGTH * 1000 + 1_000_000,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.parquet"
    frame.write_parquet(log)
    del frame, popular
    settings = DataSettings.model_validate(
        {"interactions": log, "filters": {"duplicates": "none", "k_core_user": 1, "k_core_item": 1}}
    )
    prepare(log, None, settings, folder, seed=0, say=lambda _line: None)
    log.unlink()


def data(arguments: argparse.Namespace, items: int) -> Dataset:
    """Open the prepared log over so many items."""
    return open_dataset(arguments.work / str(items))


def task_on(dataset: Dataset) -> Task:
    """A student and its training."""
    torch.manual_seed(0)
    student = SASRec(SASRecSettings(hidden_size=64, blocks=2, heads=2, inner_size=256, dropout=0.2), dataset.n_items)
    settings = TrainSettings(
        epochs=1, batch_tokens=BATCH_TOKENS, loss=LossSettings(name="sampled_softmax"), select_by="none", average=0.99,
        checkpoint_seconds=3600,
    )  # fmt: skip
    plain = Plain(PlainSettings(), None)
    return Task(student, dataset, settings, seed=0, validate=lambda _model: {"none": 0.0}, method=plain)


def part_prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make both logs."""
    started = time.perf_counter()
    make(arguments.work / str(arguments.items), arguments.items, arguments.interactions)
    make(arguments.work / str(arguments.few_items), arguments.few_items, max(arguments.interactions // 10, 1))
    return {"seconds": time.perf_counter() - started, "peak_rss_mb": peak_rss_mb()}


def part_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time a step over many and over few items, in turns."""
    runs = {}
    for items in (arguments.items, arguments.few_items):
        task = task_on(data(arguments, items)).train()
        optimizer = RowAdamW(task.parameter_groups(), lr=1e-3, fused=True)
        _, batches_from = task.epoch(1)
        batches = [batch for _, batch in zip(range(arguments.steps), batches_from(0), strict=False)]
        runs[items] = (task, optimizer, batches)
    times: dict[int, list[float]] = {items: [] for items in runs}
    for turn in range(6):
        for items, (task, optimizer, batches) in runs.items():
            started = time.perf_counter()
            for batch in batches:
                torch.stack(list(task(batch).values())).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            if turn:
                times[items].append((time.perf_counter() - started) / len(batches) * 1e3)
    many, few = (times[items] for items in (arguments.items, arguments.few_items))
    ratio = statistics.median(one / other for one, other in zip(many, few, strict=True))
    return {"step_ms": statistics.median(many), "step_ms_few_items": statistics.median(few), "ratio": ratio}


def part_epoch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one epoch with everything that a real one has: averaged weights, checkpoint, kept best weights."""
    dataset = data(arguments, arguments.items)
    task = task_on(dataset)
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(task, task.settings, Path(folder), label="epoch", identity="scale", seed=0)
    entry = outcome.history[0]
    return {
        "seconds": entry["seconds"], "targets": dataset.manifest["n_train_targets"], "loss": entry["loss"],
        "peak_rss_mb": peak_rss_mb(),
    }  # fmt: skip


def part_rank(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rank the whole catalogue for some users: ranks of the targets and the best 20 items."""
    dataset = data(arguments, arguments.items)
    task = task_on(dataset).eval()
    examples = np.asarray(dataset.examples("test"))[: arguments.users]
    started = time.perf_counter()
    rank_and_top(task.model, dataset, examples, 20)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "users_per_s": len(examples) / seconds, "peak_rss_mb": peak_rss_mb()}


PARTS = {"prepare": part_prepare, "steps": part_steps, "epoch": part_epoch, "rank": part_rank}

if __name__ == "__main__":
    main()
