"""CD, and what methods draw, against hand-computed numbers and against the equations written out one item at a time."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import Knowledge
from distilrec.methods.cd import CD, CDSettings
from distilrec.methods.drawing import draw, listed_among
from distilrec.settings import checked
from fixtures_rankings import LOSSES, plain_to_the_bit
from fixtures_rankings import batch as batch_of
from fixtures_rankings import knowledge as said_by
from fixtures_rankings import student as student_of

N_ITEMS, WIDTH = 12, 5
LISTS = {2: [3, 1, 7, 9], 3: [5], 5: [0, 8], 9: [4, 2, 6, 11]}
SCORES = {2: [-1.0, -1.5, -4.0, -4.5], 3: [-0.2], 5: [-3.0, -3.5], 9: [-2.0, -2.5, -6.0, -7.0]}
OTHERS = torch.tensor([3, 10, 0, 10, 6])  # some on a list, one drawn twice


def knowledge(lists: dict[int, list[int]] = LISTS, scores: dict[int, list[float]] = SCORES, pad: int = 0) -> Knowledge:
    return said_by(pad, lists, scores)


def batch(examples: Sequence[int] = (1, 2, 3, 4, 5, 9, 99), targets: Sequence[int] = (1, 7, 2, 6, 3, 10, 0)) -> Batch:
    return batch_of(examples, targets)


def student(total: int = 7) -> tuple[Tensor, Tensor]:
    return student_of(total, N_ITEMS, WIDTH)


def method(said: Knowledge | None = None, **changes: object) -> CD:
    return CD(CDSettings.model_validate(changes), said or knowledge())


@pytest.fixture
def fixed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randint", lambda *args, **options: OTHERS)


def soft_loss(states: Tensor, table: Tensor, asked: Batch, settings: CDSettings) -> Tensor:
    """Return the part that CD adds when every stored item is drawn and the others are `OTHERS`."""
    stored = np.array([score for row in SCORES.values() for score in row], dtype=np.float32).astype(np.float64)
    total = torch.zeros((), dtype=torch.float64)
    for state, target, example in zip(states, asked.targets.tolist(), asked.examples.tolist(), strict=True):
        if example not in LISTS:
            continue
        own = np.array(SCORES[example], dtype=np.float32).astype(np.float64)
        if settings.calibration == "all":
            own = (own - stored.mean()) / stored.std()
        if settings.calibration == "example":
            own = (own - own.mean()) / own.std() if len(own) > 1 else own * 0
        wanted = [(item, score) for item, score in zip(LISTS[example], own, strict=True) if item != target]
        if settings.unlisted:
            wanted += [
                (item, min(own) - settings.unlisted_gap)
                for item in OTHERS.tolist()
                if item not in LISTS[example] and item != target
            ]
        costs = []
        for item, score in wanted:
            q = 1 / (1 + math.exp(-(score + settings.bias) / settings.temperature))
            sigma = torch.sigmoid(state @ table[item])
            costs.append(-(q * torch.log(sigma) + (1 - q) * torch.log(1 - sigma)))
        if costs:
            total = total + sum(costs) / len(costs)
    return settings.weight * total / len(states)


def scored(cd: CD, asked: Batch) -> Tensor:
    """Return which items count in each example's part, [T, N]: with one-hot item vectors, states have the slopes of scores."""
    states = torch.zeros(len(asked.targets), N_ITEMS, requires_grad=True)
    return torch.autograd.grad(cd.loss(asked, states, torch.eye(N_ITEMS))["soft"], states)[0] != 0


def test_loss_by_hand() -> None:
    # The student scores item 1 by log 3 and the teacher by 0: q = 1/2, -(log 3/4 + log 1/4) / 2. The target is item 0.
    states, table = torch.tensor([[1.0]]), torch.tensor([[0.5], [math.log(3)], [0.0]])
    said = knowledge({4: [1, 0]}, {4: [0.0, -5.0]})
    cd = method(said, weight=2.0, unlisted=0, calibration="none")
    parts = cd.loss(batch((4,), (0,)), states, table)
    assert parts["soft"].item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))
    # q = sigma((0 + 2 log 2) / 2) = 2/3.
    cd = method(said, weight=1.0, unlisted=0, calibration="none", bias=2 * math.log(2), temperature=2.0)
    parts = cd.loss(batch((4,), (0,)), states, table)
    assert parts["soft"].item() == pytest.approx(-2 / 3 * math.log(3 / 4) - 1 / 3 * math.log(1 / 4))


def test_scores_are_calibrated_by_hand() -> None:
    # Stored: -1, -3, -5, -7 with mean -4 and deviation sqrt(5); of the first example alone -2 and 1.
    said = knowledge({1: [3, 4], 2: [5, 6]}, {1: [-1.0, -3.0], 2: [-5.0, -7.0]})
    scores, there = torch.from_numpy(said.scores).double(), torch.ones(2, 2, dtype=torch.bool)
    root = math.sqrt(5)
    for kind, wanted in {
        "all": [[3 / root, 1 / root], [-1 / root, -3 / root]],
        "example": [[1.0, -1.0], [1.0, -1.0]],
        "none": [[-1.0, -3.0], [-5.0, -7.0]],
    }.items():
        found = method(said, calibration=kind)._calibrated(scores, there)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unlisted": 0},
        {"calibration": "example"},
        {"calibration": "none", "bias": 3.0, "temperature": 2.0},
        {"temperature": 0.3, "unlisted_gap": 0.0, "weight": 3.0},
    ],
)
@pytest.mark.usefixtures("fixed_others")
def test_loss_and_gradients_equal_the_equations(changes: dict[str, object]) -> None:
    states, table = student()
    cd = method(listed=4, **changes)
    wanted = soft_loss(states, table, batch(), cd.settings)
    parts = cd.loss(batch(), states, table)
    torch.testing.assert_close(parts["soft"], wanted, rtol=1e-6, atol=1e-7)
    for found, right in zip(
        torch.autograd.grad(parts["soft"], (states, table)), torch.autograd.grad(wanted, (states, table)), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(parts["target"], torch.nn.functional.cross_entropy(states @ table.T, batch().targets))


def test_gradcheck() -> None:
    def part(states: Tensor, table: Tensor) -> Tensor:
        torch.manual_seed(3)
        return cd.loss(batch(), states, table)["soft"]

    cd = method(listed=2, unlisted=4)
    assert torch.autograd.gradcheck(part, student())


def test_every_setting_counts() -> None:
    variants: list[dict[str, object]] = [
        {},
        {"weight": 0.7},
        {"listed": 1},
        {"unlisted": 3},
        {"rank_decay": 0.1},
        {"temperature": 2.0},
        {"bias": 0.5},
        {"unlisted_gap": 2.0},
        {"calibration": "example"},
        {"calibration": "none"},
    ]
    found = []
    for variant in variants:
        torch.manual_seed(0)
        found.append(method(**{"listed": 2, "unlisted": 6, **variant}).loss(batch(), *student())["soft"].item())
    assert len({round(value, 9) for value in found}) == len(variants), found


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_is_the_plain_method_to_the_bit(loss: str) -> None:
    plain_to_the_bit(CD(CDSettings(weight=0), None), loss)


def test_missing_knowledge() -> None:
    with pytest.raises(InputError, match="rankings and scores"):
        CD(CDSettings(), None)
    silent = {example: [0.0] * len(row) for example, row in LISTS.items()}
    with pytest.raises(InputError, match="needs scores"):
        method(knowledge(scores=silent))


def test_what_was_not_asked_or_stands_behind_an_end_changes_nothing() -> None:
    def part(said: Knowledge, asked: Batch) -> float:
        torch.manual_seed(1)
        return method(said, listed=3).loss(asked, *student(len(asked.targets)))["soft"].item()

    assert part(knowledge(), batch()) == part(knowledge(pad=7), batch())
    nobody = batch((1, 4, 99), (1, 6, 0))
    assert part(knowledge(), nobody) == 0.0


@pytest.mark.parametrize("settings", [{"listed": 0}, {"unlisted": -1}, {"temperature": 0}, {"calibration": "some"}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(CDSettings, settings, where="method")


def test_a_teacher_that_scores_all_alike_breaks_nothing() -> None:
    alike = {example: [-2.0] * len(row) for example, row in LISTS.items()}
    for kind in ("all", "example"):
        parts = method(knowledge(scores=alike), calibration=kind).loss(batch(), *student())
        assert torch.isfinite(parts["soft"])


def test_places_are_drawn_in_proportion_and_never_twice() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([4.0, 0.0, 2.0, 1.0, 1.0])
    columns, drawn = draw(weights.log().expand(40_000, 5), 5)
    assert drawn.tolist() == [[True] * 4 + [False]] * 40_000
    assert (columns.sort(dim=1).values == torch.arange(5)).all()
    first = columns[:, 0].bincount(minlength=5) / 40_000
    torch.testing.assert_close(first, weights / 8, atol=0.01, rtol=0)
    second = columns[columns[:, 0] == 0][:, 1].bincount(minlength=5).float()
    torch.testing.assert_close(second / second.sum(), torch.tensor([0.0, 0.0, 0.5, 0.25, 0.25]), atol=0.015, rtol=0)


def test_the_teachers_first_items_are_drawn_most_often() -> None:
    torch.manual_seed(0)
    found = scored(method(listed=1, unlisted=0, rank_decay=2.0), batch((2,) * 10_000, (0,) * 10_000))
    assert (found.sum(dim=1) == 1).all()
    wanted = torch.softmax(-torch.arange(1, 5) / 2.0, dim=0)
    torch.testing.assert_close(found[:, LISTS[2]].float().mean(dim=0), wanted, atol=0.04, rtol=0)


def test_every_unlisted_item_is_drawn_some_time_and_the_target_never() -> None:
    cd, seen = method(listed=2, unlisted=5), torch.zeros(1, N_ITEMS, dtype=torch.bool)
    for seed in range(100):
        torch.manual_seed(seed)
        seen |= scored(cd, batch((2,), (0,)))
    assert set(seen[0].nonzero()[:, 0].tolist()) == set(range(1, N_ITEMS))


def test_a_row_gives_no_more_than_it_has() -> None:
    columns, drawn = draw(torch.tensor([[-900.0, -torch.inf, 900.0], [-torch.inf] * 3]), 2)
    assert drawn.tolist() == [[True, True], [False, False]]
    assert columns[0].tolist() == [2, 0]
    assert draw(torch.zeros(2, 3), 9)[0].shape == (2, 3)


@given(
    some.lists(some.integers(0, 6), min_size=1, max_size=8),
    some.lists(some.lists(some.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4),
    some.integers(0, 3),
)
def test_membership_equals_a_search(others: list[int], lists: list[list[int]], length: int) -> None:
    there = (torch.arange(3) < length).expand(len(lists), 3)
    found = listed_among(torch.tensor(others), torch.tensor(lists), there)
    assert found.tolist() == [[other in row[:length] for other in others] for row in lists]
