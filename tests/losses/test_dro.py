"""The DRO term against its formula, in float64, and against decimal numbers where floats would overflow."""

from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from distilrec.losses.catalogue import catalogue_loss
from distilrec.losses.dro import Robust, dro_terms, propensities, rows_at_a_time

N_ITEMS, WIDTH, ROWS = 13, 5, 7
CHUNKS = [1, 3 * N_ITEMS + 4, 1 << 21]  # 1 row, 3 rows, everything at once


def problem(columns: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, table, items (some of them repeated in a row) and weights."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    items = torch.randint(N_ITEMS, (ROWS, columns), generator=generator)
    items[0] = 3
    items[1, -1] = items[1, 0]
    return states, table, items, torch.rand(ROWS, columns, dtype=torch.float64, generator=generator)


def robust(beta: float = 0.8, weight: float = 1.0) -> Robust:
    p = torch.rand(N_ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) + 0.3
    return Robust(p, beta, weight)


def naive(scores: Tensor, items: Tensor, by: Robust) -> Tensor:
    """Return l of each item of each row, [T, M], one at a time."""
    p, rows = by.propensity, []
    for y, wanted in zip(scores, items.tolist(), strict=True):
        cells = []
        for target in wanted:
            others = [(p[j] * y[j] ** 2 / by.beta).exp() for j in range(len(p)) if j != target]
            cells.append((sum(others) + (p[target] * (y[target] - 1) ** 2 / by.beta).exp()).log())
        rows.append(torch.stack(cells))
    return torch.stack(rows)


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_propensities_by_hand() -> None:
    assert propensities(torch.tensor([0, 2])).tolist() == pytest.approx([0.25**0.05, 0.75**0.05], abs=1e-6)
    # Counts 3, 0, 0: shares 4/6, 1/6, 1/6.
    assert propensities(torch.tensor([3, 0, 0])).tolist() == pytest.approx([0.979932, 0.914303, 0.914303], abs=1e-5)


def test_one_row_by_hand() -> None:
    # p = 1, 2, 1; beta = 2; y = 2, 1, 0: a = 2, 1, 0. Of item 0: b = 1/2, of item 1: b = 0.
    by = Robust(torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64), 2.0, 1.0)
    scores = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    terms, gradient = dro_terms(scores, torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.5]], dtype=torch.float64), by)
    # M_0 = e + 1 + sqrt(e) = 5.367003; M_1 = e^2 + 1 + 1 = 9.389056.
    assert terms.tolist() == [[pytest.approx(1.680270, abs=1e-6), pytest.approx(1.119772, abs=1e-6)]]
    # 2 p / beta = 1, 2, 1. y_0: (2 - 1) sqrt(e) / M_0 + (1/2) 2 e^2 / M_1; y_1: 2 e / M_0, and 1 - 1 of its own; y_2 = 0.
    assert gradient.tolist() == [[pytest.approx(0.307197 + 0.786986, abs=1e-5), pytest.approx(1.012961, abs=1e-5), 0.0]]


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_parts_and_gradients_equal_the_formula(chunk: int, columns: int) -> None:
    states, table, items, weights = problem(columns)
    by = robust(weight=0.3)
    cells = 0.3 * weights * naive(states @ table.T, items, by)
    wanted = torch.autograd.grad(2 * cells.sum() / ROWS, (states, table))
    loss, parts = catalogue_loss(states, table, items, weights, entropy=False, robust=by, chunk_elements=chunk)
    same(loss, cells.sum() / ROWS)
    same(parts[1], cells.sum(dim=0) / ROWS)
    assert not parts[0].any()
    for got, want in zip(torch.autograd.grad(2 * loss, (states, table)), wanted, strict=True):
        same(got, want)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("near", [1, 3 * N_ITEMS + 4])
def test_rows_formed_together_do_not_matter(near: int, entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    states, table, items, weights = problem()

    def found() -> tuple[Tensor, ...]:
        loss, parts = catalogue_loss(states, table, items, weights, entropy=entropy, robust=robust())
        return loss, parts, *torch.autograd.grad(loss, (states, table))

    together = found()
    monkeypatch.setattr("distilrec.losses.dro._NEAR_ELEMENTS", near)
    assert rows_at_a_time(N_ITEMS) == (1 if near == 1 else 3)
    for one, other in zip(found(), together, strict=True):
        same(one, other)


@pytest.mark.parametrize("entropy", [False, True])
def test_gradient_equals_finite_differences(entropy: bool) -> None:
    states, table, items, weights = problem()

    def value(states: Tensor, table: Tensor) -> Tensor:
        return catalogue_loss(
            states, table, items, weights, entropy=entropy, robust=robust(), chunk_elements=2 * N_ITEMS
        )[0]

    assert torch.autograd.gradcheck(value, (states, table))


def test_every_item_may_be_a_target() -> None:
    """Nothing is left of the catalogue beside the targets then; and with one item alone, only its own b is."""
    states, table, _, _ = problem()
    items = torch.arange(N_ITEMS).expand(ROWS, -1)
    scores, by = (states @ table.T).detach().requires_grad_(), robust()
    expected = naive(scores, items, by)
    terms, gradient = dro_terms(scores.detach(), items, torch.ones_like(expected), by)
    same(terms, expected)
    same(gradient, torch.autograd.grad(expected.sum(), scores)[0])
    one = torch.tensor([[1.5]], dtype=torch.float64)
    alone = Robust(torch.tensor([2.0], dtype=torch.float64), 0.5, 1.0)
    terms, gradient = dro_terms(one, torch.zeros(1, 2, dtype=torch.int64), torch.ones_like(one).expand(1, 2), alone)
    assert terms.tolist() == [[1.0, 1.0]]  # 2 (1/2)^2 / (1/2)
    assert gradient.tolist() == [[8.0]]  # twice 2 * 2 (1/2) / (1/2)


def test_scores_are_left_as_they_are_and_weights_scale() -> None:
    states, table, items, weights = problem()
    scores = (states @ table.T).detach()
    before = scores.clone()
    terms, gradient = dro_terms(scores, items, weights, robust())
    assert torch.equal(scores, before)
    more, steeper = dro_terms(scores, items, 3 * weights, robust(weight=0.5))
    same(more, 1.5 * terms)
    same(steeper, 1.5 * gradient)
    nothing, flat = dro_terms(scores, items, 0 * weights, robust())
    assert not nothing.any()
    assert not flat.any()


def exact(scores: list[float], targets: list[int], by: Robust) -> tuple[list[float], list[float]]:
    """Return terms (weights 1) and gradient with 60 digits and exponents as large as they come."""
    getcontext().prec = 60
    y, beta = [Decimal(value) for value in scores], Decimal(by.beta)
    p = [Decimal(float(value)) for value in by.propensity]
    whole = [(p[j] * y[j] ** 2 / beta).exp() for j in range(len(y))]
    terms, gradient = [], [Decimal(0)] * len(y)
    for m in targets:
        near = (p[m] * (y[m] - 1) ** 2 / beta).exp()
        mass = sum((whole[j] for j in range(len(y)) if j != m), near)
        terms.append(float(mass.ln()))
        for j in range(len(y)):
            share = near * (y[j] - 1) if j == m else whole[j] * y[j]
            gradient[j] += 2 * p[j] / beta * share / mass
    return terms, [float(value) for value in gradient]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        ([40.0, 1.0, 2.0, -3.0], [0]),  # the target leads by so much that what is left is beyond float32's reach
        ([700.0, 1.0, 2.0, -3.0], [0]),
        ([700.0, 1.0, 2.0, -3.0], [0, 1, 0, 3]),
        ([-700.0, 1.0, 2.0, -3.0], [0, 2]),  # far too low: (y - 1)^2 is larger than y^2
        ([700.0, 699.5, 2.0, -700.0], [0, 1, 3]),
        ([700.0, 1.0, 2.0, -3.0], [2]),  # another item leads
        ([0.5, 0.5, 0.5, 0.5], [1]),  # b = a
        ([0.0, 0.0, 0.0, 0.0], [0, 1, 2]),  # no target leads
        ([40.0, -700.0, 2.0, 3.0], [1, 0, 1]),  # the leader comes twice
        ([1.0, 30.0, 31.0, 2.0], [1, 2, 3, 2]),
    ],
)
def test_no_overflow_and_no_lost_digits(scores: list[float], targets: list[int], dtype: torch.dtype) -> None:
    by = Robust(torch.tensor([1.0, 0.75, 0.5, 1.25], dtype=dtype), 0.5, 1.0)
    terms, gradient = dro_terms(
        torch.tensor([scores], dtype=dtype), torch.tensor([targets]), torch.ones(1, len(targets), dtype=dtype), by
    )
    wanted, slopes = exact(scores, targets, by)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert terms[0].tolist() == pytest.approx(wanted, rel=tolerance)
    assert gradient[0].tolist() == pytest.approx(slopes, rel=tolerance, abs=tolerance)


def test_float32_and_bfloat16_come_near() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 16, generator=generator).mul_(0.4).requires_grad_()
    table = torch.randn(300, 16, generator=generator).mul_(0.4).requires_grad_()
    items, weights = torch.randint(300, (40, 3), generator=generator), torch.rand(40, 3, generator=generator)
    by = Robust(propensities(torch.arange(300)), 1.0, 1.0)

    def found(dtype: torch.dtype | None, entropy: bool, wide: bool = False) -> tuple[Tensor, ...]:
        inputs = [part.double() if wide else part for part in (states, table)]
        given = weights.double() if wide else weights
        loss, _ = catalogue_loss(*inputs, items, given, entropy=entropy, robust=by, dtype=dtype, chunk_elements=2100)
        return loss, *torch.autograd.grad(loss, (states, table))

    for entropy in (False, True):
        exactly = found(None, entropy, wide=True)
        for dtype, tolerance in ((None, 1e-5), (torch.bfloat16, 0.03)):
            for near, far in zip(found(dtype, entropy), exactly, strict=True):
                assert near.dtype == torch.float32
                assert (near - far).norm() / far.norm() < tolerance
