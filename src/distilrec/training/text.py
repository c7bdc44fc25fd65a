"""The training of a teacher that writes titles, in the form that the loop knows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilrec.config import TrainSettings
from distilrec.data.batching import plan, training_windows
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.losses.catalogue import cross_entropy
from distilrec.teachers.bigrec import BigRec
from distilrec.training.tasks import Validate


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Histories as text.

    Attributes:
        tokens: [B, T] int64, the instruction and then a title a line, right-padded.
        positions: [S] into the flattened [B * T], the states that are supervised.
        targets: [S] the tokens behind them.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        """Return the batch on `device`."""
        return TextBatch(*(part.to(device) for part in (self.tokens, self.positions, self.targets)))


class TextTask(nn.Module):
    """Training of `BigRec`: every token of every title that a window is asked for, given all before it.

    Args:
        model: the teacher.
        dataset: its training part is trained on.
        settings: `batch_tokens` counts tokens of text here.
        seed: of the order of batches.
        validate: model -> named measures, higher is better.
    """

    share: tuple[int, int] = (0, 1)
    by_rows = False

    def __init__(
        self, model: BigRec, dataset: Dataset, settings: TrainSettings, *, seed: int, validate: Validate
    ) -> None:
        super().__init__()
        self.model, self.dataset, self.settings, self.seed = model, dataset, settings, seed
        self._validate = validate

    def forward(self, batch: TextBatch) -> dict[str, Tensor]:
        """Return the loss on a batch."""
        head = self.model.head
        states = self.model.states(batch.tokens).flatten(0, 1)[batch.positions]
        return {"title": cross_entropy(states, head, batch.targets, dtype=head.dtype)}

    def epoch(self, number: int) -> tuple[int, Callable[[int], Iterator[TextBatch]]]:
        """See `Task.epoch`."""
        generator = np.random.default_rng([self.seed, number])
        shift = generator.integers(0, 1 << 30, len(self.dataset.offsets) - 1)
        windows = training_windows(self.dataset, self.model.max_length, self.settings.stride, shift)
        count = np.array([len(title) for title in self.model.titles.titles])[self.dataset.items]
        before = np.concatenate([[0], np.cumsum(count)])
        lengths = before[windows.end + 1] - before[windows.start] + len(self.model.instruction)
        most = self.model.settings.windows
        rows = generator.permutation(len(lengths))[:most] if most is not None else np.arange(len(lengths))
        groups: list[Ints] = [rows[group] for group in plan(lengths[rows], self.settings.batch_tokens, generator)]
        rank, processes = self.share
        if processes > 1:
            groups = [groups[n % len(groups)] for n in range(-(-len(groups) // processes) * processes)][rank::processes]
        return len(groups), lambda first: (self._batch(windows, group) for group in groups[first:])

    def _batch(self, windows: Any, rows: Ints) -> TextBatch:
        instruction = self.model.instruction
        texts, asked_from = [], []
        for row in rows:
            items = self.dataset.items[
                windows.start[row] : windows.end[row] + 1
            ].tolist()  # the last one is a target only
            lines, ends = self.model.titles.lines(items)
            first = int(
                windows.supervised_from[row] - windows.start[row]
            )  # the first target is the item behind this one
            texts.append([*instruction, *lines])
            asked_from.append(len(instruction) + ends[first])
        width = max(len(text) for text in texts)
        tokens = torch.zeros(len(texts), width, dtype=torch.int64)
        positions, targets = [], []
        for row, (text, first) in enumerate(zip(texts, asked_from, strict=True)):
            tokens[row, : len(text)] = torch.tensor(text)
            positions.append(torch.arange(first - 1, len(text) - 1) + row * width)
            targets.append(tokens[row, first : len(text)])
        return TextBatch(tokens, torch.cat(positions), torch.cat(targets))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return LoRA's parameters."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def validate(self) -> dict[str, float]:
        """Measure the model on validation examples."""
        self.eval()
        measures = self._validate(self.model)
        self.train()
        return measures
