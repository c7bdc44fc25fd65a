"""Every loss with several weighted positives against its formula, written out one row and one positive at a time, in float64."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch, Negatives
from distilrec.losses import objective as module
from distilrec.losses.catalogue import CHUNK_ELEMENTS
from distilrec.losses.dro import propensities
from distilrec.losses.objective import Objective

N_ITEMS, WIDTH, COLUMNS = 12, 5, 5  # few items: positives, negatives, histories and targets often meet
POPULARITY = torch.arange(1, N_ITEMS + 1)
PLAIN = [
    {"name": "ce"},
    *({"name": "sampled_softmax", "log_q": how, "sampling": "popularity"} for how in ("none", "all", "negatives")),
    {"name": "sampled_softmax", "sampling": "in_batch", "negatives": 0},
    {"name": "bce"},
    {"name": "bce", "sampling": "in_batch", "negatives": 7},
    {"name": "gbce", "calibration": 0.6},
    {"name": "bpr"},
    {"name": "dro", "dro_beta": 0.8, "dro_weight": 0.3},
    {"name": "dro", "base": "bce", "dro_weight": 0.3},
    {"name": "dro", "base": "sampled_softmax", "sampling": "popularity"},
]
SHARED = [one for one in PLAIN if one["name"] != "ce" and one.get("sampling") != "in_batch"]
ALL = PLAIN + [one | more for one in SHARED for more in ({"shared": False}, {"exclude_history": True})]
ALL += [one | {"shared": False, "exclude_history": True} for one in SHARED]


def make(settings: dict[str, Any]) -> Objective:
    return Objective(LossSettings.model_validate({"negatives": 9} | settings), POPULARITY)


def problem(seed: int = 0) -> tuple[Batch, Tensor, Tensor, Tensor, Tensor]:
    """Batch, states, table, items [T, M] with the target in front and, in some rows, behind it again, and weights."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([4, 1, 3])
    inside = torch.arange(4) < lengths[:, None]
    histories = torch.where(inside, torch.randint(N_ITEMS, (3, 4), generator=generator), 0)
    positions = inside.flatten().nonzero()[:, 0]
    targets = torch.randint(N_ITEMS, (len(positions),), generator=generator)
    batch = Batch(histories, lengths, positions, targets, torch.arange(len(positions)))
    lists = [torch.randperm(N_ITEMS, generator=generator)[: COLUMNS - 1] for _ in targets]
    items = torch.cat([targets[:, None], torch.stack(lists)], dim=1)
    items[0, 2] = targets[0]
    items[1, 3] = items[1, 1]  # a teacher that says an item twice
    drawn = torch.rand(len(targets), COLUMNS, dtype=torch.float64, generator=generator)
    states, table = (
        torch.randn(n, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (len(targets), N_ITEMS)
    )
    return batch, states, table, items, drawn


def log_expected(settings: LossSettings, item: int, count: int) -> float:
    share = torch.full((N_ITEMS,), 1 / N_ITEMS, dtype=torch.float64)
    if settings.sampling != "uniform":  # targets of a batch come as often as they are popular
        share = POPULARITY.double() / POPULARITY.sum()
    return (share * count).log()[item].item()


def naive_cell(name: str, settings: LossSettings, y: Tensor, item: int, against: list[int], count: int) -> Tensor:
    """Return the loss of one positive for one state with scores y, against the negatives that count."""
    own, others = y[item], [y[j] for j in against]
    if name == "ce":
        return y.exp().sum().log() - own
    if name == "sampled_softmax":
        if settings.log_q != "none":
            others = [y[j] - log_expected(settings, j, count) for j in against]
        if settings.log_q == "all":
            own = own - log_expected(settings, item, count)
        return (own.exp() + sum(other.exp() for other in others)).log() - own
    if name == "bpr":
        return -sum(torch.sigmoid(own - other).log() for other in others) / max(len(others), 1) + 0 * own
    weight, n = 1.0, len(others)
    if name == "gbce":
        a = max(n, 1) / (N_ITEMS - 1)
        weight = a * (settings.calibration * (1 - 1 / a) + 1 / a)
    return -(weight * torch.sigmoid(own).log() + sum((1 - torch.sigmoid(other)).log() for other in others)) / (n + 1)


def naive_robust(settings: LossSettings, y: Tensor, item: int) -> Tensor:
    p = propensities(POPULARITY).double()
    mass = [(p[j] * y[j] ** 2 / settings.dro_beta).exp() for j in range(N_ITEMS) if j != item]
    return (sum(mass) + (p[item] * (y[item] - 1) ** 2 / settings.dro_beta).exp()).log()


def naive(
    one: Objective, batch: Batch, states: Tensor, table: Tensor, items: Tensor, weights: Tensor, published: bool = False
) -> dict[str, Tensor]:
    settings, drawn = one.settings, batch.negatives
    name = settings.base if settings.name == "dro" else str(settings.name)
    parts = {"target": [], "ranking": [], "dro": [], "ranking_dro": []}
    for t, target in enumerate(batch.targets.tolist()):
        y, against = table @ states[t], []
        count = 0
        if drawn is not None:
            row = int(batch.positions[t]) // batch.histories.shape[1]
            barred = {target}
            if settings.exclude_history:
                barred |= set(batch.histories[row, : batch.lengths[row]].tolist())
            against = (drawn.items if drawn.items.dim() == 1 else drawn.items[t]).tolist()
            count, against = len(against), [j for j in against if j not in barred]
        for m, item in enumerate(items[t].tolist()):
            if published and name == "bce" and m > 0:
                pushed = [torch.sigmoid(1 - y[j]).log() for j in against]
                cell = -torch.sigmoid(y[item]).log() - sum(pushed) / max(len(pushed), 1)
            else:
                cell = naive_cell(name, settings, y, item, [j for j in against if j != item], count)
            parts["ranking" if m else "target"].append(weights[t, m] * cell)
            if settings.name == "dro":
                term = settings.dro_weight * weights[t, m] * naive_robust(settings, y, item)
                parts["ranking_dro" if m else "dro"].append(term)
    return {key: torch.stack(values).sum() / len(states) for key, values in parts.items() if values}


def same(found: Tensor, wanted: Tensor, settings: dict[str, Any]) -> None:
    """Compare closely. Popularity and propensities are kept in float32."""
    tolerance = 3e-6 if settings["name"] in ("sampled_softmax", "dro") else 1e-9
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def compare(settings: dict[str, Any], seed: int, published: bool = False) -> None:
    one = make(settings)
    batch, states, table, items, weights = problem(seed)
    torch.manual_seed(seed)
    batch = one.draw(batch)
    wanted = naive(one, batch, states, table, items, weights, published)
    slopes = torch.autograd.grad(2 * sum(wanted.values()), (states, table))
    found = one.weighted(batch, states, table, items, lambda _logits, _picked, rows: weights[rows], published=published)
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        same(found[key].detach(), value.detach(), settings)
    for near, far in zip(torch.autograd.grad(2 * sum(found.values()), (states, table)), slopes, strict=True):
        same(near, far, settings)


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_parts_and_gradients_equal_the_formulas(settings: dict[str, Any]) -> None:
    for seed in range(3):
        compare(settings, seed)


@given(st.integers(0, 10_000), st.sampled_from(ALL))
@hypothesis_settings(max_examples=25)
def test_any_problem(seed: int, settings: dict[str, Any]) -> None:
    compare(settings, seed)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"shared": False},
        {"exclude_history": True, "negatives": 2},
        {"name": "dro", "base": "bce", "negatives": 1},
    ],
    ids=str,
)
def test_the_published_ranking_part(more: dict[str, Any]) -> None:
    compare({"name": "bce"} | more, 0, published=True)


@pytest.mark.parametrize("settings", [one for one in ALL if one["name"] not in ("bce", "dro")], ids=str)
def test_published_is_of_bce_alone(settings: dict[str, Any]) -> None:
    compare(settings, 0, published=True)


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_chunks_do_not_matter(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for elements in (1, 3 * N_ITEMS + 1):
        calls = []

        def chunked(function: Any, size: int = elements, calls: list[int] = calls) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                calls.append(size)
                return function(*args, **options, chunk_elements=size)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(module, "catalogue_loss", chunked(module.catalogue_loss))
            patch.setattr(module, "scan", chunked(module.scan))
            compare(settings, 5)
        assert len(calls) == 1
    assert N_ITEMS * 8 < CHUNK_ELEMENTS


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_one_positive_without_weights_is_the_plain_loss(settings: dict[str, Any]) -> None:
    one = make(settings)
    batch, states, table, _, _ = problem()
    batch = one.draw(batch)
    plain = one(batch, states, table)
    found = one.weighted(batch, states, table, batch.targets[:, None], None)
    assert set(found) == set(plain) == ({"target", "dro"} if settings["name"] == "dro" else {"target"})
    wanted = naive(one, batch, states, table, batch.targets[:, None], torch.ones_like(states[:, :1]))
    slopes = torch.autograd.grad(sum(wanted.values()), (states, table))
    for parts in (plain, found):
        for key, value in parts.items():
            same(value.detach(), wanted[key].detach(), settings)
        for near, far in zip(torch.autograd.grad(sum(parts.values()), (states, table)), slopes, strict=True):
            same(near, far, settings)


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_several_positives_without_weights_weigh_one_each(settings: dict[str, Any]) -> None:
    one = make(settings)
    batch, states, table, items, weights = problem()
    batch = one.draw(batch)
    wanted = naive(one, batch, states, table, items, torch.ones_like(weights))
    found = one.weighted(batch, states, table, items, None)
    for key, value in wanted.items():
        same(found[key].detach(), value.detach(), settings)
    slopes = torch.autograd.grad(sum(wanted.values()), (states, table))
    for near, far in zip(torch.autograd.grad(sum(found.values()), (states, table)), slopes, strict=True):
        same(near, far, settings)


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_weights_see_each_score_once_and_get_no_gradient(settings: dict[str, Any]) -> None:
    """Weights may follow the scores, as DLLM2Rec's do; they are constants to the gradient."""
    one = make(settings)
    batch, states, table, items, _ = problem()
    batch, whole, seen = one.draw(batch), (states @ table.T).detach(), []

    def weigh(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
        torch.testing.assert_close(logits, whole[rows])
        torch.testing.assert_close(picked, whole[rows].gather(1, items[rows]))
        assert not logits.requires_grad
        seen.extend(range(rows.start, rows.stop))
        return torch.sigmoid(picked)

    found = one.weighted(batch, states, table, items, weigh)
    assert seen == list(range(len(states)))
    wanted = naive(one, batch, states, table, items, torch.sigmoid(whole.gather(1, items)))
    for near, far in zip(
        torch.autograd.grad(sum(found.values()), (states, table)),
        torch.autograd.grad(sum(wanted.values()), (states, table)),
        strict=True,
    ):
        same(near, far, settings)


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_bfloat16_logits_come_near(settings: dict[str, Any]) -> None:
    exact, rough = make(settings), make(settings)
    rough.dtype = torch.bfloat16
    batch, states, table, items, weights = problem()
    states, table = (part.detach().float().requires_grad_() for part in (states, table))
    batch = exact.draw(batch)
    found = [
        one.weighted(batch, states, table, items, lambda _logits, _picked, rows: weights[rows].float())
        for one in (rough, exact)
    ]
    for key, value in found[1].items():
        assert found[0][key].dtype == torch.float32
        assert found[0][key].item() == pytest.approx(value.item(), rel=0.03)
    slopes = [torch.autograd.grad(sum(parts.values()), (states, table)) for parts in found]
    for near, far in zip(*slopes, strict=True):
        assert (near - far).norm() / far.norm() < 0.03


@pytest.mark.parametrize("settings", [one for one in PLAIN if one["name"] not in ("ce", "dro")], ids=str)
def test_a_positive_drawn_as_every_negative(settings: dict[str, Any]) -> None:
    """Nothing is left to tell it from: what it costs is finite, and next to nothing where negatives are all that costs."""
    one = make(settings | {"sampling": "uniform", "negatives": 3})
    batch, states, table, items, weights = problem()
    drawn = torch.full((3,), int(items[3, 1]))
    log_q = torch.full((3 + len(states),), math.log(3 / N_ITEMS))
    batch = replace(batch, negatives=Negatives(drawn, log_q[:3], log_q[3:]))
    found = one.weighted(batch, states, table, items, lambda _logits, _picked, rows: weights[rows])
    wanted = naive(one, batch, states, table, items, weights)
    assert found["ranking"].item() == pytest.approx(wanted["ranking"].item(), abs=1e-5)
    slopes = torch.autograd.grad(sum(found.values()), (states, table))
    for near, far in zip(slopes, torch.autograd.grad(sum(wanted.values()), (states, table)), strict=True):
        torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
