"""No teacher: cross-entropy over the catalogue. What every distilled student is compared with."""

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

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        return {"target": cross_entropy(states, table, batch.targets)}
