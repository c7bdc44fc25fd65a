"""DLLM2Rec: importance-aware ranking distillation and collaborative embedding distillation.

Cui et al., "Distillation Matters: Empowering Sequential Recommenders to Match the Performance of Large Language Models",
RecSys 2024. For example s, the teacher's items i at ranks r = 1..K with scores c_si (higher = surer):
    w_p ~ exp(-r / beta)      w_c ~ exp(c_si / confidence_temperature)      (each normalised over the K items)
    w_o = 1 if i is among the student's current top K for s, else 1e-8
    w   = g_p w_p + g_c w_c + g_o w_o, normalised over the K items
    L   = L_student(s, target) + lambda m_s * sum_i w_si L_student(s, i),   m_s = 1, or the teacher's probability of its K items
    item table = free vectors (the offset) + embedding_weight * f(z),   z the teacher's item vectors
L_student is the student's own loss: cross-entropy over the catalogue, sampled softmax, BCE, gBCE or BPR against the negatives drawn
for the target, and the DRO term, which DROS adds, for the target and for the teacher's items alike.

Deviations: m_s is ours. Losses over the catalogue share one scoring of it between the target, the teacher's items and the student's
top K, so distilling costs no second pass. f is linear, or a small network, on the principal directions of the standardised teacher
vectors: an LLM's hidden states share a large mean and lie in few directions, and thousands of columns would cost more than the
student.
The table serves input and output (the paper's output layer is separate, and sees no teacher vector). After training it folds to
plain numbers: the served student has no parameter more.

`paper_compat` takes the published code's formulas: w_c + 1e-8 before it is normalised, f one linear layer with a bias on the raw
vectors, and for a student with `bce` the ranking's part -log sigma(y_i) - log sigma(1 - y_neg), neither halved nor with sigma(-y_neg).
Two slips of that code are left out: it broadcasts the weights of the DRO term over the batch, so that they drop out, and it keeps
the epoch that is best on the test set.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.top import among_largest
from distilrec.methods.base import Method
from distilrec.methods.item_vectors import principal
from distilrec.settings import Settings

_DISAGREE = 1e-8


class DLLM2RecSettings(Settings):
    """Settings of DLLM2Rec; a weight of 0 switches a part off.

    `examples`: `alike`, as in the paper; `by_mass` multiplies the ranking's part of an example by the probability that the teacher
    gave to its K items together, for teachers whose scores are log-probabilities: one that is not sure of its list says less.
    Where a teacher gives no scores w_c is the same for all its items.
    `projection`: f, `linear` or `mlp` (one hidden layer of `projection_hidden`). `vector_width`: how many principal directions of
    the teacher's vectors are kept; null keeps every dimension, standardised. `whiten`: how far the directions are brought to equal
    variance, 0 to 1. `offset`: whether items have free vectors beside the projected ones.
    `paper_compat`: the published code's formulas, in which `confidence_temperature`, `projection`, `vector_width` and `whiten` have no
    part.
    """

    top_k: int = Field(10, ge=1)
    ranking_weight: float = Field(0.7, ge=0)
    position_weight: float = Field(0.3, ge=0)
    confidence_weight: float = Field(0.5, ge=0)
    consistency_weight: float = Field(0.1, ge=0)
    beta: float = Field(1.0, gt=0)
    confidence_temperature: float = Field(1.0, gt=0)
    examples: Literal["alike", "by_mass"] = "alike"
    embedding_weight: float = Field(0.3, ge=0)
    projection: Literal["linear", "mlp"] = "linear"
    projection_hidden: int = Field(128, ge=1)
    vector_width: int | None = Field(256, ge=1)
    whiten: float = Field(0.0, ge=0, le=1)
    offset: bool = True
    paper_compat: bool = False


class InformedTable(nn.Module):
    """Free item vectors plus projected teacher vectors, [items, width].

    Args:
        offset: the student's own table.
        width: of its vectors.
        vectors: [items, D] of the teacher, ready to be projected.
        weight: of the projected ones.
        hidden: size of the hidden layer; None: a linear projection.
        bias: of a linear projection.
        keep_offset: whether the free vectors count.
    """

    vectors: Tensor

    def __init__(
        self,
        offset: nn.Module,
        width: int,
        vectors: Tensor,
        weight: float,
        *,
        hidden: int | None = None,
        bias: bool = False,
        keep_offset: bool = True,
    ) -> None:
        super().__init__()
        self.offset = offset if keep_offset else None
        self.weight = weight
        self.hidden = None
        entering = vectors.shape[1]
        if hidden is not None:
            self.hidden = nn.Linear(entering, hidden)
            nn.init.normal_(self.hidden.weight, std=entering**-0.5)
            nn.init.zeros_(self.hidden.bias)
            entering = hidden
        self.project = nn.Linear(entering, width, bias=bias or hidden is not None)
        nn.init.normal_(self.project.weight, std=entering**-0.5 * 0.1)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)
        self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Return the table, or the rows `items` [U] of it; in full precision, as a plain table is, whatever the layers run in."""
        with torch.autocast(self.vectors.device.type, enabled=False):
            return self._table(items)

    def _table(self, items: Tensor | None) -> Tensor:
        vectors = self.vectors if items is None else self.vectors[items]
        if self.hidden is not None:
            vectors = nn.functional.gelu(self.hidden(vectors))
        start = None if self.offset is None else self.offset(items)
        if self.project.bias is not None:
            bias = self.weight * self.project.bias
            start = bias.expand(len(vectors), -1) if start is None else start + bias
        if start is None:
            return self.weight * vectors @ self.project.weight.T
        return torch.addmm(start, vectors, self.project.weight.T, alpha=self.weight)


class DLLM2Rec(Method):
    """Learns from the teacher's rankings and item vectors."""

    name = "dllm2rec"
    Settings = DLLM2RecSettings
    needs = frozenset({"rankings", "scores", "item_vectors"})
    settings: DLLM2RecSettings
    knowledge: Knowledge

    @classmethod
    def needs_of(cls, settings: DLLM2RecSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        ranked, by_mass = settings.ranking_weight > 0, settings.examples == "by_mass"
        parts = {"rankings": ranked, "scores": ranked and by_mass, "item_vectors": settings.embedding_weight > 0}
        return frozenset(name for name, wanted in parts.items() if wanted)

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """See `Method.item_embedding`: adds the projected vectors of the teacher."""
        return informed(table, self.knowledge.item_vectors, self.settings)

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        settings = self.settings
        if settings.ranking_weight == 0:
            return self.own_loss(batch, states, table)
        items, scores, asked = self.knowledge.rankings(batch.examples)
        k = min(settings.top_k, items.shape[1])
        items, scores = items[:, :k], scores[:, :k]
        every = torch.cat([batch.targets[:, None], items], dim=1)  # [T, 1 + k]
        by_rank = importance_weights(scores, settings)
        there = scores > NOTHING  # a shorter ranking has ended elsewhere
        exact = torch.promote_types(states.dtype, torch.float32)
        share = settings.ranking_weight * asked.to(exact)[:, None]
        if settings.examples == "by_mass":
            share = share * scores.to(exact).exp().sum(dim=1, keepdim=True).clamp_max(1.0)

        def whole(weights: Tensor, rows: slice) -> Tensor:
            """Bring weights [t, k] to their sum and put the target's before them."""
            weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
            return torch.cat([torch.ones_like(weights[:, :1]), share[rows] * weights], dim=1)

        def weigh(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
            agree = consistency(logits, picked[:, 1:], k) * there[rows]
            return whole(by_rank[rows] + settings.consistency_weight * agree, rows)

        weights = weigh if settings.consistency_weight > 0 else whole(by_rank, slice(None))
        return self.required_objective().weighted(batch, states, table, every, weights, published=settings.paper_compat)


def informed(table: nn.Module, vectors: Tensor | None, settings: DLLM2RecSettings) -> nn.Module:
    """Return an item table with projected vectors [items, D] added; the table itself where there is nothing to add."""
    if settings.embedding_weight == 0 or vectors is None:
        return table
    if not settings.paper_compat:
        vectors = principal(vectors, settings.vector_width, whiten=settings.whiten)
    return InformedTable(
        table,
        table().shape[1],
        vectors,
        settings.embedding_weight,
        hidden=settings.projection_hidden if settings.projection == "mlp" and not settings.paper_compat else None,
        bias=settings.paper_compat,
        keep_offset=settings.offset,
    )


def importance_weights(scores: Tensor, settings: DLLM2RecSettings) -> Tensor:
    """Return g_p w_p + g_c w_c for teacher scores [T, K], best first; [T, K], 0 where a shorter ranking has ended."""
    ranks = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    there = scores > NOTHING
    position = torch.softmax((-ranks / settings.beta).where(there, NOTHING), dim=1)
    if settings.paper_compat:
        raised = torch.where(there, scores.exp() + 1e-8, 0.0)
        confidence = raised / raised.sum(dim=1, keepdim=True)
    else:
        confidence = torch.softmax(scores / settings.confidence_temperature, dim=1)
    return settings.position_weight * position + settings.confidence_weight * confidence


def consistency(logits: Tensor, picked: Tensor, k: int) -> Tensor:
    """Return w_o: 1 where an item's own logit ([t, K]) is among the k largest of [t, N], else 1e-8."""
    return torch.where(among_largest(logits, picked, k), 1.0, _DISAGREE)
