"""How long an epoch of SASRec + dllm2rec takes: against the plain epoch, and against the cost of the published implementation.

    python benchmarks/distilling_speed.py        # about 15 minutes on two cores, 16 GiB of memory

Ours: SASRec of configs/dllm2rec/amazon-beauty.yaml, the same loss with and without distillation; teacher vectors 4096 wide and
rankings of 10 items for every training example, both random (what they say does not change what they cost). Plain and distilling
epochs take turns, medians of the repeats are printed. Naive: the same work done as the published code does it, written anew from
its description: one row of 10 items per training target, 256 rows a batch, the teacher's vectors gathered into [256, 10, 4096] and
projected there, a separate output layer, one full scoring per batch from which the loss, the DRO term and the sort of the whole
catalogue are formed, and the DRO term formed over the catalogue again for each of the 10 teacher items. Some of its steps are timed
after a warm-up; an epoch is as many steps as cover all training targets. Its settings: alpha 0.5, ed_weight 0.3, lambda 0.7.
Writes `speed` into results/dllm2rec.json.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distilrec.config import TrainSettings
from distilrec.data.dataset import Dataset, training_examples
from distilrec.files import read_json, write_json
from distilrec.knowledge.store import Knowledge
from distilrec.losses.dro import propensities
from distilrec.methods import METHODS
from distilrec.pipeline import Pipeline
from distilrec.progress import say
from distilrec.students import STUDENTS
from distilrec.training.optim import RowAdamW
from distilrec.training.tasks import Task
from methods import configuration  # the benchmark beside this one

WIDTH, TOP_K, LENGTH, BATCH = 4096, 10, 10, 256


def main() -> None:
    """Time all three and write the ratios."""
    parser = timing_options(__doc__, Path("results/dllm2rec.json"), repeats=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of the naive implementation to time, three times")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    one = configuration("amazon-beauty", "sasrec", "dllm2rec", 42, arguments.data)
    run = Pipeline(one, arguments.runs / "speed")
    training = one.train.model_copy(update={"precision": arguments.precision})
    knowledge = random_knowledge(run.data)
    started = time.perf_counter()
    tasks = {"plain": task(run, training, "plain", None), "distilling": task(run, training, "dllm2rec", knowledge)}
    prepared = time.perf_counter() - started
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(arguments.repeats + 1):
        for name, (each, optimizer) in tasks.items():
            took = epoch(each, optimizer, repeat + 1)
            if repeat:  # the first is the warm-up
                seconds[name].append(took)
            say(f"{name}: {took:.1f} s")
    ours_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    naive = naive_epoch(run.data, arguments.steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    content = read_json(arguments.out) if arguments.out.exists() else {}
    content["epoch_ratio_plain"] = round(medians["distilling"] / medians["plain"], 4)
    content["epoch_ratio_naive"] = round(naive["epoch_seconds"] / medians["distilling"], 2)
    content["speed"] = {
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "preparing_seconds": round(prepared, 2), "peak_gib": round(ours_peak, 2), "precision": arguments.precision,
        "naive": naive, "published": {"plain_seconds": 109, "distilling_seconds": 972},
        "threads": torch.get_num_threads(), "command": "python benchmarks/distilling_speed.py",
    }  # fmt: skip
    write_json(arguments.out, content)
    say(f"distilling / plain {content['epoch_ratio_plain']}, naive / distilling {content['epoch_ratio_naive']}")


def timing_options(doc: str | None, out: Path, repeats: int) -> argparse.ArgumentParser:
    """Return the options that benchmarks of a step's or an epoch's time have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/dllm2rec"))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def random_knowledge(dataset: Dataset, top_k: int = TOP_K, width: int = WIDTH) -> Knowledge:
    """Return rankings of `top_k` distinct items for every training example, and vectors `width` wide."""
    examples, generator = training_examples(dataset, "all"), np.random.default_rng(0)
    first = generator.integers(dataset.n_items, size=(len(examples), 1))
    items = (first + np.arange(top_k) * 997) % dataset.n_items
    scores = np.sort(generator.normal(size=items.shape), axis=1)[:, ::-1].astype(np.float32)
    vectors = torch.from_numpy(generator.normal(size=(dataset.n_items, width)).astype(np.float32))
    return Knowledge({}, examples, items.astype(np.int64), np.ascontiguousarray(scores), vectors)


def task(run: Pipeline, training: TrainSettings, method: str, knowledge: Knowledge | None) -> tuple[Task, Any]:
    """Return a student under a method and its optimiser, as the training makes them."""
    torch.manual_seed(42)
    student = STUDENTS["sasrec"](run.student_settings, run.data.n_items)
    kind = METHODS[method]
    how = kind(run.method_settings if knowledge is not None else kind.Settings(), knowledge)
    student.item_table = how.item_embedding(student.item_table)
    made = Task(student, run.data, training, seed=42, validate=lambda _model: {}, method=how)
    return made, RowAdamW(made.parameter_groups(), lr=training.learning_rate, weight_decay=0.0, fused=True)


def epoch(each: Task, optimizer: Any, number: int) -> float:
    """Train one epoch; seconds."""
    each.train()
    started = time.perf_counter()
    _, batches_from = each.epoch(number)
    for batch in batches_from(0):
        torch.stack(list(each(batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


class NaiveSASRec(nn.Module):
    """One block over windows of fixed length, teacher vectors projected where they stand in the batch, an output layer."""

    def __init__(self, n_items: int, width: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, width)
        self.places = nn.Embedding(LENGTH, width)
        self.project = nn.Linear(WIDTH, width)
        self.before, self.between, self.after = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 1, dropout=0.1, batch_first=True)
        self.forth, self.back = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(width, n_items)

    def forward(self, histories: Tensor, lengths: Tensor, vectors: Tensor) -> Tensor:
        """Score the catalogue after each window, [B, N]."""
        entering = self.items(histories) + 0.3 * self.project(vectors) + self.places.weight
        inside = (torch.arange(LENGTH) < lengths[:, None]).float()[:, :, None]
        entering = self.dropout(entering) * inside
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        query = self.before(entering)
        attended = query + self.attention(query, entering, entering, attn_mask=mask, need_weights=False)[0]
        hidden = self.between(attended)
        hidden = self.after((hidden + self.back(self.dropout(functional.relu(self.forth(hidden))))) * inside)
        scores: Tensor = self.output(hidden[torch.arange(len(hidden)), lengths - 1])
        return scores


def naive_epoch(dataset: Dataset, steps: int, repeats: int = 3) -> dict[str, Any]:
    """Time steps of the naive implementation and say what an epoch of them would take."""
    generator = np.random.default_rng(0)
    examples = training_examples(dataset, "all")
    n_items, torch_generator = dataset.n_items, torch.Generator().manual_seed(0)
    teacher = torch.randn(n_items, WIDTH, generator=torch_generator)
    ranked = torch.randint(n_items, (len(examples), TOP_K), generator=torch_generator)
    sure = torch.rand(len(examples), TOP_K, generator=torch_generator)
    propensity = propensities(torch.from_numpy(np.asarray(dataset.popularity, dtype=np.int64)))
    model = NaiveSASRec(n_items)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    starts = dataset.offsets[dataset.rows_of(examples)]

    def step() -> None:
        rows = generator.choice(len(examples), BATCH, replace=False)
        histories = torch.full((BATCH, LENGTH), n_items)
        lengths = torch.ones(BATCH, dtype=torch.int64)
        for place, row in enumerate(rows):
            past = dataset.items[max(int(starts[row]), int(examples[row]) - LENGTH) : examples[row]].astype(np.int64)
            histories[place, : len(past)], lengths[place] = torch.from_numpy(past), len(past)
        targets = torch.from_numpy(dataset.items[examples[rows]].astype(np.int64))[:, None]
        free = torch.ones(BATCH, n_items + 1)
        free.scatter_(1, histories, 0.0).scatter_(1, targets, 0.0)
        negatives = torch.multinomial(free[:, :-1], 1, replacement=True)
        vectors = torch.zeros(BATCH, LENGTH, WIDTH)
        known = histories < n_items
        vectors[known] = teacher[histories[known]]
        optimizer.zero_grad()
        scores = model(histories, lengths, vectors)
        naive_loss(scores, targets, negatives, ranked[rows], sure[rows], propensity).backward()
        optimizer.step()

    for _ in range(3):
        step()
    each = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(steps):
            step()
        each.append((time.perf_counter() - started) / steps)
    per_epoch = len(examples) // BATCH
    return {
        "step_seconds": [round(value, 4) for value in each], "steps_an_epoch": per_epoch,
        "epoch_seconds": round(statistics.median(each) * per_epoch, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }  # fmt: skip


def naive_loss(
    scores: Tensor, targets: Tensor, negatives: Tensor, ranked: Tensor, sure: Tensor, propensity: Tensor
) -> Tensor:
    """Return the whole loss from scores [B, N], the catalogue gone through again for each teacher item."""

    def robust(items: Tensor) -> Tensor:
        own = (scores * scores * propensity).gather(1, items)[:, 0]
        moved = ((scores - 1) * (scores - 1) * propensity).gather(1, items)[:, 0]
        return (torch.exp(scores * scores * propensity).sum(dim=1) - own.exp() + moved.exp()).log()

    positive, negative = scores.gather(1, targets), scores.gather(1, negatives)
    loss = (functional.softplus(-positive) + functional.softplus(negative)).mean() / 2 + 0.5 * robust(targets).mean()
    position = torch.softmax(-torch.arange(1.0, TOP_K + 1), dim=0)
    leading = (-scores).argsort(dim=1)[:, :TOP_K]
    agree = (ranked[:, :, None] == leading[:, None, :]).any(dim=2).float() + 1e-8
    weight = 0.3 * position + 0.5 * torch.softmax(-sure, dim=1) + 0.1 * agree
    weight = weight / weight.sum(dim=1, keepdim=True)
    for column in range(TOP_K):
        items = ranked[:, column : column + 1]
        pair = functional.softplus(-scores.gather(1, items)) + functional.softplus(scores.gather(1, negatives) - 1)
        one = weight[:, column : column + 1]
        loss = loss + 0.7 * ((one * pair).mean() + 0.5 * (one[:, 0] * robust(items)).mean())
    return loss


if __name__ == "__main__":
    main()
