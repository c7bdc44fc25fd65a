"""DE, Distillation Experts: several small networks rebuild the teacher's vectors from the student's; each item picks its own.

Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020 (its DE part). For an item with vectors s
(student) and t (teacher), experts E_1..E_M and a selection network S:
    z   = softmax((log softmax(S(t)) + g) / tau),  g ~ Gumbel(0, 1)       which expert, sharper as tau falls
    L   = L_student + weight * mean_i mean_d (t_i - sum_m z_im E_m(s_i))^2
    tau = tau_0 (tau_P / tau_0)^(p / P) after p of P steps, then tau_P
E_m is a network of one hidden layer, (d + D) / 2 wide, with ReLU; S is linear. Both are trained along, and dropped afterwards.

Deviations: the paper sums over entities and dimensions; here both are means, as every loss is, and the weight is 1. It anneals by
epochs to 1e-10; here by steps, which a method can count, and to 0.01: the gradient of z grows with 1 / tau where two experts tie.
The entities are items alone, as a language model gives no vector of a user. The teacher's vectors are standardised and cut to their
principal directions. A batch here names thousands of items, and M experts see each, so a sample of them is drawn per step.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.knowledge.store import Knowledge
from distilrec.methods.base import Method
from distilrec.methods.item_vectors import items_of, principal
from distilrec.settings import Settings


class DESettings(Settings):
    """Settings of DE.

    `weight`: of the experts' loss, 0 switches it off. `experts`: M. `start_temperature`, `end_temperature`, `anneal_steps`: tau_0,
    tau_P and P. `sample`: items looked at per step, null: all that the batch names. `width`: principal directions of the
    teacher, null: all.
    """

    weight: float = Field(1.0, ge=0)
    experts: int = Field(30, ge=1)
    start_temperature: float = Field(1.0, gt=0)
    end_temperature: float = Field(0.01, gt=0)
    anneal_steps: int = Field(2000, ge=1)
    sample: int | None = Field(256, ge=1)
    width: int | None = Field(256, ge=1)


class Experts(nn.Module):
    """Networks from [U, d] to [U, D], and what picks among them.

    Args:
        width: d, of the student.
        wanted: D, of the teacher.
        count: number of experts.
    """

    def __init__(self, width: int, wanted: int, count: int) -> None:
        super().__init__()
        self.count, hidden = count, (width + wanted) // 2
        self.select = nn.Linear(wanted, count)
        self.rise = nn.Linear(width, count * hidden)
        bound = hidden**-0.5  # an expert's own layer starts as any linear layer does
        self.fall = nn.Parameter(torch.empty(count * hidden, wanted).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, wanted).uniform_(-bound, bound))

    def forward(self, student: Tensor, chosen: Tensor) -> Tensor:
        """Return sum_m z_m E_m(s), [U, D], for vectors [U, d] and choices z [U, count].

        Choices are applied before the second layer, which is linear: one product does all experts, none of [U, count, D] exists.
        """
        hidden = torch.relu(self.rise(student)).unflatten(1, (self.count, -1))  # [U, count, h]
        return (hidden * chosen[:, :, None]).flatten(1) @ self.fall + chosen @ self.bias

    def missed(self, student: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
        """Return the mean squared difference of the teacher's vectors [U, D] and what is rebuilt from the student's, [U, d]."""
        chosen = gumbel_softmax(self.select(teacher), temperature)
        return (teacher - self(student, chosen)).square().mean()


def gumbel_softmax(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Return softmax((logits + g) / temperature) by row, g drawn from the Gumbel distribution by torch's global generator."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    waited = torch.empty_like(logits).exponential_().clamp_min(torch.finfo(logits.dtype).tiny)
    return torch.softmax((logits - waited.log()) / temperature, dim=1)


def some_of(items: Tensor, most: int | None) -> Tensor:
    """Return `most` of the items [U], drawn by torch's global generator, or all of them if there are no more."""
    if most is None or len(items) <= most:
        return items
    return items[torch.randperm(len(items), device=items.device)[:most]]


class DE(Method):
    """Learns from the teacher's item vectors through experts."""

    name = "de"
    Settings = DESettings
    needs = frozenset({"item_vectors"})
    settings: DESettings
    teacher: Tensor  # [items, D]
    steps: Tensor  # [] int64, trained so far; kept in checkpoints
    experts: Experts

    def __init__(self, settings: DESettings, knowledge: Knowledge | None) -> None:
        super().__init__(settings, knowledge)
        if settings.weight > 0 and knowledge is not None and knowledge.item_vectors is not None:
            self.register_buffer("teacher", principal(knowledge.item_vectors, settings.width), persistent=False)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def needs_of(cls, settings: DESettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.weight > 0 else frozenset()

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """See `Method.item_embedding`: leaves the table alone, and makes experts that fit it."""
        if self.settings.weight > 0:
            self.experts = Experts(table().shape[1], self.teacher.shape[1], self.settings.experts)
        return table

    def temperature(self) -> Tensor:
        """Return tau, a scalar that stays on its device."""
        first, last = self.settings.start_temperature, self.settings.end_temperature
        return first * (last / first) ** (self.steps / self.settings.anneal_steps).clamp_max(1.0)

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts = self.own_loss(batch, states, table)
        if self.settings.weight == 0:
            return parts
        items = some_of(items_of(batch, len(table)), self.settings.sample)
        missed = self.experts.missed(
            table.index_select(0, items), self.teacher.index_select(0, items), self.temperature()
        )
        if self.training:
            self.steps += 1
        return parts | {"experts": self.settings.weight * missed}
