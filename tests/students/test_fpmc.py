"""FPMC against its equation."""

import pytest
import torch

from distilrec.errors import ConfigError
from distilrec.settings import checked
from distilrec.students.fpmc import FPMC, FPMCSettings

N_ITEMS, WIDTH = 12, 5


def fpmc(basket: int, seed: int = 0) -> FPMC:
    torch.manual_seed(seed)
    return FPMC(FPMCSettings(hidden_size=WIDTH, max_length=10, basket=basket), N_ITEMS).eval()


@pytest.mark.parametrize("basket", [1, 2, 3, 10])
@torch.inference_mode()
def test_the_mean_vote_of_the_basket(basket: int) -> None:
    student = fpmc(basket)
    table = student.item_vectors()
    after, before = table[:, :WIDTH], table[:, WIDTH:]
    histories = torch.randint(N_ITEMS, (4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 1, 2, 5])
    states = student.encode(histories, lengths, table)
    last = student.encode_last(histories, lengths, table)
    for row in range(4):
        for t in range(7):
            voters = histories[row, max(0, t + 1 - basket) : t + 1]
            expected = torch.tensor([[before[voter] @ after[item] for item in range(N_ITEMS)] for voter in voters])
            torch.testing.assert_close(states[row, t] @ table.T, expected.mean(dim=0))
            if t + 1 == lengths[row]:
                torch.testing.assert_close(last[row] @ table.T, expected.mean(dim=0))
    assert student.reach == basket


def test_both_vectors_of_an_item_are_free() -> None:
    """The item read gets its gradient in one half, the item scored in the other."""
    student = fpmc(1)
    table = student.item_vectors()
    state = student.encode_last(torch.tensor([[3]]), torch.tensor([1]), table)
    (state @ table[8]).sum().backward()
    gradient = student.item_table.weight.grad
    assert gradient is not None
    assert gradient[3, WIDTH:].abs().min() > 0
    assert gradient[8, :WIDTH].abs().min() > 0
    gradient[3, WIDTH:] = gradient[8, :WIDTH] = 0
    assert gradient.abs().max() == 0


@torch.inference_mode()
def test_a_transition_is_not_symmetric() -> None:
    student = fpmc(1)
    table = student.item_vectors()
    scores = (
        student.encode_last(torch.arange(N_ITEMS)[:, None], torch.ones(N_ITEMS, dtype=torch.int64), table) @ table.T
    )
    assert not torch.allclose(scores, scores.T, atol=1e-5)


def test_a_basket_longer_than_what_is_read() -> None:
    with pytest.raises(ConfigError, match="basket 5 is more than the 4 items"):
        checked(FPMCSettings, {"basket": 5, "max_length": 4}, where="student fpmc")
