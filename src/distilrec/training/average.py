"""An exponential moving average of weights that, like the optimiser, need not touch the rows which stand still.

After step t with decay d_t: average = d_t average + (1 - d_t) weights. A row whose weights have not moved since step s has
average_t = weights + (d_{s+1} ... d_t) (average_s - weights), so it is enough to note, row by row, up to which step the average
has been formed, and to catch up when the row moves next, or when the average is wanted. The product is kept as a logarithm.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Rows = Mapping[str, Tensor]


class Average:
    """The average of named weights. `stamps` holds, per lazily moved weight, the sum of log decays up to which each row is formed.

    Args:
        weights: name -> weights, as they stand at first.
        decay: the largest decay; it is smaller in the first steps, while there is little to average.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in weights.items()}
        self.stamps: dict[str, Tensor] = {}
        self.total = 0.0

    @torch.no_grad()
    def before_step(self, weights: Mapping[str, Tensor], rows: Rows) -> None:
        """Bring the rows that are about to move up to date."""
        for name, moved in rows.items():
            stamp = self.stamps.setdefault(
                name, torch.zeros(len(weights[name]), dtype=torch.float64, device=weights[name].device)
            )
            share = 1 - torch.exp(self.total - stamp[moved])
            average = self.values[name].index_select(0, moved)
            average.lerp_(weights[name].index_select(0, moved), _beside(share, average))
            self.values[name].index_copy_(0, moved, average)

    @torch.no_grad()
    def after_step(self, weights: Mapping[str, Tensor], rows: Rows, step: int) -> None:
        """Take in the weights after step number `step` (from 1); only `rows` of the weights named there have moved."""
        decay = min(self.decay, (1 + step) / (10 + step))
        whole = [name for name in weights if name not in rows]
        self.settle({name: weights[name] for name in whole if name in self.stamps})  # once lazy, now whole
        torch._foreach_lerp_([self.values[name] for name in whole], [weights[name] for name in whole], 1 - decay)
        self.total += math.log(decay)
        for name in whole:
            if name in self.stamps:
                self.stamps[name].fill_(self.total)
        for name, moved in rows.items():
            average = self.values[name].index_select(0, moved).lerp_(weights[name].index_select(0, moved), 1 - decay)
            self.values[name].index_copy_(0, moved, average)
            self.stamps[name][moved] = self.total

    @torch.no_grad()
    def settle(self, weights: Mapping[str, Tensor]) -> None:
        """Bring every row up to date."""
        for name, stamp in self.stamps.items():
            if name in weights:
                share = 1 - torch.exp(self.total - stamp)
                self.values[name].lerp_(weights[name], _beside(share, self.values[name]))
                stamp.fill_(self.total)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        state = {f"value.{name}": value for name, value in self.values.items()}
        state |= {f"stamp.{name}": value for name, value in self.stamps.items()}
        return {**state, "total": torch.tensor(self.total, dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.values = {name[6:]: value.clone() for name, value in tensors.items() if name.startswith("value.")}
        self.stamps = {name[6:]: value.clone() for name, value in tensors.items() if name.startswith("stamp.")}
        self.total = float(tensors["total"])


def _beside(share: Tensor, values: Tensor) -> Tensor:
    return share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
