"""distilrec's own SASRec, prepared, trained and ranked by the library; see protocol.py.

Always whole epochs: they are short. A batch is a budget of history items, chosen so that an epoch has as many steps as the
others' batches of sequences make. The time of an epoch is that of planning, batches and steps, without validation and
checkpoint, which the others are not asked for either.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from protocol import TOP, Clock, answer, metrics_of_ranks, named, read_job, time_ranking

from distilrec.config import DataSettings, FilterSettings, LossSettings, TrainSettings
from distilrec.data.batching import Batch
from distilrec.data.prepare import prepare
from distilrec.evaluation.rank import target_ranks, top_items
from distilrec.students.sasrec import SASRec, SASRecSettings
from distilrec.training.loop import fit
from distilrec.training.tasks import Task


class TimedTask(Task):
    """A task that tells the clock when an epoch begins and ends."""

    clock: Clock

    def epoch(self, number: int) -> tuple[int, Callable[[int], Iterator[Batch]]]:
        """See `Task.epoch`."""
        self.clock.epoch_begins()
        steps, batches_from = super().epoch(number)

        def timed(first: int) -> Iterator[Batch]:
            yield from batches_from(first)
            self.clock.epoch_ends()

        return steps, timed


def budget(steps_of: Callable[[int], int], wanted: int) -> int:
    """Return the token budget whose number of steps comes closest to `wanted`: more tokens make fewer steps."""
    low, high = 1, 1 << 20
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if steps_of(middle) > wanted else (low, middle)
    return min((low - 1, low), key=lambda tokens: abs(steps_of(max(tokens, 1)) - wanted))


def main() -> None:
    """Train, time, measure."""
    job = read_job()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    filters = FilterSettings(duplicates="none", k_core_user=1, k_core_item=1)
    path, folder = Path(job.sequences), Path(job.folder)
    settings = DataSettings(interactions=path, filters=filters)
    dataset = prepare(path, None, settings, folder / "data", seed=job.seed, say=lambda line: None)
    sizes = SASRecSettings(
        hidden_size=job.width, max_length=job.max_length, blocks=job.blocks, heads=job.heads,
        inner_size=job.inner_size, dropout=job.dropout, activation="relu",
    )  # fmt: skip
    student = SASRec(sizes, dataset.n_items)

    def training(batch_tokens: int) -> TrainSettings:
        return TrainSettings(
            epochs=job.epochs, patience=job.epochs, validate_every=job.epochs, learning_rate=job.learning_rate,
            loss=LossSettings(name=job.loss, negatives=job.negatives), batch_tokens=batch_tokens,
            checkpoint_seconds=1e6, precision=job.options.get("precision", "float32"),
        )  # fmt: skip

    def task(batch_tokens: int) -> TimedTask:
        made = TimedTask(
            student, dataset, training(batch_tokens), seed=job.seed, validate=lambda model: {"ndcg@10": 0.0}
        )
        made.clock = Clock(job)
        return made

    batch_tokens = budget(lambda tokens: task(tokens).epoch(1)[0], -(-dataset.n_rows // job.batch_size))
    timed = task(batch_tokens)
    steps = timed.epoch(1)[0]
    fit(timed, training(batch_tokens), folder, label="train", identity="benchmark", seed=job.seed)
    result = timed.clock.figures(steps)
    result["train_targets"] = dataset.manifest["n_train_targets"]
    result |= {"batch_tokens": batch_tokens, "parameters": sum(value.numel() for value in student.parameters())}

    def metrics(part: str) -> dict[str, float]:
        return metrics_of_ranks(target_ranks(student, dataset, dataset.examples(part)))

    student.eval()
    if job.rank:
        test = dataset.examples("test")
        result |= time_ranking(lambda: top_items(student, dataset, test, TOP), len(test))
    if job.quality:
        result |= named(metrics("valid"), metrics("test"))
    answer(job, result, ("distilrec", "torch", "numpy"))


if __name__ == "__main__":
    main()
