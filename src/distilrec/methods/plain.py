"""No teacher: the student's loss on the targets. What every distilled student is compared with."""

from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.methods.base import Method
from distilrec.settings import Settings


class PlainSettings(Settings):
    """The plain method has no settings."""


class Plain(Method):
    """Ordinary supervised training."""

    name = "plain"
    Settings = PlainSettings
    by_rows = True

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        return self.own_loss(batch, states, table)
