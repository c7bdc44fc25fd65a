"""Atten-Mixer against its equations, one prefix at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distilrec.errors import ConfigError
from distilrec.settings import checked
from distilrec.students import prefixes
from distilrec.students.attmix import AttMix, AttMixSettings
from fixtures_prefixes import LENGTH, N_ITEMS, apart_by_pieces, apart_by_prefixes, histories

WIDTH = 6


def attmix(levels: int = 3, heads: int = 2, norm: float = 4.0, seed: int = 0) -> AttMix:
    torch.manual_seed(seed)
    settings = AttMixSettings(hidden_size=WIDTH, max_length=LENGTH, levels=levels, heads=heads, norm=norm)
    student = AttMix(settings, N_ITEMS).eval()
    with torch.no_grad():
        student.key.weight.mul_(3)  # attention that is not flat
    return student


def by_the_book(student: AttMix, prefix: Tensor, table: Tensor) -> Tensor:
    settings = student.settings
    x = WIDTH**0.5 * table[prefix] / table[prefix].norm(dim=1, keepdim=True)
    keys, values = student.key(x), student.value(x)
    read = []
    for head in range(settings.heads):
        part = slice(head * WIDTH // settings.heads, (head + 1) * WIDTH // settings.heads)
        pooled = torch.zeros(len(x))
        for level, query in enumerate(student.queries, start=1):
            logits = keys[:, part] @ query(x[-level:].mean(dim=0))[part] / (WIDTH / settings.heads) ** 0.5
            pooled += torch.softmax(logits, dim=0) ** settings.norm
        pooled = pooled ** (1 / settings.norm)
        read.append((pooled / pooled.sum()) @ values[:, part])
    return student.out(torch.cat([student.norm(torch.cat(read)), x[-1]]))


@pytest.mark.parametrize(("levels", "heads", "norm"), [(1, 1, 1.0), (3, 2, 4.0), (LENGTH + 3, 6, 2.5)])
@pytest.mark.parametrize("pair_numbers", [50, 1 << 22])
def test_every_prefix_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, levels: int, heads: int, norm: float, pair_numbers: int
) -> None:
    monkeypatch.setattr(prefixes, "PAIR_NUMBERS", pair_numbers)
    lengths = torch.tensor([1, 2, 3, LENGTH - 1, LENGTH])
    assert apart_by_prefixes(attmix(levels, heads, norm), lengths, by_the_book) <= 1


def test_gradients_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apart_by_pieces(monkeypatch, attmix) <= 1


def test_a_weight_of_nothing_has_a_gradient() -> None:
    """Keys so large that all but one weight is 0 to the last bit, where a root of it would have no gradient."""
    student = attmix(norm=8.0)
    with torch.no_grad():
        student.key.weight.mul_(1e4)
    student.encode(histories(5), torch.full((5,), LENGTH), student.item_vectors()).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters() if parameter.grad is not None)


@torch.inference_mode()
def test_levels_are_sets() -> None:
    """The last item and who is among the last `levels` counts; the order of the others does not."""
    student = attmix(levels=3)
    table = student.item_vectors()
    some = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 3, 4, 5], [1, 3, 2, 4, 5], [1, 2, 3, 5, 4]])
    states = student.encode_last(some, torch.full((4,), 5), table)
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-5)
    assert (states[2] - states[0]).abs().max() > 1e-4
    assert (states[3] - states[0]).abs().max() > 1e-4


@torch.inference_mode()
def test_the_length_of_an_item_vector_is_not_read() -> None:
    student = attmix()
    table = student.item_vectors()
    lengths = torch.full((5,), LENGTH)
    stretched = table * torch.rand(N_ITEMS, 1, generator=torch.Generator().manual_seed(2)).add(0.5)
    states = student.encode(histories(5), lengths, table)
    torch.testing.assert_close(student.encode(histories(5), lengths, stretched), states, rtol=1e-4, atol=1e-5)
    zeros = student.encode(histories(5), lengths, functional.threshold(table, 1e9, 0.0))
    assert torch.isfinite(zeros).all()


def test_heads_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="hidden_size 10 cannot be shared by 4 heads"):
        checked(AttMixSettings, {"hidden_size": 10, "heads": 4}, where="student attmix")
