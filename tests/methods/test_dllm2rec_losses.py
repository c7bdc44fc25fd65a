"""DLLM2Rec on top of each loss a student may have: totals by hand, weights out of the equations, and what a step costs."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distilrec.config import LossSettings
from distilrec.data.batching import Batch, Negatives
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods.dllm2rec import DLLM2Rec, DLLM2RecSettings
from distilrec.methods.plain import Plain, PlainSettings

N_ITEMS, WIDTH, TOTAL = 14, 6, 8
LOSSES = [
    {"name": "ce"},
    {"name": "sampled_softmax"},
    {"name": "sampled_softmax", "shared": False, "log_q": "negatives", "sampling": "popularity"},
    {"name": "bce"},
    {"name": "bce", "shared": False},
    {"name": "gbce"},
    {"name": "bpr", "sampling": "in_batch", "negatives": 0},
    {"name": "dro"},
    {"name": "dro", "base": "bce"},
    {"name": "dro", "base": "sampled_softmax"},
]


def make(said: Knowledge | None = None, loss: dict[str, Any] | None = None, **changes: Any) -> DLLM2Rec:
    method = DLLM2Rec(DLLM2RecSettings.model_validate({"embedding_weight": 0} | changes), said or knowledge())
    settings = LossSettings.model_validate({"negatives": 5} | (loss or {"name": "ce"}))
    method.objective = Objective(settings, torch.arange(1, N_ITEMS + 1))
    return method


def knowledge(seed: int = 0) -> Knowledge:
    """Examples 2, 3, 5, 8 and 9 were asked about; two rankings end early."""
    generator = np.random.default_rng(seed)
    items = np.stack([generator.permutation(N_ITEMS)[:5] for _ in range(5)])
    scores = -np.sort(generator.exponential(2.0, (5, 5)), axis=1)
    scores[1, 2:] = NOTHING
    scores[3, 1:] = NOTHING
    return Knowledge({}, np.array([2, 3, 5, 8, 9]), items, scores, None)


def problem(examples: tuple[int, ...] = (1, 2, 3, 4, 5, 9, 8, 99)) -> tuple[Batch, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(N_ITEMS, (len(examples),), generator=generator)
    unused = torch.zeros(1, dtype=torch.int64)
    batch = Batch(unused, unused, unused, targets, torch.tensor(examples))
    states, table = (
        torch.randn(n, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (len(examples), N_ITEMS)
    )
    return batch, states, table


def naive_weights(batch: Batch, states: Tensor, table: Tensor, said: Knowledge, by: DLLM2RecSettings) -> Tensor:
    """Return [T, 1 + K]: 1 for each target and lambda w for the teacher's items, 0 for those that are not there."""
    logits = (states @ table.T).detach()
    weights = torch.zeros(len(states), 1 + said.items.shape[1], dtype=torch.float64)
    weights[:, 0] = 1
    for row, example in enumerate(batch.examples.tolist()):
        if example not in said.examples:
            continue
        place = said.examples.tolist().index(example)
        scores = [score for score in said.scores[place].tolist() if score > NOTHING]
        best = logits[row].sort(descending=True).values[said.items.shape[1] - 1]
        position = [math.exp(-r / by.beta) for r in range(1, len(scores) + 1)]
        confidence = [math.exp(score / by.confidence_temperature) for score in scores]
        for rank, item in enumerate(said.items[place, : len(scores)].tolist()):
            agreed = 1.0 if logits[row, item] >= best else 1e-8
            weights[row, 1 + rank] = (
                by.position_weight * position[rank] / sum(position)
                + by.confidence_weight * confidence[rank] / sum(confidence)
                + by.consistency_weight * agreed
            )
        weights[row, 1:] *= by.ranking_weight / weights[row, 1:].sum()
        if by.examples == "by_mass":
            weights[row, 1:] *= min(1.0, sum(math.exp(score) for score in scores))
    return weights


@pytest.mark.parametrize("examples", ["alike", "by_mass"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_each_loss_gets_the_weights_of_the_equations(loss: dict[str, Any], examples: str) -> None:
    """That the losses are right, given weights, is tested where they are."""
    said, (batch, states, table) = knowledge(), problem()
    method = make(said, loss, beta=2.0, consistency_weight=0.5, examples=examples)  # 0.4 is another number in float32
    objective = method.required_objective()
    torch.manual_seed(0)
    batch = objective.draw(batch)
    weights = naive_weights(batch, states, table, said, method.settings)
    items = torch.cat([batch.targets[:, None], said.rankings(batch.examples)[0]], dim=1)
    wanted = objective.weighted(batch, states, table, items, lambda _logits, _picked, rows: weights[rows])
    found = method.loss(batch, states, table)
    drawn = {"target", "ranking"} | ({"dro", "ranking_dro"} if loss["name"] == "dro" else set())
    assert set(found) == set(wanted) == drawn
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)
    slopes = torch.autograd.grad(sum(wanted.values()), (states, table))
    for near, far in zip(torch.autograd.grad(sum(found.values()), (states, table)), slopes, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-8, atol=1e-8)


def by_hand(loss: str, said: Knowledge | None = None, **changes: Any) -> dict[str, float]:
    """One state with scores 0, log 2, log 5, log 8 and target 2; the teacher says 1, 3, 0. Negatives 1 and 0 are drawn.

    beta = 1 / log 2: w_p = 4/7, 2/7, 1/7. Scores log 4, log 2, log 2: w_c = 1/2, 1/4, 1/4. The student's best three are 3, 2
    and 1: w_o = 1, 1, 1e-8. By 0.7, 0.4 and 0.2: 0.8, 0.5, 0.2, of 1.5: w = 8/15, 5/15, 2/15.
    """
    table = torch.tensor([0.0, math.log(2), math.log(5), math.log(8)], dtype=torch.float64)[:, None]
    said = said or Knowledge({}, np.array([7]), np.array([[1, 3, 0]]), np.log([[4.0, 2.0, 2.0]]), None)
    settings = {"position_weight": 0.7, "confidence_weight": 0.4, "consistency_weight": 0.2, "beta": 1 / math.log(2)}
    method = make(said, {"name": loss}, ranking_weight=0.6, **(settings | changes))
    method.objective = Objective(LossSettings(name=loss, negatives=2), torch.ones(4))
    unused = torch.zeros(1, dtype=torch.int64)
    drawn = Negatives(torch.tensor([1, 0]), torch.zeros(2), torch.zeros(1))
    batch = Batch(unused, unused, unused, torch.tensor([2]), torch.tensor([7]), drawn)
    parts = method.loss(batch, torch.ones(1, 1, dtype=torch.float64), table)
    return {name: value.item() for name, value in parts.items()}


def test_total_of_cross_entropy_by_hand() -> None:
    # Probabilities 1/16, 2/16, 5/16, 8/16: log(16/5), and 0.6 (8 log 8 + 5 log 2 + 2 log 16) / 15.
    expected = {"target": 1.163151, "ranking": 1.025858}
    assert by_hand("ce") == pytest.approx(expected, abs=1e-6)
    assert by_hand("ce", paper_compat=True) == pytest.approx(
        expected, abs=1e-6
    )  # the scores are too high for 1e-8 to count


def test_an_example_counts_by_the_mass_of_its_items() -> None:
    # With the scores log 0.2, log 0.1, log 0.1 the weights of the items stay, and 0.4 of the ranking's part is left.
    said = Knowledge({}, np.array([7]), np.array([[1, 3, 0]]), np.log([[0.2, 0.1, 0.1]]), None)
    expected = {"target": 1.163151, "ranking": 0.4 * 1.025858}
    assert by_hand("ce", said, examples="by_mass") == pytest.approx(expected, abs=1e-6)
    assert by_hand("ce", examples="by_mass") == by_hand(
        "ce"
    )  # scores that are no log-probabilities add up to 8: at most 1


def test_the_mass_is_that_of_the_first_k_items() -> None:
    # Of two: w_p and w_c = 2/3, 1/3; the student's best two are 3 and 2, so that w_o = 1e-8, 1: w = 22/39, 17/39. Costs: log 8, log 2.
    said = Knowledge({}, np.array([7]), np.array([[1, 3, 0]]), np.log([[0.2, 0.1, 0.1]]), None)
    expected = {"target": 1.163151, "ranking": 0.3 * 0.6 * (22 * math.log(8) + 17 * math.log(2)) / 39}
    assert by_hand("ce", said, examples="by_mass", top_k=2) == pytest.approx(expected, abs=1e-6)


def test_total_of_binary_cross_entropy_by_hand() -> None:
    # sigma of the scores: 1/2, 2/3, 5/6, 8/9. Target: -log(5/6 1/3 1/2) / 3 = 0.658027.
    # Item 1 is drawn, so only 0 stands against it: -log(2/3 1/2) / 2 = 0.549306; 3: -log(8/9 1/3 1/2) / 3 = 0.636514;
    # 0: -log(1/2 1/3) / 2 = 0.895880. Weighted by 8, 5, 2 of 15: 0.624585, times 0.6.
    assert by_hand("bce") == pytest.approx({"target": 0.658027, "ranking": 0.374751}, abs=1e-6)


def test_total_of_the_published_binary_cross_entropy_by_hand() -> None:
    # Against: (log(1 + 2/e) + log(1 + 1/e)) / 2 = 0.432354 for all of them. 1: log(3/2) + that = 0.837819; 3: log(9/8) + that =
    # 0.550137; 0: log 2 + that = 1.125501. Weighted: 0.780282, times 0.6.
    assert by_hand("bce", paper_compat=True) == pytest.approx({"target": 0.658027, "ranking": 0.468169}, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_without_ranking_it_is_the_plain_loss_to_the_bit(loss: dict[str, Any]) -> None:
    method, plain = make(loss=loss, ranking_weight=0), Plain(PlainSettings(), None)
    plain.objective = method.objective
    batch, states, table = problem()
    batch = method.required_objective().draw(batch)
    found, wanted = method.loss(batch, states, table), plain.loss(batch, states, table)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    slopes = torch.autograd.grad(sum(wanted.values()), (states, table))
    for near, far in zip(torch.autograd.grad(sum(found.values()), (states, table)), slopes, strict=True):
        assert torch.equal(near, far)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_what_was_not_asked_adds_nothing(loss: dict[str, Any]) -> None:
    method, plain = make(loss=loss), Plain(PlainSettings(), None)
    plain.objective = method.objective
    batch, states, table = problem((1, 4, 99))
    batch = method.required_objective().draw(batch)
    found, wanted = method.loss(batch, states, table), plain.loss(batch, states, table)
    for key, value in found.items():
        if key.startswith("ranking"):
            assert value.item() == 0.0
        else:
            torch.testing.assert_close(value, wanted[key])
    slopes = torch.autograd.grad(sum(wanted.values()), (states, table))
    for near, far in zip(torch.autograd.grad(sum(found.values()), (states, table)), slopes, strict=True):
        torch.testing.assert_close(near, far)


def test_each_loss_makes_another_ranking_part() -> None:
    batch, states, table = problem()
    found = set()
    for one in LOSSES:
        method = make(loss=one)
        torch.manual_seed(0)
        parts = method.loss(method.required_objective().draw(batch), states, table)
        found.add(round(sum(value.item() for key, value in parts.items() if key.startswith("ranking")), 7))
    assert len(found) == len(LOSSES)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_catalogue_is_scored_once(loss: dict[str, Any]) -> None:
    method = make(loss=loss)
    batch, states, table = problem()
    batch = method.required_objective().draw(batch)
    made: list[tuple[int, ...]] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if "mm" in function.overloadpacket.__name__:
                made.append(tuple(result.shape))
            return result

    with Counting():
        total = sum(method.loss(batch, states, table).values())
        assert made.count((TOTAL, N_ITEMS)) == 1
        total.backward()
    assert made.count((TOTAL, N_ITEMS)) == 1
    over_the_catalogue = loss["name"] in ("ce", "dro")
    assert made.count((N_ITEMS, WIDTH)) == over_the_catalogue  # the table's gradient, out of all scores at once
    if loss in ({"name": "ce"}, {"name": "dro"}):
        assert made == [(TOTAL, N_ITEMS), (TOTAL, WIDTH), (N_ITEMS, WIDTH)]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_bfloat16_scores_come_near(loss: dict[str, Any]) -> None:
    batch, states, table = problem()
    states, table = (part.detach().float().requires_grad_() for part in (states, table))
    results = []
    for dtype in (None, torch.bfloat16):
        method = make(loss=loss, consistency_weight=0)  # which jumps where a score is nearly among the best
        objective = method.required_objective()
        objective.dtype = dtype
        torch.manual_seed(0)
        parts = method.loss(objective.draw(batch), states, table)
        results.append((parts, torch.autograd.grad(sum(parts.values()), (states, table))))
    for key, value in results[0][0].items():
        assert results[1][0][key].dtype == torch.float32
        assert results[1][0][key].item() == pytest.approx(value.item(), rel=0.03)
    for near, far in zip(results[1][1], results[0][1], strict=True):
        assert (near - far).norm() / far.norm() < 0.03


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_places_behind_an_end_do_not_matter(loss: dict[str, Any]) -> None:
    said, (batch, states, table) = knowledge(), problem()
    other = replace(said, items=np.where(np.isfinite(said.scores), said.items, 11))
    found = []
    for one in (said, other):
        method = make(one, loss, consistency_weight=3.0)
        torch.manual_seed(0)
        parts = method.loss(method.required_objective().draw(batch), states, table)
        slopes = torch.autograd.grad(sum(parts.values()), (states, table))
        found.append([*(value.detach() for value in parts.values()), *slopes])
    for near, far in zip(*found, strict=True):
        torch.testing.assert_close(near, far)
