"""SASRec: self-attention over the history.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. For item vectors e and positions p:
    x = dropout(LN(e + p));  per block: x = x + Att(LN(x)),  x = x + FFN(LN(x));  state = LN(x);  score = state . e
Att is causal multi-head attention; FFN is two linear layers with a ReLU (GELU by setting) between them.

Deviations: LN(e + p) stands where the paper has sqrt(d) e + p, since otherwise the size of the item vectors decides how
much of the first states is position; the residual around attention starts from x, not from LN(x), as in later pre-norm
Transformers; attention weights are not dropped out (only what attention returns is), so that the fused kernel runs;
positions count from the oldest item read.
"""

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from distilrec.students.attention import AttentionSettings, Block, small_weights
from distilrec.students.base import Student, lookup
from distilrec.students.dropout import Dropout


class SASRecSettings(AttentionSettings):
    """Settings of SASRec. `inner_size` is the width inside the feed-forward part."""

    activation: Literal["relu", "gelu"] = "gelu"


class SASRec(Student):
    """Self-attentive sequential recommender."""

    name = "sasrec"
    Settings: ClassVar[type[AttentionSettings]] = SASRecSettings
    settings: AttentionSettings

    def __init__(self, settings: AttentionSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        self.positions = nn.Parameter(torch.empty(settings.max_length, settings.hidden_size).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(settings.hidden_size)
        self.blocks = nn.ModuleList(self._block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(settings.hidden_size)
        self.dropout = Dropout(settings.dropout)
        small_weights(self.blocks)

    @staticmethod
    def _block(settings: AttentionSettings) -> Block:
        return Block(settings, cast(SASRecSettings, settings).activation)

    def _inputs(self, histories: Tensor, table: Tensor) -> Tensor:
        return self.dropout(self.input_norm(lookup(histories, table) + self.positions[: histories.shape[1]]))

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`."""
        x = self._inputs(histories, table)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode_last`. The last block computes one position instead of all."""
        x = self._inputs(histories, table)
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1].last(x, lengths)  # type: ignore[operator]
        states: Tensor = self.norm(last[:, 0])
        return states
