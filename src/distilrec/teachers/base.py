"""What a teacher is to the rest.

A teacher is asked about training examples and answers with items and scores, best first. How it is asked differs, and that alone
decides what the pipeline does with it (`Teacher.asked`):
    `positions`  it reads a history once and answers for many of its positions: local models (e4srec, bigrec, conventional);
    `prompts`    it is asked about one example at a time through a backend for text (ranker);
    `file`       it was asked elsewhere (recorded);
    `nothing`    it gives item vectors only (text).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.settings import Settings

_SCORES = 1 << 22

Asked = Literal["positions", "prompts", "file", "nothing"]
Trained = Literal["catalogue", "text", "student", "nothing"]


@dataclass(frozen=True)
class Materials:
    """What a teacher may be made from. What takes work is done only when it is called for.

    Attributes:
        dataset: the data set.
        seed: of everything random.
        id_embeddings: [N, d] item vectors of the run's plain student.
        student_key: what identifies that student.
        top_items: (examples [n], k) -> [n, k] best items of the conventional recommender that the teacher builds on, items of
            the history left out.
    """

    dataset: Dataset
    seed: int
    id_embeddings: Callable[[], Tensor]
    student_key: Callable[[], str]
    top_items: Callable[[Ints, int], Ints] | None = None


class Teacher(Protocol):
    """A kind of teacher, as the registry holds it."""

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    asked: ClassVar[Asked]
    trained: ClassVar[Trained]
    tokens_per_item: ClassVar[int]  # of those asked for positions: what an item of a history counts in a batch
    gives: ClassVar[frozenset[str]]  # of {"rankings", "scores", "item_vectors", "logits"}


@runtime_checkable
class PositionTeacher(Protocol):
    """A teacher in this process that answers for many positions of a history in one go."""

    @property
    def max_length(self) -> int:
        """Most history items read."""

    def rank(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Answer for the batch's positions.

        Args:
            batch: histories and positions; targets must not be looked at.
            k: how many items.

        Returns:
            Items [T, k] int64, best first, and scores [T, k] float32, higher = surer.
        """


class CausalTeacher(Protocol):
    """A teacher that scores an item as state times a row of its prediction layer."""

    @property
    def max_length(self) -> int:
        """Most history items read."""

    def item_vectors(self) -> Tensor:
        """Return the prediction layer, [N, D]: score = state . row."""

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode every position of right-padded histories, [B, L, D]."""

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode histories into the state after their last item, [B, D]."""

    def save(self, folder: Path, llm: str) -> None:
        """Save what training changed; `llm` is the identity of the language model below it."""


@torch.inference_mode()
def rank_by_states(teacher: Any, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Rank the catalogue at a batch's positions by state times item vector; scores are log-probabilities.

    Args:
        teacher: a `CausalTeacher`; its states must not see later items.
        batch: histories and positions.
        k: how many items.

    Returns:
        See `PositionTeacher.rank`.
    """
    table = teacher.item_vectors()
    batch = batch.to(table.device)
    states = teacher.encode(batch.histories, batch.lengths, table).flatten(0, 1)[batch.positions]
    k, chunk = min(k, len(table)), max(1, _SCORES // len(table))
    items, scores = [], []
    for first in range(0, len(states), chunk):
        logits = states[first : first + chunk] @ table.T
        best = logits.topk(k, dim=1)
        items.append(best.indices)
        scores.append((best.values - logits.logsumexp(dim=1, keepdim=True)).float())
    return torch.cat(items), torch.cat(scores)
