"""Dropout: as many zeros as asked, the same mean, the same places forward and backward."""

import pytest
import torch

from distilrec.students.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(501, 403)
    y = Dropout(p)(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], abs=1e-3)
    assert (y == 0).float().mean(dim=0).std() < 0.05  # no column is favoured


def test_gradient_passes_where_numbers_pass() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, y / x).detach())


def test_one_seed_one_mask() -> None:
    drop, x = Dropout(0.5), torch.ones(99)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(drop(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_off() -> None:
    x = torch.ones(9)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert "0.5" in repr(Dropout(0.5))
    assert torch.isfinite(Dropout(0.999999)(x)).all()
