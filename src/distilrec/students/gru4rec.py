"""GRU4Rec: a recurrent network over the history.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016. For item vectors e:
    h_t = GRU(dropout(e_t), h_{t-1});  state_t = W dropout(h_t) + b;  score = state_t . e

Deviations: item vectors are learned (the paper feeds one-hot items) and shared with the output; the loss is chosen by the
training, not by the model; sessions are processed whole, not in session-parallel mini-batches.
"""

from pydantic import Field
from torch import Tensor, nn

from distilrec.students.base import Student, StudentSettings, lookup
from distilrec.students.dropout import Dropout


class GRU4RecSettings(StudentSettings):
    """Settings of GRU4Rec. `inner_size` is the width of the recurrent state."""

    hidden_size: int = Field(64, ge=1)
    max_length: int = Field(50, ge=1)
    layers: int = Field(1, ge=1)
    inner_size: int = Field(128, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)


class GRU4Rec(Student):
    """Recurrent sequential recommender."""

    name = "gru4rec"
    Settings = GRU4RecSettings
    settings: GRU4RecSettings

    def __init__(self, settings: GRU4RecSettings, n_items: int) -> None:
        super().__init__(settings, n_items)
        self.dropout = Dropout(settings.dropout)
        between = settings.dropout if settings.layers > 1 else 0.0
        self.gru = nn.GRU(settings.hidden_size, settings.inner_size, settings.layers, batch_first=True, dropout=between)
        self.out = nn.Linear(settings.inner_size, settings.hidden_size)

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `Student.encode`."""
        states, _ = self.gru(self.dropout(lookup(histories, table)))
        out: Tensor = self.out(self.dropout(states))
        return out
