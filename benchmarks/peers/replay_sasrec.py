"""RePlay's SASRec (replay.nn, its present one). Runs inside RePlay's environment; see protocol.py.

RePlay fixes the feed-forward activation of `from_params` at ReLU and draws one set of negatives for the whole batch. Beside
`CE`, which scores padded positions too, the options take what else RePlay offers for the same loss: `targets_only` gives the
whole catalogue to its CESampled, which scores only positions that have a target; `bucket` runs rows of like length together.
"""

import warnings
from pathlib import Path

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from protocol import TOP, Clock, answer, metrics_of_lists, named, read_job, read_sequences, time_ranking
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.data.nn.parquet import ParquetModule
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import TorchTopItemsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.loss import CESampled
from replay.nn.sequential import LengthBucketedQueryEncoder, SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms

ITEM, USER = "item_id", "user_id"


class WholeCatalogue(torch.nn.Module):
    """Puts all items where sampled ones would stand."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.items = torch.arange(n_items)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**batch, "negative_labels": self.items}


def write(path: str, sequences: list[list[int]]) -> str:
    """Write sequences as RePlay's Parquet file."""
    pq.write_table(pa.table({USER: np.arange(len(sequences)), ITEM: pa.array(sequences, pa.list_(pa.int64()))}), path)
    return path


def main() -> None:
    """Train, time, measure."""
    warnings.filterwarnings("ignore")
    job = read_job()
    torch.set_num_threads(job.threads)
    lightning.seed_everything(job.seed)
    sequences = read_sequences(job.sequences)
    n_items = 1 + max(max(items) for items in sequences)
    feature = TensorFeatureInfo(
        ITEM, is_seq=True, feature_type=FeatureType.CATEGORICAL, embedding_dim=job.width, padding_value=n_items,
        cardinality=n_items, feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, ITEM)],
    )  # fmt: skip
    schema = TensorSchema(feature)
    transforms = make_default_sasrec_transforms(schema)
    model = SasRec.from_params(
        schema, embedding_dim=job.width, num_heads=job.heads, num_blocks=job.blocks, max_sequence_length=job.max_length,
        dropout=job.dropout, hidden_dim=job.inner_size,
    )  # fmt: skip
    if job.loss == "sampled_softmax" or job.options["targets_only"]:
        sampled = job.loss == "sampled_softmax"
        others = UniformNegativeSamplingTransform(n_items, job.negatives) if sampled else WholeCatalogue(n_items)
        transforms["train"].append(others)
        model = SasRec(model.body, CESampled())
    if job.options["bucket"]:
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, job.options["bucket"])

    def data(histories: list[list[int]], stage: str, batch_size: int) -> ParquetModule:
        length = job.max_length + (stage == "train")  # the last item of a training row is a target only
        columns = {USER: {}, ITEM: {"shape": length, "padding": n_items}}
        path = write(str(Path(job.folder) / f"{stage}.parquet"), histories)
        return ParquetModule(batch_size, {stage: columns}, transforms, **{f"{stage}_path": path})

    clock = Clock(job)

    class Marks(lightning.Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            clock.epoch_begins()

        def on_train_batch_end(self, *_: object) -> None:
            clock.step()

        def on_train_epoch_end(self, *_: object) -> None:
            clock.epoch_ends()

    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
             "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}  # fmt: skip
    module = LightningModule(model, OptimizerFactory("adam", learning_rate=job.learning_rate))
    trainer = lightning.Trainer(
        max_epochs=-1 if job.steps else job.epochs, max_steps=job.total_steps, callbacks=[Marks()], **quiet
    )
    trainer.fit(module, data([items[:-2] for items in sequences], "train", job.batch_size))
    result = clock.figures(-(-len(sequences) // job.batch_size))
    result["train_targets"] = sum(min(len(items) - 3, job.max_length) for items in sequences)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())

    def best(histories: ParquetModule) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        top = TorchTopItemsCallback(TOP, USER)
        lightning.Trainer(callbacks=[top], inference_mode=True, **quiet).predict(
            module, datamodule=histories, return_predictions=False
        )
        return top.get_result()

    def metrics(histories: list[list[int]], targets: list[int]) -> dict[str, float]:
        users, items, scores = best(data(histories, "predict", job.options["predict_batch_size"]))
        assert users.tolist() == list(range(len(sequences)))
        return metrics_of_lists(items.numpy(), scores.numpy(), targets)

    if job.rank:
        histories = data([items[:-1] for items in sequences], "predict", job.options["predict_batch_size"])
        result |= time_ranking(lambda: best(histories), len(sequences))
    if job.quality:
        valid = metrics([items[:-2] for items in sequences], [items[-2] for items in sequences])
        result |= named(valid, metrics([items[:-1] for items in sequences], [items[-1] for items in sequences]))
    answer(job, result, ("replay-rec", "torch", "lightning", "numpy"))


if __name__ == "__main__":
    main()
