"""A teacher's item vectors, standardised and cut to directions, against the singular value decomposition; and a batch's items."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.methods import item_vectors
from distilrec.methods.item_vectors import directions, items_of, principal, standardised


def some(n: int, width: int, rank: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Vectors whose directions differ in variance, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    inner = min(n, width) if rank is None else rank
    left = torch.randn(n, inner, generator=generator, dtype=torch.float64) * 0.8 ** torch.arange(inner)
    return (left @ torch.randn(inner, width, generator=generator, dtype=torch.float64) + 5.0).to(dtype)


def test_standardised_by_hand() -> None:
    found = standardised(torch.tensor([[1.0, 7.0, 10.0], [3.0, 7.0, 10.0], [5.0, 7.0, 40.0]], dtype=torch.float64))
    # Deviations: sqrt(8 / 3), 0 and sqrt(200) about 3, 7 and 20.
    expected = [[-(1.5**0.5), 0, -(0.5**0.5)], [0, 0, -(0.5**0.5)], [1.5**0.5, 0, 2**0.5]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@given(st.floats(-50, 50), st.floats(0.1, 50))
def test_standardised_forgets_place_and_scale(place: float, scale: float) -> None:
    torch.testing.assert_close(standardised(some(9, 4) * scale + place), standardised(some(9, 4)))


@pytest.mark.parametrize("value", [0.1, 7.3, 700.3, 1e5 + 0.1])
def test_a_constant_dimension_is_nothing_also_in_single_precision(value: float) -> None:
    vectors = some(1000, 3, dtype=torch.float32)
    vectors[:, 1] = value
    assert not standardised(vectors)[:, 1].any()
    assert torch.isfinite(principal(vectors, 3, whiten=1.0)).all()


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("whiten", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("width", [1, 5])
def test_principal_equals_the_singular_value_decomposition(shape: tuple[int, int], whiten: float, width: int) -> None:
    vectors = some(*shape)
    left, values, _ = torch.linalg.svd(standardised(vectors), full_matrices=False)
    values = values[:width] / shape[0] ** 0.5
    expected = left[:, :width] * values ** (1 - whiten)
    expected = expected / expected.square().mean().sqrt()
    found = principal(vectors, width, whiten=whiten)
    signs = (found * expected).sum(dim=0).sign()  # a direction may point either way
    torch.testing.assert_close(found, expected * signs)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_directions_are_orthonormal_and_in_order(shape: tuple[int, int]) -> None:
    standard = standardised(some(*shape))
    count = min(shape)
    found = directions(standard, count)
    assert found.shape == (shape[1], count)
    torch.testing.assert_close(found.T @ found, torch.eye(count, dtype=torch.float64), atol=1e-9, rtol=0)
    kept = (standard @ found).square().sum(dim=0)
    assert (kept.diff() <= 1e-9).all()
    torch.testing.assert_close(kept.sum(), standard.square().sum())


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_all_directions_are_a_rotation(shape: tuple[int, int]) -> None:
    """Inner products between items stay what they are: where D directions are kept, and where N span all there is."""
    standard = standardised(some(*shape))
    found = principal(some(*shape), shape[1])
    assert found.shape == (shape[0], min(shape))
    torch.testing.assert_close(found @ found.T / found.shape[1], standard @ standard.T / shape[1])


def test_no_width_keeps_every_dimension_as_it_is() -> None:
    vectors = some(9, 4)
    assert torch.equal(principal(vectors, None), standardised(vectors))
    assert torch.equal(principal(vectors, None, whiten=1.0), standardised(vectors))


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 3, 6, 99])
def test_mean_square_is_one(whiten: float, width: int) -> None:
    found = principal(some(30, 6), width, whiten=whiten)
    assert found.shape == (30, min(width, 6))
    assert found.square().mean().item() == pytest.approx(1)


def test_whitened_directions_vary_alike() -> None:
    kept, whitened = principal(some(50, 8), 8), principal(some(50, 8), 8, whiten=1.0)
    covariance = whitened.T @ whitened / 50
    torch.testing.assert_close(covariance, torch.eye(8, dtype=torch.float64), atol=1e-9, rtol=0)
    variances = kept.square().mean(dim=0)
    assert variances[0] > 3 * variances[-1]
    half = principal(some(50, 8), 8, whiten=0.5).square().mean(dim=0)
    torch.testing.assert_close(half / half[0], (variances / variances[0]).sqrt())


@pytest.mark.parametrize("shape", [(200, 60), (60, 200)])
def test_whitening_does_not_blow_up_rounding_errors(shape: tuple[int, int]) -> None:
    vectors = some(*shape, rank=10, dtype=torch.float32)
    found = principal(vectors, 60, whiten=1.0)
    variances = found.square().mean(dim=0)
    torch.testing.assert_close(variances[:10], torch.full((10,), 6.0), rtol=1e-3, atol=0)
    assert not variances[10:].any()


def test_equal_vectors_are_nothing() -> None:
    for width in (None, 3):
        found = principal(torch.full((10, 5), 2.5), width, whiten=1.0)
        assert not found.any()


def test_subspace_iteration_comes_close(monkeypatch: pytest.MonkeyPatch) -> None:
    standard = standardised(some(300, 120, dtype=torch.float32))
    exact = directions(standard, 12)
    monkeypatch.setattr(item_vectors, "_EXACT", 100)
    near = directions(standard, 12)
    assert not torch.equal(exact, near)
    torch.testing.assert_close(near.T @ near, torch.eye(12), atol=1e-5, rtol=0)
    by_exact, by_near = ((standard @ found).square().sum(dim=0) for found in (exact, near))
    torch.testing.assert_close(by_near, by_exact, rtol=1e-3, atol=0)
    torch.testing.assert_close((exact * near).sum(dim=0).abs(), torch.ones(12), rtol=0, atol=1e-3)
    assert torch.equal(directions(standard, 61), directions(standard, 120)[:, :61])  # most of them: exact again


def test_subspace_iteration_loses_little_where_directions_hardly_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    standard = standardised(torch.randn(300, 120, generator=torch.Generator().manual_seed(0)))
    exact = (standard @ directions(standard, 40)).square().sum()
    monkeypatch.setattr(item_vectors, "_EXACT", 100)
    assert (standard @ directions(standard, 40)).square().sum() > 0.95 * exact


def test_same_vectors_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some(300, 120, dtype=torch.float32)
    for exact in (1024, 100):
        monkeypatch.setattr(item_vectors, "_EXACT", exact)
        torch.manual_seed(1)
        first = principal(vectors, 20)
        drawn = torch.rand(1)
        torch.manual_seed(2)
        assert torch.equal(first, principal(vectors, 20))
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.rand(1))  # the global generator is left alone


def named(histories: list[list[int]], lengths: list[int], targets: list[int]) -> list[int]:
    unused = torch.zeros(1, dtype=torch.int64)
    batch = Batch(torch.tensor(histories), torch.tensor(lengths), unused, torch.tensor(targets), unused)
    return items_of(batch, 10).tolist()


def test_items_of_a_batch_by_hand() -> None:
    assert named([[3, 1, 3], [7, 0, 0]], [3, 1], [9, 3]) == [1, 3, 7, 9]  # 0 is padding
    assert named([[3, 1, 3], [7, 0, 0]], [3, 2], [9, 3]) == [0, 1, 3, 7, 9]  # 0 is an item
    assert named([[3, -1, 8]], [3], [0, 0]) == [0, 3, 8]  # a mask is no item
    assert named([[5, 5]], [1], [5]) == [5]


@given(st.data())
def test_items_of_a_batch_are_those_it_names(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    item = st.integers(-1, 9)
    histories = data.draw(st.lists(st.lists(item, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    lengths = data.draw(st.lists(st.integers(1, columns), min_size=rows, max_size=rows))
    targets = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    expected = {n for row, end in zip(histories, lengths, strict=True) for n in row[:end]} | set(targets)
    assert named(histories, lengths, targets) == sorted(expected - {-1})
