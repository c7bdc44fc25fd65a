"""LLMD4Rec's two sides: what each learns from, and stored rankings in place of a teacher that cannot take part."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset, training_examples
from distilrec.errors import ConfigError
from distilrec.knowledge.peer import Peer
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.mutual import sample_weights
from distilrec.losses.objective import Objective
from distilrec.methods.base import Rounds
from distilrec.methods.llmd4rec import LLMD4Rec, LLMD4RecSettings, TeacherSide
from distilrec.settings import checked

WIDTH = 6


def make(said: Knowledge | None, n_items: int, **changes: Any) -> LLMD4Rec:
    method = LLMD4Rec(LLMD4RecSettings.model_validate(changes), said)
    method.objective = Objective(LossSettings(name="ce"), torch.ones(n_items, dtype=torch.int64))
    return method


def problem(dataset: Dataset, step: int = 3) -> tuple[Batch, Tensor, Tensor, Peer]:
    generator = torch.Generator().manual_seed(0)
    every = torch.from_numpy(training_examples(dataset))
    examples = every[::step].flip(0).contiguous()
    targets = torch.from_numpy(np.asarray(dataset.items)[examples.numpy()].astype(np.int64))
    unused = torch.zeros(1, dtype=torch.int64)
    states = torch.randn(len(examples), WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(dataset.n_items, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    others = torch.randn(len(every), 4, dtype=torch.float64, generator=generator)
    peer = Peer(
        dataset, every, others, torch.randn(dataset.n_items, 4, dtype=torch.float64, generator=generator), False
    )
    return Batch(unused, unused, unused, targets, examples), states, table, peer


def naive(batch: Batch, states: Tensor, table: Tensor, peer: Peer, temperature: float) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and weighted divergence, example by example, from the equations."""
    entropy, divergence = [], []
    for row, example in enumerate(batch.examples.tolist()):
        place = peer.examples.tolist().index(example)
        own, other = states[row] @ table.T, peer.states[place] @ peer.table.T
        target = int(batch.targets[row])
        rank, rank_other = (int((scores >= scores[target]).sum()) for scores in (own.detach(), other))
        weight = sample_weights(torch.tensor([rank]), torch.tensor([rank_other])).item()
        p, q = torch.softmax(other / temperature, dim=0), torch.log_softmax(own / temperature, dim=0)
        divergence.append(weight * (p * (p.log() - q)).sum())
        entropy.append(-torch.log_softmax(own, dim=0)[target])
    return torch.stack(entropy).mean(), torch.stack(divergence).mean()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_each_side_against_the_equations(side: str, tiny_dataset: Dataset) -> None:
    batch, states, table, peer = problem(tiny_dataset)
    settings = {"student_temperature": 1.5, "teacher_temperature": 0.7, "student_weight": 0.8, "teacher_weight": 0.6}
    method = make(None, tiny_dataset.n_items, **settings)
    if side == "student":
        method.learn_from(peer)
        learner: Any = method
    else:
        learner = method.refine_teacher(peer)
        assert isinstance(learner, TeacherSide)
        learner.objective = method.objective
    parts = learner.loss(batch, states, table)
    entropy, divergence = naive(batch, states, table, peer, 1.5 if side == "student" else 0.7)
    divergence = (0.8 if side == "student" else 0.6) * divergence
    torch.testing.assert_close(parts["target"], entropy)
    torch.testing.assert_close(parts["mutual"], divergence.detach())
    wanted = torch.autograd.grad(entropy + divergence, (states, table))
    for near, far in zip(torch.autograd.grad(sum(parts.values()), (states, table)), wanted, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-8, atol=1e-9)


def test_the_first_of_all_items_say_what_the_whole_says(tiny_dataset: Dataset) -> None:
    batch, states, table, peer = problem(tiny_dataset)
    found = []
    for told in ("whole", "first"):
        method = make(None, tiny_dataset.n_items, told=told, top_k=tiny_dataset.n_items)
        method.learn_from(peer)
        parts = method.loss(batch, states, table)
        found.append((parts, torch.autograd.grad(sum(parts.values()), (states, table))))  # type: ignore[arg-type]
    for key in ("target", "mutual"):
        torch.testing.assert_close(found[0][0][key], found[1][0][key], rtol=1e-5, atol=1e-6)
    for near, far in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-6)


def test_one_way_and_the_course_of_the_rounds(tiny_dataset: Dataset) -> None:
    _, _, _, peer = problem(tiny_dataset)
    assert make(None, 12, teacher_weight=0).refine_teacher(peer) is None
    settings = LLMD4RecSettings(rounds=5, teacher_epochs=2, student_epochs=3, refresh=False, teacher_start_epochs=4)
    assert LLMD4Rec.rounds_of(settings) == Rounds(5, 2, 3, False, 4, False)
    with pytest.raises(ValueError, match="teacher_start_epochs"):
        LLMD4RecSettings(student_first=True)


def stored(scores: list[float], items: list[int]) -> Knowledge:
    return Knowledge({}, np.array([7]), np.array([items]), np.array([scores], dtype=np.float32), None)


def by_hand(said: Knowledge, target: int, example: int = 7, **changes: Any) -> dict[str, float]:
    """One state with probabilities 1/8, 1/8, 2/8, 4/8."""
    table = torch.tensor([[1.0], [1], [2], [4]], dtype=torch.float64).log()
    unused = torch.zeros(1, dtype=torch.int64)
    batch = Batch(unused, unused, unused, torch.tensor([target]), torch.tensor([example]))
    parts = make(said, 4, **changes).loss(batch, torch.ones(1, 1, dtype=torch.float64), table)
    return {name: value.item() for name, value in parts.items()}


def test_stored_log_probabilities_by_hand() -> None:
    # The teacher gives item 2 one half and item 0 a quarter; a quarter is left for the other two, of which the student thinks 5/8.
    # KL = 1/2 log(4/8 8/2) + 1/4 log(2/8 8/1) + 1/4 log(2/8 8/5). Target 2: ranks 2 and 1, w = 2.
    said = stored([math.log(0.5), math.log(0.25)], [2, 0])
    divergence = math.log(2) / 2 + math.log(2) / 4 + math.log(2 / 5) / 4
    assert by_hand(said, 2) == pytest.approx({"target": math.log(4), "mutual": 2 * divergence}, rel=1e-6)
    # Target 1, which the teacher did not name, counts as its third: ranks 4 (a tie) and 3, w = 4/3.
    assert by_hand(said, 1) == pytest.approx({"target": math.log(8), "mutual": 4 / 3 * divergence}, rel=1e-6)
    assert by_hand(said, 1, sample_weights=False)["mutual"] == pytest.approx(divergence, rel=1e-6)
    assert by_hand(said, 2, example=8) == pytest.approx(
        {"target": math.log(4), "mutual": 0}
    )  # it was not asked about that


def test_scores_that_are_no_probabilities_share_the_whole_mass() -> None:
    # 5 and 5: one half each. KL = 1/2 log(4/8 8/2) + 1/2 log(4/8 8/1).
    said = stored([5.0, 5.0, NOTHING], [2, 0, 0])
    divergence = math.log(2) / 2 + math.log(4) / 2
    assert by_hand(said, 2, sample_weights=False)["mutual"] == pytest.approx(divergence, rel=1e-6)
    only_ranks = stored([0.0, 0.0, NOTHING], [2, 0, 0])
    assert by_hand(only_ranks, 2, sample_weights=False)["mutual"] == pytest.approx(divergence, rel=1e-6)
    one = by_hand(said, 2, sample_weights=False, top_k=1)["mutual"]
    assert one == pytest.approx(math.log(4), rel=1e-6)  # all on item 2


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"told": "all"}, {"student_temperature": 0}, {"teacher_weight": -1}, {"top_k": 0}]
)
def test_wrong_settings(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        checked(LLMD4RecSettings, settings, where="method")
