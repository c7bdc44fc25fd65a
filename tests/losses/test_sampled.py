"""Losses against sampled items: hand-computed values, a float64 reference, and no two losses give the same number."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.losses.catalogue import cross_entropy
from distilrec.losses.negatives import Sampler, hidden, repeats
from distilrec.losses.objective import WHOLE_CATALOGUE, Objective, only_needed_rows
from distilrec.losses.sampled import (
    bce,
    bpr,
    each_bce,
    each_bpr,
    each_gbce,
    each_sampled_softmax,
    gbce,
    sampled_softmax,
    shared_sampled_softmax,
)

POSITIVE = torch.tensor([1.0, -0.5], dtype=torch.float64)
NEGATIVE = torch.tensor([[0.0, 2.0, -1.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
HIDDEN = torch.tensor([[False, True, False], [False, False, False]])


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def test_by_hand() -> None:
    first = math.log(math.exp(1) + 1 + math.exp(-1)) - 1
    second = math.log(math.exp(-0.5) + 2 * math.exp(0.5) + math.exp(3)) + 0.5
    assert sampled_softmax(POSITIVE, NEGATIVE, HIDDEN).item() == pytest.approx((first + second) / 2, abs=1e-12)
    first = -(math.log(sigma(1)) + math.log(sigma(0)) + math.log(sigma(1))) / 3
    second = -(math.log(sigma(-0.5)) + 2 * math.log(sigma(-0.5)) + math.log(sigma(-3))) / 4
    assert bce(POSITIVE, NEGATIVE, HIDDEN).item() == pytest.approx((first + second) / 2, abs=1e-12)
    first = -(math.log(sigma(1)) + math.log(sigma(2))) / 2
    second = -(2 * math.log(sigma(-1)) + math.log(sigma(-3.5))) / 3
    assert bpr(POSITIVE, NEGATIVE, HIDDEN).item() == pytest.approx((first + second) / 2, abs=1e-12)

    def beta(n: int, items: int, t: float) -> float:
        a = n / (items - 1)
        return a * (t * (1 - 1 / a) + 1 / a)

    first = -(beta(2, 11, 0.6) * math.log(sigma(1)) + math.log(sigma(0)) + math.log(sigma(1))) / 3
    second = -((beta(3, 11, 0.6) + 2) * math.log(sigma(-0.5)) + math.log(sigma(-3))) / 4
    value = gbce(POSITIVE, NEGATIVE, HIDDEN, n_items=11, calibration=0.6).item()
    assert value == pytest.approx((first + second) / 2, abs=1e-12)


def test_gbce_without_calibration_is_bce() -> None:
    assert gbce(POSITIVE, NEGATIVE, n_items=50, calibration=0.0).item() == pytest.approx(
        bce(POSITIVE, NEGATIVE).item(), abs=1e-12
    )


def test_log_q_by_hand() -> None:
    log_q = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
    own = torch.tensor([-0.3, 0.1], dtype=torch.float64)
    expected = 0.0
    for row in range(2):
        target = POSITIVE[row].item() - own[row].item()
        others = [NEGATIVE[row, j].item() - log_q[j].item() for j in range(3) if not HIDDEN[row, j]]
        expected += math.log(math.exp(target) + sum(map(math.exp, others))) - target
    value = sampled_softmax(POSITIVE, NEGATIVE, HIDDEN, log_q_positive=own, log_q_negative=log_q)
    assert value.item() == pytest.approx(expected / 2, abs=1e-12)


@pytest.mark.parametrize("corrected", [True, False])
def test_shared_softmax_is_the_plain_one(corrected: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states, table = (torch.randn(n, 5, generator=generator, dtype=torch.float64, requires_grad=True) for n in (6, 20))
    targets, items = torch.tensor([1, 4, 4, 19, 0, 7]), torch.tensor([4, 4, 2, 0, 11])
    unfit = items == targets[:, None]
    unfit[5] = True  # nothing to compare with
    log_q = torch.randn(20, generator=generator, dtype=torch.float64)
    own, others = (log_q[targets], log_q[items]) if corrected else (None, None)
    plain = sampled_softmax(
        (states * table[targets]).sum(dim=1), states @ table[items].T, unfit, log_q_positive=own, log_q_negative=others
    )
    fused = shared_sampled_softmax(states, table, targets, items, unfit, log_q_positive=own, log_q_negative=others)
    torch.testing.assert_close(fused, plain)
    for found, wanted in zip(
        torch.autograd.grad(3 * fused, (states, table)), torch.autograd.grad(3 * plain, (states, table)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("loss", [sampled_softmax, bce, bpr])
def test_all_hidden(loss: object) -> None:
    positive, negative = POSITIVE.clone().requires_grad_(), NEGATIVE.clone().requires_grad_()
    value = loss(positive, negative, torch.ones_like(HIDDEN))  # type: ignore[operator]
    value.backward()
    expected = -sum(math.log(sigma(float(y))) for y in POSITIVE) / 2 if loss is bce else 0.0
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert torch.isfinite(positive.grad).all()
    assert negative.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", [sampled_softmax, bce, bpr])
def test_what_is_hidden_does_not_matter(loss: object) -> None:
    other = torch.where(HIDDEN, 77.0, NEGATIVE)
    assert loss(POSITIVE, other, HIDDEN).item() == loss(POSITIVE, NEGATIVE, HIDDEN).item()  # type: ignore[operator]
    assert loss(POSITIVE, other).item() != loss(POSITIVE, NEGATIVE).item()  # type: ignore[operator]


def test_positives_that_are_drawn_as_negatives_by_hand() -> None:
    # One state with the negatives a, b, a, t, where t is the target, hidden, and a, b, c are positives beside it.
    y = {"t": 0.7, "a": 2.0, "b": -1.0, "c": 0.5}
    positive = torch.tensor([[y["t"], y["a"], y["b"], y["c"]]], dtype=torch.float64)
    negative = torch.tensor([[y["a"], y["b"], y["a"], y["t"]]], dtype=torch.float64)
    unfit, again = torch.tensor([[False, False, False, True]]), torch.tensor([[0, 2, 1, 0]])
    left = {"t": "aba", "a": "b", "b": "aa", "c": "aba"}  # what each is told from
    softmax = [math.log(math.exp(y[i]) + sum(math.exp(y[j]) for j in left[i])) - y[i] for i in y]
    binary = [-(math.log(sigma(y[i])) + sum(math.log(sigma(-y[j])) for j in left[i])) / (len(left[i]) + 1) for i in y]
    pairs = [-sum(math.log(sigma(y[i] - y[j])) for j in left[i]) / len(left[i]) for i in y]
    weights = [(n := len(left[i]) / 10) * (0.6 * (1 - 1 / n) + 1 / n) for i in y]  # 11 items
    weaker = [binary[m] - (weights[m] - 1) * math.log(sigma(y[i])) / (len(left[i]) + 1) for m, i in enumerate(y)]
    for found, wanted in (
        (each_sampled_softmax(positive, negative, unfit, again, positive), softmax),
        (each_bce(positive, negative, unfit, again), binary),
        (each_gbce(positive, negative, unfit, again, n_items=11, calibration=0.6), weaker),
        (each_bpr(positive, negative, unfit, again), pairs),
    ):
        assert found[0].tolist() == pytest.approx(wanted, abs=1e-12)
    # Scores may be corrected: a's own by 0.3 less than where it stands among the negatives.
    found = each_sampled_softmax(positive - 0.3, negative, unfit, again, positive)[0, 1].item()
    assert found == pytest.approx(math.log(math.exp(1.7) + math.exp(-1)) - 1.7, abs=1e-12)


@pytest.mark.parametrize("leading", [5.0, 14.0, 60.0, 1e4])
def test_a_leading_positive_that_is_drawn_costs_next_to_nothing(leading: float) -> None:
    """Taken out of the sum, it leaves the small rest: in float32 that may be rounding, but no more than that."""
    positive = torch.tensor([[0.0, leading]], requires_grad=True)
    negative = torch.tensor([[leading, 1.0, 2.0]], requires_grad=True)
    again = torch.tensor([[0, 1]])
    found = each_sampled_softmax(positive, negative, None, again, positive)[0, 1]
    rest = math.log(math.e + math.e**2) - leading
    assert found.item() == pytest.approx(math.log1p(math.exp(rest)), abs=2e-6)
    near, far = torch.autograd.grad(found, (positive, negative))
    assert near[0, 1].item() + far[0, 0].item() == pytest.approx(-sigma(rest), abs=2e-6)
    assert far[0, 1:].tolist() == pytest.approx([sigma(rest) * sigma(-1), sigma(rest) * sigma(1)], abs=2e-6)


def some_batch(seed: int = 0, items: int = 30, rows: int = 5, length: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    inside = torch.arange(length) < lengths[:, None]
    histories = torch.where(inside, torch.randint(items, (rows, length), generator=generator), 0)
    positions = inside.flatten().nonzero()[:, 0]
    targets = torch.randint(items, (len(positions),), generator=generator)
    return Batch(histories, lengths, positions, targets, torch.arange(len(positions)))


def objective(popularity: Tensor | None = None, **settings: object) -> Objective:
    counts = torch.arange(1, 31) if popularity is None else popularity
    return Objective(LossSettings.model_validate(settings), counts)


ALL = [
    {"name": "ce"},
    {"name": "sampled_softmax", "negatives": 8},
    {"name": "sampled_softmax", "negatives": 8, "sampling": "popularity", "log_q": "negatives"},
    {"name": "sampled_softmax", "negatives": 8, "sampling": "popularity", "log_q": "none"},
    {"name": "sampled_softmax", "negatives": 0, "sampling": "in_batch"},
    {"name": "sampled_softmax", "negatives": 8, "shared": False, "exclude_history": True},
    {"name": "sampled_softmax", "negatives": 8, "shared": False, "sampling": "popularity"},
    {"name": "bce", "negatives": 3, "shared": False},
    {"name": "bce", "negatives": 3},
    {"name": "gbce", "negatives": 3},
    {"name": "bpr", "negatives": 3},
    {"name": "dro"},
    {"name": "dro", "base": "bce", "negatives": 3},
    {"name": "dro", "base": "ce", "dro_weight": 0.7},
]


def tensors(seed: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Batch, Tensor, Tensor]:
    batch = some_batch()
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(batch.targets), 7, generator=generator, dtype=dtype)
    return batch, states, torch.randn(30, 7, generator=generator, dtype=dtype)


def test_no_two_losses_give_the_same_number() -> None:
    batch, states, table = tensors()
    values = []
    for settings in ALL:
        torch.manual_seed(0)
        one = objective(**settings)
        values.append(round(sum(one(one.draw(batch), states, table).values()).item(), 5))
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("settings", [one for one in ALL if one["name"] not in WHOLE_CATALOGUE], ids=str)
def test_needed_rows_alone_give_the_same_loss_and_gradient(settings: dict[str, object]) -> None:
    one = objective(**settings)
    batch, states, table = tensors()
    torch.manual_seed(1)
    batch = one.draw(batch)
    table.requires_grad_()
    whole = sum(one(batch, states, table).values())
    (expected,) = torch.autograd.grad(whole, table)
    items, small = only_needed_rows(batch)
    assert torch.equal(items[small.targets], batch.targets)
    assert torch.equal(items[small.histories], batch.histories)
    part = sum(one(small, states, table[items]).values())
    (found,) = torch.autograd.grad(part, table)
    torch.testing.assert_close(part, whole)
    torch.testing.assert_close(found, expected)


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_hidden_against_a_loop(seed: int, shared: bool, exclude: bool) -> None:
    batch = some_batch(seed, items=9)
    torch.manual_seed(seed)
    items = torch.randint(9, (4,) if shared else (len(batch.targets), 4))
    found = hidden(items, batch, exclude_history=exclude)
    width = batch.histories.shape[1]
    for t, position in enumerate(batch.positions.tolist()):
        row = position // width
        history = set(batch.histories[row, : batch.lengths[row]].tolist()) if exclude else set()
        drawn = items if shared else items[t]
        for j, item in enumerate(drawn.tolist()):
            assert found[t, j].item() == (item == batch.targets[t].item() or item in history)


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_repeats_against_a_loop(seed: int, shared: bool, exclude: bool) -> None:
    batch = some_batch(seed, items=9)
    torch.manual_seed(seed)
    drawn = torch.randint(9, (6,) if shared else (len(batch.targets), 6))
    items = torch.cat([batch.targets[:, None], torch.randint(9, (len(batch.targets), 4))], dim=1)
    found = repeats(items, drawn, batch, exclude_history=exclude)
    unfit = hidden(drawn, batch, exclude_history=exclude)
    for t in range(len(items)):
        left = [
            j for j, out in zip((drawn if shared else drawn[t]).tolist(), unfit[t].tolist(), strict=True) if not out
        ]
        assert found[t].tolist() == [left.count(item) for item in items[t].tolist()]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_items_are_drawn_as_often_as_they_should(sampling: str, shared: bool) -> None:
    torch.manual_seed(0)
    popularity = torch.tensor([0, 1, 3, 6])
    sampler = Sampler(LossSettings(name="bce", negatives=5000, sampling=sampling, shared=shared), popularity)
    drawn = sampler.draw(torch.tensor([0, 1, 2, 3, 3, 3, 3, 3]))
    share = torch.bincount(drawn.items.flatten(), minlength=4) / drawn.items.numel()
    expected = torch.full((4,), 0.25) if sampling == "uniform" else popularity / 10
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)
    assert drawn.items.shape == ((5000,) if shared else (8, 5000))
    seen = expected > 0
    expected_count = (expected * 5000).log()
    torch.testing.assert_close(drawn.log_q_targets[1:4][seen[1:4]], expected_count[1:4][seen[1:4]])
    torch.testing.assert_close(drawn.log_q, expected_count[drawn.items])


def test_how_often_an_item_is_expected_by_hand() -> None:
    items = torch.tensor([[3, 1], [2, 2]])
    for settings, wanted in (
        ({"sampling": "uniform"}, [[5 / 4, 5 / 4], [5 / 4, 5 / 4]]),
        ({"sampling": "popularity"}, [[3.0, 0.5], [1.5, 1.5]]),
        ({"sampling": "popularity", "popularity_power": 2.0}, [[36 / 46 * 5, 5 / 46], [9 / 46 * 5, 9 / 46 * 5]]),
        ({"sampling": "in_batch"}, [[3.0, 0.5], [1.5, 1.5]]),
        ({"sampling": "in_batch", "popularity_power": 2.0}, [[3.0, 0.5], [1.5, 1.5]]),
    ):
        sampler = Sampler(LossSettings(name="bce", **settings), torch.tensor([0, 1, 3, 6]))
        torch.testing.assert_close(sampler.log_expected(items, 5), torch.tensor(wanted).log())


def test_in_batch_takes_targets() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([4, 4, 9, 2])
    every = Sampler(LossSettings(name="bpr", negatives=0, sampling="in_batch"), torch.ones(30)).draw(targets)
    assert every.items.tolist() == targets.tolist()
    some = Sampler(LossSettings(name="bpr", negatives=2, sampling="in_batch"), torch.ones(30)).draw(targets)
    assert len(some.items) == 2
    assert set(some.items.tolist()) <= {2, 4, 9}


def test_one_seed_one_draw() -> None:
    sampler = Sampler(LossSettings(name="bpr", negatives=50), torch.ones(30))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sampler.draw(torch.tensor([1])).items)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_corrected_sampled_softmax_comes_near_the_whole() -> None:
    """With the negatives alone corrected, many draws estimate the cross-entropy over the catalogue."""
    batch, states, table = tensors()
    states, table = states * 0.5, table * 0.5
    expected = cross_entropy(states, table, batch.targets).item()
    for sampling in ("uniform", "popularity"):
        torch.manual_seed(0)
        one = objective(name="sampled_softmax", negatives=20_000, sampling=sampling, log_q="negatives")
        assert one(one.draw(batch), states, table)["target"].item() == pytest.approx(expected, abs=0.03)
        plain = objective(name="sampled_softmax", negatives=20_000, sampling=sampling, log_q="none")
        assert abs(plain(plain.draw(batch), states, table)["target"].item() - expected) > 1


@pytest.mark.parametrize("settings", [{"negatives": 0}, {"sampling": "in_batch", "shared": False}, {"name": "mse"}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        LossSettings.model_validate(settings)
