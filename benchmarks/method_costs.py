"""What a training step costs under every method, beside the plain one.

    python benchmarks/method_costs.py        # three minutes

SASRec of configs/dllm2rec/amazon-beauty.yaml, every method with its settings there; a teacher that lists 50 items for every
training example and gives vectors 576 wide (as SmolLM2-135M does), both random: what they say hardly changes what they cost.
Methods take turns, a few steps at a time; medians. A step is forward, backward and optimiser, of batches as the training makes
them. Beside it, the scores of 50 items for each of 944 states and their gradients: gathered vectors and one product, as a peer would
write it, against `losses.picked.score`.
Writes results/method_costs.json.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilling_speed import random_knowledge, task, timing_options  # the benchmark beside this one
from distilrec.files import write_json
from distilrec.losses.picked import score
from distilrec.pipeline import Pipeline
from distilrec.progress import say
from methods import configuration, settings_of  # the benchmark beside this one

NAME, TOP_K, WIDTH = "amazon-beauty", 50, 576
ROWS, HIDDEN = 944, 64  # of the comparison of picked scores: a step of that training


def main() -> None:
    """Time all and write."""
    parser = timing_options(__doc__, Path("results/method_costs.json"), repeats=25)
    parser.add_argument("--steps", type=int, default=10, help="of each method before the next takes its turn")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    trainings: dict[str, tuple[Any, Any, Iterator[Any]]] = {}
    knowledge, targets = None, []
    for method in settings_of(NAME)["methods"]:
        one = configuration(NAME, "sasrec", method, 42, arguments.data)
        run = Pipeline(one, arguments.runs / "costs")
        knowledge = knowledge or random_knowledge(run.data, TOP_K, WIDTH)
        each, optimizer = task(run, one.train, method, None if method == "plain" else knowledge)
        trainings[method] = each.train(), optimizer, forever(each)
    seconds: dict[str, list[float]] = {method: [] for method in trainings}
    for repeat in range(arguments.repeats + 1):
        for method, (each, optimizer, batches) in trainings.items():
            some = list(islice(batches, arguments.steps))
            started = time.perf_counter()
            for batch in some:
                torch.stack(list(each(batch).values())).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            if repeat:  # the first is the warm-up
                seconds[method].append((time.perf_counter() - started) / len(some))
                targets.extend(len(batch.targets) for batch in some)
    medians = {method: statistics.median(each) for method, each in seconds.items()}
    rows = [
        {"method": method, "step_ms": round(1000 * median, 1), "ratio_plain": round(median / medians["plain"], 3),
         "repeats_ms": [round(1000 * value, 1) for value in seconds[method]]}
        for method, median in medians.items()
    ]  # fmt: skip
    for row in rows:
        say(f"{row['method']}: {row['step_ms']} ms a step, {row['ratio_plain']} times plain")
    picked = picked_scores(arguments.repeats, run.data.n_items)
    say(f"scores of picked items: {picked['ms']} ms, gathered {picked['gathered_ms']} ms, {picked['ratio']} times that")
    write_json(
        arguments.out,
        {
            "command": "python benchmarks/method_costs.py", "dataset": NAME, "student": "sasrec", "top_k": TOP_K, "vectors": WIDTH,
            "threads": torch.get_num_threads(), "targets_a_step": round(statistics.mean(targets)), "rows": rows,
            "picked_scores": picked,
        },
    )  # fmt: skip


def picked_scores(repeats: int, n_items: int) -> dict[str, Any]:
    """Time scores of each state's own items with their gradients, both ways in turns; medians and the ratio."""
    torch.manual_seed(0)
    states, table = (torch.randn(rows, HIDDEN, requires_grad=True) for rows in (ROWS, n_items))
    items, upstream = torch.randint(n_items, (ROWS, TOP_K)), torch.randn(ROWS, TOP_K)
    ways: dict[str, Callable[[], Tensor]] = {
        "ms": lambda: score(states, table, items),
        "gathered_ms": lambda: torch.bmm(table[items], states[:, :, None])[:, :, 0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(4 * repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            torch.autograd.grad(way(), (states, table), upstream)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratio = round(medians["gathered_ms"] / medians["ms"], 2)
    return {
        "rows": ROWS, "items_a_row": TOP_K, "width": HIDDEN, "items": n_items,
        **{name: round(1000 * median, 2) for name, median in medians.items()}, "ratio": ratio,
    }  # fmt: skip


def forever(each: Any) -> Iterator[Any]:
    """Yield batches, epoch after epoch."""
    number = 0
    while True:
        number += 1
        _, batches_from = each.epoch(number)
        yield from batches_from(0)


if __name__ == "__main__":
    main()
