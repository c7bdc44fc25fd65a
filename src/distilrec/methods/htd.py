"""HTD, hierarchical topology distillation: likeness inside groups of items, and of items to groups.

Kang et al., "Topology Distillation for Recommender System", KDD 2021. Items fall into G groups as experts would share them (see
`de`), and the teacher's topology is learnt at two levels, with p_g the mean of a group's vectors and z_i the group of item i:
    assignment   mean_i mean_d (t_i - sum_g z_ig f_g(s_i))^2,   z = softmax((log softmax(v(t)) + gumbel) / tau)
    inside       mean over i, j of one group of (cos(t_i, t_j) - cos(s_i, s_j))^2                group of i: argmax v(t_i)
    across       mean over i, g of (cos(t_i, p^t_g) - cos(s_i, p^s_g))^2                         level "entities"
                 mean over g, h of (cos(p^t_g, p^t_h) - cos(p^s_g, p^s_h))^2                     level "prototypes"
    L = L_student + weight * (gamma (inside + across) + (1 - gamma) assignment)

Deviations: the paper's sums are means here, as every loss is, so that its lambda does not carry over; the weight is 1. Nor
does gamma mean what it means there: of N items in G groups the sums hold some N^2 / G pairs inside, N G across and N D numbers of the
assignment, and weigh the means by these, where here all three weigh alike. The published
code holds prototypes constant and takes only pairs inside a group that the teacher finds alike (cosine above 0); here the gradient
goes through the prototypes and all pairs count, as the paper's equations have it. The entities are items alone, as a language model
gives no vector of a user. The teacher's vectors are standardised and cut to their principal directions. Of the thousands of items that
a batch names a sample is drawn per step: there is a network for each group, and a matrix of pairs.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.knowledge.store import Knowledge
from distilrec.methods.base import Method
from distilrec.methods.de import Experts, some_of
from distilrec.methods.item_vectors import items_of, principal
from distilrec.methods.topology import hierarchical_topology
from distilrec.settings import Settings


class HTDSettings(Settings):
    """Settings of HTD.

    `weight`: of all it adds, 0 switches it off. `gamma`: share of the topology, the rest is the assignment's. `groups`: G.
    `temperature`: tau. `level`: what is compared with the groups' prototypes. `sample`: items looked at per step, null: all that
    the batch names. `width`: principal directions of the teacher, null: all.
    """

    weight: float = Field(1.0, ge=0)
    gamma: float = Field(0.5, ge=0, lt=1)
    groups: int = Field(30, ge=1)
    temperature: float = Field(0.1, gt=0)
    level: Literal["entities", "prototypes"] = "entities"
    sample: int | None = Field(256, ge=1)
    width: int | None = Field(256, ge=1)


class HTD(Method):
    """Learns from how like each other items are to the teacher, group by group."""

    name = "htd"
    Settings = HTDSettings
    needs = frozenset({"item_vectors"})
    settings: HTDSettings
    teacher: Tensor  # [items, D]
    assign: Experts

    def __init__(self, settings: HTDSettings, knowledge: Knowledge | None) -> None:
        super().__init__(settings, knowledge)
        if settings.weight > 0 and knowledge is not None and knowledge.item_vectors is not None:
            self.register_buffer("teacher", principal(knowledge.item_vectors, settings.width), persistent=False)

    @classmethod
    def needs_of(cls, settings: HTDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """See `Method.item_embedding`: leaves the table alone, and makes networks that fit it."""
        if self.settings.weight > 0:
            self.assign = Experts(table().shape[1], self.teacher.shape[1], self.settings.groups)
        return table

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts = self.own_loss(batch, states, table)
        settings = self.settings
        if settings.weight == 0:
            return parts
        items = some_of(items_of(batch, len(table)), settings.sample)
        student, teacher = table.index_select(0, items), self.teacher.index_select(0, items)
        assignment = self.assign.missed(student, teacher, settings.temperature)
        topology = hierarchical_topology(
            student,
            teacher,
            self.assign.select(teacher).argmax(dim=1),
            settings.groups,
            between_prototypes=settings.level == "prototypes",
        )
        mixed = settings.gamma * topology + (1 - settings.gamma) * assignment
        return parts | {"topology": settings.weight * mixed}
