"""RecBole's SASRec. Runs inside RecBole's environment; see protocol.py. benchmarks/recbole_sasrec.py measures its accuracy.

RecBole trains one row per prefix of a history and counts a batch in such rows; `rows` of the options is that number. It has
cross-entropy over the whole catalogue and BPR, but no sampled softmax. Histories are cut at the last 50 items of each prefix,
so no target of a long history is lost.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import TOP, Clock, answer, metrics_of_lists, named, read_job, read_sequences, time_ranking

NAME = "sequences"


class Done(Exception):  # noqa: N818 - not an error
    """Enough steps were timed."""


def write(sequences: list[list[int]], folder: Path) -> None:
    """Write RecBole's atomic file; names are numbers, so any item is safe."""
    lines = ["user_id:token\titem_id:token\ttimestamp:float\n"]
    for user, items in enumerate(sequences):
        lines += [f"{user}\t{item}\t{place}\n" for place, item in enumerate(items)]
    (folder / NAME).mkdir()
    (folder / NAME / f"{NAME}.inter").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Train, time, measure."""
    job = read_job()
    arguments, sys.argv = sys.argv, sys.argv[:1]  # RecBole reads the command line as settings
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed
    from recbole.utils.case_study import full_sort_topk

    torch.set_num_threads(job.threads)
    if job.loss != "ce":
        raise ValueError("RecBole's SASRec has no sampled softmax")
    sequences = read_sequences(job.sequences)
    write(sequences, Path(job.folder))
    settings = {
        "data_path": job.folder, "checkpoint_dir": job.folder, "seed": job.seed, "gpu_id": "", "show_progress": False,
        "hidden_size": job.width, "inner_size": job.inner_size, "n_layers": job.blocks, "n_heads": job.heads,
        "hidden_act": "relu", "hidden_dropout_prob": job.dropout, "attn_dropout_prob": job.dropout,
        "MAX_ITEM_LIST_LENGTH": job.max_length, "learning_rate": job.learning_rate, "learner": "adam",
        "train_batch_size": job.options["rows"], "worker": job.options["workers"],
        "epochs": 10**6 if job.steps else job.epochs, "loss_type": "CE", "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "metrics": ["NDCG"], "topk": [10],
        "valid_metric": "NDCG@10",
    }  # fmt: skip
    config = Config(model="SASRec", dataset=NAME, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    clock = Clock(job)

    class TimedTrainer(Trainer):  # type: ignore[misc,unused-ignore]
        def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
            clock.epoch_begins()
            loss = super()._train_epoch(*args, **kwargs)
            clock.epoch_ends()
            return loss

    def after_step(*_: object) -> None:
        if clock.step():
            raise Done

    trainer = TimedTrainer(config, model)
    trainer.optimizer.register_step_post_hook(after_step)
    with contextlib.suppress(Done):
        trainer.fit(train_data, None, verbose=False, saved=False)
    result = clock.figures(len(train_data))
    result["train_targets"] = len(train_data.dataset)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    users = dataset.token2id("user_id", [str(user) for user in range(len(sequences))])
    item_of = np.array([-1, *(int(token) for token in dataset.field2id_token["item_id"][1:])])  # 0 is padding

    @torch.no_grad()
    def best(data: Any) -> tuple[Any, Any]:
        size = job.options["predict_batch_size"]
        parts = [full_sort_topk(users[first : first + size], model, data, TOP) for first in range(0, len(users), size)]
        scores, items = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return item_of[items], scores

    if job.rank:
        result |= time_ranking(lambda: best(test_data), len(users))
    if job.quality:
        valid = metrics_of_lists(*best(valid_data), [items[-2] for items in sequences])
        result |= named(valid, metrics_of_lists(*best(test_data), [items[-1] for items in sequences]))
    sys.argv = arguments
    answer(job, result, ("recbole", "torch", "numpy", "pandas"))


if __name__ == "__main__":
    main()
