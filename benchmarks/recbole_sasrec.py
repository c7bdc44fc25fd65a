# SPDX-License-Identifier: Apache-2.0
"""Accuracy and training cost of RecBole's SASRec on a file of item sequences.

RecBole makes the leave-one-out split (test target = last item, validation target = second to
last, training = all before), trains with cross-entropy over the full catalogue, stops early on
validation NDCG@10 and evaluates. This script then loads the best-validation checkpoint and ranks
every target itself: rank = 1 + number of other items scored >= the target. Seen items stay in
the ranking (RecBole's rule for sequential models), the padding id does not; the history of a
test row includes the validation item. Split and histories are checked row by row, and RecBole's
own test figures stand beside ours. Dropout is chosen on validation NDCG@10 only.

    python benchmarks/recbole_sasrec.py --sequences sequences.txt

Run it with Python 3.11 on Linux or macOS; RecBole gets a virtual environment of its own.
sequences.txt has one user a line, ``user item item item ...``, items in time order, at least four
a user. Each (dropout, seed) trains in a process of its own, one after the other, on ``--threads``
CPU threads; peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
# RecBole imports ray at start-up; that ray needs pkg_resources, gone from newer setuptools.
PACKAGES = ("recbole==1.2.1", "numpy<2", "pandas<3", "setuptools<81")
CUTOFFS = (1, 5, 10, 20)
DATASET = "sequences"
log = functools.partial(print, file=sys.stderr, flush=True)
PROTOCOL = (
    "rank = 1 + other items scored >= target; no seen item filtered; padding id excluded; test "
    "history includes the validation item; dropout chosen on mean validation NDCG@10 over seeds"
)
# RecBole's settings with a flag of their own, and those without. Its own default batch size is
# 2048; on one CPU thread an epoch of 128 takes no longer, and makes 16 times as many steps.
TUNABLE = {"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 2,
           "MAX_ITEM_LIST_LENGTH": 50, "learning_rate": 1e-3, "train_batch_size": 128,
           "epochs": 200, "stopping_step": 10}  # fmt: skip
FIXED = {"loss_type": "CE", "train_neg_sample_args": None, "learner": "adam",
         "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
         "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
         "valid_metric": "NDCG@10", "metrics": ["Hit", "NDCG", "MRR"], "topk": list(CUTOFFS),
         "metric_decimal_place": 8, "gpu_id": "", "show_progress": False}  # fmt: skip


def read_sequences(path: Path) -> dict[str, list[str]]:
    """Return {user: items in time order}; a user needs 4 items for RecBole's split."""
    sequences: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        user, *items = line.split() or [""]
        if user in sequences or len(items) < 4:
            raise ValueError(f"{path}:{number}: repeated user, or fewer than 4 items")
        sequences[user] = items
    return sequences


def item_numbers(sequences: dict[str, list[str]]) -> dict[str, int]:
    """Number the items in order of first appearance."""
    items = dict.fromkeys(item for sequence in sequences.values() for item in sequence)
    return {item: number for number, item in enumerate(items)}


def write_atomic_file(sequences: dict[str, list[str]], data_path: Path) -> None:
    """Write RecBole's .inter file; ids are numbered, so any token is safe ("NA" too)."""
    numbers = item_numbers(sequences)
    lines = ["user_id:token\titem_id:token\ttimestamp:float\n"]
    for user, items in enumerate(sequences.values()):
        lines += [f"u{user}\ti{numbers[i]}\t{t}\n" for t, i in enumerate(items)]
    (data_path / DATASET).mkdir(parents=True)
    (data_path / DATASET / f"{DATASET}.inter").write_text("".join(lines), encoding="utf-8")


def metrics(ranks: Iterable[int]) -> dict[str, float]:
    """HR, NDCG and MRR at each cutoff, for one relevant item per ranking."""
    ranks = list(ranks)
    result: dict[str, float] = {}
    for k in CUTOFFS:
        hits = [rank for rank in ranks if rank <= k]
        result[f"hr@{k}"] = len(hits) / len(ranks)
        result[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks)
        result[f"mrr@{k}"] = sum(1 / rank for rank in hits) / len(ranks)
    return result


def ensure_venv(folder: Path) -> Path:
    """Make the virtual environment, or re-use a finished one; return its Python."""
    python, marker = folder / "bin/python", folder / ".recbole-benchmark"
    wanted = "\n".join((TORCH, *PACKAGES))
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        for packages in ((TORCH,), (TORCH, *PACKAGES)):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        marker.write_text(wanted, encoding="utf-8")
    return python


def worker(job_path: Path) -> None:
    """Train and evaluate one setting; runs inside the virtual environment."""
    job = json.loads(job_path.read_text(encoding="utf-8"))
    del sys.argv[1:]  # RecBole reads the command line as settings
    os.chdir(job_path.parent)  # and writes logs to the current folder
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    torch.set_num_threads(job["threads"])
    # RecBole's checkpoints hold its Config object, which weights_only loading refuses.
    torch.load = functools.partial(torch.load, weights_only=False)

    config = Config(model="SASRec", dataset=DATASET, config_dict=job["recbole"])
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])

    sequences = read_sequences(Path(job["sequences"]))
    numbers = item_numbers(sequences)
    assert len(train_data.dataset) == sum(len(s) - 3 for s in sequences.values())
    assert dataset.item_num == len(numbers) + 1
    train_seconds: list[float] = []  # of each epoch, without validation
    valid_scores: list[float] = []

    class TimedTrainer(Trainer):  # type: ignore[misc,unused-ignore]
        def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            loss = super()._train_epoch(*args, **kwargs)
            train_seconds.append(time.perf_counter() - began)
            return loss

    def after_epoch(epoch: int, score: float) -> None:
        valid_scores.append(score)
        log(f"  epoch {epoch + 1}: validation NDCG@10 {score:.5f}, {train_seconds[-1]:.1f} s")
        if time.perf_counter() - start > job["minutes"] * 60:
            raise TimeoutError

    @torch.no_grad()
    def ranks(data: Any, left_out: int) -> dict[str, int]:
        """Rank of every user's target, after a check of target and history."""
        found: dict[str, int] = {}
        users = list(sequences)
        model.eval()
        for interaction, masked, _, target in data:
            assert masked is None  # no seen items are hidden
            scores = model.full_sort_predict(interaction)
            scores[:, 0] = -math.inf  # the padding id
            target_scores = scores.gather(1, target.unsqueeze(1))
            row_ranks = (scores >= target_scores).sum(1).tolist()
            assert min(row_ranks) > 0  # 0: a score is not a number
            names = dataset.id2token("user_id", interaction["user_id"])
            for row, rank in enumerate(row_ranks):
                user = users[int(names[row][1:])]
                end = len(sequences[user]) - left_out
                *seen, last = [f"i{numbers[i]}" for i in sequences[user][:end]]
                assert dataset.id2token("item_id", int(target[row])) == last
                history = interaction["item_id_list"][row, : interaction["item_length"][row]]
                seen = seen[-config["MAX_ITEM_LIST_LENGTH"] :]
                assert list(dataset.id2token("item_id", history)) == seen
                found[user] = rank
        assert found.keys() == sequences.keys()
        return found

    trainer = TimedTrainer(config, model)
    stopped_by = "epoch cap"
    start = time.perf_counter()
    try:
        trainer.fit(train_data, valid_data, verbose=False, callback_fn=after_epoch)
        if trainer.cur_step > config["stopping_step"]:
            stopped_by = "early stopping"
    except TimeoutError:
        stopped_by = "time cap"
    seconds = time.perf_counter() - start
    evaluated = trainer.evaluate(test_data, load_best_model=True)
    reported = {key.replace("hit@", "hr@"): float(value) for key, value in evaluated.items()}
    valid_ranks, test_ranks = ranks(valid_data, 1), ranks(test_data, 0)
    test = metrics(test_ranks.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run: dict[str, Any] = {
        "dropout": config["hidden_dropout_prob"],
        "seed": config["seed"],
        "epochs_run": len(valid_scores),
        # RecBole keeps the latest of equal validation scores
        "best_epoch": max(range(len(valid_scores)), key=lambda e: (valid_scores[e], e)) + 1,
        "stopped_by": stopped_by,
        "seconds_per_epoch_median": statistics.median(train_seconds),
        "training_seconds_with_validation": seconds,
        "peak_rss_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "parameters": sum(p.numel() for p in model.parameters()),
        "valid_ndcg@10_by_epoch": valid_scores,
        "valid": metrics(valid_ranks.values()),
        "test": test,
        "recbole_test": reported,
        "largest_difference_to_recbole": max(abs(test[k] - reported[k]) for k in test),
    }
    packages = ("torch", "recbole", "numpy", "pandas")
    versions = {name: str(sys.modules[name].__version__) for name in packages}
    versions["python"] = platform.python_version()
    result = {"run": run, "test_ranks": test_ranks, "versions": versions}
    job_path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


def report(run: dict[str, Any]) -> None:
    """Print one run: validation, test, and RecBole's own test figures beside ours."""
    epochs = f"{run['epochs_run']} epochs (best {run['best_epoch']}, {run['stopped_by']})"
    cost = f"{run['seconds_per_epoch_median']:.1f} s/epoch, peak {run['peak_rss_mb']:.0f} MB"
    print(f"dropout {run['dropout']}, seed {run['seed']}: {epochs}, {cost}")
    print(f"{'':9}{'valid':>9}{'test':>9}{'RecBole':>9}")
    for name, value in run["test"].items():
        print(f"{name:9}{run['valid'][name]:9.4f}{value:9.4f}{run['recbole_test'][name]:9.4f}")


def write_document(path: Path, head: dict[str, Any], outputs: list[dict[str, Any]]) -> None:
    """Write the JSON document for the runs so far; the best dropout's ranks go with it."""
    scores: dict[float, list[float]] = {}
    for run in (output["run"] for output in outputs):
        scores.setdefault(run["dropout"], []).append(run["valid"]["ndcg@10"])
    chosen = max(scores, key=lambda dropout: statistics.fmean(scores[dropout]))
    ranks = {o["run"]["seed"]: o["test_ranks"] for o in outputs if o["run"]["dropout"] == chosen}
    document = {**head, "versions": outputs[0]["versions"], "runs": [o["run"] for o in outputs],
                "chosen_dropout": chosen, "test_ranks": ranks}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"best dropout so far, by validation NDCG@10: {chosen}; wrote {path}", flush=True)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Benchmark RecBole's SASRec on item sequences.")
    add = parser.add_argument
    add("--sequences", type=Path, required=True, help="text file, a user and its items a line")
    add("--out", type=Path, default=Path("results/raw/recbole_sasrec_ml100k.json"))
    add("--venv", type=Path, default=Path.home() / ".cache/distilrec/venvs/recbole")
    add("--dropouts", type=float, nargs="+", default=[0.5, 0.2], help="0.5: RecBole's default")
    add("--seeds", type=int, nargs="+", default=[42])
    add("--minutes", type=float, default=25.0, help="cap on one training, seen to each epoch")
    add("--threads", type=int, default=1)
    for name, default in TUNABLE.items():
        flag = "--" + name.lower().replace("_", "-")
        add(flag, dest=name, type=type(default), default=default, help="default %(default)s")
    return parser.parse_args()


def main() -> None:
    """Train every setting in a worker process, one after the other, and write the JSON."""
    args = parse_args()
    sequences = read_sequences(args.sequences)
    python = ensure_venv(args.venv)
    settings = {**FIXED, **{name: getattr(args, name) for name in TUNABLE}}
    counts = {"users": len(sequences), "items": len(item_numbers(sequences)),
              "interactions": sum(map(len, sequences.values()))}  # fmt: skip
    digest = hashlib.sha256(args.sequences.read_bytes()).hexdigest()
    head = {"benchmark": "RecBole SASRec, leave-one-out, full ranking", "protocol": PROTOCOL,
            "data": {"sha256": digest, **counts},
            "settings": {**settings, "minutes": args.minutes, "threads": args.threads}}  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
    outputs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        data_path = Path(temporary) / "data"
        write_atomic_file(sequences, data_path)
        for dropout, seed in ((d, s) for d in args.dropouts for s in args.seeds):
            log(f"dropout {dropout}, seed {seed}")
            folder = Path(temporary) / f"run{len(outputs)}"
            folder.mkdir()
            recbole = {**settings, "seed": seed, "hidden_dropout_prob": dropout,
                       "attn_dropout_prob": dropout, "data_path": str(data_path),
                       "checkpoint_dir": str(folder / "saved")}  # fmt: skip
            job = {"sequences": str(args.sequences.resolve()), "threads": args.threads,
                   "minutes": args.minutes, "recbole": recbole}  # fmt: skip
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            command = [str(python), str(Path(__file__).resolve()), "--worker"]
            subprocess.run([*command, str(folder / "job.json")], env=env, check=True)
            outputs.append(json.loads((folder / "result.json").read_text(encoding="utf-8")))
            report(outputs[-1]["run"])
            write_document(args.out, head, outputs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:  # for the script's own use
        worker(Path(sys.argv[2]))
    else:
        main()
