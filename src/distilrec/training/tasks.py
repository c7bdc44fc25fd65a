"""What the loop trains: a model on the training windows of a data set, with a loss and a validation measure."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distilrec.config import TrainSettings
from distilrec.data.batching import Batch, batches, held_out_windows, plan, training_windows
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.losses.objective import Objective, only_needed_rows
from distilrec.methods.base import Method
from distilrec.students.base import Student


class CausalModel(Protocol):
    """A model whose every position predicts the next item: students, and teachers with a prediction layer."""

    @property
    def max_length(self) -> int:
        """Most history items read."""

    def item_vectors(self) -> Tensor:
        """[N, d]."""

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """[B, L, d]."""


Loss = Callable[[Batch, Tensor, Tensor], dict[str, Tensor]]
Validate = Callable[[Any], dict[str, float]]


class Task(nn.Module):
    """One training: model, loss, data and validation. Calling it on a batch gives the named parts of the loss.

    Args:
        model: the model to train.
        dataset: its training part is trained on.
        settings: batch size and stride.
        seed: of the order of batches.
        validate: model -> named measures, higher is better.
        method: how to learn; None means the loss of the settings on the targets, over the whole table.
        examples: train on these alone, each with its own history; None: on all training targets.
        histories: [rows] bool, which histories are trained on; None: all.
    """

    share: tuple[int, int] = (0, 1)  # which of how many processes this one is; the training sets it

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        settings: TrainSettings,
        *,
        seed: int,
        validate: Validate,
        method: Method | None = None,
        examples: Ints | None = None,
        histories: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.method = model, method
        self.examples, self.histories = examples, histories
        self.dataset, self.settings, self.seed = dataset, settings, seed
        self._validate = validate
        name = settings.loss.name or getattr(model, "default_loss", "ce")
        loss, dtype = settings.loss.model_copy(update={"name": name}), _logits_dtype(settings)
        self.objective = Objective(loss, _counts(dataset), dtype)
        self.by_rows = self._can_use_rows()
        if method is not None:
            method.objective = self.objective

    def _can_use_rows(self) -> bool:
        """Whether a step touches only the rows of the item table that its batch needs."""
        wanted = self.settings.lazy_rows
        able = isinstance(self.model, Student) if self.method is None else self.method.by_rows
        possible = able and not self.objective.whole_catalogue
        return possible if wanted is None else wanted and possible

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss on a batch."""
        model: Any = self.model
        if (view := getattr(model, "training_view", None)) is not None:
            batch = view(batch)
        batch = self.objective.draw(batch)
        if self.by_rows:
            items, batch = only_needed_rows(batch)
            table = model.item_vectors(items)
        else:
            table = model.item_vectors()
        states = model.encode(batch.histories, batch.lengths, table).flatten(0, 1).index_select(0, batch.positions)
        if self.method is None:
            return self.objective(batch, states, table)
        return self.method.loss(batch, states, table)

    def epoch(self, number: int) -> tuple[int, Callable[[int], Iterator[Batch]]]:
        """Return the number of batches of an epoch and a function that yields them from the n-th on.

        The order depends on the seed and the epoch's number alone, so that a resumed epoch goes on where it was.
        """
        model: Any = self.model
        generator = np.random.default_rng([self.seed, number])
        if self.examples is not None:
            windows = held_out_windows(self.dataset, self.examples, model.max_length)
        else:
            shift = generator.integers(0, 1 << 30, len(self.dataset.offsets) - 1)
            windows = training_windows(self.dataset, model.max_length, self.settings.stride, shift)
            if self.histories is not None:
                windows = windows.where(self.histories[self.dataset.rows_of(windows.start)])
        groups: list[Ints] = plan(windows.end - windows.start, self.settings.batch_tokens, generator)
        rank, processes = self.share
        if processes > 1:  # every process takes as many batches as the others; a few batches come twice
            groups = [groups[n % len(groups)] for n in range(-(-len(groups) // processes) * processes)][rank::processes]
        return len(groups), lambda first: batches(self.dataset, windows, groups[first:])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return trainable parameters, grouped where a model asks for different learning rates."""
        groups = getattr(self.model, "parameter_groups", None)
        if groups is not None:
            return list(groups(self.settings.learning_rate))
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def validate(self) -> dict[str, float]:
        """Measure the model on validation examples."""
        self.eval()
        measures = self._validate(self.model)
        self.train()
        return measures


def _logits_dtype(settings: TrainSettings) -> torch.dtype | None:
    """Return what to score the catalogue in: bfloat16 where asked for, and on a GPU that has it unless told otherwise."""
    wanted = settings.precision == "bfloat16"
    fast = settings.precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if wanted or fast else None


def _counts(dataset: Dataset) -> Tensor:
    return torch.from_numpy(np.asarray(dataset.popularity, dtype=np.int64))
