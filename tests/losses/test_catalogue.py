"""The chunked cross-entropy against what autograd makes of the plain formula, in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from distilrec.losses.catalogue import Weigh, add_at, catalogue_loss, cross_entropy, scan, weighted_cross_entropy
from distilrec.losses.dro import Robust

N_ITEMS, WIDTH = 13, 5
CHUNKS = [1, N_ITEMS, 3 * N_ITEMS + 4, 1 << 21]  # 1 row, 1 row, 3 rows, everything at once


def problem(total: int = 11, columns: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(total, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    items = torch.randint(N_ITEMS, (total, columns), generator=generator)
    weights = torch.rand(total, columns, dtype=torch.float64, generator=generator)
    return states, table, items, weights


def naive(states: Tensor, table: Tensor, items: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its share per column, with one log-softmax over everything."""
    log_probability = functional.log_softmax(states @ table.T, dim=1)
    cells = -weights * log_probability.gather(1, items)
    return cells.sum() / len(states), cells.sum(dim=0) / len(states)


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_hand_computed() -> None:
    # One state, logits 0, log 2 and log 5: probabilities 1/8, 2/8, 5/8.
    states = torch.tensor([[1.0]], dtype=torch.float64)
    table = torch.tensor([[0.0], [math.log(2)], [math.log(5)]], dtype=torch.float64)
    assert cross_entropy(states, table, torch.tensor([1])).item() == pytest.approx(math.log(4))
    loss, parts = weighted_cross_entropy(
        states, table, torch.tensor([[1, 2]]), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    )
    assert parts.tolist() == pytest.approx([math.log(4), 0.5 * math.log(8 / 5)])
    assert loss.item() == pytest.approx(math.log(4) + 0.5 * math.log(8 / 5))


@pytest.mark.parametrize("chunk_elements", CHUNKS)
def test_cross_entropy_and_its_gradients_equal_torchs(chunk_elements: int) -> None:
    states, table, items, _ = problem()
    expected = functional.cross_entropy(states @ table.T, items[:, 0])
    wanted = torch.autograd.grad(expected, (states, table))
    loss = cross_entropy(states, table, items[:, 0], chunk_elements=chunk_elements)
    same(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, (states, table)), wanted, strict=True):
        same(got, want)


@pytest.mark.parametrize("columns", [1, 2, 7])
@pytest.mark.parametrize("chunk_elements", CHUNKS)
def test_weighted_loss_and_its_gradients_equal_the_naive_ones(chunk_elements: int, columns: int) -> None:
    states, table, items, weights = problem(columns=columns)
    expected, expected_parts = naive(states, table, items, weights)
    wanted = torch.autograd.grad(3.0 * expected, (states, table))
    loss, parts = weighted_cross_entropy(states, table, items, weights, chunk_elements=chunk_elements)
    same(loss, expected)
    same(parts, expected_parts)
    assert parts.shape == (columns,)
    for got, want in zip(torch.autograd.grad(3.0 * loss, (states, table)), wanted, strict=True):
        same(got, want)


def test_gradient_equals_finite_differences() -> None:
    states, table, items, weights = problem(total=4)

    def value(states: Tensor, table: Tensor) -> Tensor:
        return weighted_cross_entropy(states, table, items, weights, chunk_elements=2 * N_ITEMS)[0]

    assert torch.autograd.gradcheck(value, (states, table))


def test_repeated_items_in_a_row_add_up() -> None:
    states, table, _, _ = problem(columns=3)
    thrice = torch.full((len(states), 3), 6)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).expand(len(states), 3)
    loss, _ = weighted_cross_entropy(states, table, thrice, weights)
    once = cross_entropy(states, table, thrice[:, 0])
    same(loss, once)
    for got, want in zip(
        torch.autograd.grad(loss, (states, table)), torch.autograd.grad(once, (states, table)), strict=True
    ):
        same(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_adding_at_places_is_scatter_add(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    buffer = torch.randn(9, N_ITEMS, generator=generator).to(dtype)
    columns = torch.stack([torch.randperm(N_ITEMS, generator=generator)[:4] for _ in range(6)])
    values = torch.rand(6, 4, generator=generator)
    wanted = buffer.clone()
    wanted[:6].scatter_add_(1, columns, values.to(dtype))
    add_at(buffer[:6], columns, values)  # in place, and the rows behind are left alone
    assert torch.equal(buffer, wanted)
    ones = torch.zeros(2, N_ITEMS, dtype=dtype)
    add_at(ones, torch.tensor([[4, 4, 4], [0, 4, 0]]), torch.ones(2, 3))
    assert ones[:, [0, 4]].tolist() == [[0.0, 3.0], [2.0, 1.0]]


def test_a_zero_weight_takes_a_cell_out() -> None:
    states, table, items, weights = problem(columns=3)
    weights[:, 1] = 0
    loss, parts = weighted_cross_entropy(states, table, items, weights)
    without, _ = weighted_cross_entropy(states, table, items[:, [0, 2]], weights[:, [0, 2]])
    same(loss, without)
    assert parts[1].item() == 0.0
    for got, want in zip(
        torch.autograd.grad(loss, (states, table)), torch.autograd.grad(without, (states, table)), strict=True
    ):
        same(got, want)


def test_all_weights_zero_give_nothing() -> None:
    states, table, items, weights = problem()
    loss, parts = weighted_cross_entropy(states, table, items, torch.zeros_like(weights))
    assert loss.item() == 0.0
    assert not parts.any()
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (states, table)))


def test_each_column_and_each_weight_matters() -> None:
    states, table, items, weights = problem()
    base, _ = weighted_cross_entropy(states, table, items, weights)
    seen = {base.item()}
    for column in range(items.shape[1]):
        changed = weights.clone()
        changed[0, column] += 0.1
        seen.add(weighted_cross_entropy(states, table, items, changed)[0].item())
    assert len(seen) == 1 + items.shape[1]


def test_parts_sum_to_the_loss_and_carry_no_gradient() -> None:
    states, table, items, weights = problem()
    loss, parts = weighted_cross_entropy(states, table, items, weights)
    same(parts.sum(), loss.detach())
    assert loss.requires_grad
    assert not parts.requires_grad


@pytest.mark.parametrize("chunk_elements", CHUNKS)
def test_weigh_sees_every_row_once_and_no_more_than_a_chunk(chunk_elements: int) -> None:
    states, table, items, weights = problem()
    everything = (states @ table.T).detach()
    seen: list[int] = []

    def weigh(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
        assert logits.numel() <= max(chunk_elements, N_ITEMS)  # one row is the least there can be
        same(logits, everything[rows])
        same(picked, everything[rows].gather(1, items[rows]))
        seen.extend(range(rows.start, rows.stop))
        return weights[rows]

    loss, _ = weighted_cross_entropy(
        states, table, items, torch.zeros_like(weights), weigh=weigh, chunk_elements=chunk_elements
    )
    assert seen == list(range(len(states)))
    same(loss, naive(states, table, items, weights)[0])


def test_weights_that_depend_on_scores_get_no_gradient() -> None:
    states, table, items, weights = problem()

    def weigh(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
        return torch.sigmoid(picked)

    constant = torch.sigmoid((states @ table.T).gather(1, items)).detach()
    expected, _ = naive(states, table, items, constant)
    wanted = torch.autograd.grad(expected, (states, table))
    loss, _ = weighted_cross_entropy(states, table, items, weights, weigh=weigh, chunk_elements=3 * N_ITEMS)
    same(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, (states, table)), wanted, strict=True):
        same(got, want)


def test_large_logits_stay_finite() -> None:
    states, table, items, weights = problem()
    loss, _ = weighted_cross_entropy(states * 1e3, table, items, weights)
    same(loss, naive(states * 1e3, table, items, weights)[0], 1e-10)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, (states, table)))


def test_float32_is_close_to_float64() -> None:
    states, table, items, weights = problem(total=200)
    expected, _ = naive(states, table, items, weights)
    loss, _ = weighted_cross_entropy(states.float(), table.float(), items, weights.float(), chunk_elements=7 * N_ITEMS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_states_is_an_error() -> None:
    _, table, _, _ = problem()
    with pytest.raises(ValueError, match="no states"):
        cross_entropy(torch.empty(0, WIDTH, dtype=torch.float64), table, torch.empty(0, dtype=torch.int64))


def test_a_target_of_no_probability_still_has_its_loss() -> None:
    """In float32 its share of the whole is 0; the loss is 300 all the same."""
    states, table = torch.tensor([[1.0], [0.01]]), torch.tensor([[0.0], [300.0], [299.0]])
    states.requires_grad_()
    value = cross_entropy(states, table, torch.tensor([0, 0]))
    expected = torch.nn.functional.cross_entropy(states @ table.T, torch.tensor([0, 0]))
    torch.testing.assert_close(value, expected)
    (found,) = torch.autograd.grad(value, states)
    (wanted,) = torch.autograd.grad(expected, states)
    torch.testing.assert_close(found, wanted)


def test_in_bfloat16_it_is_nearly_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(50, 16, generator=generator, requires_grad=True)
    table = torch.randn(300, 16, generator=generator, requires_grad=True)
    items = torch.randint(300, (50, 3), generator=generator)
    weights = torch.rand(50, 3, generator=generator)
    found, wanted = (
        weighted_cross_entropy(states, table, items, weights, dtype=dtype, chunk_elements=7 * 300)[0]
        for dtype in (torch.bfloat16, None)
    )
    assert found.dtype == torch.float32
    assert abs(found.item() / wanted.item() - 1) < 0.01
    for near, exact in zip(
        torch.autograd.grad(found, (states, table)), torch.autograd.grad(wanted, (states, table)), strict=True
    ):
        assert near.dtype == torch.float32
        assert (near - exact).norm() / exact.norm() < 0.02
        assert not torch.equal(near, exact)


@pytest.mark.parametrize("chunk_elements", CHUNKS)
def test_a_frozen_table_gets_no_gradient_and_the_states_get_the_same(chunk_elements: int) -> None:
    states, table, items, weights = problem()
    wanted = torch.autograd.grad(weighted_cross_entropy(states, table, items, weights)[0], states)[0]
    frozen = table.detach()
    loss, parts = weighted_cross_entropy(states, frozen, items, weights, chunk_elements=chunk_elements)
    same(loss, naive(states, table, items, weights)[0])
    same(parts.sum(), loss.detach())
    (2.0 * loss).backward()
    same(states.grad, 2.0 * wanted)
    assert frozen.grad is None
    assert table.grad is None


def test_frozen_states_get_no_gradient_and_the_table_gets_the_same() -> None:
    states, table, items, weights = problem()
    wanted = torch.autograd.grad(weighted_cross_entropy(states, table, items, weights)[0], table)[0]
    loss, _ = weighted_cross_entropy(states.detach(), table, items, weights)
    same(torch.autograd.grad(loss, table)[0], wanted)


def test_no_room_is_made_for_the_gradient_of_a_frozen_table() -> None:
    """A language model's head has more rows than all states have numbers."""
    made: list[tuple[int, ...]] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                made.append(tuple(result.shape))
            return result

    for needs_gradient in (True, False):
        states, table, items, weights = problem()
        table = table.detach().requires_grad_(needs_gradient)
        made.clear()
        with Watching():
            weighted_cross_entropy(states, table, items, weights, chunk_elements=N_ITEMS)[0].backward()
        assert ((N_ITEMS, WIDTH) in made) == needs_gradient


def test_a_frozen_table_in_bfloat16_under_states_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 16, generator=generator, requires_grad=True)
    table = torch.randn(200, 16, generator=generator)
    targets = torch.randint(200, (40,), generator=generator)
    rough = cross_entropy(states, table.bfloat16(), targets, dtype=torch.bfloat16, chunk_elements=7 * 200)
    exact = cross_entropy(states, table, targets)
    assert rough.dtype == torch.float32
    assert abs(rough.item() / exact.item() - 1) < 0.01
    near, far = torch.autograd.grad(rough, states)[0], torch.autograd.grad(exact, states)[0]
    assert near.dtype == torch.float32
    assert (near - far).norm() / far.norm() < 0.02


def test_several_items_without_weights_weigh_one_each() -> None:
    states, table, items, weights = problem()
    expected, shares = naive(states, table, items, torch.ones_like(weights))
    wanted = torch.autograd.grad(expected, (states, table))
    loss, parts = weighted_cross_entropy(states, table, items, None)
    same(loss, expected)
    same(parts, shares)
    for got, want in zip(torch.autograd.grad(loss, (states, table)), wanted, strict=True):
        same(got, want)


@pytest.mark.parametrize("chunk_elements", CHUNKS)
def test_both_losses_at_once_are_the_sum_of_each(chunk_elements: int) -> None:
    states, table, items, weights = problem()
    robust = Robust(torch.linspace(0.5, 1, N_ITEMS, dtype=torch.float64), 0.9, 0.4)
    entropy, shares = catalogue_loss(states, table, items, weights)
    term, further = catalogue_loss(states, table, items, weights, entropy=False, robust=robust)
    both, parts = catalogue_loss(states, table, items, weights, robust=robust, chunk_elements=chunk_elements)
    same(both, entropy + term)
    same(parts, torch.stack([shares[0], further[1]]))
    assert parts.all()
    assert not parts.requires_grad
    wanted = torch.autograd.grad(entropy + term, (states, table))
    for got, want in zip(torch.autograd.grad(both, (states, table)), wanted, strict=True):
        same(got, want)


@pytest.mark.parametrize("chunk_elements", CHUNKS)
def test_scan_shows_what_a_loss_would_show(chunk_elements: int) -> None:
    states, table, items, weights = problem()
    seen: list[list[tuple[Tensor, Tensor, slice]]] = [[], []]

    def look(place: int) -> Weigh:
        def note(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
            seen[place].append((logits.clone(), picked.clone(), rows))
            return weights[rows]

        return note

    catalogue_loss(states, table, items, None, weigh=look(0), chunk_elements=chunk_elements)
    scan(states, table, items, look(1), chunk_elements=chunk_elements)
    assert len(seen[0]) == len(seen[1])
    for (logits, picked, rows), (others, chosen, where) in zip(*seen, strict=True):
        assert rows == where
        assert not others.requires_grad
        same(logits, others)
        same(picked, chosen)


def test_nothing_is_multiplied_twice() -> None:
    """The catalogue is scored once, and each gradient takes one more product; going backward takes none."""
    states, table, items, weights = problem()
    robust = Robust(torch.ones(N_ITEMS, dtype=torch.float64), 1.0, 1.0)
    made: list[tuple[int, ...]] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if "mm" in function.overloadpacket.__name__:
                made.append(tuple(result.shape))
            return result

    for entropy, by in ((True, None), (False, robust), (True, robust)):
        made.clear()
        with Counting():
            loss, _ = catalogue_loss(states, table, items, weights, entropy=entropy, robust=by)
            assert made == [(len(states), N_ITEMS), (len(states), WIDTH), (N_ITEMS, WIDTH)]
            loss.backward()
        assert len(made) == 3
