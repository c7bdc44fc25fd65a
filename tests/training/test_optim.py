"""Row-sparse AdamW and the lazy average: against the dense ones, and against a loop."""

import pytest
import torch
from torch import Tensor, nn

from distilrec.training.average import Average
from distilrec.training.optim import RowAdamW, clip_norm, coalesce_rows

ROWS, WIDTH = 7, 3


def sparse(rows: list[int], values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (ROWS, WIDTH), check_invariants=False)


def some(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_all_rows_it_is_adamw(decay: float) -> None:
    lazy, dense = nn.Parameter(some(0)), nn.Parameter(some(0))
    first = RowAdamW([lazy], lr=0.01, weight_decay=decay)
    second = torch.optim.AdamW([dense], lr=0.01, weight_decay=decay)
    for step in range(5):
        lazy.grad = sparse(list(range(ROWS)), some(step + 1))
        dense.grad = some(step + 1)
        first.step()
        second.step()
    torch.testing.assert_close(lazy, dense, rtol=1e-6, atol=1e-7)


def test_dense_gradients_take_adamw() -> None:
    one, other = nn.Parameter(some(0)), nn.Parameter(some(0))
    first, second = RowAdamW([one], lr=0.01, fused=True), torch.optim.AdamW([other], lr=0.01, fused=True)
    for step in range(3):
        one.grad, other.grad = some(step + 1), some(step + 1)
        first.step()
        second.step()
    assert torch.equal(one, other)


def test_rows_without_a_gradient_stand_still() -> None:
    """By hand: a row's momentum moves only when it is touched; the bias correction counts all steps."""
    weight = nn.Parameter(some(0))
    optimizer = RowAdamW([weight], lr=0.1, weight_decay=0.0)
    before = weight.detach().clone()
    g = some(1, rows=1)
    weight.grad = sparse([2], g)
    optimizer.step()
    assert weight.grad is None
    torch.testing.assert_close(weight[2], before[2] - 0.1 * torch.sign(g[0]), rtol=1e-4, atol=1e-5)
    weight.grad = sparse([4], g)
    optimizer.step()
    mean, square = 0.1 * g[0] / (1 - 0.9**2), 0.001 * g[0] ** 2 / (1 - 0.999**2)
    torch.testing.assert_close(weight[4], before[4] - 0.1 * mean / (square.sqrt() + 1e-8), rtol=1e-4, atol=1e-5)
    still = [0, 1, 3, 5, 6]
    assert torch.equal(weight[still], before[still])
    torch.testing.assert_close(weight[2], before[2] - 0.1 * torch.sign(g[0]), rtol=1e-4, atol=1e-5)


def test_rows_named_twice_are_summed() -> None:
    weight = nn.Parameter(some(0))
    weight.grad = sparse([1, 1, 3], some(1, rows=3))
    coalesce_rows([weight])
    assert weight.grad._indices().tolist() == [[1, 3]]
    torch.testing.assert_close(weight.grad._values()[0], some(1, rows=3)[:2].sum(dim=0))


def test_clipping_is_torchs() -> None:
    dense, table = nn.Parameter(some(0)), nn.Parameter(some(1))
    reference = [nn.Parameter(some(0)), nn.Parameter(some(1))]
    dense.grad, table.grad = some(2), sparse([0, 2], some(3, rows=2))
    reference[0].grad, reference[1].grad = some(2), table.grad.to_dense()
    clip_norm([dense, table], 0.5)
    torch.nn.utils.clip_grad_norm_(reference, 0.5)
    torch.testing.assert_close(dense.grad, reference[0].grad)
    torch.testing.assert_close(table.grad.to_dense(), reference[1].grad)
    dense.grad = some(2) * 1e-3
    clip_norm([dense], 0.5)
    torch.testing.assert_close(dense.grad, some(2) * 1e-3)


def test_lazy_average_is_the_dense_one() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = {"table": some(0), "other": some(1)}
    lazy = Average(weights, 0.9)
    dense = {name: value.clone() for name, value in weights.items()}
    for step in range(1, 40):
        moved = torch.randperm(ROWS, generator=generator)[: 1 + step % 3].sort().values
        lazy.before_step(weights, {"table": moved})
        weights["table"][moved] += some(step)[moved]
        weights["other"] += some(100 + step)
        lazy.after_step(weights, {"table": moved}, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in dense.items():
            value.lerp_(weights[name], 1 - decay)
        if step % 7 == 0:
            lazy.settle(weights)
            for name, value in dense.items():
                torch.testing.assert_close(lazy.values[name], value, rtol=1e-5, atol=1e-5)
        if step == 17:  # a checkpoint in between changes nothing
            state, lazy = lazy.tensors(), Average(weights, 0.9)
            lazy.load(state)
    lazy.settle(weights)
    torch.testing.assert_close(lazy.values["table"], dense["table"], rtol=1e-5, atol=1e-5)


def test_average_of_dense_weights_by_hand() -> None:
    weights = {"w": torch.tensor([[1.0]])}
    average = Average(weights, 0.5)
    weights["w"].fill_(3.0)
    average.after_step(weights, {}, 1)
    assert average.values["w"].item() == pytest.approx(2 / 11 * 1 + 9 / 11 * 3)
    average.after_step(weights, {}, 100)
    assert average.values["w"].item() == pytest.approx((2 / 11 * 1 + 9 / 11 * 3) / 2 + 1.5)
