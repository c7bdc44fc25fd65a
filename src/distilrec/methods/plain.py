"""No teacher: the student's loss on the targets. What every distilled student is compared with."""

from torch import Tensor

from distilrec.config import Settings
from distilrec.data.batching import Batch
from distilrec.losses.catalogue import cross_entropy
from distilrec.methods.base import Method


class PlainSettings(Settings):
    """The plain method has no settings."""


class Plain(Method):
    """Ordinary supervised training."""

    name = "plain"
    Settings = PlainSettings
    by_rows = True

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        if self.objective is None:
            return {"target": cross_entropy(states, table, batch.targets)}
        return self.objective(batch, states, table)
