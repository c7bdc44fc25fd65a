"""SASRec: self-attention over the history.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. For item vectors e and positions p:
    x = dropout(LN(e + p));  per block: x = x + Att(LN(x)),  x = x + FFN(LN(x));  state = LN(x);  score = state . e
Att is causal multi-head attention; FFN is two linear layers with a ReLU (GELU by setting) between them.

Deviations: LN(e + p) stands where the paper has sqrt(d) e + p, since otherwise the size of the item vectors decides how
much of the first states is position; the residual around attention starts from x, not from LN(x), as in later pre-norm
Transformers; attention weights are not dropped out (only what attention returns is), so that the fused kernel runs;
positions count from the oldest item read.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from distilrec.students.base import Student, StudentSettings, lookup


class SASRecSettings(StudentSettings):
    """Settings of SASRec. `inner_size` is the width inside the feed-forward part."""

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    inner_size: int = Field(256, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    activation: Literal["relu", "gelu"] = "gelu"

    @model_validator(mode="after")
    def _heads_share_width(self) -> "SASRecSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} cannot be shared by {self.heads} heads")
        return self


class _Block(nn.Module):
    def __init__(self, settings: SASRecSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.heads = settings.heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, settings.inner_size)
        self.outer = nn.Linear(settings.inner_size, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.activation = functional.relu if settings.activation == "relu" else functional.gelu

    def forward(self, x: Tensor) -> Tensor:
        """Every position: [B, L, d] -> [B, L, d]."""
        query, key, value = (self._split(part) for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._feed(x + self.dropout(self.out(self._join(attended))))

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Only the last position: [B, L, d] -> [B, 1, d]. Keys and values of all positions, the rest of one."""
        width = x.shape[-1]
        normed = self.attention_norm(x)
        at = (torch.arange(len(x), device=x.device), lengths - 1)
        query = functional.linear(normed[at][:, None], self.qkv.weight[:width], self.qkv.bias[:width])
        key, value = functional.linear(normed, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        mask = None
        if int(lengths.min()) < x.shape[1]:
            mask = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]  # [B, 1, 1, L]
        attended = functional.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), attn_mask=mask
        )
        return self._feed(x[at][:, None] + self.dropout(self.out(self._join(attended))))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.outer(self.activation(self.inner(self.feed_norm(x)))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, d / heads]

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class SASRec(Student):
    """Self-attentive sequential recommender."""

    name = "sasrec"
    Settings = SASRecSettings
    settings: SASRecSettings

    def __init__(self, settings: SASRecSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        self.positions = nn.Parameter(torch.empty(settings.max_length, settings.hidden_size).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(settings.hidden_size)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(settings.hidden_size)
        self.dropout = nn.Dropout(settings.dropout)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

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
