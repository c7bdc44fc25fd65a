"""Atten-Mixer: several readings of what the session is about, from its last item, its last two, its last three ...

Zhang et al., "Efficiently Leveraging Multi-level User Intent for Session-based Recommendation via Atten-Mixer Network", WSDM
2023 (arXiv 2206.12781). For the items x_1 .. x_t of a prefix, x = sqrt(d) e / |e|, levels l = 1..n and heads h of width c = d / heads:
    q_l     = W_l mean(x_{t-l+1} .. x_t) + b_l               deep set of the last l items: their order does not count
    A_lh,i  = softmax_i(q_lh . k_ih / sqrt(c)),   k = W_k x
    a_h,i   ~ (sum_l A_lh,i^p)^(1/p)                         Lp pooling over the levels, then sum_i a_h,i = 1
    m       = LN(concat_h sum_i a_h,i v_ih),      v = W_v x + b_v
    state   = W [m ; x_t] + b,   score = state . e
Every prefix of a history is computed in one pass; the maps A exist for a few rows at a time. Pooling is done on logarithms:
(1/p) logsumexp_l(p log A) and one more softmax, so that a weight of 0 has no infinite gradient.

Deviations: the published code joins the last l items end to end where the paper has a set, passes q . k through a sigmoid before
the softmax and the pooled map through a second softmax of numbers in 0..1, both of which leave it nearly flat; here the maps
are plain scaled attention and are rescaled after pooling. It scores by 16 times the cosine of state and item, with
x of length 1; here item vectors are normalised where they are read, not where they are scored, since the score is a plain
inner product in every student, and to length sqrt(d), so that x_t is as large as LN(..) beside it. W_l takes the place of two
linear maps in a row. A level longer than the prefix takes what there is. Dropout on x only.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from distilrec.students.base import Student, StudentSettings, lookup
from distilrec.students.dropout import Dropout
from distilrec.students.prefixes import over_prefixes

_HIDDEN = -1e4  # the logit of what must not be seen: finite, since infinities have no gradient through logarithms


class AttMixSettings(StudentSettings):
    """Settings of Atten-Mixer. `levels` is n, the longest set of last items; `norm` is p of the pooling over levels."""

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    levels: int = Field(4, ge=1)
    heads: int = Field(2, ge=1)
    norm: float = Field(4.0, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_share_width(self) -> "AttMixSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} cannot be shared by {self.heads} heads")
        return self


class AttMix(Student):
    """Multi-level attention mixture. It knows which items are among the last `levels`, and of the rest only which there are."""

    name = "attmix"
    Settings = AttMixSettings
    settings: AttMixSettings

    def __init__(self, settings: AttMixSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        width = settings.hidden_size
        self.dropout = Dropout(settings.dropout)
        self.queries = nn.ModuleList(nn.Linear(width, width) for _ in range(settings.levels))
        self.key = nn.Linear(width, width, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, width)

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`."""
        x = self._inputs(histories, table)
        length = x.shape[1]
        counts = torch.arange(1, length + 1, device=x.device)
        total, queries = torch.zeros_like(x), []
        for level, query in enumerate(self.queries):
            if level < length:
                total = total + functional.pad(x, (0, 0, level, 0))[:, :length]
            queries.append(query(total / counts.clamp_max(level + 1)[:, None]))
        pair_width = self.settings.levels * self.settings.heads
        attended = over_prefixes(self._attend, torch.stack(queries, dim=2), self._memory(x), pair_width)
        return self._state(attended, x)

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode_last`. One set of queries instead of one per position."""
        x = self._inputs(histories, table)
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, L]
        place = (lengths[:, None] - 1 - torch.arange(self.settings.levels, device=x.device)).clamp_min(-1)
        latest = torch.where((place >= 0)[..., None], x[torch.arange(len(x), device=x.device)[:, None], place], 0)
        counts = (place >= 0).cumsum(dim=1)
        means = latest.cumsum(dim=1) / counts[..., None]  # [B, levels, d]
        queries = torch.stack([query(means[:, level]) for level, query in enumerate(self.queries)], dim=1)
        attended = self._attend(queries[:, None], self._memory(x), inside[:, None])
        return self._state(attended[:, 0], latest[:, 0])

    def _inputs(self, histories: Tensor, table: Tensor) -> Tensor:
        x: Tensor = self.dropout(functional.rms_norm(lookup(histories, table), table.shape[1:], eps=1e-12))
        return x

    def _memory(self, x: Tensor) -> Tensor:
        return torch.cat([self.key(x), self.value(x)], dim=-1)

    def _attend(self, queries: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Pool the maps and sum up: [b, r, levels, d], [b, n, 2 d], [r, n] or [b, r, n] -> [b, r, d]."""
        heads = self.settings.heads
        keys, values = (part.unflatten(-1, (heads, -1)) for part in memory.chunk(2, dim=-1))  # [b, n, heads, c]
        queries = queries.unflatten(-1, (heads, -1)) * (queries.shape[-1] // heads) ** -0.5
        logits = torch.einsum("brlhc,bnhc->bhrln", queries, keys)
        hidden = ~(visible if visible.dim() == 3 else visible[None])  # [b or 1, r, n]
        maps = logits.masked_fill(hidden[:, None, :, None], _HIDDEN).log_softmax(dim=-1)
        pooled = torch.logsumexp(self.settings.norm * maps, dim=3) / self.settings.norm  # [b, heads, r, n]
        return torch.einsum("bhrn,bnhc->brhc", pooled.softmax(dim=-1), values).flatten(2)

    def _state(self, attended: Tensor, last: Tensor) -> Tensor:
        state: Tensor = self.out(torch.cat([self.norm(attended), last], dim=-1))
        return state
