"""RecTools' SASRec. Runs inside RecTools' environment; see protocol.py.

RecTools fixes the inner size of the feed-forward part at the width, its activation at ReLU, Adam's second beta at 0.98, and
draws negatives for every position of every sequence. It learns and ranks only items that occur in training.
"""

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
from protocol import TOP, Clock, answer, metrics_of_lists, named, read_job, read_sequences, time_ranking
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

LOSSES = {"ce": "softmax", "sampled_softmax": "sampled_softmax"}


def dataset_of(sequences: list[list[int]]) -> Dataset:
    """Turn sequences into RecTools' data set; time is the place in the sequence."""
    lengths = [len(items) for items in sequences]
    places = np.concatenate([np.arange(length) for length in lengths])
    frame = {
        Columns.User: np.repeat(np.arange(len(sequences)), lengths),
        Columns.Item: np.concatenate(sequences),
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(places, unit="s"),
    }
    return Dataset.construct(pd.DataFrame(frame))


def main() -> None:
    """Train, time, measure."""
    job = read_job()
    torch.set_num_threads(job.threads)
    lightning.seed_everything(job.seed)
    sequences = read_sequences(job.sequences)
    training = dataset_of([items[:-2] for items in sequences])
    histories = dataset_of([items[:-1] for items in sequences])
    users = np.arange(len(sequences))
    clock = Clock(job)

    class Marks(lightning.Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            clock.epoch_begins()

        def on_train_batch_end(self, *_: object) -> None:
            clock.step()

        def on_train_epoch_end(self, *_: object) -> None:
            clock.epoch_ends()

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=-1 if job.steps else job.epochs, max_steps=job.total_steps, accelerator="cpu", devices=1,
            callbacks=[Marks()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip

    if job.inner_size != job.width:
        raise ValueError("RecTools' SASRec has no inner size of its own: set it to the width")
    model = SASRecModel(
        n_blocks=job.blocks, n_heads=job.heads, n_factors=job.width, dropout_rate=job.dropout,
        session_max_len=job.max_length, loss=LOSSES[job.loss], n_negatives=job.negatives, lr=job.learning_rate,
        batch_size=job.batch_size, get_trainer_func=trainer, dataloader_num_workers=job.options["workers"],
        recommend_batch_size=job.options["recommend_batch_size"],
    )  # fmt: skip
    model.fit(training)
    result = clock.figures(len(model.data_preparator.get_dataloader_train()))
    result["train_targets"] = len(model.data_preparator.train_dataset.interactions.df) - len(users)
    result["parameters"] = sum(parameter.numel() for parameter in model.torch_model.parameters())

    def best(dataset: Dataset) -> pd.DataFrame:
        return model.recommend(users=users, dataset=dataset, k=TOP, filter_viewed=False)

    def metrics(dataset: Dataset, targets: list[int]) -> dict[str, float]:
        lists = best(dataset).sort_values([Columns.User, Columns.Rank])
        assert (lists[Columns.User].to_numpy().reshape(-1, TOP) == users[:, None]).all()
        items, scores = (lists[name].to_numpy().reshape(-1, TOP) for name in (Columns.Item, Columns.Score))
        return metrics_of_lists(items, scores, targets)

    if job.rank:
        result |= time_ranking(lambda: best(histories), len(users))
    if job.quality:
        valid = metrics(training, [items[-2] for items in sequences])
        result |= named(valid, metrics(histories, [items[-1] for items in sequences]))
    answer(job, result, ("rectools", "torch", "pytorch-lightning", "numpy", "pandas"))


if __name__ == "__main__":
    main()
