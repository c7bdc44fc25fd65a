"""FTD, full topology distillation: items that are alike to the teacher become alike to the student.

Kang et al., "Topology Distillation for Recommender System", KDD 2021. For the items i, j that a batch names, s the student's
vectors and t the teacher's:
    a^t_ij = cos(t_i, t_j)      a^s_ij = cos(s_i, s_j)
    L = L_student + weight * mean_ij (a^t_ij - a^s_ij)^2                  (the paper: lambda ||A^t - A^s||_F^2)

Deviations: sums over a batch are means here, as every loss is. In the published example lambda is 0.001 and a batch has b = 1,024
examples; with a user and an item of each, that is (2b)^2 / b * 0.001 = 4 on means, the default. The entities are items alone:
a language model gives no vector of a user. The teacher's vectors are standardised first, without which the large mean that an LLM's
hidden states share makes all cosines alike, and cut to principal directions, which hardly changes their cosines. Items count once per
batch. The matrices of pairs are never formed; see `topology.full_topology`.
"""

from pydantic import Field
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.knowledge.store import Knowledge
from distilrec.methods.base import Method
from distilrec.methods.item_vectors import items_of, principal
from distilrec.methods.topology import full_topology
from distilrec.settings import Settings


class FTDSettings(Settings):
    """Settings of FTD. `weight`: of the topology, 0 switches it off; `width`: principal directions of the teacher, null: all."""

    weight: float = Field(4.0, ge=0)
    width: int | None = Field(256, ge=1)


class FTD(Method):
    """Learns from how like each other items are to the teacher."""

    name = "ftd"
    Settings = FTDSettings
    needs = frozenset({"item_vectors"})
    settings: FTDSettings
    teacher: Tensor  # [items, D]

    def __init__(self, settings: FTDSettings, knowledge: Knowledge | None) -> None:
        super().__init__(settings, knowledge)
        if settings.weight > 0 and knowledge is not None and knowledge.item_vectors is not None:
            self.register_buffer("teacher", principal(knowledge.item_vectors, settings.width), persistent=False)

    @classmethod
    def needs_of(cls, settings: FTDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts = self.own_loss(batch, states, table)
        if self.settings.weight == 0:
            return parts
        items = items_of(batch, len(table))
        apart = full_topology(table.index_select(0, items), self.teacher.index_select(0, items))
        return parts | {"topology": self.settings.weight * apart}
