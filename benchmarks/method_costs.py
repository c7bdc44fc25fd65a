"""What a training step costs under every method, beside the plain one.

    python benchmarks/method_costs.py        # three minutes

SASRec of configs/dllm2rec/amazon-beauty.yaml, every method with its settings there; a teacher that lists 50 items for every
training example and gives vectors 576 wide (as SmolLM2-135M does), both random: what they say hardly changes what they cost.
Methods take turns, a few steps at a time; medians. A step is forward, backward and optimiser, of batches as the training makes
them.
Writes results/method_costs.json.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from distilling_speed import random_knowledge, task, timing_options  # the benchmark beside this one
from distilrec.files import write_json
from distilrec.pipeline import Pipeline
from distilrec.progress import say
from methods import configuration, settings_of  # the benchmark beside this one

NAME, TOP_K, WIDTH = "amazon-beauty", 50, 576


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
    write_json(
        arguments.out,
        {
            "command": "python benchmarks/method_costs.py", "dataset": NAME, "student": "sasrec", "top_k": TOP_K, "vectors": WIDTH,
            "threads": torch.get_num_threads(), "targets_a_step": round(statistics.mean(targets)), "rows": rows,
        },
    )  # fmt: skip


def forever(each: Any) -> Iterator[Any]:
    """Yield batches, epoch after epoch."""
    number = 0
    while True:
        number += 1
        _, batches_from = each.epoch(number)
        yield from batches_from(0)


if __name__ == "__main__":
    main()
