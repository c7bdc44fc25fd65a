"""RD against numbers worked out by hand and against its equations, one example at a time, in float64."""

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
from distilrec.methods import rd
from distilrec.methods.rd import RD, RDSettings, estimated_ranks, normalised
from distilrec.settings import checked
from fixtures_rankings import (
    LOSSES,
    N_ITEMS,
    batch,
    deaf_behind_the_ends,
    knowledge,
    made,
    plain_to_the_bit,
    student,
    with_negatives,
)

HYBRID = {"warm_up_steps": 0}
SETTINGS: list[dict[str, Any]] = [
    {},
    HYBRID,
    HYBRID | {"renormalise": False},
    HYBRID | {"samples": 7},
    HYBRID | {"top_k": 3},
    HYBRID | {"top_k": 1, "sharpness": 2.0},
    HYBRID | {"position_decay": 0.01, "alpha": 0.2},
    HYBRID | {"position_decay": 5.0, "alpha": 1.0, "samples": 3},
]


method_of = partial(made, RD)


def samples_of(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Note every sample that the student's ranks are estimated from."""
    noted: list[Tensor] = []
    scored = rd.score

    def score(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
        if items.dim() == 1:
            noted.append(items)
        return scored(states, table, items)

    monkeypatch.setattr(rd, "score", score)
    return noted


def naive(
    states: Tensor, table: Tensor, asked: Batch, said: Knowledge, settings: RDSettings, sample: list[int]
) -> Tensor:
    """Return the teacher's part, before alpha."""
    total = torch.zeros((), dtype=torch.float64)
    for row, (example, target) in enumerate(zip(asked.examples.tolist(), asked.targets.tolist(), strict=True)):
        if example not in said.examples:
            continue
        place = said.examples.tolist().index(example)
        pairs = zip(said.items[place].tolist(), said.scores[place].tolist(), strict=True)
        listed = [item for item, there in pairs if there > NOTHING and item != target][: settings.top_k]
        if not listed:
            continue
        logits = [(table[item] @ states[row]).item() for item in range(N_ITEMS)]
        w_a = [math.exp((1 - rank) / settings.position_decay) for rank in range(1, len(listed) + 1)]
        weights = [one / sum(w_a) for one in w_a]
        if settings.warm_up_steps == 0:
            for rank, item in enumerate(listed, start=1):
                n = len([other for other in sample if logits[other] > logits[item]])
                estimate = math.floor(n * (N_ITEMS - 1) / len(sample) + 1e-9) + 1
                weights[rank - 1] *= math.tanh(max(settings.sharpness * (estimate - rank), 0))
            if settings.renormalise and sum(weights) > 0:
                weights = [one / sum(weights) for one in weights]
        for weight, item in zip(weights, listed, strict=True):
            total = total - weight * torch.log(torch.sigmoid(table[item] @ states[row]))
    return total / len(states)


def test_loss_by_hand() -> None:
    # Scores 0, log 3, -log 3, 1, 2: sigma = 1/2, 3/4, 1/4. The teacher ranks item 2 first, then the target, then item 0.
    states = torch.tensor([[1.0]], dtype=torch.float64)
    table = torch.tensor([[0.0], [math.log(3)], [-math.log(3)], [1.0], [2.0]], dtype=torch.float64)
    said = knowledge(lists={4: [2, 4, 0]})
    one = replace(batch((4,)), targets=torch.tensor([4]))
    own = torch.nn.functional.cross_entropy(states @ table.T, one.targets).item()
    # w_a: 2/3 and 1/3 (half for each rank). Nothing but these counts in the warm-up.
    common = {"alpha": 0.25, "position_decay": 1 / math.log(2), "sharpness": 0.5, "samples": 99}
    parts = method_of(common, said).loss(one, states, table)
    assert parts["ranking"].item() == pytest.approx(0.25 * (2 / 3 * math.log(4) + 1 / 3 * math.log(2)))
    assert parts["target"].item() == pytest.approx(0.75 * own)
    # From all 5 items: 4 are above item 2, rank floor(4 * 4 / 5) + 1 = 4; 3 above item 0, rank floor(12 / 5) + 1 = 3.
    # w_b: tanh(0.5 * (4 - 1)) and tanh(0.5 * (3 - 2)).
    w = 2 / 3 * math.tanh(1.5), 1 / 3 * math.tanh(0.5)
    parts = method_of(common | {"warm_up_steps": 0, "renormalise": False}, said).loss(one, states, table)
    assert parts["ranking"].item() == pytest.approx(0.25 * (w[0] * math.log(4) + w[1] * math.log(2)))
    parts = method_of(common | {"warm_up_steps": 0}, said).loss(one, states, table)
    assert parts["ranking"].item() == pytest.approx(0.25 * (w[0] * math.log(4) + w[1] * math.log(2)) / sum(w))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("changes", SETTINGS)
def test_loss_and_gradients_equal_the_equations(
    changes: dict[str, Any], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = samples_of(monkeypatch)
    method, said = method_of(changes, loss=loss), knowledge()
    asked = with_negatives(method, batch())
    states, table = student()
    assert method.objective is not None
    parts = method.loss(asked, states, table)
    (sample,) = [one.tolist() for one in noted]
    assert len(set(sample)) == min(method.settings.samples, N_ITEMS)
    alpha, own = method.settings.alpha, method.objective(asked, states, table)
    ranking = alpha * naive(states, table, asked, said, method.settings, sample)
    assert ranking.item() > 0
    assert set(parts) == set(own) | {"ranking"}
    torch.testing.assert_close(parts["ranking"], ranking, rtol=1e-9, atol=1e-9)
    for name, part in own.items():
        torch.testing.assert_close(parts[name], (1 - alpha) * part, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad((1 - alpha) * sum(own.values()) + ranking, (states, table))
    for got, want in zip(torch.autograd.grad(sum(parts.values()), (states, table)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    """With every item sampled the weights are steps in the scores: they stay the same for small changes."""
    method, asked = method_of(HYBRID), batch()
    method.eval()
    method.steps.fill_(1)  # past the warm-up
    torch.autograd.gradcheck(lambda *given: method.loss(asked, *given)["ranking"], student(), eps=1e-6, atol=1e-6)


def test_every_setting_counts() -> None:
    def ranking(**changes: Any) -> float:
        torch.manual_seed(3)
        return method_of(HYBRID | {"samples": 10, **changes}).loss(batch(), *student())["ranking"].item()

    variants: list[dict[str, Any]] = [
        {},
        {"alpha": 0.3},
        {"top_k": 2},
        {"position_decay": 2.0},
        {"sharpness": 0.5},
        {"samples": 15},
        {"warm_up_steps": 1},
        {"renormalise": False},
    ]
    found = [ranking(**one) for one in variants]
    assert len({round(value, 9) for value in found}) == len(variants), found


def test_the_warm_up_ends_after_its_steps_and_is_counted_in_a_kept_buffer() -> None:
    plain, hybrid = ({"samples": 99, **one} for one in ({"warm_up_steps": 10}, HYBRID))
    position, mixed = (method_of(one).loss(batch(), *student())["ranking"].item() for one in (plain, hybrid))
    assert position != pytest.approx(mixed)
    method = method_of({"samples": 99, "warm_up_steps": 2})
    found = [method.loss(batch(), *student())["ranking"].item() for _ in range(2)]
    method.eval()
    method.loss(batch(), *student())  # what does not train does not count
    assert method.steps.item() == 2
    resumed = method_of({"samples": 99, "warm_up_steps": 2})
    resumed.load_state_dict(method.state_dict())
    found += [resumed.loss(batch(), *student())["ranking"].item() for _ in range(2)]
    assert found == pytest.approx([position, position, mixed, mixed])


@pytest.mark.parametrize("loss", LOSSES)
def test_alpha_zero_is_the_plain_method_to_the_bit(loss: str) -> None:
    plain_to_the_bit(RD(RDSettings(alpha=0), None), loss)


@pytest.mark.parametrize("changes", SETTINGS)
def test_what_was_not_asked_costs_only_its_target(changes: dict[str, Any]) -> None:
    asked, method = batch((1, 4, 99)), method_of(changes)
    states, table = student(3)
    parts = method.loss(asked, states, table)
    assert parts["ranking"].item() == 0.0
    own = torch.nn.functional.cross_entropy(states @ table.T, asked.targets)
    torch.testing.assert_close(parts["target"], (1 - method.settings.alpha) * own)
    gradients = torch.autograd.grad(sum(parts.values()), (states, table))
    wanted = torch.autograd.grad((1 - method.settings.alpha) * own, (states, table))
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("changes", SETTINGS)
def test_what_stands_behind_an_end_is_never_looked_at(changes: dict[str, Any]) -> None:
    deaf_behind_the_ends(lambda said: method_of(changes, said))


def test_a_student_that_agrees_has_nothing_to_learn_after_the_warm_up() -> None:
    states = torch.ones(1, 1, dtype=torch.float64)
    table = torch.arange(N_ITEMS, 0, -1, dtype=torch.float64)[:, None]
    one = replace(batch((4,)), targets=torch.tensor([14]))
    for order, agreed in (([0, 1, 2], True), ([12, 11, 10], False)):
        cost = method_of(HYBRID, knowledge(lists={4: order})).loss(one, states, table)["ranking"].item()
        assert (cost == 0.0) is agreed


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_ranks_estimated_from_the_whole_catalogue_are_the_ranks(seed: int, n_items: int, k: int) -> None:
    """N - 1 of N: floor(n (N - 1) / N) + 1 is n, the rank less one, but for the first."""
    torch.manual_seed(seed)
    scores = torch.randn(3, n_items, dtype=torch.float64)
    items = torch.stack([torch.randperm(n_items)[:k] for _ in range(3)])
    sample = torch.randperm(n_items)
    estimate = estimated_ranks(scores.gather(1, items), scores[:, sample], items, sample, n_items)
    above = torch.tensor(
        [[sum(scores[row] > scores[row, item]).item() for item in items[row]] for row in range(3)]  # type: ignore[union-attr]
    )
    assert estimate.tolist() == above.clamp_min(1).where(above > 0, torch.ones_like(above)).tolist()


def test_an_item_is_not_above_itself_for_a_rounding() -> None:
    items, sample = torch.tensor([[2]]), torch.tensor([2, 0])
    sampled = torch.tensor([[1.0 + 1e-6, 0.0]])
    assert estimated_ranks(torch.tensor([[1.0]]), sampled, items, sample, 3).tolist() == [[1]]
    assert estimated_ranks(torch.tensor([[1.0]]), sampled, torch.tensor([[1]]), sample, 3).tolist() == [[2]]


def test_every_item_is_sampled_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    noted, method, (states, table) = samples_of(monkeypatch), method_of(HYBRID | {"samples": 5}), student()
    for seed in range(100):
        torch.manual_seed(seed)
        method.loss(batch(), states, table)
    assert {len(sample) for sample in noted} == {5}
    assert set(torch.cat(noted).tolist()) == set(range(N_ITEMS))


def test_normalised_by_hand() -> None:
    assert normalised(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="rd needs a teacher's rankings"):
        RD(RDSettings(), None)
    nothing = np.empty((0, 0), dtype=np.int64)
    empty = Knowledge({}, np.empty(0, dtype=np.int64), nothing, nothing.astype(np.float32), torch.ones(N_ITEMS, 2))
    with pytest.raises(InputError, match="rd needs rankings and this teacher gave none"):
        RD(RDSettings(), empty)
    assert RD.needs_of(RDSettings()) == {"rankings"}
    assert RD.needs_of(RDSettings(alpha=0)) == frozenset()
    RD(RDSettings(alpha=0), empty)


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 1.1}, {"top_k": 0}, {"position_decay": 0}, {"sharpness": -1}, {"samples": 0}, {"warm_up": 3}],
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(RDSettings, settings, where="method")
