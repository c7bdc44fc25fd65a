"""FPMC: a factorised Markov chain; the last items vote for the next one.

Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing Personalized Markov Chains for Next-Basket Recommendation", WWW 2010.
For a basket b of the last items, with two free vectors per item (V^LI as the item before, V^IL as the item after):
    score(i | b) = (1 / |b|) sum_{l in b} <V^LI_l, V^IL_i>
The item table is twice as wide as `hidden_size`, row i = [V^IL_i ; V^LI_i], and the second half of a state is zero:
    state = [mean_{l in b} V^LI_l ; 0],   state . row_i = score(i | b)
so one table serves input and output here as in every student, and all that works on tables (sampled losses, ranking, folding)
works on it. The price is a product twice as wide, half of it with zeros.

Deviations: the session form, without the paper's user term <V^UI_u, V^IU_i>, since a history has no user that comes back (as in
ALKDRec); a basket is the last `basket` items of a history, by default one, where the paper has what was bought together; the loss
is chosen by the training, by default cross-entropy instead of S-BPR; dropout on V^LI instead of an L2 penalty.
"""

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from distilrec.students.base import ItemTable, Student, StudentSettings, lookup
from distilrec.students.dropout import Dropout
from distilrec.students.prefixes import last_items


class FPMCSettings(StudentSettings):
    """Settings of FPMC. `hidden_size` is the width of each of the two vectors of an item, `basket` how many last items vote.

    `max_length` only sets how long the windows are into which training cuts a history.
    """

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    basket: int = Field(1, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _basket_is_read(self) -> "FPMCSettings":
        if self.basket > self.max_length:
            raise ValueError(f"basket {self.basket} is more than the {self.max_length} items of max_length")
        return self


class FPMC(Student):
    """Factorised Markov chain over items. Item vectors and states are `2 * hidden_size` wide."""

    name = "fpmc"
    Settings = FPMCSettings
    settings: FPMCSettings

    def __init__(self, settings: FPMCSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        self.item_table = ItemTable(n_items, 2 * settings.hidden_size)
        self.dropout = Dropout(settings.dropout)

    @property
    def reach(self) -> int:
        """Most items behind the end of a history that its last state depends on: the basket."""
        return self.settings.basket

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`. The width is `2 * hidden_size`."""
        votes = self._votes(histories, table)
        basket = self.settings.basket
        if basket > 1:
            padded = functional.pad(votes.transpose(1, 2), (basket - 1, 0))  # [B, d, basket - 1 + L]
            sums = basket * functional.avg_pool1d(padded, basket, stride=1).transpose(1, 2)
            counts = histories.new_ones(histories.shape[1]).cumsum(0).clamp_max(basket)
            votes = sums / counts[:, None]
        return functional.pad(votes, (0, self.settings.hidden_size))

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode_last`. Only the basket is looked up."""
        items, exists = last_items(histories, lengths, self.settings.basket)
        votes = self._votes(items, table).masked_fill(~exists[:, :, None], 0)
        mean = votes.sum(dim=1) / exists.sum(dim=1, keepdim=True)
        return functional.pad(mean, (0, self.settings.hidden_size))

    def _votes(self, items: Tensor, table: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(lookup(items, table)[..., self.settings.hidden_size :])
        return dropped
