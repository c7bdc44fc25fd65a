"""The largest numbers of a row, found block by block, against a sort of the whole row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.losses.top import BLOCK, among_largest, best_columns

WIDTHS = [1, 5, BLOCK - 1, BLOCK, 5 * BLOCK, 41 * BLOCK, 41 * BLOCK + 1, 64 * BLOCK - 1]


def some(width: int, seed: int = 0, rows: int = 9) -> Tensor:
    """Normal numbers; in the first rows all are alike, or hardly any is finite, or the best stand behind the last block."""
    scores = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    scores[0] = 1.0
    scores[1, 5:] = -torch.inf
    scores[2, width // BLOCK * BLOCK :] += 100
    scores[3, : BLOCK // 2] += 100  # all in one block
    return scores


def kth(scores: Tensor, k: int) -> Tensor:
    """The k-th largest number of each row, or the least, [t, 1]."""
    return scores.sort(dim=1, descending=True).values[:, min(k, scores.shape[1]) - 1, None]


@pytest.mark.parametrize(("width", "k"), [(width, k) for width in WIDTHS for k in (1, 3, 20) if k <= width])
def test_best_columns_are_those_of_a_sort(width: int, k: int) -> None:
    scores = some(width, k)
    before = scores.clone()
    found = best_columns(scores, k)
    assert torch.equal(scores, before)
    assert found.shape == (len(scores), k)
    assert all(len(set(row.tolist())) == k for row in found)
    assert torch.equal(scores.gather(1, found), scores.sort(dim=1, descending=True).values[:, :k])


@pytest.mark.parametrize("k", [1, 3, 20, 10_000])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_what_is_among_the_largest_is_that_of_a_sort(
    width: int, k: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scores = some(width, k)
    order = scores.argsort(dim=1, descending=True)
    places = torch.tensor([0, k // 2, k - 1, k, k + 1, 2 * k, width - 1]).clamp(0, width - 1)
    picked = scores.gather(1, order[:, places])
    found = among_largest(scores, picked, k)
    assert torch.equal(found, picked >= kth(scores, k))
    assert torch.equal(found[4:], (places < k).expand(len(scores) - 4, -1))  # where there are no ties


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 30 * BLOCK))
def test_ties_everywhere(seed: int, k: int, width: int) -> None:
    """Small whole numbers: the k-th place is nearly always shared."""
    k = min(k, width)
    scores = torch.randint(-2, 6, (3, width), generator=torch.Generator().manual_seed(seed)).float()
    wanted = scores.sort(dim=1, descending=True).values[:, :k]
    picked = scores[:, :7]
    assert torch.equal(among_largest(scores, picked, k), picked >= wanted[:, -1:])
    found = best_columns(scores, k)
    assert torch.equal(scores.gather(1, found), wanted)
    assert all(len(set(row.tolist())) == k for row in found)


def test_by_hand() -> None:
    scores = torch.tensor([[3.0, 9.0, -1.0, 9.0, 4.0]])
    assert [among_largest(scores, scores, k)[0].sum().item() for k in (1, 2, 3, 4, 5, 6)] == [2, 2, 3, 4, 5, 5]
    assert best_columns(scores, 5)[0, 2:].tolist() == [4, 0, 2]
    assert set(best_columns(scores, 2)[0].tolist()) == {1, 3}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_kinds_of_numbers(dtype: torch.dtype) -> None:
    scores = some(41 * BLOCK + 7).to(dtype)
    for shift in (0.0, -200.0, 200.0):  # numbers of either sign, then of one alone
        moved = (scores + shift).to(dtype)
        for k in (4, 20):
            assert torch.equal(among_largest(moved, moved, k), moved >= kth(moved, k))


def test_zeros_of_either_sign_are_alike() -> None:
    scores = torch.full((2, 41 * BLOCK), -1.0).to(torch.bfloat16)
    scores[0, ::BLOCK], scores[0, 1::BLOCK] = 0.0, -0.0
    scores[1, ::BLOCK] = -0.0
    assert torch.equal(among_largest(scores, scores, 20), scores == 0)
