"""The block that the attention students share: pre-norm self-attention, then a pre-norm feed-forward part.

Per block, for states x:  x = x + Att(LN(x)),  x = x + FFN(LN(x))
Which positions look at which is decided by the caller; `last` computes one position instead of all.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from distilrec.students.base import StudentSettings
from distilrec.students.dropout import Dropout


class AttentionSettings(StudentSettings):
    """Settings of students made of attention blocks. `inner_size` is the width inside the feed-forward part."""

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    inner_size: int = Field(256, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_share_width(self) -> "AttentionSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} cannot be shared by {self.heads} heads")
        return self


class Block(nn.Module):
    """Multi-head self-attention and two linear layers, each with a residual around it.

    `add_attended` and `add_fed` are what another kind of residual or feed-forward part replaces.
    """

    def __init__(self, settings: AttentionSettings, activation: str = "gelu") -> None:
        super().__init__()
        width = settings.hidden_size
        self.heads = settings.heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, settings.inner_size)
        self.outer = nn.Linear(settings.inner_size, width)
        self.dropout = Dropout(settings.dropout)
        self.activation = functional.relu if activation == "relu" else functional.gelu

    def forward(self, x: Tensor, *, causal: bool = True, mask: Tensor | None = None) -> Tensor:
        """Every position: [B, L, d] -> [B, L, d].

        Args:
            x: [B, L, d] states.
            causal: a position looks at itself and earlier ones; excludes `mask`.
            mask: [B, 1, 1, L] or [B, 1, L, L] bool, which positions are looked at; None means all.
        """
        query, key, value = (self._split(part) for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.add_fed(self.add_attended(x, self.out(self._join(attended))))

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Only the last position: [B, L, d] -> [B, 1, d]. Keys and values of all positions, the rest of one."""
        width = x.shape[-1]
        normed = self.attention_norm(x)
        at = (torch.arange(len(x), device=x.device), lengths - 1)
        query = functional.linear(normed[at][:, None], self.qkv.weight[:width], self.qkv.bias[:width])
        key, value = functional.linear(normed, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), attn_mask=inside(lengths, x.shape[1])
        )
        return self.add_fed(self.add_attended(x[at][:, None], self.out(self._join(attended))))

    def add_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual around attention: states and what attention returned, both [B, L, d]."""
        return x + self.dropout(attended)

    def add_fed(self, x: Tensor) -> Tensor:
        """Feed-forward part with its residual, [B, L, d] -> [B, L, d]."""
        return x + self.dropout(self.outer(self.activation(self.inner(self.feed_norm(x)))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, d / heads]

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


def inside(lengths: Tensor, columns: int) -> Tensor | None:
    """Return which of `columns` places hold an item, [B, 1, 1, L] bool; None where all do, so the fast kernel runs."""
    if int(lengths.min()) >= columns:
        return None
    return (torch.arange(columns, device=lengths.device) < lengths[:, None])[:, None, None]


def small_weights(blocks: nn.Module) -> None:
    """Draw the weights of every linear layer from N(0, 0.02), set biases to 0."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
