"""Plain students, measured as every distilled one will be: several seeds, full ranking, intervals over users.

    python benchmarks/students.py                                  # all of it: hours on two cores
    python benchmarks/students.py --datasets ml-100k               # one data set; the rows of the others are kept
    python benchmarks/students.py --datasets amazon-beauty --students sasrec --protocols train

Settings: configs/students/DATASET.yaml, and the student's part of it under `students:` (the outcome of the search noted there).
Protocols: `train` is trained on the training part alone, `refit` on training and validation targets together, for as many epochs
as were best without them. A figure is the mean over users of the mean over seeds; its interval is a bootstrap over users.
Every row holds four ways to count: seen items in the ranking or taken out of it, and targets that never occur in training
counted (as misses, mostly) or dropped. `metrics` is the first of: seen taken out where the data set's configuration says so, cold
targets counted. Writes results/students.json.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.data.dataset import Dataset
from distilrec.evaluation.metrics import gain, resampled_means
from distilrec.evaluation.rank import target_ranks
from distilrec.files import read_json, write_json
from distilrec.pipeline import Pipeline
from distilrec.progress import say
from distilrec.students import STUDENTS
from distilrec.students.graph import BASELINES

METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
CONFIGS = Path("configs/students")
Ranks = npt.NDArray[np.int64]


def main() -> None:
    """Train what is asked for, measure, and put the rows into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--students", nargs="+", default=[*BASELINES, *STUDENTS])
    parser.add_argument("--protocols", nargs="+", default=["train", "refit"], choices=["train", "refit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets not fetched")
    parser.add_argument("--runs", type=Path, default=Path("runs/students"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("results/students.json"))
    arguments = parser.parse_args()
    for dataset in arguments.datasets:
        for student in arguments.students:
            for protocol in arguments.protocols:
                row = measured(dataset, student, protocol, arguments)
                if row is not None:
                    keep(arguments.out, row)


def measured(name: str, student: str, protocol: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return one row, or None where the data set's configuration does not ask for it."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    own, given = content.pop("students"), content.pop("search", None)
    if student not in own or protocol not in (own[student] or {}).get("protocols", ["train"]):
        return None
    words = {key: value for key, value in (own[student] or {}).items() if key not in ("protocols", "search")}
    configs = [config(content, words, name, student, protocol, seed, arguments) for seed in arguments.seeds]
    started = time.monotonic()
    ranks: dict[bool, list[Ranks]] = {True: [], False: []}
    fits = []
    for one in configs:
        pipeline = Pipeline(one, arguments.runs / one.name)
        dataset = pipeline.data
        examples = np.asarray(dataset.examples("test"))
        if student in BASELINES:
            kind = BASELINES[student]
            model = kind.fit(dataset.with_validation() if protocol == "refit" else dataset, kind.Settings(**words))
        else:
            model = pipeline.student
            fit = read_json(pipeline.stages["student"].folder / "fit.json")
            fits.append({key: fit[key] for key in ("best_epoch", "best", "seconds")} | {"epochs": len(fit["history"])})
        for filtered in ranks:
            ranks[filtered].append(target_ranks(model, dataset, examples, filter_seen=filtered))
        if student in BASELINES:
            break  # nothing in them is drawn at random
    return {
        "dataset": name, "student": student, "protocol": protocol,
        **figures(dataset, examples, ranks, filtered=configs[0].evaluate.filter_seen),
        "seeds": arguments.seeds[: len(ranks[True])], "fits": fits,
        "settings": settings(configs[0], student, words),
        "search": (own[student] or {}).get("search", given),
        "seconds": round(time.monotonic() - started, 1),
        "command": f"python benchmarks/students.py --datasets {name} --students {student} --protocols {protocol}",
    }  # fmt: skip


def config(
    content: dict[str, Any],
    words: dict[str, Any],
    name: str,
    student: str,
    protocol: str,
    seed: int,
    arguments: argparse.Namespace,
) -> Config:
    """Return the configuration of one training."""
    base = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    if student not in BASELINES:
        base["student"] = {"name": student, **words.get("student", {})}
        base["train"] = {**base.get("train", {}), **words.get("train", {})}
    base["name"] = f"{name}-{student}-{seed}"  # both protocols: what they share is done once
    overrides = [f"seed={seed}", f"train.refit={'true' if protocol == 'refit' else 'false'}"]
    if arguments.threads:
        overrides.append(f"threads={arguments.threads}")
    for key in ("interactions", "items"):
        if value := base["data"].get(key):
            base["data"][key] = str(arguments.data / value)
    return load_config(None, overrides, base)


def settings(one: Config, student: str, words: dict[str, Any]) -> dict[str, Any]:
    """Return what the model was made with."""
    if student in BASELINES:
        return BASELINES[student].Settings(**words).model_dump()
    return {
        "student": STUDENTS[student].Settings(**one.student.settings()).model_dump(),
        "train": one.train.model_dump(exclude={"checkpoint_seconds"}, mode="json"),
    }


def figures(dataset: Dataset, examples: Ranks, ranks: dict[bool, list[Ranks]], *, filtered: bool) -> dict[str, Any]:
    """Return means and intervals for each way to count, the main one first."""
    warm = dataset.popularity[dataset.items[examples]] > 0
    ways = {
        f"{'seen taken out' if out else 'seen left in'}, cold {'dropped' if drop else 'counted'}": mean_and_interval(
            [one[warm] if drop else one for one in ranks[out]]
        )
        for out in (filtered, not filtered)
        for drop in (False, True)
    }
    main_way = next(iter(ways))
    return {
        **ways[main_way], "counted": main_way, "test_users": len(examples), "cold_targets": int((~warm).sum()),
        "by_seed": [{metric: float(gain(metric, one).mean()) for metric in METRICS} for one in ranks[filtered]],
        "ways": ways,
    }  # fmt: skip


def mean_and_interval(ranks: list[Ranks]) -> dict[str, Any]:
    """Average gains over seeds, user by user, then over users; resample users for the interval."""
    gains = np.stack([np.mean([gain(metric, one) for one in ranks], axis=0) for metric in METRICS], axis=1)  # [n, m]
    values, counts = np.unique(gains.round(12), axis=0, return_counts=True)
    low, high = np.quantile(resampled_means(values, counts, resamples=2000, seed=0), [0.025, 0.975], axis=0)
    return {
        "metrics": {metric: float(gains[:, i].mean()) for i, metric in enumerate(METRICS)},
        "ci95": {metric: [float(low[i]), float(high[i])] for i, metric in enumerate(METRICS)},
    }


def keep(path: Path, row: dict[str, Any]) -> None:
    """Put a row in the place of its like."""
    rows = read_json(path)["rows"] if path.exists() else []
    same = ("dataset", "student", "protocol")
    rows = [one for one in rows if any(one[key] != row[key] for key in same)] + [row]
    order = [*BASELINES, *STUDENTS]
    rows.sort(key=lambda one: (one["dataset"], order.index(one["student"]), one["protocol"] != "train"))
    write_json(path, {"rows": rows})
    shown = ", ".join(f"{metric} {row['metrics'][metric]:.4f}" for metric in ("hr@10", "ndcg@10"))
    say(f"{row['dataset']} {row['student']} {row['protocol']}: {shown} ({row['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
