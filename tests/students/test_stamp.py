"""STAMP against its equations, one prefix at a time."""

import pytest
import torch
from torch import Tensor

from distilrec.students import prefixes
from distilrec.students.stamp import STAMP, STAMPSettings
from fixtures_prefixes import LENGTH, N_ITEMS, apart_by_pieces, apart_by_prefixes, histories

WIDTH = 6


def stamp(seed: int = 0) -> STAMP:
    torch.manual_seed(seed)
    student = STAMP(STAMPSettings(hidden_size=WIDTH, max_length=LENGTH), N_ITEMS).eval()
    with torch.no_grad():
        for weight in (student.key.weight, student.session_tower.weight, student.last_tower.weight):
            weight.mul_(3)  # far from the linear part of every curve
    return student


def by_the_book(student: STAMP, prefix: Tensor, table: Tensor) -> Tensor:
    x = WIDTH**0.5 * table[prefix] / table[prefix].norm(dim=1, keepdim=True)
    last, mean = x[-1], x.sum(dim=0) / len(x)
    memory = mean.clone()
    for item in x:
        inner = (
            student.key.weight @ item
            + student.from_last.weight @ last
            + student.from_mean.weight @ mean
            + student.from_mean.bias
        )
        memory = memory + (student.weight.weight[0] @ (1 / (1 + torch.exp(-inner)))) * item
    session = torch.tanh(student.session_tower.weight @ memory + student.session_tower.bias)
    return session * torch.tanh(student.last_tower.weight @ last + student.last_tower.bias)


@pytest.mark.parametrize("pair_numbers", [50, 1000, 1 << 22])
def test_every_prefix_in_one_pass(monkeypatch: pytest.MonkeyPatch, pair_numbers: int) -> None:
    monkeypatch.setattr(prefixes, "PAIR_NUMBERS", pair_numbers)
    assert apart_by_prefixes(stamp(), torch.arange(LENGTH - 6, LENGTH + 1), by_the_book) <= 1


def test_gradients_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apart_by_pieces(monkeypatch, stamp) <= 1


@torch.inference_mode()
def test_weights_need_not_sum_to_one() -> None:
    """An item read twice weighs more than an item read once, which no softmax over one kind of item would show."""
    student = stamp()
    table = student.item_vectors()
    once = student.encode_last(torch.tensor([[4]]), torch.tensor([1]), table)
    twice = student.encode_last(torch.tensor([[4, 4]]), torch.tensor([2]), table)
    assert (once - twice).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
@torch.inference_mode()
def test_an_extreme_table_gives_numbers(scale: float) -> None:
    student = stamp()
    table = student.item_vectors() * scale
    assert torch.isfinite(student.encode(histories(7), torch.full((7,), LENGTH), table)).all()
