"""DLLM2Rec and the methods it is compared with, over plain students: one teacher a data set, several seeds, full ranking.

    python benchmarks/methods.py teach                      # teachers and what they say: 30 minutes a data set on two cores
    python benchmarks/methods.py train                      # every cell that is not trained yet: hours
    python benchmarks/methods.py train --students sasrec --seeds 42 --share 0/2 --threads 1    # and 1/2 beside it: faster
    python benchmarks/methods.py report                     # results/dllm2rec.json, of the cells that are kept
    python benchmarks/methods.py try --students dros --methods rrd --seeds 42 --set method.weight=0.3 train.loss.dro_weight=0.003

Settings: configs/dllm2rec/DATASET.yaml; a student's `methods` there hold what validation chose for a method under that student
alone. A cell is a data set, a student, a method and a seed; it is trained on the training part, its best epoch picked on
validation, and ranks the whole catalogue for every test user, items of the history taken out, targets that never occur in
training counted. A killed training resumes. The ranks of a done one are kept in results/ranks/dllm2rec/ (`kept.py`), so that the
table may be filled by and by: a row of an earlier report stays, and is marked `earlier`, until as many seeds of it are kept. A
figure is the mean over users of the mean over seeds, its interval a bootstrap over users; p is a Wilcoxon signed-rank test of the
users' gains against the plain student with the same seeds, corrected after Holm over all rows. `users_and_seeds` says how sure a
difference is where the seeds are drawn too (`evaluation/crossed.py`). `try` trains a cell with other settings and adds what validation
said to results/raw/dllm2rec_tried.jsonl; of the test users it sees none. Ablations are tested against the whole method, and a student
that names another under `against` is tested against that one's plain training: a width that pays with a teacher only must not be
held against its own worse plain self.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.evaluation.crossed import SeedSpread, crossed, spread_of
from distilrec.evaluation.metrics import gain, resampled_means
from distilrec.evaluation.rank import target_ranks
from distilrec.evaluation.significance import Comparison, Side, compare, holm
from distilrec.files import read_json, write_json
from distilrec.pipeline import Pipeline
from distilrec.progress import say
from distilrec.students.base import Student
from distilrec.training.loop import Fit, load_fit
from kept import Ranks, keep, kept  # the module beside this one

METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")
TESTED = ("hr@10", "hr@20", "ndcg@10", "ndcg@20")
CONFIGS = Path("configs/dllm2rec")
DATASETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TEACHER_SEED, SEEDS = 42, [42, 43, 44]
_NOT_OF_A_RUN = ("students", "methods", "ablations", "teacher_train")  # in the file beside a run's configuration
_NOT_OF_A_STUDENT = ("against", "methods")
Cell = tuple[str, str, str, str | None, int]  # data set, student, method, ablation, seed
Found = dict[tuple[str, str, str, str | None], dict[int, tuple[Ranks, dict[str, Any]]]]  # by seed


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["teach", "train", "report", "try"])
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--students", nargs="+", default=None)
    parser.add_argument("--methods", nargs="+", default=None, help="`ablations` stands for those of dllm2rec")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/dllm2rec"))
    parser.add_argument("--share", default="0/1", help="i/n: only every n-th cell, from the i-th on")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("results/dllm2rec.json"))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="try: settings that differ from the file's"
    )
    arguments = parser.parse_args()
    if wrong := unknown(arguments):
        parser.error(wrong)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "teach":
        for name in arguments.datasets:
            _ = taught(name, arguments).knowledge
    elif arguments.what == "train":
        which, of = (int(part) for part in arguments.share.split("/"))
        for cell in list(cells(arguments))[which::of]:
            train(cell, arguments)
    elif arguments.what == "try":
        for cell in cells(arguments):
            attempt(cell, arguments)
    else:
        report(arguments)


def unknown(arguments: argparse.Namespace) -> str | None:
    """Return one line about a data set, student or method that no settings name; a misspelt one would be a cell less, in silence."""
    known = {"datasets": {path.stem for path in CONFIGS.glob("*.yaml")}, "students": set(), "methods": {"ablations"}}
    for name in known["datasets"]:
        content = settings_of(name)
        known["students"] |= set(content["students"])
        known["methods"] |= set(content["methods"])
    for what, names in known.items():
        for name in getattr(arguments, what) or ():
            if name not in names:
                return f"--{what}: no {name!r} in {CONFIGS}, there are: {', '.join(sorted(names))}"
    return None


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield what is asked for, one seed of everything before the next."""
    for seed in arguments.seeds:
        for name in arguments.datasets:
            content = settings_of(name)
            for student in content["students"]:
                if arguments.students is not None and student not in arguments.students:
                    continue
                for method in content["methods"]:
                    if arguments.methods is None or method in arguments.methods:
                        yield name, student, method, None, seed
                ablated = arguments.methods is None or "ablations" in arguments.methods
                if ablated and student == "sasrec" and name == "amazon-toys":
                    for ablation in content["ablations"]:
                        yield name, student, "dllm2rec", ablation, seed


def settings_of(name: str) -> dict[str, Any]:
    """Return a data set's settings."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def configuration(
    name: str,
    student: str,
    method: str,
    seed: int,
    data: Path,
    ablation: str | None = None,
    changes: Sequence[str] = (),
) -> Config:
    """Return the configuration of one cell, `changes` (KEY=VALUE) laid over it."""
    content = settings_of(name)
    students, methods, ablations, _ = (content.pop(key) for key in _NOT_OF_A_RUN)
    own = {key: value for key, value in (students[student] or {}).items() if key not in _NOT_OF_A_STUDENT}
    tuned = tuned_settings(students[student], method)
    content["train"] = {**content["train"], **own.pop("train", {}), **tuned.pop("train", {})}
    content["student"] = {"name": student, **own}
    content["method"] = {
        "name": method,
        **(methods[method] or {}),
        **tuned,
        **(ablations[ablation] if ablation else {}),
    }
    content["name"] = f"{name}-{student}-{seed}"
    for key in ("interactions", "items"):
        content["data"][key] = str(data / content["data"][key])
    return load_config(None, [f"seed={seed}", *changes], content)


def tuned_settings(student: dict[str, Any] | None, method: str) -> dict[str, Any]:
    """Return what the file sets for a method under one student alone: settings of the method and, under `train`, of the training."""
    return dict(((student or {}).get("methods") or {}).get(method) or {})


def taught(name: str, arguments: argparse.Namespace) -> Pipeline:
    """Return the run that holds a data set's teacher and knowledge; all students learn from the same."""
    content = settings_of(name)
    own = {key: content.pop(key) for key in _NOT_OF_A_RUN}
    for key in ("interactions", "items"):
        content["data"][key] = str(arguments.data / content["data"][key])
    content |= {"name": f"{name}-teacher", "train": own["teacher_train"]}
    return Pipeline(load_config(None, [f"seed={TEACHER_SEED}"], content), arguments.runs / content["name"])


def trained(cell: Cell, arguments: argparse.Namespace, changes: Sequence[str] = ()) -> tuple[Pipeline, Student, Fit]:
    """Train a cell unless it is trained: its run, the student and how the training went."""
    name, student, method, ablation, seed = cell
    run = Pipeline(
        configuration(name, student, method, seed, arguments.data, ablation, changes),
        arguments.runs / f"{name}-{student}-{seed}",
        taught=taught(name, arguments),
    )
    model, stage = (run.student, "student") if method == "plain" else (run.distilled, "distilled")
    return run, model, load_fit(run.stages[stage].folder)


def attempt(cell: Cell, arguments: argparse.Namespace) -> None:
    """Train a cell with other settings and note what validation says of it."""
    name, student, method, ablation, seed = cell
    run, _, fit = trained(cell, arguments, arguments.set)
    settings = {
        "student": run.config.student.settings(),
        "method": run.config.method.settings(),
        "train": run.config.train.model_dump(),
    }
    row = {
        "dataset": name, "student": student, "method": method, **({"ablation": ablation} if ablation else {}), "seed": seed,
        "set": arguments.set, "valid": round(fit.best, 5), "best_epoch": fit.best_epoch, "epochs": len(fit.history),
        "settings": settings,
    }  # fmt: skip
    line, path = json.dumps(row) + "\n", arguments.out.parent / "raw" / f"{arguments.out.stem}_tried.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or line not in path.read_text(encoding="utf-8"):
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    say(
        f"{name} {student} {method} {seed} {' '.join(arguments.set)}: validation {fit.best:.5f}, epoch {fit.best_epoch}"
    )


def train(cell: Cell, arguments: argparse.Namespace) -> Ranks:
    """Train a cell unless it is trained, and return the ranks of the test targets, [n]."""
    name, student, method, ablation, seed = cell
    run, model, fit = trained(cell, arguments)
    examples = np.asarray(run.data.examples("test"))
    ranks = target_ranks(model, run.data, examples, filter_seen=run.config.evaluate.filter_seen)
    keep(*place(cell, arguments), {"test": ranks}, {"best_epoch": fit.best_epoch, "valid": fit.best})
    shown = ", ".join(f"{metric} {gain(metric, ranks).mean():.4f}" for metric in ("hr@10", "ndcg@10"))
    say(f"{name} {student} {method}{f' ({ablation})' if ablation else ''} {seed}: {shown}")
    return ranks


def place(cell: Cell, arguments: argparse.Namespace) -> tuple[Path, Any]:
    """Return where the ranks of a cell are kept, and the settings that they count for: those of the file that name them."""
    name, student, method, ablation, seed = cell
    content = settings_of(name)
    students, methods, ablations, of_teacher = (content.pop(key) for key in _NOT_OF_A_RUN)
    if method == "plain":
        content = {key: content[key] for key in ("data", "train", "evaluate")}
    else:
        content |= {
            "teacher_train": of_teacher,
            "method": [method, methods[method], ablations[ablation] if ablation else None],
        }
    if tuned := tuned_settings(students[student], method):
        content["tuned"] = tuned
    of_student = {key: value for key, value in (students[student] or {}).items() if key not in _NOT_OF_A_STUDENT}
    content["cell"] = [student, of_student, seed]
    file = f"{name}-{student}-{ablation or method}-{seed}.npz".replace(" ", "_")
    return arguments.out.parent / "ranks" / arguments.out.stem / file, content


def report(arguments: argparse.Namespace) -> None:
    """Write the rows of all cells that are kept. Rows of others stay as an earlier report wrote them."""
    found = kept_cells(arguments)
    rows, ablations, comparisons = [], [], []
    for (name, student, method, ablation), by_seed in found.items():
        base = base_of(name, student)
        against = found.get((name, base, "plain", None) if ablation is None else (name, student, "dllm2rec", None), {})
        seeds = sorted(set(by_seed) & set(against)) or sorted(by_seed)
        row = {
            "dataset": name, "student": student, "method": method, **({"ablation": ablation} if ablation else {}),
            **({"against": base} if base != student else {}),
            **figures([by_seed[seed][0] for seed in seeds]), "seeds": seeds,
            "best_epochs": [by_seed[seed][1]["best_epoch"] for seed in seeds],
            "valid": [round(by_seed[seed][1]["valid"], 5) for seed in seeds],
            "settings": configuration(name, student, method, seeds[0], arguments.data, ablation).method.settings(),
        }  # fmt: skip
        if ablation is not None:
            row["gains"] = {
                kind: gain_over(row, found.get((name, student, kind, None), {})) for kind in ("plain", "dllm2rec")
            }
        if set(seeds) <= set(against) and (method, student) != ("plain", base):
            sides = [Side("other", [by_seed[seed][0] for seed in seeds])]
            under = Side("base", [against[seed][0] for seed in seeds])
            comparisons.extend((row, gap) for gap in compare(under, sides, TESTED))
            row["users_and_seeds"] = {
                metric: asdict(crossed(under, sides[0], metric, spread=spread_over(found, name, student, metric)))
                for metric in TESTED
            }
        (ablations if ablation else rows).append(row)
    put_tests(comparisons)
    content = read_json(arguments.out) if arguments.out.exists() else {}
    asked = {cell[:4] for cell in cells(arguments)}
    rows, ablations = (
        merged(content.get(key, []), made, asked) for key, made in (("rows", rows), ("ablations", ablations))
    )
    whole = argparse.Namespace(
        **vars(arguments) | {"datasets": DATASETS, "students": None, "methods": None, "seeds": SEEDS}
    )
    content |= {
        "rows": rows,
        "ablations": ablations,
        "baselines": over_students(kept_cells(whole)),
        "command": "python benchmarks/methods.py report",
    }
    write_json(arguments.out, content)
    for row in rows + ablations:
        shown = ", ".join(f"{metric} {row['metrics'][metric]:.4f}" for metric in ("hr@10", "ndcg@10"))
        p = f", p {row['p_value']['ndcg@10']:.2g}" if "p_value" in row else ""
        say(f"{row['dataset']} {row['student']} {row.get('ablation', row['method'])} x{len(row['seeds'])}: {shown}{p}")


def gain_over(row: dict[str, Any], by_seed: dict[int, tuple[Ranks, dict[str, Any]]]) -> float | None:
    """Return by how much a row's NDCG@10 is above that of other trainings with the same seeds; None where one of these is missing."""
    if not set(row["seeds"]) <= set(by_seed):
        return None
    other = np.mean([gain("ndcg@10", by_seed[seed][0]).mean() for seed in row["seeds"]])
    return float(row["metrics"]["ndcg@10"] / other - 1)


def kept_cells(arguments: argparse.Namespace) -> Found:
    """Return the ranks of all cells that are asked for and kept."""
    found: Found = {}
    for cell in cells(arguments):
        if (one := kept(*place(cell, arguments))) is not None:
            found.setdefault(cell[:4], {})[cell[4]] = (one[0]["test"], one[1])
    return found


def over_students(found: Found) -> list[dict[str, Any]]:
    """Return every baseline beside dllm2rec, over all students and seeds of a data set that are kept of both and of `plain`.

    Each side's gains are averaged over students and seeds, user by user. `gain` and `dllm2rec_gain`: of NDCG@10 over the plain
    student, the mean over these cells.
    """
    rows, tests = [], []
    for name, method in dict.fromkeys((name, method) for name, _, method, ablation in found if ablation is None):
        sides: dict[str, list[Ranks]] = {kind: [] for kind in ("plain", method, "dllm2rec")}
        cells: dict[str, list[int]] = {}
        for student in (kind for dataset, kind, own, _ in found if (dataset, own) == (name, method)):
            three = [found.get((name, student, kind, None), {}) for kind in sides]
            seeds = sorted(set.intersection(*map(set, three)))
            if len(three) < 3 or base_of(name, student) != student or not seeds:
                continue
            cells[student] = seeds
            for ranks, by_seed in zip(sides.values(), three, strict=True):
                ranks.extend(by_seed[seed][0] for seed in seeds)
        if cells:
            row = {"dataset": name, "method": method, "cells": cells}
            means = {kind: [gain("ndcg@10", one).mean() for one in ranks] for kind, ranks in sides.items()}
            for key, kind in (("gain", method), ("dllm2rec_gain", "dllm2rec")):
                row[key] = float(np.mean(np.divide(means[kind], means["plain"]) - 1))
            own, other = Side(method, sides[method]), Side("dllm2rec", sides["dllm2rec"])
            tests += [(row, gap) for gap in compare(own, [other], ("hr@10", "ndcg@10"))]
            rows.append(row)
    put_tests(tests)
    return rows


def base_of(name: str, student: str) -> str:
    """Return the student whose plain training a student is tested against: its own, unless the file names another."""
    own: dict[str, Any] = settings_of(name)["students"][student] or {}
    return str(own.get("against", student))


def merged(
    earlier: list[dict[str, Any]], made: list[dict[str, Any]], asked: set[tuple[str, str, str, str | None]]
) -> list[dict[str, Any]]:
    """Return rows by data set and student, those of an earlier report where it has more seeds; what was not asked for stays as is."""

    def key(row: dict[str, Any]) -> tuple[str, str, str, str | None]:
        return row["dataset"], row["student"], row["method"], row.get("ablation")

    found = {key(row): {**row, "earlier": True} if key(row) in asked else row for row in earlier}
    for row in made:
        if key(row) not in found or len(found[key(row)]["seeds"]) <= len(row["seeds"]):
            found[key(row)] = row
    places = {name: [*settings_of(name)["students"]] for name in {row["dataset"] for row in found.values()}}
    return sorted(found.values(), key=lambda row: (row["dataset"], places[row["dataset"]].index(row["student"])))


def spread_over(found: Any, name: str, student: str, metric: str) -> SeedSpread | None:
    """Return how far seeds lie apart, over all methods of a student that were trained with several."""
    return spread_of(
        [
            np.stack([gain(metric, ranks) for ranks, _ in by_seed.values()])
            for (dataset, kind, _, _), by_seed in found.items()
            if (dataset, kind) == (name, student)
        ]
    )


def put_tests(comparisons: list[tuple[dict[str, Any], Comparison]]) -> None:
    """Write differences, and p-values after Holm over all comparisons, into their rows."""
    adjusted = holm([gap.wilcoxon_p for _, gap in comparisons])
    for (row, gap), p in zip(comparisons, adjusted, strict=True):
        row.setdefault("difference", {})[gap.metric] = gap.difference
        row.setdefault("difference_ci95", {})[gap.metric] = list(gap.interval)
        row.setdefault("p_value", {})[gap.metric] = p


def figures(ranks: list[Ranks], metrics: tuple[str, ...] = METRICS) -> dict[str, Any]:
    """Average gains over seeds, user by user, then over users; resample users for the interval."""
    gains = np.stack([np.mean([gain(metric, one) for one in ranks], axis=0) for metric in metrics], axis=1)  # [n, m]
    values, counts = np.unique(gains.round(12), axis=0, return_counts=True)
    low, high = np.quantile(resampled_means(values, counts, resamples=2000, seed=0), [0.025, 0.975], axis=0)
    return {
        "metrics": {metric: float(gains[:, i].mean()) for i, metric in enumerate(metrics)},
        "ci95": {metric: [float(low[i]), float(high[i])] for i, metric in enumerate(metrics)},
    }


if __name__ == "__main__":
    sys.exit(main())
