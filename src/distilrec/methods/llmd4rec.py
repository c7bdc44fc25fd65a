"""LLMD4Rec: an LLM recommender and a conventional one teach each other, in rounds.

Wu et al., "Bidirectional Knowledge Distillation for Enhancing Sequential Recommendation with Large Language Models", arXiv
2505.18120. A round is two half-steps, each with one side frozen; c is the student's distribution, l the teacher's:
    student -> teacher   its ID embeddings are the student's present item vectors;   L = CE + w1 KL(p_c^T1 || p_l^T1)
    teacher -> student                                                               L = CE + w2 KL(p_l^T2 || p_c^T2)
w1 and w2 weigh each example by the ranks that both models give the true item (see `losses.mutual`).

Deviations: the weight lambda of each divergence and the T^2 scale are ours (the source is silent on both, and on T1 and T2). Items
of a user's own history are taken out of the distribution that is taught where they are never recommended (`evaluate.filter_seen`).
Each half-step keeps its best epoch on validation, or its start where no epoch is better, and the best round of each side is kept.
The source is silent on how either side starts: `teacher_start_epochs` trains the teacher on the targets alone first, as the student
is, and `student_first` then lets the student learn before the teacher does. `student_anew`, ours, begins each of the student's
half-steps from new weights: what it learnt by heart before the teacher spoke does not hold it where it is. A teacher that only
ranks, or that cannot be trained, is asked once: the student then learns from its stored rankings.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.knowledge.peer import First, Peer
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.mutual import Leading, Mutual, Whole, mutual_loss
from distilrec.methods.base import Method, Rounds
from distilrec.methods.dllm2rec import DLLM2RecSettings, informed
from distilrec.settings import Settings


class LLMD4RecSettings(Settings):
    """Settings of LLMD4Rec.

    `rounds`: at most so many; they end when one helps neither side. `teacher_start_epochs`: most epochs of the teacher on the
    targets alone before the first round; after one, a round may begin with the student's half-step (`student_first`).
    `student_anew`: the student begins each half-step from new weights, and has as many epochs as `train` says, not `student_epochs`.
    `teacher_epochs`, `student_epochs`: most epochs of a half-step. `teacher_temperature` is T1, `student_temperature` T2; `squared`
    multiplies a divergence by T^2. `teacher_weight`, `student_weight`: lambda of the teacher's and of the student's divergence; a
    `teacher_weight` of 0 is one-way: the teacher trains on the targets alone. `sample_weights`: w1 and w2, else 1. `refresh`: put
    the student's present item vectors into the teacher before each round, not only before the first. `told`: the teacher's `whole`
    distribution, or its `first` `top_k` items and the mass of the rest. `embedding_weight`, `vector_width`, `whiten`: item text in
    the student's table, as in `dllm2rec`.
    """

    rounds: int = Field(3, ge=1)
    teacher_start_epochs: int = Field(0, ge=0)
    student_first: bool = False
    student_anew: bool = Field(
        False, exclude_if=lambda wanted: not wanted
    )  # not in the identity of runs from before it
    teacher_epochs: int = Field(1, ge=1)
    student_epochs: int = Field(6, ge=1)
    teacher_temperature: float = Field(1.0, gt=0)
    student_temperature: float = Field(1.0, gt=0)
    squared: bool = False
    teacher_weight: float = Field(1.0, ge=0)
    student_weight: float = Field(1.0, ge=0)
    sample_weights: bool = True
    refresh: bool = True
    told: Literal["whole", "first"] = "whole"
    top_k: int = Field(100, ge=1)
    embedding_weight: float = Field(0.0, ge=0)
    vector_width: int | None = Field(256, ge=1)
    whiten: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _there_is_a_teacher_first(self) -> "LLMD4RecSettings":
        if self.student_first and self.teacher_start_epochs == 0:
            raise ValueError(
                "student_first needs a teacher that is trained before the first round: set teacher_start_epochs"
            )
        return self

    def mutual(self, temperature: float, weight: float) -> Mutual:
        """Return how a divergence counts."""
        return Mutual(temperature, self.squared, self.sample_weights, weight)


class Learner(Method):
    """One side of a half-step: cross-entropy on the targets, whatever `train.loss` is, and what the other side says."""

    Settings = LLMD4RecSettings
    settings: LLMD4RecSettings
    other: Peer | First | None = None

    def mutual_with(self, batch: Batch, states: Tensor, table: Tensor, how: Mutual) -> dict[str, Tensor]:
        """Return the parts of the loss of a half-step; shapes as in `Method.loss`."""
        objective = self.required_objective()
        examples = batch.examples.cpu()

        def told(rows: slice) -> Whole | Leading:
            return self._told(examples[rows], batch.targets[rows])

        loss, parts = mutual_loss(states, table, batch.targets, told, how, dtype=objective.dtype)
        # The gradient is that of the whole; what is logged are its two parts.
        return {"target": loss - parts[1], "mutual": parts[1]}

    def _told(self, examples: Tensor, targets: Tensor) -> Whole | Leading:
        other = self.other
        if isinstance(other, Peer):
            return Whole(other.whole(examples).to(targets.device))
        if isinstance(other, First):
            places = torch.searchsorted(other.examples, examples)
            items, chances, ranks = other.items[places].long(), other.log_probabilities[places], other.ranks[places]
            said = Leading(items, chances, ranks.long(), torch.ones(len(examples), dtype=torch.bool))
        else:
            said = _stored(self.knowledge, examples, targets, self.settings.top_k)
        parts = said.items, said.log_probabilities, said.ranks, said.known
        items, chances, ranks, known = (part.to(targets.device) for part in parts)
        return Leading(items, chances, ranks, known)


def _stored(knowledge: Knowledge | None, examples: Tensor, targets: Tensor, k: int) -> Leading:
    """Return what stored rankings say.

    Scores that add up to more than 1 are no log-probabilities: the items then share all of the mass, by the softmax of the scores.
    """
    if knowledge is None:
        raise RuntimeError("there is neither a model to learn from nor what one said")
    items, scores, asked = knowledge.rankings(examples)
    items, scores = items[:, :k], scores[:, :k]
    there = (scores > NOTHING) & asked[:, None]
    chances = scores.where(there, -torch.inf)
    total = chances.logsumexp(dim=1, keepdim=True)
    chances = torch.where(total > 1e-3, chances - total, chances)
    found = (items == targets.cpu()[:, None]) & there
    place = found.int().argmax(dim=1) + 1
    last = there.sum(dim=1) + 1
    return Leading(items, chances, torch.where(found.any(dim=1), place, last), asked)


class LLMD4Rec(Learner):
    """The student's side, and the alternation."""

    name = "llmd4rec"
    needs = frozenset({"item_vectors"})
    knowledge: Knowledge | None

    @classmethod
    def needs_of(cls, settings: LLMD4RecSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        return cls.needs if settings.embedding_weight > 0 else frozenset()

    @classmethod
    def rounds_of(cls, settings: LLMD4RecSettings) -> Rounds:
        """See `Method.rounds_of`."""
        return Rounds(
            settings.rounds,
            settings.teacher_epochs,
            settings.student_epochs,
            settings.refresh,
            settings.teacher_start_epochs,
            settings.student_first,
            settings.student_anew,
        )

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """See `Method.item_embedding`: adds projected item vectors, if any are wanted."""
        settings = self.settings
        shared = {name: getattr(settings, name) for name in ("embedding_weight", "vector_width", "whiten")}
        vectors = None if self.knowledge is None else self.knowledge.item_vectors
        return informed(table, vectors, DLLM2RecSettings.model_validate(shared))

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        settings = self.settings
        return self.mutual_with(
            batch, states, table, settings.mutual(settings.student_temperature, settings.student_weight)
        )

    def learn_from(self, teacher: Peer) -> None:
        """See `Method.learn_from`."""
        self.other = teacher if self.settings.told == "whole" else teacher.leading(self.settings.top_k)

    def refine_teacher(self, student: Peer) -> Method | None:
        """See `Method.refine_teacher`."""
        if self.settings.teacher_weight == 0:
            return None
        side = TeacherSide(self.settings, None)
        side.other = student
        return side


class TeacherSide(Learner):
    """The teacher's side of a half-step."""

    name = "llmd4rec teacher"

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`; states and table are the teacher's."""
        settings = self.settings
        return self.mutual_with(
            batch, states, table, settings.mutual(settings.teacher_temperature, settings.teacher_weight)
        )
