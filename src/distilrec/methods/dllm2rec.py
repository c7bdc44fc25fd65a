"""DLLM2Rec: importance-aware ranking distillation and collaborative embedding distillation.

Cui et al., "Distillation Matters: Empowering Sequential Recommenders to Match the Performance of Large Language Models",
RecSys 2024. For example s, the teacher's items i at ranks r = 1..K with scores c_si (higher = surer):
    w_p ~ exp(-r / beta)      w_c ~ exp(c_si / confidence_temperature)      (each normalised over the K items)
    w_o = 1 if i is among the student's current top K for s, else 1e-8
    w   = g_p w_p + g_c w_c + g_o w_o, normalised over the K items
    L   = L_student(s, target) + lambda * sum_i w_si L_student(s, i)
    item table = free vectors (the offset) + embedding_weight * W z,   z the teacher's item vectors

Deviations: L_student is the cross-entropy over the catalogue (the paper's students use binary cross-entropy with one negative),
which shares one normaliser between the target and the teacher's items, so distilling costs no second pass over the catalogue.
Teacher vectors are standardised per dimension first, since an LLM's hidden states differ from each other in scale and share a
large mean; W is one linear layer, as in the published code. The table serves input and output (the paper's output layer is
separate). After training it folds to plain numbers: the served student has no parameter more.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from distilrec.config import Settings
from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.catalogue import weighted_cross_entropy
from distilrec.methods.base import Method

_DISAGREE = 1e-8


class DLLM2RecSettings(Settings):
    """Settings of DLLM2Rec; a weight of 0 switches a part off."""

    top_k: int = Field(10, ge=1)
    ranking_weight: float = Field(0.7, ge=0)
    position_weight: float = Field(0.3, ge=0)
    confidence_weight: float = Field(0.5, ge=0)
    consistency_weight: float = Field(0.1, ge=0)
    beta: float = Field(1.0, gt=0)
    confidence_temperature: float = Field(1.0, gt=0)
    embedding_weight: float = Field(0.3, ge=0)


class InformedTable(nn.Module):
    """Free item vectors plus projected teacher vectors, [items, width]."""

    vectors: Tensor

    def __init__(self, offset: nn.Module, width: int, vectors: Tensor, weight: float) -> None:
        super().__init__()
        self.offset = offset
        self.weight = weight
        self.project = nn.Linear(vectors.shape[1], width, bias=False)
        nn.init.normal_(self.project.weight, std=vectors.shape[1] ** -0.5 * 0.1)
        self.register_buffer("vectors", standardised(vectors), persistent=False)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Return the table, or the rows `items` [U] of it."""
        table: Tensor = self.offset(items)
        vectors = self.vectors if items is None else self.vectors[items]
        return torch.addmm(table, vectors, self.project.weight.T, alpha=self.weight)


class DLLM2Rec(Method):
    """Learns from the teacher's rankings and item vectors."""

    name = "dllm2rec"
    Settings = DLLM2RecSettings
    needs = frozenset({"rankings", "item_vectors"})
    losses = frozenset({"ce", "dro"})
    settings: DLLM2RecSettings
    knowledge: Knowledge

    @classmethod
    def needs_of(cls, settings: DLLM2RecSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        parts = {"rankings": settings.ranking_weight, "item_vectors": settings.embedding_weight}
        return frozenset(name for name, weight in parts.items() if weight > 0)

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """See `Method.item_embedding`: adds the projected vectors of the teacher."""
        vectors = self.knowledge.item_vectors
        if self.settings.embedding_weight == 0 or vectors is None:
            return table
        return InformedTable(table, table().shape[1], vectors, self.settings.embedding_weight)

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        if self.settings.ranking_weight == 0 and self.objective is not None:
            return self.objective(batch, states, table)
        items, scores, asked = self.knowledge.rankings(batch.examples)
        k = min(self.settings.top_k, items.shape[1])
        every = torch.cat([batch.targets[:, None], items[:, :k]], dim=1)  # [T, 1 + k]
        weights = importance_weights(scores[:, :k], self.settings)
        there = scores[:, :k] > NOTHING  # a shorter ranking has ended elsewhere
        share = self.settings.ranking_weight * asked.to(states.dtype)[:, None]

        def weigh(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
            part = weights[rows]
            if self.settings.consistency_weight > 0:
                agree = consistency(logits, picked[:, 1:], k) * there[rows]
                part = part + self.settings.consistency_weight * agree
            part = part / part.sum(dim=1, keepdim=True).clamp_min(1e-12)
            return torch.cat([torch.ones_like(part[:, :1]), share[rows] * part], dim=1)

        dtype = self.objective.dtype if self.objective is not None else None
        total, parts = weighted_cross_entropy(states, table, every, weights, weigh=weigh, dtype=dtype)
        ranking = parts[1:].sum()
        found = {"target": total - ranking, "ranking": ranking}  # the gradient of both flows through the first
        return found | (self.objective.further(batch, states, table) if self.objective is not None else {})


def importance_weights(scores: Tensor, settings: DLLM2RecSettings) -> Tensor:
    """Return g_p w_p + g_c w_c for teacher scores [T, K], best first; [T, K], 0 where a shorter ranking has ended."""
    ranks = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    there = scores > NOTHING
    position = torch.softmax((-ranks / settings.beta).where(there, NOTHING), dim=1)
    confidence = torch.softmax(scores / settings.confidence_temperature, dim=1)
    return settings.position_weight * position + settings.confidence_weight * confidence


def consistency(logits: Tensor, picked: Tensor, k: int) -> Tensor:
    """Return w_o: 1 where an item's own logit ([t, K]) is among the k largest of [t, N], else 1e-8."""
    k = min(k, logits.shape[1])
    least = logits.topk(k, dim=1).values[:, -1:]
    return torch.where(picked >= least, 1.0, _DISAGREE)


def standardised(vectors: Tensor) -> Tensor:
    """Return vectors [N, D] with mean 0 and deviation 1 in every dimension; constant dimensions become 0."""
    centred = vectors - vectors.mean(dim=0)
    deviation = centred.std(dim=0, correction=0)
    return torch.where(deviation > 1e-6, centred / deviation.clamp_min(1e-6), 0.0)
