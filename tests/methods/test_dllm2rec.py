"""DLLM2Rec against hand-computed numbers and against its equations written out one example at a time, in float64."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.catalogue import catalogue_loss
from distilrec.losses.objective import Objective
from distilrec.methods.dllm2rec import (
    DLLM2Rec,
    DLLM2RecSettings,
    consistency,
    importance_weights,
)

N_ITEMS, WIDTH, ASKED_K = 15, 6, 5


def knowledge(examples: Sequence[int] = (2, 3, 5, 8, 9), seed: int = 0, vectors: bool = True) -> Knowledge:
    generator = np.random.default_rng(seed)
    items = np.stack([generator.permutation(N_ITEMS)[:ASKED_K] for _ in examples])
    scores = -np.sort(generator.exponential(2.0, (len(examples), ASKED_K)), axis=1)
    item_vectors = torch.from_numpy(generator.normal(3.0, 2.0, (N_ITEMS, 11)))
    return Knowledge({}, np.array(examples, dtype=np.int64), items, scores, item_vectors if vectors else None)


def batch(examples: Sequence[int] = (1, 2, 3, 4, 5, 9, 8, 99), seed: int = 0) -> Batch:
    """Examples 1, 4 and 99 were not asked about: before, between and behind those that were."""
    targets = torch.from_numpy(np.random.default_rng(seed).integers(0, N_ITEMS, len(examples)))
    unused = torch.zeros(1, dtype=torch.int64)
    return Batch(unused, unused, unused, targets, torch.tensor(examples))


def student(total: int = 8, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(total, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    return states, table


def naive_loss(
    states: Tensor, table: Tensor, asked: Batch, said: Knowledge, settings: DLLM2RecSettings
) -> tuple[Tensor, Tensor]:
    """Return the mean over examples of L_student and of lambda sum_i w_i L_student(i), as the equations say it."""
    target_loss = ranking_loss = torch.zeros((), dtype=torch.float64)
    for row, (target, example) in enumerate(zip(asked.targets.tolist(), asked.examples.tolist(), strict=True)):
        logits = table @ states[row]
        log_probability = logits - torch.logsumexp(logits, dim=0)
        target_loss = target_loss - log_probability[target]
        if example not in said.examples:
            continue
        place = said.examples.tolist().index(example)
        k = min(settings.top_k, ASKED_K)
        items, scores = said.items[place, :k].tolist(), said.scores[place, :k].tolist()
        best = sorted(range(N_ITEMS), key=lambda item: -logits[item].item())[:k]
        position = [math.exp(-rank / settings.beta) for rank in range(1, k + 1)]
        confidence = [math.exp(score / settings.confidence_temperature) for score in scores]
        agreed = [1.0 if item in best else 1e-8 for item in items]
        weights = [
            settings.position_weight * p / sum(position)
            + settings.confidence_weight * c / sum(confidence)
            + settings.consistency_weight * o
            for p, c, o in zip(position, confidence, agreed, strict=True)
        ]
        for item, weight in zip(items, weights, strict=True):
            ranking_loss = ranking_loss - settings.ranking_weight * weight / sum(weights) * log_probability[item]
    return target_loss / len(states), ranking_loss / len(states)


def make(said: Knowledge | None = None, loss: dict[str, Any] | None = None, **changes: Any) -> DLLM2Rec:
    method = DLLM2Rec(DLLM2RecSettings.model_validate(changes), knowledge() if said is None else said)
    method.objective = Objective(LossSettings.model_validate(loss or {"name": "ce"}), torch.arange(1, N_ITEMS + 1))
    return method


def loss_of(said: Knowledge | None = None, asked: Batch | None = None, **changes: object) -> dict[str, float]:
    method = make(said, **changes)
    return {name: part.item() for name, part in method.loss(asked or batch(), *student()).items()}


def test_importance_weights_by_hand() -> None:
    settings = DLLM2RecSettings(
        position_weight=2.0, confidence_weight=3.0, beta=1 / math.log(2), confidence_temperature=2.0
    )
    # e^(-r / beta) = 2^-r: 1/2, 1/4 of 3/4. Scores 2 log 3 and 0, by temperature 2: e^... = 3, 1 of 4.
    weights = importance_weights(torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64), settings)
    expected = [[2 * 2 / 3 + 3 * 3 / 4, 2 / 3 + 3 / 4], [2 * 2 / 3 + 1.5, 2 / 3 + 1.5]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_importance_weights_do_not_overflow() -> None:
    weights = importance_weights(torch.tensor([[1e4, 0.0], [-1e4, -2e4]]), DLLM2RecSettings())
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([0.8, 0.8]))


def test_consistency_by_hand() -> None:
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [1.0, 1.0, 1.0, 0.0, 2.0]])
    items = torch.tensor([[2, 3, 0], [0, 3, 4]])
    picked = logits.gather(1, items)
    # Best two: items 0 and 2 | item 4, and items 0, 1, 2 share the second place.
    assert consistency(logits, picked, 2).tolist() == [[1.0, pytest.approx(1e-8), 1.0], [1.0, pytest.approx(1e-8), 1.0]]
    assert consistency(logits, picked, 1).tolist() == [
        [pytest.approx(1e-8)] * 2 + [1.0],
        [pytest.approx(1e-8)] * 2 + [1.0],
    ]
    assert consistency(logits, picked, 99).tolist() == [[1.0] * 3] * 2


def test_published_confidence_by_hand() -> None:
    """1e-8 is added before the weights are normalised, and the temperature has no say."""
    settings = DLLM2RecSettings(
        position_weight=0, confidence_weight=2.0, paper_compat=True, confidence_temperature=9.0, beta=5.0
    )
    log = math.log
    scores = torch.tensor(
        [[log(4), log(2), log(2)], [log(2e-8), -100.0, NOTHING], [-200.0, -300.0, -400.0]], dtype=torch.float64
    )
    weights = importance_weights(scores, settings)
    expected = [[1.0, 0.5, 0.5], [1.5, 0.5, 0.0], [2 / 3, 2 / 3, 2 / 3]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4000), st.booleans())
def test_consistency_is_the_exact_current_top_with_its_ties(seed: int, k: int, n: int, few: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, n, generator=generator)
    if few:  # small whole numbers: many share the k-th place
        logits = (2 * logits).round()
    items = torch.randint(n, (3, 7), generator=generator)
    found = consistency(logits, logits.gather(1, items), k)
    for row, own, here in zip(logits.tolist(), items.tolist(), found.tolist(), strict=True):
        least = sorted(row, reverse=True)[min(k, n) - 1]
        assert here == [1.0 if row[item] >= least else pytest.approx(1e-8) for item in own]


def test_a_shared_last_place_counts_in_the_loss() -> None:
    """Items 1 to 3 score alike, behind item 0. Two places: 0 and all of the three; item 4 is behind."""
    table = torch.tensor([[2.0], [1.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    states = torch.ones(1, 1, dtype=torch.float64)
    asked = replace(batch((4,)), targets=torch.tensor([0]))
    whole = math.log(math.e**2 + 3 * math.e + 1)
    for ranked, wanted in (([3, 4], whole - 1), ([1, 2], whole - 1), ([4, 0], whole - 2), ([4, 4], whole)):
        said = Knowledge({}, np.array([4]), np.array([ranked]), np.zeros((1, 2)), None)
        method = make(said, embedding_weight=0, position_weight=0, confidence_weight=0, ranking_weight=1, top_k=2)
        assert method.loss(asked, states, table)["ranking"].item() == pytest.approx(wanted, abs=1e-6), ranked
    # As many places as items that the teacher has said: one, if it said one.
    said = Knowledge({}, np.array([4]), np.array([[1]]), np.zeros((1, 1)), None)
    parts = make(said, embedding_weight=0, ranking_weight=1, top_k=9).loss(asked, states, table)
    assert parts["ranking"].item() == pytest.approx(whole - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 99},
        {"ranking_weight": 2.5},
        {"position_weight": 0},
        {"confidence_weight": 0},
        {"consistency_weight": 0},
        {"position_weight": 0, "confidence_weight": 0},
        {"beta": 0.3, "confidence_temperature": 4.0},
    ],
)
def test_loss_and_gradients_equal_the_equations(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = _chunked(3 * N_ITEMS)  # three rows at a time, so that chunks matter
    monkeypatch.setattr("distilrec.losses.objective.catalogue_loss", chunked)
    settings, said, asked = DLLM2RecSettings.model_validate(changes), knowledge(), batch()
    states, table = student()
    target, ranking = naive_loss(states, table, asked, said, settings)
    wanted = torch.autograd.grad(target + ranking, (states, table))
    parts = make(said, **changes).loss(asked, states, table)
    assert chunked.calls == 1
    torch.testing.assert_close(parts["target"], target, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(parts["ranking"], ranking.detach(), rtol=1e-7, atol=1e-7)
    for got, want in zip(torch.autograd.grad(sum(parts.values()), (states, table)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


class _chunked:
    def __init__(self, elements: int) -> None:
        self.elements, self.calls = elements, 0

    def __call__(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return catalogue_loss(*args, **options, chunk_elements=self.elements)


def test_the_weights_of_an_example_sum_to_the_ranking_weight() -> None:
    # With all scores of the student equal, each item costs log N, whatever the weights.
    said, asked = knowledge(), batch((2, 3, 8))
    states = torch.zeros(3, WIDTH, dtype=torch.float64)
    _, table = student()
    for changes in ({}, {"top_k": 2, "consistency_weight": 7.0, "ranking_weight": 0.7}):
        parts = make(said, **changes).loss(asked, states, table)
        assert parts["ranking"].item() == pytest.approx(0.7 * math.log(N_ITEMS))
        assert parts["target"].item() == pytest.approx(math.log(N_ITEMS))


def test_every_switch_counts() -> None:
    variants = [
        {},
        {"ranking_weight": 0.1},
        {"position_weight": 0.0},
        {"confidence_weight": 0.0},
        {"consistency_weight": 0.0},
        {"top_k": 3},
        {"beta": 2.0},
        {"confidence_temperature": 3.0},
    ]
    rankings = [loss_of(**variant)["ranking"] for variant in variants]
    assert len({round(value, 9) for value in rankings}) == len(variants), rankings
    assert rankings[1] == pytest.approx(rankings[0] / 7)
    assert set(loss_of(ranking_weight=0.0)) == {"target"}
    assert len({round(loss_of(**variant)["target"], 9) for variant in variants}) == 1


def test_what_was_not_asked_costs_only_its_target() -> None:
    asked = batch((1, 4, 99))
    states, table = student(3)
    parts = make().loss(asked, states, table)
    assert parts["ranking"].item() == 0.0
    expected = torch.nn.functional.cross_entropy(states @ table.T, asked.targets)
    torch.testing.assert_close(parts["target"], expected)
    other = make(knowledge(seed=9)).loss(asked, states, table)
    assert other["target"].item() == parts["target"].item()


def test_what_the_teacher_says_counts() -> None:
    assert loss_of(knowledge(seed=0))["ranking"] != loss_of(knowledge(seed=1))["ranking"]


def test_all_weights_zero_is_no_ranking_loss() -> None:
    parts = loss_of(position_weight=0, confidence_weight=0, consistency_weight=0)
    assert parts["ranking"] == 0.0
    assert math.isfinite(parts["target"])


def test_rankings_are_looked_up_by_example_not_by_place() -> None:
    said = knowledge()
    items, scores, asked = said.rankings(torch.tensor([9, 2, 4, 5]))
    assert asked.tolist() == [True, True, False, True]
    for row, place in ((0, 4), (1, 0), (3, 2)):
        assert items[row].tolist() == said.items[place].tolist()
        assert scores[row].tolist() == said.scores[place].tolist()


def short(scores: list[list[float]], items: list[list[int]], examples: Sequence[int]) -> Knowledge:
    """Knowledge whose rankings may end early, with `NOTHING` for a score."""
    return Knowledge(
        {},
        np.array(examples, dtype=np.int64),
        np.array(items, dtype=np.int64),
        np.array(scores),
        torch.ones(N_ITEMS, 2),
    )


def test_ended_places_weigh_nothing_by_hand() -> None:
    settings = DLLM2RecSettings(
        position_weight=2.0, confidence_weight=3.0, beta=1 / math.log(2), confidence_temperature=2.0
    )
    # Two of three places: 2^-r is 1/2, 1/4 of 3/4; scores 2 log 3 and 0 by temperature 2 are 3, 1 of 4. One place: all of both.
    scores = torch.tensor([[2 * math.log(3), 0.0, NOTHING], [-7.0, NOTHING, NOTHING]], dtype=torch.float64)
    expected = [[2 * 2 / 3 + 3 * 3 / 4, 2 / 3 + 3 / 4, 0.0], [5.0, 0.0, 0.0]]
    torch.testing.assert_close(importance_weights(scores, settings), torch.tensor(expected, dtype=torch.float64))


def test_loss_of_a_ranking_that_has_ended_by_hand() -> None:
    # One state, logits 0, log 2, log 5 and no more: probabilities 1/8, 2/8, 5/8. Item 1 alone is ranked.
    states = torch.tensor([[1.0]], dtype=torch.float64)
    table = torch.tensor([[0.0], [math.log(2)], [math.log(5)]], dtype=torch.float64)
    said = Knowledge({}, np.array([4]), np.array([[1, 0, 0]]), np.array([[-3.0, NOTHING, NOTHING]]), torch.ones(3, 2))
    for changes in ({}, {"consistency_weight": 9.0}, {"top_k": 2}, {"position_weight": 0, "confidence_weight": 0}):
        asked = replace(batch((4,)), targets=torch.tensor([2]))
        parts = make(said, **{"ranking_weight": 0.7, **changes}).loss(asked, states.requires_grad_(), table)
        assert parts["ranking"].item() == pytest.approx(0.7 * math.log(4)), changes
        assert parts["target"].item() == pytest.approx(math.log(8 / 5))


def test_short_rankings_beside_long_ones_equal_each_alone() -> None:
    lists = {2: [3, 1, 7, 9], 3: [5], 5: [0, 8], 9: [4, 2, 6]}
    scores = {example: [-0.5 * rank for rank in range(len(items))] for example, items in lists.items()}
    padded = short(
        [row + [NOTHING] * (4 - len(row)) for row in scores.values()],
        [row + [0] * (4 - len(row)) for row in lists.values()],
        list(lists),
    )
    changes = {"top_k": 3, "consistency_weight": 0.0}  # the student's own top 3 differs from its top 1
    states, table = student(len(lists))
    asked = batch(tuple(lists))
    total, gradient = 0.0, torch.zeros_like(table)
    for row, (example, items) in enumerate(lists.items()):
        method = make(short([scores[example]], [items], [example]), **changes)
        one = replace(batch((example,)), targets=asked.targets[row : row + 1])
        parts = method.loss(one, states[row : row + 1], table)
        total += sum(part.item() for part in parts.values()) / len(lists)
        gradient += torch.autograd.grad(sum(parts.values()), table)[0] / len(lists)
    together = make(padded, **changes).loss(asked, states, table)
    assert sum(part.item() for part in together.values()) == pytest.approx(total)
    torch.testing.assert_close(torch.autograd.grad(sum(together.values()), table)[0], gradient)


def test_what_stands_behind_an_end_is_never_looked_at() -> None:
    """Item 0 fills the places behind an end; neither it nor another item there changes anything."""
    scores = [[-1.0, NOTHING, NOTHING], [-1.0, -2.0, NOTHING]]
    found = []
    for filler in (0, 11):
        said = short(scores, [[6, filler, filler], [7, 8, filler]], [2, 3])
        states, table = student(2)
        parts = make(said, consistency_weight=5.0).loss(batch((2, 3)), states, table)
        gradients = torch.autograd.grad(sum(parts.values()), (states, table))
        found.append([*(part.detach() for part in parts.values()), *gradients])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)
