"""Hint: the student's item vectors, seen through a learned projection, are drawn to the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. For the items i that a batch names (histories and targets), s_i the
student's vector and t_i the teacher's:
    L = L_student + weight * mean_i mean_d (t_i - (W s_i + b))^2          W, b trained along, and dropped afterwards

Deviations: FitNets first trains on the hint alone and then on the task; here both are one loss, as in the recommenders that FitNets
is a baseline of (Kang et al., CIKM 2020), and the mean is over dimensions, too, so that the weight does not hang on the teacher's
width. What is hinted at is the item, which a language model gives a vector of; it gives none of users. The teacher's vectors are
standardised and cut to their principal directions (`item_vectors.principal`; mean square 1): an LLM's dimensions differ in scale.
"""

from pydantic import Field
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.knowledge.store import Knowledge
from distilrec.methods.base import Method
from distilrec.methods.item_vectors import items_of, principal
from distilrec.settings import Settings


class HintSettings(Settings):
    """Settings of Hint. `weight`: of the hint, 0 switches it off; `width`: principal directions of the teacher, null: all."""

    weight: float = Field(1.0, ge=0)
    width: int | None = Field(256, ge=1)


class Hint(Method):
    """Learns from the teacher's item vectors, one item at a time."""

    name = "hint"
    Settings = HintSettings
    needs = frozenset({"item_vectors"})
    settings: HintSettings
    teacher: Tensor  # [items, D]
    project: nn.Linear

    def __init__(self, settings: HintSettings, knowledge: Knowledge | None) -> None:
        super().__init__(settings, knowledge)
        if settings.weight > 0 and knowledge is not None and knowledge.item_vectors is not None:
            self.register_buffer("teacher", principal(knowledge.item_vectors, settings.width), persistent=False)

    @classmethod
    def needs_of(cls, settings: HintSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """See `Method.item_embedding`: leaves the table alone, and makes a projection that fits it."""
        if self.settings.weight > 0:
            self.project = nn.Linear(table().shape[1], self.teacher.shape[1])
        return table

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts = self.own_loss(batch, states, table)
        if self.settings.weight == 0:
            return parts
        items = items_of(batch, len(table))
        missed = self.teacher.index_select(0, items) - self.project(table.index_select(0, items))
        return parts | {"hint": self.settings.weight * missed.square().mean()}
