"""RRD against numbers worked out by hand and against its equations, one example at a time, in float64."""

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.methods import rrd
from distilrec.methods.rrd import RRD, RRDSettings, draw_in_order, list_costs
from distilrec.settings import checked
from fixtures_rankings import (
    LOSSES,
    N_ITEMS,
    TARGETS,
    batch,
    deaf_behind_the_ends,
    knowledge,
    made,
    plain_to_the_bit,
    student,
    with_negatives,
)

SETTINGS: list[dict[str, Any]] = [
    {},
    {"interesting": 2},
    {"interesting": 1, "uninteresting": 1},
    {"uninteresting": 300, "weight": 2.0},
    {"interesting": 99, "rank_decay": 0.01},
]


method_of = partial(made, RRD)


def drawn_by(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Note the items that a loss scores: interesting ones [R, K], then uninteresting ones [L]."""
    noted: list[Tensor] = []
    scored = rrd.score

    def score(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
        noted.append(items)
        return scored(states, table, items)

    monkeypatch.setattr(rrd, "score", score)
    return noted


def naive(
    states: Tensor, table: Tensor, asked: Batch, said: Knowledge, count: int, interesting: Tensor, others: list[int]
) -> Tensor:
    """Return the teacher's part before its weight, for given draws; checks that each could have been drawn."""
    total, drawn = torch.zeros((), dtype=torch.float64), iter(interesting.tolist())
    for row, (example, target) in enumerate(zip(asked.examples.tolist(), asked.targets.tolist(), strict=True)):
        if example not in said.examples:
            continue
        place = said.examples.tolist().index(example)
        pairs = zip(said.items[place].tolist(), said.scores[place].tolist(), strict=True)
        listed = [item for item, there in pairs if there > NOTHING]
        chosen = next(drawn)[: min(count, len([item for item in listed if item != target]))]
        assert target not in chosen
        assert [listed.index(item) for item in chosen] == sorted({listed.index(item) for item in chosen})
        below = [table[item] @ states[row] for item in others if item not in listed and item != target]
        scores = [table[item] @ states[row] for item in chosen]
        for k in range(len(chosen)):
            total = total - scores[k] + torch.stack(scores[k:] + below).exp().sum().log()
    assert next(drawn, None) is None
    return total / len(states)


def test_list_costs_by_hand() -> None:
    # Scores log 2, log 3, log 5 in the order wanted, above 1 and 4: 2/15, 3/13 and 5/10. Then two of them, and the first alone.
    above = torch.tensor([[2.0, 3.0, 5.0], [2.0, 3.0, 7.0], [2.0, 7.0, 7.0], [7.0, 7.0, 7.0]]).log()
    below = torch.tensor([[1.0, 4.0], [1.0, 9.0], [9.0, 9.0], [1.0, 4.0]]).log()
    drawn = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False] * 3])
    fit = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    costs = list_costs(above.requires_grad_(), drawn, below.requires_grad_(), fit)
    expected = [-math.log(2 / 15 * 3 / 13 * 5 / 10), -math.log(2 / 6 * 3 / 4), 0.0, 0.0]
    torch.testing.assert_close(costs, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    by_above, by_below = torch.autograd.grad(costs.sum(), (above, below))
    # For a score: its share of each contest that it takes part in, less 1 where it is to win one.
    torch.testing.assert_close(by_above[0], torch.tensor([2 / 15 - 1, 3 / 15 + 3 / 13 - 1, 5 / 15 + 5 / 13 + 0.5 - 1]))
    torch.testing.assert_close(by_above[1], torch.tensor([2 / 6 - 1, 3 / 6 + 3 / 4 - 1, 0.0]))
    torch.testing.assert_close(by_below[0], torch.tensor([1 / 15 + 1 / 13 + 1 / 10, 4 / 15 + 4 / 13 + 4 / 10]))
    torch.testing.assert_close(by_below[1], torch.tensor([1 / 6 + 1 / 4, 0.0]))
    assert not by_above[2:].any()
    assert not by_below[2:].any()


def test_loss_by_hand() -> None:
    # The whole list and, of 5 items, only the fifth is neither listed nor the target: every draw of others is that one.
    states = torch.ones(1, 1, dtype=torch.float64)
    table = torch.tensor([[2.0], [3.0], [5.0], [9.0], [1.0]], dtype=torch.float64).log()
    said = knowledge(lists={4: [2, 3, 0, 1]})
    one = replace(batch((4,)), targets=torch.tensor([3]))
    torch.manual_seed(0)
    parts = method_of({"weight": 0.5, "uninteresting": 30}, said).loss(one, states, table)
    torch.manual_seed(0)
    rrd.draw(torch.zeros(1, 4), 4)
    mass = (torch.randint(5, (30,)) == 4).sum().item()
    assert mass > 1
    # Order 5, 2, 3 above as many ones.
    expected = -math.log(5 / (10 + mass) * 2 / (5 + mass) * 3 / (3 + mass))
    assert parts["ranking"].item() == pytest.approx(0.5 * expected)
    assert parts["target"].item() == pytest.approx(math.log(20 / 9))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("changes", SETTINGS)
def test_loss_and_gradients_equal_the_equations(
    changes: dict[str, Any], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = drawn_by(monkeypatch)
    method, said = method_of(changes, loss=loss), knowledge()
    asked, settings = with_negatives(method, batch()), method.settings
    states, table = student()
    assert method.objective is not None
    parts = method.loss(asked, states, table)
    interesting, others = noted
    assert len(others) == settings.uninteresting
    own = method.objective(asked, states, table)
    ranking = settings.weight * naive(states, table, asked, said, settings.interesting, interesting, others.tolist())
    assert ranking.item() > 0
    assert set(parts) == set(own) | {"ranking"}
    torch.testing.assert_close(parts["ranking"], ranking, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(parts[name], part) for name, part in own.items())
    wanted = torch.autograd.grad(sum(own.values()) + ranking, (states, table))
    for got, want in zip(torch.autograd.grad(sum(parts.values()), (states, table)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    method, asked = method_of({"interesting": 3}), batch()

    def ranking(states: Tensor, table: Tensor) -> Tensor:
        torch.manual_seed(4)  # the same draws each time
        return method.loss(asked, states, table)["ranking"]

    torch.autograd.gradcheck(ranking, student(), eps=1e-6, atol=1e-6)


def test_places_are_drawn_in_proportion_to_their_weights() -> None:
    """Pairs of four places, of which the third does not count: P(a first, b second) = w_a w_b / (1 - w_a)."""
    torch.manual_seed(0)
    rows, decay = 40_000, 2.0
    there = torch.tensor([[True, True, False, True]]).expand(rows, -1)
    places, drawn = draw_in_order(there, 2, decay)
    assert drawn.all()
    weights = {place: math.exp(-rank / decay) for rank, place in enumerate((0, 1, 3))}
    weights = {place: weight / sum(weights.values()) for place, weight in weights.items()}
    for one, other in itertools.combinations(weights, 2):
        expected = weights[one] * weights[other] * (1 / (1 - weights[one]) + 1 / (1 - weights[other]))
        found = ((places[:, 0] == one) & (places[:, 1] == other)).double().mean().item()
        assert found == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / rows))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 8))
def test_drawn_places_are_there_and_in_order(there: list[list[bool]], count: int) -> None:
    places, drawn = draw_in_order(torch.tensor(there), count, 3.0)
    for row, found, valid in zip(there, places.tolist(), drawn.tolist(), strict=True):
        expected = min(count, sum(row))
        assert valid == [True] * expected + [False] * (len(valid) - expected)
        chosen = found[:expected]
        assert all(row[place] for place in chosen)
        assert chosen == sorted(set(chosen))


def test_every_setting_counts() -> None:
    def ranking(seed: int = 3, **changes: Any) -> float:
        torch.manual_seed(seed)
        return method_of(changes).loss(batch(), *student())["ranking"].item()

    variants = [{}, {"weight": 0.3}, {"interesting": 2}, {"uninteresting": 20}]
    found = [ranking(**one) for one in variants]
    assert len({round(value, 9) for value in found}) == len(variants), found
    # Nearly all weight on the first rank, or about the same on all.
    first, any_rank = ([ranking(seed, interesting=1, rank_decay=decay) for seed in range(4)] for decay in (0.01, 1e3))
    assert first != any_rank


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_is_the_plain_method_to_the_bit(loss: str) -> None:
    plain_to_the_bit(RRD(RRDSettings(weight=0), None), loss)


@pytest.mark.parametrize("changes", SETTINGS)
def test_what_was_not_asked_costs_only_its_target(changes: dict[str, Any]) -> None:
    asked = batch((1, 4, 99))
    states, table = student(3)
    parts = method_of(changes).loss(asked, states, table)
    assert parts["ranking"].item() == 0.0
    own = torch.nn.functional.cross_entropy(states @ table.T, asked.targets)
    wanted = torch.autograd.grad(own, (states, table), retain_graph=True)
    torch.testing.assert_close(parts["target"], own)
    for got, want in zip(torch.autograd.grad(sum(parts.values()), (states, table)), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("changes", SETTINGS)
def test_what_stands_behind_an_end_is_never_looked_at(changes: dict[str, Any]) -> None:
    deaf_behind_the_ends(lambda said: method_of(changes, said))


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_large_scores_and_empty_contests_give_finite_gradients(spread: float) -> None:
    """A teacher that listed the whole catalogue leaves nothing below."""
    said = knowledge(lists={2: list(range(N_ITEMS)), 3: [TARGETS[3]]})
    states, table = student(2)
    states = (states.detach().float() * spread).requires_grad_()
    table = table.detach().float().requires_grad_()
    parts = method_of({"interesting": 20}, said).loss(batch((2, 3)), states, table)
    assert torch.isfinite(parts["ranking"])
    assert parts["ranking"].item() > 0
    for gradient in torch.autograd.grad(parts["ranking"], (states, table)):
        assert torch.isfinite(gradient).all()
        assert gradient.any()


def test_one_seed_gives_one_result() -> None:
    def ranking(seed: int) -> float:
        torch.manual_seed(seed)
        return method_of({"interesting": 2}).loss(batch(), *student())["ranking"].item()

    assert ranking(1) == ranking(1) != ranking(2)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="rrd needs a teacher's rankings"):
        RRD(RRDSettings(), None)
    nothing = np.empty((0, 0), dtype=np.int64)
    empty = Knowledge({}, np.empty(0, dtype=np.int64), nothing, nothing.astype(np.float32), torch.ones(N_ITEMS, 2))
    with pytest.raises(InputError, match="rrd needs rankings and this teacher gave none"):
        RRD(RRDSettings(), empty)
    assert RRD.needs_of(RRDSettings()) == {"rankings"}
    assert RRD.needs_of(RRDSettings(weight=0)) == frozenset()
    RRD(RRDSettings(weight=0), empty)


@pytest.mark.parametrize(
    "settings", [{"weight": -1}, {"interesting": 0}, {"uninteresting": 0}, {"rank_decay": 0}, {"top_k": 3}]
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(RRDSettings, settings, where="method")
