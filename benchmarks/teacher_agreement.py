"""What the teacher of `methods.py` knows by heart, and how many of its items plain students rank as highly.

    python benchmarks/teacher_agreement.py    # after `methods.py teach` and `train --methods plain`

`teacher_hr@10`: the share of targets among the teacher's first ten items, of all training examples that it was asked about, and of
the validation users that its own training measured. `shared`: of the teacher's K items, how many stand among the student's own K,
over training examples drawn by the seed. Items of the history are taken out of both. One teacher, students of one seed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distilrec.evaluation.rank import top_items
from distilrec.files import write_json
from distilrec.knowledge.store import NOTHING
from distilrec.progress import say
from distilrec.training.loop import load_fit
from methods import DATASETS, TEACHER_SEED, taught, trained  # the benchmark beside this one

EXAMPLES = 20_000
STUDENTS = ("sasrec", "gru4rec", "dros")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/dllm2rec"))
    parser.add_argument("--out", type=Path, default=Path("results/raw/teacher_agreement.json"))
    arguments = parser.parse_args()
    rows = [of_dataset(name, arguments) for name in DATASETS]
    write_json(arguments.out, {"rows": rows, "command": "python benchmarks/teacher_agreement.py"})


def of_dataset(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured on one data set."""
    run = taught(name, arguments)
    knowledge, data = run.knowledge, run.data
    targets = np.asarray(data.items)[knowledge.examples]
    known = float((knowledge.items[:, :10] == targets[:, None]).any(axis=1).mean())
    fit = load_fit(run.stages["teacher"].folder)
    chosen = np.random.default_rng(TEACHER_SEED).choice(
        len(knowledge.examples), min(EXAMPLES, len(knowledge.examples)), replace=False
    )
    chosen.sort()
    shared = {student: overlap(name, student, chosen, arguments) for student in STUDENTS}
    row = {
        "dataset": name,
        "top_k": knowledge.items.shape[1],
        "teacher_hr@10": {
            "training": round(known, 4),
            "validation": round(fit.history[fit.best_epoch - 1]["valid"]["hr@10"], 4),
        },
        "training_examples": len(knowledge.examples),
        "shared": shared,
        "examples_shared": len(chosen),
        "seed": TEACHER_SEED,
    }
    say(str(row))
    return row


def overlap(name: str, student: str, chosen: npt.NDArray[np.int64], arguments: argparse.Namespace) -> float:
    """Return how many of the teacher's K items are among the plain student's K best, the mean over some stored rankings."""
    run, model, _ = trained((name, student, "plain", None, TEACHER_SEED), arguments)
    knowledge = run.knowledge
    items = knowledge.items[chosen]
    own = top_items(model, run.data, knowledge.examples[chosen], items.shape[1], filter_seen=True)
    there = knowledge.scores[chosen] > NOTHING
    same = [np.isin(one[real], other).sum() for one, real, other in zip(items, there, own, strict=True)]
    return round(float(np.mean(same)), 2)


if __name__ == "__main__":
    sys.exit(main())
