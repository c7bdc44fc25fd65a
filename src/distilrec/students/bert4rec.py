"""BERT4Rec: bidirectional self-attention, trained to fill gaps.

Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer", CIKM 2019. For
item vectors e (the vector m where the item is hidden) and positions p:
    x = dropout(LN(e + p));  per block: x = x + Att(LN(x)),  x = x + FFN(LN(x));  state = LN(gelu(W LN(x) + b))
    score = state . e
Att looks in both directions. Training hides items and asks for each from its own place (cloze); a recommendation is what
belongs into a hidden place appended to the history.

Deviations: pre-norm blocks and a last LN instead of post-norm, as in BERT's successors; no output bias; attention weights are
not dropped out; hidden items are always replaced by m; only places of the batch's targets are hidden, so never the first of a
window, and no item twice in an epoch; positions count from the end, so that the appended place is always the same one; the
loss is chosen by the training, not by the model.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilrec.data.batching import Batch
from distilrec.students.attention import AttentionSettings, Block, inside
from distilrec.students.base import Student, lookup
from distilrec.students.dropout import Dropout

HIDDEN = -1  # stands in `histories` where an item is hidden


class BERT4RecSettings(AttentionSettings):
    """Settings of BERT4Rec.

    `mask_share` is the share of targets hidden in a batch; `last_share` the share of histories that are cut behind a target
    at random and have only that one hidden, as when recommending.
    """

    mask_share: float = Field(0.4, gt=0, le=1)
    last_share: float = Field(0.2, ge=0, le=1)


class BERT4Rec(Student):
    """Bidirectional sequential recommender."""

    name = "bert4rec"
    Settings = BERT4RecSettings
    settings: BERT4RecSettings
    causal: ClassVar[bool] = False

    def __init__(self, settings: BERT4RecSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        width = settings.hidden_size
        self.positions = nn.Parameter(torch.empty(settings.max_length + 1, width).normal_(std=0.02))
        self.hidden_vector = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width)
        self.dropout = Dropout(settings.dropout)
        for module in (*self.blocks.modules(), self.head):
            if isinstance(module, nn.Linear):  # not small: flat attention learns late, and nothing else can fill a gap
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def training_view(self, batch: Batch) -> Batch:
        """Append to each history the target behind it, hide some targets in their places, and ask for these.

        A `last_share` of the histories is cut behind one of its targets, which alone is hidden. The draw is from torch's global
        generator; at least one target of the batch is hidden.

        Returns:
            A batch with histories [B, L + 1], `HIDDEN` in the places of its targets; `positions` are these places.
        """
        rows, columns = batch.histories.shape
        row, place = batch.positions // columns, batch.positions % columns + 1  # where each target belongs
        device = batch.targets.device
        appended = torch.zeros_like(batch.lengths)
        appended[row[place == batch.lengths[row]]] = 1
        order = torch.rand(len(row), device=device)
        first = order == torch.zeros(rows, device=device).scatter_reduce(0, row, order, "amax")[row]
        end = torch.zeros_like(batch.lengths)  # a target of each history at random; 0 where there is none
        end[row[first]] = place[first]
        cut = (torch.rand(rows, device=device) < self.settings.last_share) & (end > 0)
        hide = torch.rand(len(row), device=device) < self.settings.mask_share
        hide = torch.where(cut[row], place == end[row], hide)
        if not hide.any():
            hide[torch.randint(len(hide), (1,), device=device)] = True
        histories = functional.pad(batch.histories, (0, 1))
        histories[row, place] = torch.where(hide, HIDDEN, batch.targets)
        return replace(
            batch,
            histories=histories,
            lengths=torch.where(cut, end + 1, batch.lengths + appended),
            positions=(row * (columns + 1) + place)[hide],
            targets=batch.targets[hide],
            examples=batch.examples[hide],
        )

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`. Histories may hold `HIDDEN` and one item more than `max_length`."""
        x, mask = self._inputs(histories, lengths, table), inside(lengths, histories.shape[1])
        for block in self.blocks:
            x = block(x, causal=False, mask=mask)
        return self._state(x)

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode histories into the state of a hidden item behind their end, [B, width]."""
        histories = functional.pad(histories, (0, 1)).scatter(1, lengths[:, None], HIDDEN)
        lengths = lengths + 1
        x, mask = self._inputs(histories, lengths, table), inside(lengths, histories.shape[1])
        for block in self.blocks[:-1]:
            x = block(x, causal=False, mask=mask)
        return self._state(self.blocks[-1].last(x, lengths)[:, 0])  # type: ignore[operator]

    def _inputs(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        hidden = (histories == HIDDEN)[..., None]
        x = torch.where(hidden, self.hidden_vector, lookup(histories.clamp(min=0), table))
        from_end = lengths[:, None] - 1 - torch.arange(histories.shape[1], device=lengths.device)
        return self.dropout(self.input_norm(x + functional.embedding(from_end.clamp(min=0), self.positions)))

    def _state(self, x: Tensor) -> Tensor:
        state: Tensor = self.head_norm(functional.gelu(self.head(self.norm(x))))
        return state
