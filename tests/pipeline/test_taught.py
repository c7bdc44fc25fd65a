"""A run can learn from another run's teacher: nothing is taught or asked twice, and a method that asks about few is given those."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distilrec.config import Config
from distilrec.pipeline import Pipeline
from distilrec.settings import checked
from fixtures_toy import toy_files


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    log, titles = toy_files(tmp_path)
    return {
        "data": {"interactions": log, "items": titles, "filters": {"k_core_user": 1, "k_core_item": 1}},
        "student": {"name": "fpmc", "hidden_size": 8},
        "train": {"epochs": 2, "batch_tokens": 64, "learning_rate": 0.01},
        "teach": {"epochs": 1, "batch_tokens": 64, "learning_rate": 0.01},
        "teacher": {"name": "conventional", "recommender": {"name": "gru4rec", "hidden_size": 12, "max_length": 8}},
        "annotate": {"top_k": 5},
        "evaluate": {"bootstrap": 10, "timing_users": 4},
    }


def run_of(settings: dict[str, Any], root: Path, method: Any, seed: int, taught: Pipeline | None = None) -> Pipeline:
    content = {**settings, "method": method, "seed": seed}
    return Pipeline(checked(Config, content, where="test"), root, taught=taught)


def test_a_student_of_another_seed_learns_from_the_same_teacher(settings: dict[str, Any], tmp_path: Path) -> None:
    teacher = run_of(settings, tmp_path / "teacher", "plain", 1)
    student = run_of(settings, tmp_path / "student", "soft_labels", 2, teacher)
    _ = student.distilled
    assert student.knowledge is teacher.knowledge
    assert student.data is teacher.data
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "student").glob("*-*")) == ["distilled"]
    own = run_of(settings, tmp_path / "own", "soft_labels", 1)
    alike = run_of(settings, tmp_path / "alike", "soft_labels", 1, teacher)
    for ours, theirs in zip(own.distilled.parameters(), alike.distilled.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_method_that_asks_about_few_is_given_those(settings: dict[str, Any], tmp_path: Path) -> None:
    teacher = run_of(settings, tmp_path / "teacher", "plain", 1)
    student = run_of(settings, tmp_path / "student", {"name": "alkdrec", "budget": 6, "policy": "random"}, 2, teacher)
    asked = student.knowledge.examples
    assert len(asked) == 6
    assert set(asked) < set(teacher.knowledge.examples)
    place = np.searchsorted(teacher.knowledge.examples, asked)
    assert np.array_equal(student.knowledge.items, teacher.knowledge.items[place])
    _ = student.distilled
    assert student.stages["knowledge"].key == teacher.stages["knowledge"].key


def test_a_folder_used_before_does_not_change_what_is_learnt(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers that an earlier run stored, about other examples, are no part of what this run asked for."""
    few = {**settings, "annotate": {"top_k": 5, "sample": 4}}
    fresh = run_of(few, tmp_path / "fresh", "soft_labels", 1)
    _ = fresh.distilled
    whole = run_of(settings, tmp_path / "used", "soft_labels", 1)
    assert len(whole.knowledge.examples) > 4
    _ = whole.distilled
    capsys.readouterr()
    again = run_of(few, tmp_path / "used", "soft_labels", 1)
    assert np.array_equal(again.knowledge.examples, fresh.knowledge.examples)
    for ours, theirs in zip(again.distilled.parameters(), fresh.distilled.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "more is wanted" not in capsys.readouterr().err
    one, other = (
        run_of(settings, tmp_path / "used", {"name": "alkdrec", "budget": 6, "policy": policy}, 1)
        for policy in ("easiest", "hardest")
    )
    assert len(one.knowledge.examples) == len(other.knowledge.examples) == 6
    assert set(one.knowledge.examples) != set(other.knowledge.examples)
