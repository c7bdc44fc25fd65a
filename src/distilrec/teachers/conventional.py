"""A large trained student as teacher: what ALKDRec takes candidates from, and the classic baselines of distillation learn from."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distilrec.data.batching import Batch, single_positions
from distilrec.settings import Choice, Settings, checked
from distilrec.students import STUDENTS
from distilrec.students.base import Student, load_student, save_student
from distilrec.teachers.base import Asked, Materials, Trained, rank_by_states
from distilrec.teachers.llm import best_device


class ConventionalSettings(Settings):
    """Settings of a conventional teacher: a student by name with its own settings. It is trained as `train` says."""

    recommender: Choice = Choice.model_validate({"name": "sasrec", "hidden_size": 128})


class Conventional(nn.Module):
    """A trained student that is asked instead of asking."""

    name: ClassVar[str] = "conventional"
    Settings = ConventionalSettings
    asked: ClassVar[Asked] = "positions"
    tokens_per_item: ClassVar[int] = 1
    trained: ClassVar[Trained] = "student"
    gives: ClassVar[frozenset[str]] = frozenset({"rankings", "scores", "item_vectors", "logits"})

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    @property
    def max_length(self) -> int:
        """Most history items read."""
        return self.student.max_length

    @property
    def causal(self) -> bool:
        """Whether a state sees no later item."""
        return self.student.causal

    def training_view(self, batch: Batch) -> Batch:
        """See `Student.training_view`."""
        return self.student.training_view(batch)

    def item_vectors(self) -> Tensor:
        """Return the item table, [N, D]."""
        return self.student.item_vectors()

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `CausalTeacher.encode`."""
        return self.student.encode(histories, lengths, table)

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `CausalTeacher.encode_last`."""
        return self.student.encode_last(histories, lengths, table)

    @torch.inference_mode()
    def rank(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """See `PositionTeacher.rank`; a score is a log-probability. One that is not causal reads each position's history anew."""
        if self.student.causal:
            return rank_by_states(self, batch, k)
        return rank_by_states(_Last(self.student), single_positions(batch), k)

    def save(self, folder: Path, llm: str) -> None:
        """Save the student; there is no language model below it."""
        save_student(self.student, folder / "model.safetensors")

    @classmethod
    def create(cls, settings: ConventionalSettings, materials: Materials) -> "Conventional":
        """Build an untrained one."""
        kind = STUDENTS[settings.recommender.name]
        own = checked(kind.Settings, settings.recommender.settings(), where="teacher.recommender")
        torch.manual_seed(materials.seed)
        return cls(kind(own, materials.dataset.n_items)).to(best_device())

    @classmethod
    def reopen(cls, folder: Path, settings: ConventionalSettings, materials: Materials) -> "Conventional":
        """Load one to train it on."""
        return cls.restore(folder, settings, materials)

    @classmethod
    def reach(cls, settings: ConventionalSettings) -> int:
        """Return how many history items a teacher of these settings reads."""
        kind = STUDENTS[settings.recommender.name]
        return checked(kind.Settings, settings.recommender.settings(), where="teacher.recommender").max_length

    @classmethod
    def inputs(cls, settings: ConventionalSettings, materials: Materials) -> dict[str, Any]:
        """Return what a trained teacher depends on, but for data, seed and training: nothing more."""
        return {}

    @classmethod
    def restore(cls, folder: Path, settings: ConventionalSettings, materials: Materials) -> "Conventional":
        """Load a student saved in `folder`."""
        return cls(load_student(folder / "model.safetensors", STUDENTS)).to(best_device()).eval()

    @classmethod
    def knowledge_vectors(cls, folder: Path, settings: ConventionalSettings, materials: Materials) -> Tensor | None:
        """Return the item table, [N, D]."""
        return load_student(folder / "model.safetensors", STUDENTS).item_vectors().detach()


class _Last:
    """A student seen as if every state were that of the whole history; right for histories asked about at their end only."""

    def __init__(self, student: Student) -> None:
        self.item_vectors = student.item_vectors
        self._student = student

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        last = self._student.encode_last(histories, lengths, table)
        return last[:, None].expand(-1, histories.shape[1], -1)
