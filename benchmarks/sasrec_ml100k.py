"""Our plain SASRec beside RecBole's on MovieLens-100K: same split, same full ranking, paired by user.

    python benchmarks/sasrec_ml100k.py --write-sequences sequences.txt      # the split, for the peer
    python benchmarks/recbole_sasrec.py --sequences sequences.txt           # the peer, in an environment of its own
    python benchmarks/sasrec_ml100k.py                                      # ours, and results/ml100k_sasrec.json

Ours is trained with configs/demo.yaml and patience 20, for several seeds. The interval of the difference is a paired
percentile bootstrap over users; ranks of several seeds of one side are averaged as gains, user by user.
"""

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np

from distilrec import __version__
from distilrec.config_file import load_config
from distilrec.data.dataset import Dataset
from distilrec.evaluation.metrics import bootstrap_intervals, evaluate_ranks, gain
from distilrec.evaluation.rank import target_ranks
from distilrec.files import read_json, write_json, write_text
from distilrec.pipeline import Pipeline
from distilrec.pipeline.stage import peak_rss_mb

METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
CUTOFFS = [1, 5, 10, 20]


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--peer", type=Path, default=Path("results/raw/recbole_sasrec_ml100k.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/ml100k_sasrec.json"))
    parser.add_argument("--write-sequences", type=Path)
    arguments = parser.parse_args()
    pipelines = [pipeline(seed, arguments.runs) for seed in arguments.seeds]
    dataset = pipelines[0].data
    if arguments.write_sequences:
        write_text(arguments.write_sequences, sequences(dataset))
        return
    examples = np.asarray(dataset.examples("test"))
    users = [dataset.user_ids[row] for row in dataset.rows_of(examples)]
    ours = {str(run.config.seed): target_ranks(run.student, dataset, examples) for run in pipelines}
    peer = read_json(arguments.peer)
    theirs = {seed: np.array([ranks[user] for user in users]) for seed, ranks in peer["test_ranks"].items()}
    write_json(
        arguments.out,
        {
            "command": "python benchmarks/sasrec_ml100k.py --seeds " + " ".join(map(str, arguments.seeds)),
            "protocol": "leave-one-out, full ranking, ties against the target, seen items left in, selected on validation",
            "dataset": {key: dataset.manifest[key] for key in ("n_users", "n_items", "n_interactions", "n_test")},
            "distilrec": {
                "settings": pipelines[0].student_settings.model_dump() | pipelines[0].config.train.model_dump(),
                "seeds": side(ours),
                "mean": means(ours),
            },
            "recbole": {
                "settings": peer["settings"] | {"dropout": peer["chosen_dropout"]},
                "versions": peer["versions"],
                "runs": [{key: value for key, value in run.items() if "valid_ndcg" not in key} for run in peer["runs"]],
                "seeds": side(theirs),
                "mean": means(theirs),
            },
            "difference": {metric: difference(ours, theirs, metric) for metric in METRICS},
            "machine": {"processor": platform.machine(), "python": platform.python_version(), "distilrec": __version__},
            "peak_rss_mb": round(peak_rss_mb()),
        },
    )


def pipeline(seed: int, runs: Path) -> Pipeline:
    """Return the demo's run with another seed."""
    config = load_config(Path("configs/demo.yaml"), [f"seed={seed}", f"name=sasrec-ml100k-{seed}", "train.patience=20"])
    return Pipeline(config, runs / config.name)


def sequences(dataset: Dataset) -> str:
    """Return `user item item ...` lines."""
    rows = zip(dataset.user_ids, dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    return "".join(
        " ".join([user, *(dataset.item_ids[item] for item in dataset.items[first:last])]) + "\n"
        for user, first, last in rows
    )


def side(ranks: dict[str, Any]) -> dict[str, Any]:
    """Return metrics and intervals of each seed."""
    return {
        seed: {
            "metrics": evaluate_ranks(own, CUTOFFS),
            "ci95": bootstrap_intervals(own, CUTOFFS, resamples=2000, seed=0),
        }
        for seed, own in ranks.items()
    }


def means(ranks: dict[str, Any]) -> dict[str, float]:
    """Return each metric's mean over the seeds."""
    return {metric: float(np.mean([gain(metric, own).mean() for own in ranks.values()])) for metric in METRICS}


def difference(ours: dict[str, Any], theirs: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return ours minus theirs, per user, with a paired bootstrap interval."""
    mine, other = (np.mean([gain(metric, own) for own in group.values()], axis=0) for group in (ours, theirs))
    gap = mine - other
    draws = np.random.default_rng(0).integers(0, len(gap), (2000, len(gap)))
    low, high = np.quantile(gap[draws].mean(axis=1), [0.025, 0.975])
    return {"ours_minus_recbole": float(gap.mean()), "ci95": [float(low), float(high)]}


if __name__ == "__main__":
    main()
