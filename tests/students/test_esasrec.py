"""The gated block against its formula, and what eSASRec and DROS share with SASRec."""

import pytest
import torch

from distilrec.students import STUDENTS
from distilrec.students.base import build_student
from distilrec.students.dros import DROS
from distilrec.students.esasrec import ESASRecSettings, LiGRBlock
from distilrec.students.sasrec import SASRec, SASRecSettings


def block() -> LiGRBlock:
    torch.manual_seed(0)
    return LiGRBlock(ESASRecSettings(hidden_size=8, heads=1, inner_size=5)).eval()


@torch.inference_mode()
def test_block_follows_its_formula() -> None:
    gated, x = block(), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    query, key, value = gated.qkv(gated.attention_norm(x)).chunk(3, dim=-1)
    logits = query @ key.transpose(1, 2) / 8**0.5
    seen = torch.ones(4, 4).tril().bool()
    attended = gated.out(logits.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ value)
    y = x + attended / (1 + torch.exp(-gated.attention_gate(x)))
    normed = gated.feed_norm(y)
    a, b = gated.inner.weight[:5], gated.inner.weight[5:]
    first = normed @ a.T
    inner = first / (1 + torch.exp(-first)) * (normed @ b.T)
    expected = y + inner @ gated.outer.weight.T / (1 + torch.exp(-gated.feed_gate(y)))
    torch.testing.assert_close(gated(x), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_closed_gate_lets_nothing_through() -> None:
    gated, x = block(), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    for gate in (gated.attention_gate, gated.feed_gate):
        torch.nn.init.constant_(gate.bias, -100)
    torch.testing.assert_close(gated(x), x)


def test_the_feed_forward_part_has_no_biases() -> None:
    assert block().inner.bias is None
    assert block().outer.bias is None


def test_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared by 3 heads"):
        ESASRecSettings(hidden_size=64, heads=3)
    ESASRecSettings(hidden_size=100, heads=1)


@torch.inference_mode()
def test_dros_is_sasrec_with_another_loss() -> None:
    histories, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    states = []
    for kind in (SASRec, DROS):
        torch.manual_seed(0)
        student = kind(SASRecSettings(), 5).eval()
        states.append(student.encode(histories, lengths, student.item_vectors()))
    assert torch.equal(*states)
    assert DROS.default_loss == "dro"
    assert SASRec.default_loss == STUDENTS["esasrec"].default_loss == "ce"


@torch.inference_mode()
def test_esasrec_differs_from_sasrec() -> None:
    histories, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    students = []
    for name in ("sasrec", "esasrec"):
        torch.manual_seed(0)
        students.append(build_student(name, {}, 5, STUDENTS).eval())
    table = students[0].item_vectors()
    first, second = (student.encode(histories, lengths, table) for student in students)
    assert (first - second).abs().max() > 1e-3
