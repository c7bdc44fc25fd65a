"""One SASRec training step beside the bare matrix products that it must do.

    python benchmarks/floor.py --sequences ../shared/data/amazon-beauty/sequences.txt

The products are those of the model's linear layers, of attention and of the loss, forward and backward, each at the sizes of a
real batch (the batches of one epoch are drawn, and every one is timed both ways): x W, dy W', x' dy for a linear layer; Q K',
P V and their four gradients for attention; H E', P E, P' H for full cross-entropy (with sampled softmax E is the negatives).
Layer norms, dropout, softmax, activations, gathers and the optimiser are not in the floor. Products run in float32 through the
same library, in the same chunks as the loss, outputs written into buffers that exist already: nothing a step could do without.

Prints median seconds of both and their ratio, over several rounds that alternate between the two; writes results/floor.json
and the ratio of full cross-entropy into results/training_speed.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilrec.config import DataSettings, LossSettings, TrainSettings
from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.data.prepare import prepare
from distilrec.files import read_json, write_json
from distilrec.losses.catalogue import CHUNK_ELEMENTS
from distilrec.methods.plain import Plain, PlainSettings
from distilrec.students.sasrec import SASRec, SASRecSettings
from distilrec.training.optim import RowAdamW
from distilrec.training.tasks import Task


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=Path, default=Path("../shared/data/amazon-beauty/sequences.txt"))
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--inner", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/floor.json"))
    parser.add_argument("--speed", type=Path, default=Path("results/training_speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = SASRecSettings(
        hidden_size=arguments.width, blocks=arguments.blocks, heads=arguments.heads,
        inner_size=arguments.inner, dropout=arguments.dropout,
    )  # fmt: skip
    losses = {
        "ce": LossSettings(name="ce"),
        "sampled_softmax": LossSettings(name="sampled_softmax", negatives=arguments.negatives),
    }
    with tempfile.TemporaryDirectory() as folder:
        data = DataSettings.model_validate(
            {
                "interactions": arguments.sequences,
                "filters": {"duplicates": "none", "k_core_user": 1, "k_core_item": 1},
            }
        )
        dataset = prepare(arguments.sequences, None, data, Path(folder), seed=0, say=lambda _line: None)
        found = {name: measure(dataset, settings, loss, arguments) for name, loss in losses.items()}
    for name, one in found.items():
        print(
            f"{name}: step {one['step_ms']:.2f} ms, products {one['floor_ms']:.2f} ms, {one['ratio']:.2f} times the floor"
        )
    words = {key: value for key, value in vars(arguments).items() if key not in ("out", "speed", "sequences")}
    write_json(arguments.out, {"settings": words, "torch": torch.__version__, **found})
    if arguments.speed.exists():
        speed: dict[str, Any] = read_json(arguments.speed)
        write_json(arguments.speed, {**speed, "floor_ratio": found["ce"]["ratio"]})


def measure(
    dataset: Dataset, settings: SASRecSettings, loss: LossSettings, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Time the steps of some batches and their products, in turns."""
    torch.manual_seed(0)
    training = TrainSettings(loss=loss, batch_tokens=arguments.batch_tokens)
    student = SASRec(settings, dataset.n_items)
    task = Task(
        student, dataset, training, seed=0, validate=lambda _model: {}, method=Plain(PlainSettings(), None)
    ).train()
    optimizer = RowAdamW(task.parameter_groups(), lr=1e-3, fused=True)
    _, batches_from = task.epoch(1)
    batches = [batch for _, batch in zip(range(arguments.steps), batches_from(0), strict=False)]
    products = [Products(batch, student, dataset.n_items, loss) for batch in batches]

    def steps() -> None:
        for batch in batches:
            torch.stack(list(task(batch).values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def floor() -> None:
        for one in products:
            one.run()

    times: dict[str, list[float]] = {"step": [], "floor": []}
    for turn in range(arguments.rounds + 1):
        for name, work in (("step", steps), ("floor", floor)):
            started = time.perf_counter()
            work()
            if turn:  # the first is for warming up
                times[name].append((time.perf_counter() - started) / len(batches) * 1e3)
    ratio = statistics.median(step / bare for step, bare in zip(times["step"], times["floor"], strict=True))
    return {
        "step_ms": statistics.median(times["step"]), "floor_ms": statistics.median(times["floor"]), "ratio": ratio,
        "targets_per_step": float(np.mean([len(batch.targets) for batch in batches])),
        "gflop_per_step": float(np.mean([one.flop for one in products])) / 1e9,
        "rounds": times,
    }  # fmt: skip


class Products:
    """All matrix products of one step, on random numbers of the right sizes."""

    def __init__(self, batch: Batch, student: SASRec, n_items: int, loss: LossSettings) -> None:
        settings = student.settings
        width, tokens, targets = settings.hidden_size, batch.histories.numel(), len(batch.targets)
        rows, length = batch.histories.shape
        self.work: list[tuple[Tensor, Tensor, Tensor]] = []
        self.flop = 0
        for _ in range(settings.blocks):
            for n_in, n_out in (
                (width, 3 * width), (width, width), (width, settings.inner_size), (settings.inner_size, width),
            ):  # fmt: skip
                self._add((tokens, n_in), (n_in, n_out))
                self._add((tokens, n_out), (n_out, n_in))
                self._add((n_in, tokens), (tokens, n_out))
            heads, share = rows * settings.heads, width // settings.heads
            for _ in range(2):  # Q K' and dP = dO V'; their like: P V, dV = P' dO, dQ = dS K, dK = dS' Q
                self._add((heads, length, share), (heads, share, length))
            for _ in range(4):
                self._add((heads, length, length), (heads, length, share))
        others = n_items if loss.name == "ce" else loss.negatives
        chunk = max(1, CHUNK_ELEMENTS // others)
        for first in range(0, targets, chunk):
            some = min(chunk, targets - first)
            self._add((some, width), (width, others))
            self._add((some, others), (others, width))
            self._add((others, some), (some, width))

    def _add(self, left: tuple[int, ...], right: tuple[int, ...]) -> None:
        out = torch.empty(*left[:-1], right[-1])
        self.work.append((torch.randn(left), torch.randn(right), out))
        self.flop += 2 * out.numel() * left[-1]

    def run(self) -> None:
        """Do them all."""
        for left, right, out in self.work:
            torch.matmul(left, right, out=out)


if __name__ == "__main__":
    main()
