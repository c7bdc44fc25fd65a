"""STAMP: the last item beside an attentive memory of the session.

Liu et al., "STAMP: Short-Term Attention/Memory Priority Model for Session-based Recommendation", KDD 2018. For the items
x_1 .. x_t of a prefix, x = sqrt(d) e / |e|:
    m_s = (1 / t) sum_i x_i
    a_i = w_0 . sigmoid(W_1 x_i + W_2 x_t + W_3 m_s + b_a)                 (no softmax: the weights need not sum to 1)
    m_a = sum_i a_i x_i + m_s
    h_s = tanh(W_s m_a + b_s),  h_t = tanh(W_t x_t + b_t),  state = h_s * h_t,  score = state . e
Every prefix of a history is computed in one pass; the pairs (t, i) behind the sigmoid exist for a few rows at a time.

Deviations: m_s is added to m_a, which the published code does and the paper's equation does not; the score is not passed
through a sigmoid before the softmax, as in that code; item vectors are rescaled where they are read, where that code clips
them to length 1: a product of two towers over vectors as small as untrained ones hardly
learns; dropout on them; weights start as other linear layers do here, not from N(0, 0.05).
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilrec.students.base import Student, StudentSettings, lookup
from distilrec.students.dropout import Dropout
from distilrec.students.prefixes import over_prefixes


class STAMPSettings(StudentSettings):
    """Settings of STAMP."""

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)


class STAMP(Student):
    """Short-term attention and memory priority. Of all but the last item it knows which they are, not their order."""

    name = "stamp"
    Settings = STAMPSettings
    settings: STAMPSettings

    def __init__(self, settings: STAMPSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        width = settings.hidden_size
        self.dropout = Dropout(settings.dropout)
        self.key = nn.Linear(width, width, bias=False)
        self.from_last = nn.Linear(width, width, bias=False)
        self.from_mean = nn.Linear(width, width)
        self.weight = nn.Linear(width, 1, bias=False)
        self.session_tower = nn.Linear(width, width)
        self.last_tower = nn.Linear(width, width)

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`."""
        x = self._inputs(histories, table)
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)
        mean = x.cumsum(dim=1) / counts[:, None]
        memory = torch.cat([self.key(x), x], dim=-1)
        attended = over_prefixes(self._attend, self._query(x, mean), memory, x.shape[-1])
        return self._state(attended + mean, x)

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode_last`. One query instead of one per position."""
        x = self._inputs(histories, table)
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, L]
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        mean = x.masked_fill(~inside[:, :, None], 0).sum(dim=1) / lengths[:, None]
        memory = torch.cat([self.key(x), x], dim=-1)
        attended = self._attend(self._query(last, mean)[:, None], memory, inside[:, None])
        return self._state(attended[:, 0] + mean, last)

    def _inputs(self, histories: Tensor, table: Tensor) -> Tensor:
        x: Tensor = self.dropout(functional.rms_norm(lookup(histories, table), table.shape[1:], eps=1e-12))
        return x

    def _query(self, last: Tensor, mean: Tensor) -> Tensor:
        query: Tensor = self.from_last(last) + self.from_mean(mean)
        return query

    def _attend(self, queries: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Weighted sum of items: [b, r, d], [b, n, 2 d], [r, n] or [b, r, n] -> [b, r, d]."""
        keys, items = memory.chunk(2, dim=-1)
        weights = self.weight(torch.sigmoid(keys[:, None] + queries[:, :, None]))[..., 0]  # [b, r, n]
        return weights.masked_fill(~visible, 0) @ items

    def _state(self, memory: Tensor, last: Tensor) -> Tensor:
        return torch.tanh(self.session_tower(memory)) * torch.tanh(self.last_tower(last))
