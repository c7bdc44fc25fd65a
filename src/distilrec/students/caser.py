"""Caser: convolutions over the last few items.

Tang and Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding", WSDM 2018. E holds the
vectors of the last `order` items, one per row, zeros where the history had not begun:
    horizontal filter F of height h, for each h in 1..order:  o = max over i of relu(<F, E[i : i + h]> + b)
    vertical filter v of `order` weights:                     o' = v E, one weighted sum of the rows
    z = relu(W dropout([all o; all o']) + b);  state = W' z + b';  score = state . e

Deviations: no user vector joins z, since students know no users; W' maps z into the space of the item vectors, which the
input and the output share, where the paper learns a second item table and item biases; each position predicts the next item
only (the paper may skip some); the loss is chosen by the training, not by the model.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilrec.students.base import Student, StudentSettings, lookup
from distilrec.students.dropout import Dropout


class CaserSettings(StudentSettings):
    """Settings of Caser. `order` is how many items the filters see, `horizontal` counts filters of each height."""

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    order: int = Field(5, ge=1)
    horizontal: int = Field(16, ge=1)
    vertical: int = Field(4, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)


class Caser(Student):
    """Convolutional sequential recommender."""

    name = "caser"
    Settings = CaserSettings
    settings: CaserSettings

    def __init__(self, settings: CaserSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        width, order = settings.hidden_size, settings.order
        self.horizontal = nn.ModuleList(nn.Conv1d(width, settings.horizontal, height + 1) for height in range(order))
        self.vertical = nn.Linear(order, settings.vertical, bias=False)
        self.inner = nn.Linear(order * settings.horizontal + settings.vertical * width, width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(settings.dropout)
        for module in (*self.horizontal, self.inner):  # else they outweigh the small item vectors and silence filters
            nn.init.zeros_(module.bias)

    @property
    def reach(self) -> int:
        """See `Student.reach`."""
        return min(self.settings.order, self.max_length)

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`."""
        return self._states(functional.pad(lookup(histories, table), (0, 0, self.settings.order - 1, 0)))

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode_last`. Reads the last `order` items only."""
        place = lengths[:, None] + torch.arange(-self.settings.order, 0, device=lengths.device)  # [B, order]
        window = lookup(histories.gather(1, place.clamp(min=0)), table)
        return self._states(window.masked_fill((place < 0)[..., None], 0.0))[:, 0]

    def _states(self, x: Tensor) -> Tensor:
        """States of all windows of `order` neighbours: [B, order - 1 + L, d] -> [B, L, d]."""
        order, columns = self.settings.order, x.transpose(1, 2)
        features = []
        for height, filters in enumerate(self.horizontal, start=1):
            matches = functional.relu(filters(columns))  # [B, horizontal, order - h + L]
            features.append(functional.max_pool1d(matches, order - height + 1, stride=1).transpose(1, 2))
        features.append(self.vertical(x.unfold(1, order, 1)).flatten(2))  # [B, L, d, order] -> [B, L, d * vertical]
        states: Tensor = self.out(functional.relu(self.inner(self.dropout(torch.cat(features, dim=-1)))))
        return states
