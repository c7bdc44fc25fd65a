"""Soft labels against numbers worked out by hand and against their equations, one example at a time, in float64."""

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

from distilrec.data.batching import Batch
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods import soft_labels
from distilrec.methods.soft_labels import SoftLabels, SoftLabelsSettings, entropy, listed_divergence
from distilrec.settings import checked
from fixtures_rankings import (
    LISTS,
    LOSSES,
    N_ITEMS,
    deaf_behind_the_ends,
    made,
    plain_to_the_bit,
    student,
    with_negatives,
)

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.5},
    {"temperature": 0.4, "weight": 0.3},
    {"top_k": 2},
    {"top_k": 1},
    {"top_k": 99, "weight": 3.0},
    {"over": "top_k"},
    {"over": "top_k", "temperature": 3.0, "top_k": 3},
    {"over": "top_k", "temperature": 0.5, "weight": 0.2},
]


def knowledge(seed: int = 0, filler: int = 0, lists: dict[int, list[int]] = LISTS) -> Knowledge:
    """Lists of 1 to 5 items; `filler` stands behind the ends."""
    generator = np.random.default_rng(seed)
    width = max(map(len, lists.values()))
    items = np.full((len(lists), width), filler)
    scores = np.full((len(lists), width), NOTHING)
    for row, found in enumerate(lists.values()):
        items[row, : len(found)] = found
        scores[row, : len(found)] = -np.sort(generator.exponential(2.0, len(found)))
    return Knowledge({}, np.array(list(lists), dtype=np.int64), items.astype(np.int64), scores, None)


def batch(examples: Sequence[int] = (1, 2, 3, 4, 5, 9, 8, 99)) -> Batch:
    """Examples 1, 4 and 99 were not asked about: before, between and behind those that were."""
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, N_ITEMS, len(examples)))
    unused = torch.zeros(1, dtype=torch.int64)
    return Batch(unused, unused, unused, targets, torch.tensor(examples))


def method_of(changes: dict[str, Any], said: Knowledge | None = None, loss: str = "ce") -> SoftLabels:
    return made(SoftLabels, changes, said if said is not None else knowledge(), loss)


def naive(states: Tensor, table: Tensor, asked: Batch, said: Knowledge, settings: SoftLabelsSettings) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, example in enumerate(asked.examples.tolist()):
        if example not in said.examples:
            continue
        place = said.examples.tolist().index(example)
        listed = [
            (int(item), float(score))
            for item, score in list(zip(said.items[place], said.scores[place], strict=True))[: settings.top_k]
            if score > NOTHING
        ]
        raised = [math.exp(score / settings.temperature) for _, score in listed]
        chosen = range(N_ITEMS) if settings.over == "catalogue" else [item for item, _ in listed]
        mass = torch.stack([torch.exp(table[item] @ states[row] / settings.temperature) for item in chosen]).sum()
        for (item, _), up in zip(listed, raised, strict=True):
            q = up / sum(raised)
            log_p = table[item] @ states[row] / settings.temperature - mass.log()
            total = total + q * (math.log(q) - log_p)
    return settings.weight * settings.temperature**2 * total / len(states)


@pytest.mark.parametrize(
    ("over", "expected"),
    # Student exp(y / 2) = 1, 2, 5; teacher exp(c / 2) = 3, 1 on items 2 and 0. KL = 3/4 log(3/4 / p_2) + 1/4 log(1/4 / p_0).
    [
        ("catalogue", 0.75 * math.log(0.75 * 8 / 5) + 0.25 * math.log(0.25 * 8)),
        ("top_k", 0.75 * math.log(0.75 * 6 / 5) + 0.25 * math.log(0.25 * 6)),
    ],
)
def test_loss_by_hand(over: str, expected: float) -> None:
    states = torch.tensor([[2.0]], dtype=torch.float64)
    table = torch.tensor([[0.0], [math.log(2)], [math.log(5)]], dtype=torch.float64)
    said = Knowledge({}, np.array([4]), np.array([[2, 0, 1]]), np.array([[2 * math.log(3), 0.0, NOTHING]]), None)
    settings = SoftLabelsSettings.model_validate({"over": over, "temperature": 2.0, "weight": 0.5})
    one = replace(batch((4,)), targets=torch.tensor([1]))
    parts = SoftLabels(settings, said).loss(one, states, table)
    assert parts["soft"].item() == pytest.approx(0.5 * 4 * expected)
    assert parts["target"].item() == pytest.approx(math.log(30 / 4))  # logits 0, 2 log 2, 2 log 5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("changes", SETTINGS)
def test_loss_and_gradients_equal_the_equations(changes: dict[str, Any], loss: str) -> None:
    method, said = method_of(changes, loss=loss), knowledge()
    asked = with_negatives(method, batch())
    states, table = student()
    assert method.objective is not None
    own = method.objective(asked, states, table)
    soft = naive(states, table, asked, said, method.settings)
    wanted = torch.autograd.grad(sum(own.values()) + soft, (states, table))
    parts = method.loss(asked, states, table)
    assert set(parts) == set(own) | {"soft"}
    torch.testing.assert_close(parts["soft"].detach(), soft.detach(), rtol=1e-9, atol=1e-9)
    for name, part in own.items():
        torch.testing.assert_close(parts[name].detach(), part.detach(), rtol=1e-9, atol=1e-9)
    for got, want in zip(torch.autograd.grad(sum(parts.values()), (states, table)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "changes", "passes"), [("ce", {}, 1), ("ce", {"temperature": 2.0}, 1), ("bce", {}, 1)]
)
def test_the_catalogue_is_scored_once_with_the_target_where_that_is_possible(
    loss: str, changes: dict[str, Any], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def counted(states: Tensor, table: Tensor, items: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        calls.append(tuple(items.shape))  # type: ignore[arg-type]
        return whole(states, table, items, *args, **options)

    whole = soft_labels.weighted_cross_entropy
    monkeypatch.setattr(soft_labels, "weighted_cross_entropy", counted)
    method = method_of(changes, loss=loss)
    own_calls: list[int] = []
    objective = method.objective
    assert objective is not None
    monkeypatch.setattr(Objective, "__call__", _counting(Objective.__call__, own_calls))
    method.loss(with_negatives(method, batch()), *student())
    shared = loss == "ce" and not changes
    assert len(calls) == passes
    assert calls[0] == ((8, 6) if shared else (5, 5))  # the second pass reads only the examples asked about
    assert len(own_calls) == (0 if shared else 1)


def _counting(function: Any, calls: list[int]) -> Any:
    def counted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return counted


@pytest.mark.parametrize("over", ["catalogue", "top_k"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(over: str, temperature: float) -> None:
    method = method_of({"over": over, "temperature": temperature})
    asked = batch()

    def total(states: Tensor, table: Tensor) -> Tensor:
        return torch.stack(list(method.loss(asked, states, table).values())).sum()

    # The parts of a shared pass carry their gradient in the first alone: only the sum can be checked.
    torch.autograd.gradcheck(total, student(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("over", ["catalogue", "top_k"])
def test_every_setting_counts(over: str) -> None:
    variants = [{}, {"weight": 0.5}, {"temperature": 2.0}, {"top_k": 2}, {"top_k": 4}]
    found = [method_of({"over": over, **one}).loss(batch(), *student())["soft"].item() for one in variants]
    assert len({round(value, 9) for value in found}) == len(variants), found
    other = method_of({"over": {"catalogue": "top_k", "top_k": "catalogue"}[over]})
    assert other.loss(batch(), *student())["soft"].item() != pytest.approx(found[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_is_the_plain_method_to_the_bit(loss: str) -> None:
    plain_to_the_bit(SoftLabels(SoftLabelsSettings(weight=0), None), loss)


@pytest.mark.parametrize("changes", SETTINGS)
def test_what_was_not_asked_costs_only_its_target(changes: dict[str, Any]) -> None:
    asked = batch((1, 4, 99))
    states, table = student(3)
    parts = method_of(changes).loss(asked, states, table)
    assert parts["soft"].item() == 0.0
    torch.testing.assert_close(parts["target"], torch.nn.functional.cross_entropy(states @ table.T, asked.targets))
    torch.autograd.grad(sum(parts.values()), (states, table))
    other = method_of(changes, knowledge(seed=9)).loss(asked, states, table)
    assert other["target"].item() == parts["target"].item()


@pytest.mark.parametrize("changes", SETTINGS)
def test_what_stands_behind_an_end_is_never_looked_at(changes: dict[str, Any]) -> None:
    deaf_behind_the_ends(lambda said: method_of(changes, said), lambda filler: knowledge(filler=filler))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6), st.floats(-5, 5))
def test_a_student_with_the_scores_of_the_teacher_has_nothing_to_learn(scores: list[float], shift: float) -> None:
    given_scores = torch.tensor([scores], dtype=torch.float64)
    teacher, there = torch.softmax(given_scores, dim=1), torch.ones(1, len(scores), dtype=torch.bool)
    alike = (given_scores + shift).requires_grad_()
    divergence = listed_divergence(alike, teacher, there)
    assert divergence.item() == pytest.approx(0.0, abs=1e-9)
    (gradient,) = torch.autograd.grad(divergence, alike)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    unlike = alike.detach() + torch.linspace(0, 3, len(scores), dtype=torch.float64)
    assert listed_divergence(unlike, teacher, there).item() >= -1e-12


def test_entropy_by_hand() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert entropy(shares).item() == pytest.approx((math.log(2) + 0 + 1.5 * math.log(2) + 0) / 4)


@pytest.mark.parametrize("over", ["catalogue", "top_k"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_of_bfloat16_is_close(over: str, temperature: float) -> None:
    method = method_of({"over": over, "temperature": temperature})
    states, table = student()
    exact = method.loss(batch(), states, table)["soft"]
    rough = method.loss(batch(), states.bfloat16(), table.bfloat16())["soft"]
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_catalogue_is_scored_as_roughly_as_the_students_loss_says(temperature: float) -> None:
    states, table = (part.detach().float() for part in student())
    found = []
    for dtype in (None, torch.bfloat16):
        method = method_of({"temperature": temperature})
        assert method.objective is not None
        method.objective.dtype = dtype
        found.append(method.loss(batch(), states, table)["soft"].item())
    assert abs(found[1] - found[0]) > 1e-5 * found[0]
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="soft_labels needs a teacher's rankings and scores"):
        SoftLabels(SoftLabelsSettings(), None)
    said = knowledge()
    ranked = Knowledge({}, said.examples, said.items, np.where(said.scores > NOTHING, 0.0, NOTHING), None)
    with pytest.raises(InputError, match="soft_labels needs scores and this teacher gave none"):
        SoftLabels(SoftLabelsSettings(), ranked)
    assert SoftLabels.needs_of(SoftLabelsSettings()) == {"rankings", "scores"}
    assert SoftLabels.needs_of(SoftLabelsSettings(weight=0)) == frozenset()
    SoftLabels(SoftLabelsSettings(weight=0), ranked)


@pytest.mark.parametrize("settings", [{"weight": -1}, {"temperature": 0}, {"over": "all"}, {"top_k": 0}, {"tau": 1}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(SoftLabelsSettings, settings, where="method")
