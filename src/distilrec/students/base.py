"""What every student is: item vectors, an encoder of histories, and their inner product as the score.

Scores tie the input and the output item table: one table of [items, width] serves both.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from distilrec.data.batching import Batch
from distilrec.errors import TRAIN_AGAIN, InputError
from distilrec.files import write_with
from distilrec.settings import Settings, checked


class StudentSettings(Settings):
    """Settings that every student shares."""

    hidden_size: int = 64
    max_length: int = 50


class ItemTable(nn.Module):
    """Free item vectors, [items, width]. Calling it gives the table; a method may put another module in its place."""

    def __init__(self, n_items: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_items, width).normal_(std=0.02))

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Return the table, [items, width], or the rows `items` [U] of it, whose gradient is sparse then."""
        return self.weight if items is None else functional.embedding(items, self.weight, sparse=True)


class Student(nn.Module, ABC):
    """A small sequential recommender.

    `table` is passed in to the encoders, so that a step which needs it twice (as input and as output) builds it once.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[StudentSettings]]
    default_loss: ClassVar[str] = "ce"  # what a training uses that names no loss
    causal: ClassVar[bool] = True  # whether a state sees no later item, so that every position can be supervised

    def __init__(self, settings: StudentSettings, n_items: int) -> None:
        super().__init__()
        self.settings = settings
        self.n_items = n_items
        self.item_table: nn.Module = ItemTable(n_items, settings.hidden_size)

    @property
    def max_length(self) -> int:
        """Most history items read."""
        return self.settings.max_length

    @property
    def reach(self) -> int:
        """Most items behind the end of a history that its last state depends on, at most `max_length`."""
        return self.max_length

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Return the item table, [items, width], or the rows `items` [U] of it."""
        table: Tensor = self.item_table(items)
        return table

    @abstractmethod
    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode every position of right-padded histories; a state sees no later item if the student is `causal`.

        Args:
            histories: [B, L] int64 rows of `table`, which need not be the ids of the catalogue.
            lengths: [B] int64, 1..L.
            table: [items, width] item vectors, perhaps only of the items needed.

        Returns:
            [B, L, width]; states behind a history's end are meaningless.
        """

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode histories into the state after their last item, [B, width]."""
        states = self.encode(histories, lengths, table)
        return states[torch.arange(len(lengths), device=states.device), lengths - 1]

    def training_view(self, batch: Batch) -> Batch:
        """Return what to encode for a training batch and which states to supervise: the batch itself if `causal`."""
        return batch

    def folded(self) -> "Student":
        """Return a plain copy for serving: whatever a method put into the item table becomes one table of numbers."""
        plain = type(self)(self.settings, self.n_items)
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("item_table.")}
        state["item_table.weight"] = self.item_vectors().detach()
        plain.load_state_dict(state)
        return plain.eval()


def lookup(histories: Tensor, table: Tensor) -> Tensor:
    """Return the vectors of the items in `histories`, [B, L, width]."""
    return functional.embedding(histories, table)


def save_student(student: Student, path: Path) -> None:
    """Save weights and settings in one safetensors file, written atomically; the item table is folded first."""
    plain = student.folded()
    metadata = {"student": plain.name, "n_items": str(plain.n_items), "settings": plain.settings.model_dump_json()}
    tensors = {name: value.contiguous() for name, value in plain.state_dict().items()}
    write_with(path, lambda part: save_file(tensors, part, metadata))


def load_student(path: Path, registry: Mapping[str, type[Student]]) -> Student:
    """Load what `save_student` wrote, ready to rank.

    Raises:
        InputError: the file is missing, broken or of an unknown student.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"not a saved student ({error}).",
            where=str(path),
            remedy=TRAIN_AGAIN,
        ) from None
    kind = registry.get(metadata.get("student", ""))
    if kind is None:
        raise InputError(f"unknown student {metadata.get('student')!r}.", where=str(path), remedy="Update distilrec.")
    try:
        settings = kind.Settings.model_validate_json(metadata["settings"])
        student = kind(settings, int(metadata["n_items"]))
        student.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"not a {kind.name} of this version ({text}).",
            where=str(path),
            remedy=TRAIN_AGAIN,
        ) from None
    return student.eval()


def build_student(
    name: str, settings: Mapping[str, Any], n_items: int, registry: Mapping[str, type[Student]]
) -> Student:
    """Build a student by name from unchecked settings (ConfigError where one is unknown or out of range)."""
    kind = registry[name]
    return kind(checked(kind.Settings, settings, where=f"student {name}"), n_items)
