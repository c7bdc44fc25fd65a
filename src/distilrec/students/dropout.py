"""Dropout with cheap random numbers on a CPU.

torch draws one Bernoulli number per element there, which costs more than the matrix products around it. 16 random bits decide
as well: an element is dropped with probability round(65536 p) / 65536. Four elements share one 64-bit draw from torch's
generator, so one seed gives one result, on any number of threads.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_STEPS = 1 << 16


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        """Drop each element of x with probability dropped / 65536."""
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
        keep = (words.view(torch.int16)[: x.numel()] >= dropped - _STEPS // 2).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = _STEPS / (_STEPS - dropped)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None


class Dropout(nn.Module):
    """Set elements to 0 with probability p while training, and scale the rest by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(x, self.p)
        dropped: Tensor = _Dropout.apply(x, min(round(self.p * _STEPS), _STEPS - 1))
        return dropped

    def extra_repr(self) -> str:
        """Show p."""
        return f"p={self.p}"
