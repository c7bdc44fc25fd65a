"""What a teacher is to the rest: a scorer of the catalogue at every position of a history, trainable where it says so."""

from pathlib import Path
from typing import Protocol

from torch import Tensor


class CausalTeacher(Protocol):
    """A teacher that reads a history once and answers for every position of it."""

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
