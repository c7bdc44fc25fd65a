"""UnKD against hand-computed numbers, against its equations pair by pair, and against the exact mean over all pairs."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods import unkd
from distilrec.methods.unkd import (
    UnKD,
    UnKDSettings,
    draw_members,
    draw_pairs,
    pair_costs,
    popularity_groups,
    rank_weights,
)
from distilrec.settings import checked
from fixtures_rankings import LOSSES, plain_to_the_bit, same_with_gradients
from fixtures_rankings import batch as batch_of
from fixtures_rankings import knowledge as said_by
from fixtures_rankings import student as student_of

N_ITEMS, WIDTH = 12, 5
LISTS = {2: [3, 1, 7, 9, 4], 3: [5], 5: [0, 8, 2], 9: [4, 2, 6, 11, 10]}
POPULARITY = torch.tensor([9, 1, 3, 8, 0, 4, 4, 6, 2, 7, 5, 5])


def knowledge(lists: dict[int, list[int]] = LISTS, pad: int = 0) -> Knowledge:
    return said_by(pad, lists)


def batch(examples: Sequence[int] = (1, 2, 3, 4, 5, 9, 99), targets: Sequence[int] = (1, 7, 2, 6, 3, 10, 0)) -> Batch:
    return batch_of(examples, targets)


def student(total: int = 7) -> tuple[Tensor, Tensor]:
    return student_of(total, N_ITEMS, WIDTH)


def method(said: Knowledge | None = None, popularity: Tensor = POPULARITY, **changes: object) -> UnKD:
    made = UnKD(UnKDSettings.model_validate(changes), said or knowledge())
    made.objective = Objective(LossSettings(name="ce"), popularity)
    return made


def test_groups_by_hand() -> None:
    # 20 interactions; the middles of the items' shares lie at 5, 12.5, 17.5 and 20.
    assert popularity_groups(torch.tensor([5, 0, 10, 5]), 2).tolist() == [1, 1, 0, 1]
    assert popularity_groups(torch.tensor([5, 0, 10, 5]), 4).tolist() == [2, 3, 1, 3]
    assert popularity_groups(torch.tensor([0, 0]), 3).tolist() == [0, 0]


@given(some.lists(some.integers(0, 50), min_size=1, max_size=30), some.integers(1, 5))
def test_groups_are_sorted_and_hold_like_shares(counts: list[int], groups: int) -> None:
    found = popularity_groups(torch.tensor(counts), groups).tolist()
    assert all(0 <= group < groups for group in found)
    for one, first in zip(counts, found, strict=True):
        assert all(first <= second for other, second in zip(counts, found, strict=True) if other < one)
    for group in range(groups):
        mass = sum(count for count, own in zip(counts, found, strict=True) if own == group)
        assert abs(mass - sum(counts) / groups) <= max(counts)


def test_weights_by_hand() -> None:
    # Each rank has half the chance of the one before. Group 0: ranks 1 and 2 stored, 3 and 4 behind the list: 1/4 + 1/8.
    weights = rank_weights(
        torch.tensor([[0, 1, 0, 0]]),
        torch.tensor([[True, True, True, False]]),
        torch.tensor([4.0, 1.0]),
        1 / math.log(2),
        tail=True,
    )
    torch.testing.assert_close(weights, torch.tensor([[[1.0, 0.0, 0.5, 0.0, 0.375], [0.0, 1.0, 0.0, 0.0, 0.0]]]))


def test_pair_costs_by_hand() -> None:
    listed, behind = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 1.0 - math.log(3)]])
    better, worse = torch.tensor([[[0, 0]]]), torch.tensor([[[1, 2]]])  # 1 against 0, then against the second tail
    expected = torch.tensor([[[math.log(1 + math.exp(-1)), math.log(4 / 3)]]])
    torch.testing.assert_close(pair_costs(listed, behind, better, worse), expected)


def test_pairs_are_drawn_in_proportion() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[[4.0, 0.0, 2.0, 2.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    better, worse, known = draw_pairs(weights, 60_000)
    assert known.sum(dim=2).tolist()[0][1:] == [0, 0]  # one item alone and a group without items
    pairs = torch.stack([better[0, 0], worse[0, 0]])[:, known[0, 0]]
    shares = {
        pair: float((pairs == torch.tensor(pair)[:, None]).all(dim=0).float().mean())
        for pair in ((0, 2), (0, 3), (2, 3))
    }
    assert shares == pytest.approx({(0, 2): 8 / 20, (0, 3): 8 / 20, (2, 3): 4 / 20}, abs=0.01)
    assert float(known[0, 0].float().mean()) == pytest.approx(1 - (16 + 4 + 4) / 64, abs=0.01)


def test_members_are_drawn_from_their_groups_alike() -> None:
    torch.manual_seed(0)
    groups = torch.tensor([2, 0, 2, 2, 0])
    found = draw_members(groups, torch.tensor([2.0, 0.0, 3.0]), 30_000)
    assert set(found[0].tolist()) == {1, 4}
    torch.testing.assert_close(
        found[2].bincount(minlength=5) / 30_000, torch.tensor([1, 0, 1, 1, 0]) / 3, atol=0.01, rtol=0
    )


def naive(
    states: Tensor, table: Tensor, asked: Batch, settings: UnKDSettings, better: Tensor, worse: Tensor, tails: Tensor
) -> Tensor:
    """Return the part that UnKD adds for pairs that were drawn, going through them one by one."""
    groups = popularity_groups(POPULARITY, settings.groups).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, (target, example) in enumerate(zip(asked.targets.tolist(), asked.examples.tolist(), strict=True)):
        for group in range(settings.groups):
            costs = []
            for one, two, tail in zip(better[row, group], worse[row, group], tails[group], strict=True):
                said = LISTS.get(example, [])
                inside = [
                    place for place, item in enumerate(said) if groups[item] == group and item != target
                ]  # places that may be drawn
                high, low = int(one), int(two)
                if high not in inside or high == low:
                    continue
                if low == 5:
                    item = int(tail)
                    if item in said or item == target:
                        continue
                    assert groups[item] == group
                else:
                    assert low in inside
                    assert low > high
                    item = said[low]
                costs.append(-torch.log(torch.sigmoid(states[row] @ (table[said[high]] - table[item]))))
            if costs:
                total = total + sum(costs) / len(costs) / settings.groups
    return settings.weight * total / len(states)


@pytest.mark.parametrize("changes", [{}, {"groups": 1}, {"tail": False, "weight": 3.0}, {"groups": 3, "pairs": 100}])
def test_loss_and_gradients_equal_the_equations(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Tensor] = {}

    def pairs(weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        drawn["better"], drawn["worse"], known = draw_pairs(weights, count)
        return drawn["better"], drawn["worse"], known

    def members(groups: Tensor, sizes: Tensor, count: int) -> Tensor:
        drawn["tails"] = draw_members(groups, sizes, count)
        return drawn["tails"]

    monkeypatch.setattr(unkd, "draw_pairs", pairs)
    monkeypatch.setattr(unkd, "draw_members", members)
    torch.manual_seed(0)
    states, table = student()
    made = method(**changes)
    parts = made.loss(batch(), states, table)
    wanted = naive(states, table, batch(), made.settings, **drawn)
    assert wanted > 0
    same_with_gradients(parts["ranking"], wanted, (states, table))
    torch.testing.assert_close(parts["target"], torch.nn.functional.cross_entropy(states @ table.T, batch().targets))


def test_the_mean_over_many_pairs_is_the_mean_over_all_pairs() -> None:
    # One group, nothing behind the list: item j behind item i with chance e^-(r_i + r_j) / decay of all pairs. Target 7 is out.
    torch.manual_seed(0)
    states, table = student(1)
    made = method(groups=1, pairs=60_000, rank_decay=2.0, tail=False)
    found = made.loss(batch((2,), (7,)), states, table)["ranking"].item()
    order = [3, 1, 9, 4]
    logits = (states @ table.T)[0].tolist()
    top = bottom = 0.0
    for first, one in enumerate(order):
        for second, two in enumerate(order[first + 1 :], start=first + 1):
            weight = math.exp(-(first + second) / 2)
            top += weight * math.log(1 + math.exp(logits[two] - logits[one]))
            bottom += weight
    assert found == pytest.approx(top / bottom, rel=0.02)


def test_a_listed_item_meets_the_tail_as_often_as_the_ranks_behind_the_list_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One group of 12 items, 4 listed besides the target: ranks 5 to 11 are behind the list, and 5 of 12 items are none of theirs.
    monkeypatch.setattr(unkd, "pair_costs", lambda listed, _behind, _better, worse: (worse == listed.shape[1]).double())
    torch.manual_seed(0)
    found = method(groups=1, pairs=200_000, rank_decay=3.0).loss(batch((2,), (7,)), *student(1))["ranking"].item()
    chances = [math.exp(-rank / 3) for rank in range(11)]
    with_tail = sum(chances[:4]) * sum(chances[4:])
    listed_both = sum(chances[one] * chances[two] for one in range(4) for two in range(one))
    assert found == pytest.approx(with_tail / (with_tail + listed_both), abs=0.01)


@pytest.mark.parametrize(("pairs", "each"), [(1, 1), (4, 1), (5, 2)])
def test_pairs_are_split_over_the_groups_and_rounded_up(pairs: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def noted(weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        counts.append(count)
        return draw_pairs(weights, count)

    monkeypatch.setattr(unkd, "draw_pairs", noted)
    method(groups=4, pairs=pairs).loss(batch(), *student())
    assert counts == [each]


def test_gradcheck() -> None:
    def part(states: Tensor, table: Tensor) -> Tensor:
        torch.manual_seed(3)
        return made.loss(batch(), states, table)["ranking"]

    made = method(groups=2)
    assert torch.autograd.gradcheck(part, student())


def test_every_setting_counts() -> None:
    variants: list[dict[str, object]] = [
        {},
        {"weight": 0.7},
        {"groups": 3},
        {"pairs": 10},
        {"rank_decay": 1.0},
        {"tail": False},
    ]
    found = []
    for variant in variants:
        torch.manual_seed(0)
        found.append(method(**{"groups": 2, **variant}).loss(batch(), *student())["ranking"].item())
    assert len({round(value, 9) for value in found}) == len(variants), found


def test_popularity_counts_and_the_groups_follow_it() -> None:
    made = method(groups=3)
    found = []
    for popularity in (POPULARITY, POPULARITY.flip(0), POPULARITY):
        made.objective = Objective(LossSettings(name="ce"), popularity)
        torch.manual_seed(0)
        found.append(made.loss(batch(), *student())["ranking"].item())
    assert found[0] != found[1]
    assert found[0] == found[2]


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_is_the_plain_method_to_the_bit(loss: str) -> None:
    plain_to_the_bit(UnKD(UnKDSettings(weight=0), None), loss)


def test_missing_knowledge() -> None:
    with pytest.raises(InputError, match="rankings"):
        UnKD(UnKDSettings(), None)
    with pytest.raises(InputError, match="rankings"):
        UnKD(
            UnKDSettings(),
            Knowledge({}, np.empty(0, dtype=np.int64), np.empty((0, 0)), np.empty((0, 0)), torch.ones(3, 2)),
        )


def test_without_a_training_nobody_knows_what_is_popular() -> None:
    with pytest.raises(ValueError, match="popular"):
        UnKD(UnKDSettings(), knowledge()).loss(batch(), *student())


def test_what_was_not_asked_or_stands_behind_an_end_changes_nothing() -> None:
    def part(said: Knowledge, asked: Batch) -> float:
        torch.manual_seed(1)
        return method(said, groups=2).loss(asked, *student(len(asked.targets)))["ranking"].item()

    assert part(knowledge(), batch()) == part(knowledge(pad=7), batch()) > 0
    assert part(knowledge(), batch((1, 4, 99), (1, 6, 0))) == 0.0


@pytest.mark.parametrize("settings", [{"groups": 0}, {"pairs": 0}, {"rank_decay": 0}, {"weight": -1}, {"pair": 3}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(UnKDSettings, settings, where="method")
