"""AdamW that touches only the rows of a table that have a gradient, so that a step costs the same whatever the catalogue.

Rows come as sparse gradients. A row without one keeps its momentum until it is asked for again, as torch's SparseAdam does;
weight decay, too, falls on touched rows only. Dense gradients take torch's fused AdamW.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RowAdamW(torch.optim.AdamW):
    """AdamW for dense and row-sparse gradients. Rows in a sparse gradient must be distinct (`coalesce_rows` sees to it)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; sparse gradients are used up by it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None
        return super().step(closure)

    def _step_rows(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        rows, values = gradient._indices()[0], gradient._values()
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = float(state["step"])
        first, second = group["betas"]
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - first)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(second).addcmul_(values, values, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        size = square.sqrt_().mul_((1 - second**step) ** -0.5).add_(group["eps"])
        weight = parameter.index_select(0, rows)
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.index_copy_(0, rows, weight.addcdiv_(mean, size, value=-group["lr"] / (1 - first**step)))


def coalesce_rows(parameters: Iterable[nn.Parameter]) -> None:
    """Sum what several batches or devices say about the same row."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()


def clip_norm(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale all gradients down so that their common norm is at most `largest`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    numbers = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = torch.stack([torch.linalg.vector_norm(number) for number in numbers]).norm()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for number in numbers:
        number.mul_(scale)
