"""Caser against a slow reading of the paper, window by window and filter by filter."""

import pytest
import torch
from torch import Tensor

from distilrec.students.caser import Caser, CaserSettings

N_ITEMS, WIDTH = 11, 6


def make(order: int, max_length: int = 8) -> Caser:
    torch.manual_seed(0)
    settings = CaserSettings(hidden_size=WIDTH, max_length=max_length, order=order, horizontal=3, vertical=2)
    return Caser(settings, N_ITEMS).eval()


def naive_state(student: Caser, items: list[int], table: Tensor) -> Tensor:
    """The state behind `items`, one filter and one place at a time."""
    order = student.settings.order
    rows = [table[item] for item in items[-order:]]
    image = torch.stack([torch.zeros(WIDTH)] * (order - len(rows)) + rows)  # [order, d]
    found = []
    for height in range(1, order + 1):
        filters = student.horizontal[height - 1]
        for weight, bias in zip(filters.weight, filters.bias, strict=True):  # [d, height]
            values = [(image[top : top + height] * weight.T).sum() + bias for top in range(order - height + 1)]
            found.append(torch.stack(values).clamp(min=0).max())
    vertical = [
        sum(weight[place] * image[place, column] for place in range(order))
        for column in range(WIDTH)
        for weight in student.vertical.weight
    ]
    z = student.inner(torch.stack(found + vertical)).clamp(min=0)
    return student.out(z)


@pytest.mark.parametrize("order", [1, 3, 5, 12])
@torch.inference_mode()
def test_like_a_naive_loop(order: int) -> None:
    student = make(order)
    for filters in student.horizontal:
        torch.nn.init.normal_(filters.bias, std=0.1)  # they start at 0 and would not be tested
    table = student.item_vectors() * 30
    histories = torch.randint(N_ITEMS, (3, 8), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([8, 1, 4])
    states, last = student.encode(histories, lengths, table), student.encode_last(histories, lengths, table)
    for row, length in enumerate(lengths.tolist()):
        for end in range(1, length + 1):
            expected = naive_state(student, histories[row, :end].tolist(), table)
            torch.testing.assert_close(states[row, end - 1], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(last[row], states[row, length - 1], rtol=1e-5, atol=1e-6)


def test_reach_is_the_order_but_no_more_than_is_read() -> None:
    assert make(order=3).reach == 3
    assert make(order=12).reach == 8


@torch.inference_mode()
def test_every_filter_can_see_something_from_the_start() -> None:
    """With item vectors as small as they start, a filter with a negative bias would never fire, nor learn."""
    student = make(order=4)
    histories = torch.randint(N_ITEMS, (50, 8), generator=torch.Generator().manual_seed(1))
    columns = student.item_vectors()[histories].transpose(1, 2)
    for filters in student.horizontal:
        assert ((filters(columns) > 0).any(dim=2).float().mean(dim=0) > 0.5).all()
