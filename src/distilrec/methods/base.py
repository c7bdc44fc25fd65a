"""What a method is: five hooks. `loss` must be written; the others do nothing unless a method needs them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.errors import InputError
from distilrec.knowledge.store import Knowledge
from distilrec.losses.catalogue import cross_entropy
from distilrec.losses.objective import Objective
from distilrec.settings import Settings


@dataclass(frozen=True, slots=True)
class Rounds:
    """How teacher and student train in turn: at most `count` times, each side at most so many epochs at a time.

    `refresh`: whether the teacher reads the student's present item vectors in each round, not only in the first.
    `teacher_start_epochs`: at most so many epochs the teacher trains on the targets alone, before the first round. `student_first`:
    whether a round begins with the student's half-step. `student_anew`: whether the student begins each half-step from new
    weights, not from where it was.
    """

    count: int
    teacher_epochs: int
    student_epochs: int
    refresh: bool = True
    teacher_start_epochs: int = 0
    student_first: bool = False
    student_anew: bool = False


class Method(nn.Module, ABC):
    """How a student learns. Parameters that a method owns are trained along with the student's."""

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    needs: ClassVar[frozenset[str]] = frozenset()  # of {"rankings", "scores", "item_vectors"}
    by_rows: ClassVar[bool] = False  # whether `loss` can do with the rows of the item table that the batch itself needs
    fine_tunes: ClassVar[bool] = (
        False  # whether training starts from the plain student and sees only what the teacher was asked about
    )
    objective: Objective | None = None  # the student's loss, put in by the training

    def __init__(self, settings: Any, knowledge: Knowledge | None) -> None:
        super().__init__()
        self.settings = settings
        self.knowledge = knowledge
        needs = self.needs_of(settings)
        if needs and knowledge is None:
            raise InputError(
                f"the method {self.name} needs a teacher's {' and '.join(sorted(needs))}.",
                remedy="Annotate first.",
            )
        for what, there in () if knowledge is None else _given(knowledge):
            if what in needs and not there:
                raise InputError(
                    f"the method {self.name} needs {what.replace('_', ' ')} and this teacher gave none.",
                    remedy="Choose a teacher that gives them, or switch off the part of the method that learns from them.",
                )

    @classmethod
    def needs_of(cls, settings: Any) -> frozenset[str]:
        """Return which of `needs` the method reads with these settings: a part of it that is switched off reads nothing."""
        return cls.needs

    @classmethod
    def select(
        cls, settings: Any, dataset: Dataset, examples: Ints, difficulty: Callable[[Ints], Any] | None = None
    ) -> Ints:
        """Return the examples worth asking the teacher about, out of `examples`; all of them by default.

        Args:
            settings: of the method.
            dataset: what the ids refer to.
            examples: [n] ids.
            difficulty: ids [n] -> how hard they are for a conventional recommender, [n]; it is trained only if this is called.
        """
        return examples

    def item_embedding(self, table: nn.Module) -> nn.Module:
        """Return what takes the place of the student's item table; calling it gives [items, width]."""
        return table

    def required_objective(self) -> Objective:
        """Return the student's loss."""
        if self.objective is None:
            raise RuntimeError("the training has not put the student's loss in")
        return self.objective

    def own_loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Return the parts of the student's own loss on the targets; shapes as in `loss`."""
        if self.objective is None:
            return {"target": cross_entropy(states, table, batch.targets)}
        return self.objective(batch, states, table)

    @abstractmethod
    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Return named parts of the loss; the loop sums and logs them.

        Args:
            batch: targets and example ids, [T] each, and drawn negatives. Item ids count rows of `table`.
            states: [T, width] the student's state before each target.
            table: [items, width] the student's item vectors; where `by_rows`, perhaps only those that the batch needs.
        """

    @classmethod
    def rounds_of(cls, settings: Any) -> Rounds | None:
        """Return how teacher and student train in turn, where the teacher scores the catalogue; None: it is asked once."""
        return None

    def learn_from(self, teacher: Any) -> None:
        """Take what a teacher says in this round (see `knowledge.peer`) as what to learn from; called before each round's training."""

    def refine_teacher(self, student: Any) -> "Method | None":
        """Return how the teacher learns from the student in a round, given what the student says; None: from the targets alone."""
        return None


def _given(knowledge: Knowledge) -> tuple[tuple[str, bool], ...]:
    return (
        ("rankings", len(knowledge.examples) > 0),
        ("scores", knowledge.has_scores),
        ("item_vectors", knowledge.item_vectors is not None),
    )
