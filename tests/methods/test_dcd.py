"""DCD against hand-computed numbers and against its equations written out one list at a time, with exact ranks."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods.dcd import DCD, DCDSettings, above, descending, list_loss, places_of, student_ranks, tied_ranks
from distilrec.methods.plain import Plain, PlainSettings
from distilrec.settings import checked
from fixtures_rankings import batch as batch_of
from fixtures_rankings import knowledge as said_by
from fixtures_rankings import same_with_gradients
from fixtures_rankings import student as student_of

N_ITEMS, WIDTH = 12, 5
# No item stands at the same place of two lists, so that the teacher's order of examples has no ties but at its end.
LISTS = {2: [3, 1, 7, 9, 4], 3: [5], 5: [0, 3, 2], 9: [4, 2, 6, 11, 10], 12: [1, 7, 5]}
EVERYTHING = {"under": 99, "over": 99, "sampled": 99, "items": 999, "states": 99}


def knowledge(lists: dict[int, list[int]] = LISTS, pad: int = 0) -> Knowledge:
    return said_by(pad, lists)


def batch(
    examples: Sequence[int] = (1, 2, 3, 4, 5, 9, 12, 99), targets: Sequence[int] = (1, 7, 2, 6, 3, 8, 5, 0)
) -> Batch:
    return batch_of(examples, targets)


def student(total: int = 8) -> tuple[Tensor, Tensor]:
    return student_of(total, N_ITEMS, WIDTH)


def method(said: Knowledge | None = None, **changes: object) -> DCD:
    return DCD(DCDSettings.model_validate(changes), said or knowledge())


def naive_list(upper: list[Tensor], lower: list[Tensor]) -> Tensor:
    """Return list() of the scores of two lists, the upper one in order."""
    if not upper:
        return torch.zeros((), dtype=torch.float64)
    terms = [
        torch.log(upper[place].exp() / (sum(one.exp() for one in upper[place:]) + sum(one.exp() for one in lower)))
        for place in range(len(upper))
    ]
    return -sum(terms) / len(upper)


def naive_user_side(states: Tensor, table: Tensor, asked: Batch, *, relaxed: bool) -> Tensor:
    """Return L_U or L_R over all items."""
    total = torch.zeros((), dtype=torch.float64)
    for state, target, example in zip(states, asked.targets.tolist(), asked.examples.tolist(), strict=True):
        if example not in LISTS:
            continue
        said, logits = LISTS[example], table @ state
        order = sorted(range(N_ITEMS), key=lambda item: -logits[item].item())
        unknown = (len(said) + 1 + N_ITEMS) / 2
        teacher = {item: said.index(item) + 1 if item in said else unknown for item in range(N_ITEMS)}
        found = {item: order.index(item) + 1 for item in range(N_ITEMS)}
        if relaxed:
            upper = [item for item in said if item != target]
            lower = [item for item in range(N_ITEMS) if item not in said and item != target]
        else:
            upper = [item for item in said if found[item] > teacher[item] and item != target]
            lower = [item for item in range(N_ITEMS) if found[item] < teacher[item] and item != target]
        total = total + naive_list([logits[item] for item in upper], [logits[item] for item in lower])
    return total / len(states)


def naive_item_side(states: Tensor, table: Tensor, asked: Batch) -> Tensor:
    """Return L_I over all items of all lists, as often as they stand on one."""
    rows = [row for row, example in enumerate(asked.examples.tolist()) if example in LISTS]
    lists = {row: LISTS[asked.examples[row].item()] for row in rows}
    losses = []
    for item in (item for said in lists.values() for item in said):
        listing = sorted((row for row in rows if item in lists[row]), key=lambda row: lists[row].index(item))
        rest = (len(listing) + 1 + len(rows)) / 2
        logits = states @ table[item]
        order = sorted(rows, key=lambda row: -logits[row].item())
        upper, lower = [], []
        for row in [*listing, *(row for row in rows if row not in listing)]:
            if asked.targets[row] == item:
                continue
            teacher = listing.index(row) + 1 if row in listing else rest
            if row in listing and order.index(row) + 1 > teacher:
                upper.append(logits[row])
            if order.index(row) + 1 < teacher:
                lower.append(logits[row])
        losses.append(naive_list(upper, lower))
    return sum(losses) / len(losses) * len(rows) / len(states)


def slopes(made: DCD, asked: Batch, scores: Tensor) -> Tensor:
    """Return the slopes of the ranking's part by the student's scores [T, N]; its item vectors are one-hot."""
    states = scores.clone().requires_grad_()
    return torch.autograd.grad(made.loss(asked, states, torch.eye(N_ITEMS))["ranking"], states)[0]


def seen(made: DCD, asked: Batch, scores: Tensor) -> Tensor:
    """Return which scores count, [100, T, N], for each of 100 seeds."""
    found = []
    for seed in range(100):
        torch.manual_seed(seed)
        found.append(slopes(made, asked, scores) != 0)
    return torch.stack(found)


def test_list_loss_by_hand() -> None:
    # exp of the scores: 2 and 1 above 3; then one above nothing, and nothing above one.
    upper = torch.tensor([[2.0, 1.0], [2.0, 9.0], [5.0, 5.0]]).log().requires_grad_()
    lower = torch.tensor([[3.0], [7.0], [7.0]]).log()
    there = torch.tensor([[True, True], [True, False], [False, False]])
    loss = list_loss(upper, there, lower, torch.tensor([[True], [False], [True]]))
    assert loss.tolist() == pytest.approx([-(math.log(2 / 6) + math.log(1 / 4)) / 2, 0.0, 0.0], abs=1e-6)
    gradient = torch.autograd.grad(loss.sum(), upper)[0]
    # By the first: (1/3 - 1) / 2 = -1/3. By the second: (1/6 + 1/4 - 1) / 2.
    assert gradient[0].tolist() == pytest.approx([-1 / 3, (1 / 6 + 1 / 4 - 1) / 2])
    assert not gradient[1:].any()


def test_counts_above_by_hand() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0], [-torch.inf, 0.0, -torch.inf, 1.0, 0.5]])
    every = torch.ones_like(values, dtype=torch.bool)
    some = torch.tensor([[True, True, False, True, False], [True, False, False, True, False]])
    whole, part = above(values, [every, some])
    assert whole.tolist() == [[0, 3, 1, 1, 4], [3, 2, 3, 0, 1]]
    assert part.tolist() == [[0, 2, 1, 1, 3], [1, 1, 1, 0, 1]]


def test_places_by_hand() -> None:
    lists, on = torch.tensor([[4, 2, 7], [7, 7, 4], [2, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1]]).bool()
    # 7 is wanted twice and stands twice on one list; behind the end of a list nothing stands.
    found = places_of(torch.tensor([7, 2, 7, 4]), lists, on, 9)
    assert found.tolist() == [[2, 0, 3], [1, 3, 3], [2, 0, 3], [0, 3, 1]]


def test_both_ways_to_sort_agree() -> None:
    values = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(descending(values), values.argsort(dim=1, descending=True))


def test_student_ranks_by_hand() -> None:
    # 20 items, 2 of 3 listed. Of 4 sampled, one is on the list, so that the other 3 stand for 18: 6 each.
    listed, there = torch.tensor([[5.0, 1.0, 99.0]]), torch.tensor([[True, True, False]])
    free, off_list = torch.tensor([[6.0, 3.0, 0.0, 5.0]]), torch.tensor([[True, True, True, False]])
    ranks = student_ranks(listed, there, free, off_list, 20)
    assert ranks[0, :2].tolist() == [1 + 6, 2 + 12]
    assert ranks[0, 3:6].tolist() == [1, 2 + 6, 3 + 12]


def test_ties_share_their_ranks_by_hand() -> None:
    place = torch.tensor([[2, 0, 2, 1, 2], [2, 2, 2, 2, 2]])
    known = torch.tensor([True, True, True, True, False])
    assert tied_ranks(place, known, 3)[:, :4].tolist() == [[3.5, 1.0, 3.5, 2.0], [2.5] * 4]


def test_loss_by_hand() -> None:
    # exp of the student's scores: 1, 2, 3, 4, of items 0 to 3. The teacher: 1, 0. Item 3 is the target, so that 2 alone is
    # over-estimated: its rank is 2, the teacher's unknown 3 or 4. Item 1 is under-estimated (3 instead of 1), 0 too (4, 2).
    states, table = torch.tensor([[1.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0]).log()[:, None]
    made = method(knowledge({6: [1, 0]}), weight=2.0, item_weight=0, relaxed_weight=0)
    parts = made.loss(batch((6,), (3,)), states, table)
    assert parts["ranking"].item() == pytest.approx(-math.log(2 / 6) - math.log(1 / 4))


@pytest.mark.parametrize(
    ("behind", "wanted"),
    # exp of the student's scores: 1, 3, `behind`, 4; item 3 is the target. The middle of the unlisted ranks 3 and 4 is 3.5: item 2
    # is over-estimated in the student's third place and not in its fourth.
    [(2.0, -math.log(3 / 6) - math.log(1 / 3)), (0.5, -math.log(3 / 4))],
)
def test_an_unlisted_item_stands_in_the_middle_of_the_ranks_left(behind: float, wanted: float) -> None:
    states, table = torch.tensor([[1.0]]), torch.tensor([1.0, 3.0, behind, 4.0]).log()[:, None]
    made = method(knowledge({6: [1, 0]}), weight=2.0, item_weight=0, relaxed_weight=0)
    assert made.loss(batch((6,), (3,)), states, table)["ranking"].item() == pytest.approx(wanted)


@pytest.mark.parametrize("side", ["user_weight", "item_weight", "relaxed_weight"])
def test_loss_and_gradients_equal_the_equations(side: str) -> None:
    states, table = student()
    weights = {"user_weight": 0, "item_weight": 0, "relaxed_weight": 0, side: 3.0}
    wanted = 2 * 3.0 * {
        "user_weight": lambda: naive_user_side(states, table, batch(), relaxed=False),
        "item_weight": lambda: naive_item_side(states, table, batch()),
        "relaxed_weight": lambda: naive_user_side(states, table, batch(), relaxed=True),
    }[side]()  # fmt: skip
    parts = method(weight=2.0, **weights, **EVERYTHING).loss(batch(), states, table)
    assert wanted > 0.1
    same_with_gradients(parts["ranking"], wanted, (states, table))
    torch.testing.assert_close(parts["target"], torch.nn.functional.cross_entropy(states @ table.T, batch().targets))


def test_where_teacher_and_student_agree_there_is_nothing_to_correct() -> None:
    states = torch.tensor([[1.0], [2.0]])
    table = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    said = knowledge({2: [0, 1, 2, 3], 3: [0, 1]})
    made = method(said, item_weight=0, relaxed_weight=0)
    assert made.loss(batch((2, 3), (3, 3)), states, table)["ranking"].item() == 0.0


def test_the_most_unlike_are_drawn_most_often() -> None:
    # The teacher's first of three is the student's last of ten, its others are one place off.
    states, table = torch.tensor([[1.0]]), torch.arange(10, 0, -1.0)[:, None]
    made = method(
        knowledge({6: [9, 2, 3]}), weight=1.0, item_weight=0, relaxed_weight=0, under=1, over=99, sharpness=0.5
    )
    torch.manual_seed(0)
    asked = batch((6,) * 4000, (8,) * 4000)
    rows = states.repeat(4000, 1).requires_grad_()
    ranking = made.loss(asked, rows, table)["ranking"]
    # The slope of -log(exp(y_i) / ...) by the state differs with the item i that was drawn: largest for item 9, the lowest.
    slopes = torch.autograd.grad(ranking, rows)[0][:, 0]
    _, counts = (slopes * 4000).round(decimals=2).unique(return_counts=True)
    far, near = math.tanh(4.5), math.tanh(0.5)
    wanted = [near / (far + 2 * near), near / (far + 2 * near), far / (far + 2 * near)]
    assert (counts / 4000).tolist() == pytest.approx(wanted, abs=0.03)


def test_the_most_overestimated_are_drawn_most_often() -> None:
    # The student ranks items 0 to 11 in this order: the teacher's eighth first, and its tenth ninth.
    said = knowledge({6: [1, 2, 3, 4, 5, 6, 7, 0, 9, 8, 10, 11]})
    made = method(said, item_weight=0, relaxed_weight=0, under=99, over=1, sharpness=0.5)
    torch.manual_seed(0)
    scores = torch.arange(N_ITEMS, 0, -1) / 4
    drawn = slopes(made, batch((6,) * 10_000, (11,) * 10_000), scores.repeat(10_000, 1))[:, [0, 8]] != 0
    assert (drawn.sum(dim=1) == 1).all()
    far, near = math.tanh(3.5), math.tanh(0.5)
    assert drawn[:, 0].float().mean().item() == pytest.approx(far / (far + near), abs=0.04)


def test_the_teachers_first_items_are_drawn_most_often() -> None:
    made = method(user_weight=0, item_weight=0, under=1, rank_decay=2.0)
    torch.manual_seed(0)
    drawn = slopes(made, batch((2,) * 10_000, (0,) * 10_000), torch.zeros(10_000, N_ITEMS)) < 0  # what should rise
    assert (drawn.sum(dim=1) == 1).all()
    wanted = torch.softmax(-torch.arange(1, 6) / 2.0, dim=0)
    torch.testing.assert_close(drawn[:, LISTS[2]].float().mean(dim=0), wanted, atol=0.04, rtol=0)


def test_every_unlisted_item_is_sampled_some_time() -> None:
    made = method(user_weight=0, item_weight=0, sampled=3)
    found = seen(made, batch((2,), (0,)), torch.zeros(1, N_ITEMS))[:, 0]
    unlisted = [item for item in range(1, N_ITEMS) if item not in LISTS[2]]
    assert found[:, unlisted].any(dim=0).all()
    assert (found[:, unlisted].sum(dim=1) <= 3).all()


@pytest.mark.parametrize(
    ("changes", "over", "at_once", "in_all"),
    [({"states": 2}, 2, 2, 3), ({"items": 2}, 1, 2, 9)],
    ids=["examples", "entries"],
)
def test_all_that_an_item_side_may_draw_is_drawn_some_time(
    changes: dict[str, object], over: int, at_once: int, in_all: int
) -> None:
    # Each of three examples has three items of its own, which the student ranks last: all that is drawn has something to correct.
    said = knowledge({0: [0, 1, 2], 1: [3, 4, 5], 2: [6, 7, 8]})
    made = method(said, user_weight=0, relaxed_weight=0, **changes)
    scores = -torch.eye(4).repeat_interleave(3, dim=1)[:3]
    found = seen(made, batch(range(3), (11,) * 3), scores).any(dim=over)
    assert (found.sum(dim=1) == at_once).all()
    assert found.any(dim=0).sum() == in_all


def test_gradcheck() -> None:
    def part(states: Tensor, table: Tensor) -> Tensor:
        torch.manual_seed(3)
        return made.loss(batch(), states, table)["ranking"]

    made = method(under=2, over=3, sampled=8, items=5, states=4)
    assert torch.autograd.gradcheck(part, student())


def test_every_setting_counts() -> None:
    variants: list[dict[str, object]] = [
        {},
        {"weight": 0.7},
        {"user_weight": 0},
        {"item_weight": 0},
        {"relaxed_weight": 0},
        {"under": 1},
        {"over": 1},
        {"sharpness": 5.0},
        {"rank_decay": 0.2},
        {"sampled": 3},
        {"items": 2},
        {"states": 3},
    ]
    base = {"under": 2, "over": 3, "sampled": 9, "items": 8, "states": 99}
    found = []
    for variant in variants:
        parts = []
        for seed in range(3):  # a draw may be the same by chance
            torch.manual_seed(seed)
            parts.append(method(**base | variant).loss(batch(), *student())["ranking"].item())
        found.append(round(sum(parts), 9))
    assert len(set(found)) == len(variants), found


def test_weight_zero_is_the_plain_method_to_the_bit() -> None:
    parts_off = DCDSettings(user_weight=0, item_weight=0, relaxed_weight=0)
    objective = Objective(LossSettings(name="bce"), torch.arange(N_ITEMS))
    both = []
    for kind in (Plain(PlainSettings(), None), DCD(DCDSettings(weight=0), None), DCD(parts_off, None)):
        assert kind.needs_of(kind.settings) == frozenset()
        kind.objective = objective
        torch.manual_seed(0)
        states, table = student()
        parts = kind.loss(replace(objective.draw(batch()), histories=torch.zeros(1, 1)), states, table)
        both.append([parts["target"], *torch.autograd.grad(parts["target"], (states, table)), torch.rand(3)])
        assert list(parts) == ["target"]
    for other in both[1:]:
        assert all(torch.equal(one, two) for one, two in zip(both[0], other, strict=True))


def test_missing_knowledge() -> None:
    with pytest.raises(InputError, match="rankings"):
        DCD(DCDSettings(), None)
    with pytest.raises(InputError, match="rankings"):
        DCD(
            DCDSettings(),
            Knowledge({}, np.empty(0, dtype=np.int64), np.empty((0, 0)), np.empty((0, 0)), torch.ones(3, 2)),
        )


def test_what_was_not_asked_or_stands_behind_an_end_changes_nothing() -> None:
    def part(said: Knowledge, asked: Batch, **changes: object) -> float:
        torch.manual_seed(1)
        return method(said, **changes).loss(asked, *student(len(asked.targets)))["ranking"].item()

    assert part(knowledge(), batch()) == part(knowledge(pad=7), batch()) > 0
    assert part(knowledge(), batch((1, 4, 99), (1, 6, 0))) == 0.0


def test_rows_that_were_not_asked_only_thin_the_loss_out() -> None:
    states, table = student()
    rows = [1, 2, 4, 5, 6]
    alone = batch(batch().examples[rows].tolist(), batch().targets[rows].tolist())
    made = method(**EVERYTHING)
    whole, part = made.loss(batch(), states, table), made.loss(alone, states[rows], table)
    torch.testing.assert_close(whole["ranking"], part["ranking"] * 5 / 8)


@pytest.mark.parametrize("settings", [{"under": 0}, {"sampled": 0}, {"sharpness": 0}, {"states": 1}, {"user_wight": 1}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(DCDSettings, settings, where="method")
