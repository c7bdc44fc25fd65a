"""HTD against hand-computed numbers and its equations written out pair by pair, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.losses.objective import Objective
from distilrec.methods.htd import HTD, HTDSettings
from distilrec.methods.item_vectors import principal
from distilrec.methods.topology import hierarchical_topology
from distilrec.students.base import ItemTable
from fixtures_vectors import (
    NAMED,
    all_differ,
    batch,
    expert,
    knowledge,
    learns_from_so_many,
    parts_of,
    ready,
    student,
    teacher,
)


def htd(vectors: Tensor | None = None, **changes: Any) -> HTD:
    method = HTD(HTDSettings.model_validate(changes), knowledge(teacher() if vectors is None else vectors))
    ready(method)
    return method


def cosine(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum() / (left.square().sum() * right.square().sum()).sqrt()


def naive_topology(seen: Tensor, said: Tensor, groups: list[int], level: str) -> Tensor:
    """Return both levels' means over pairs."""
    n, present = len(seen), sorted(set(groups))
    inside = [
        (cosine(said[i], said[j]) - cosine(seen[i], seen[j])) ** 2
        for i in range(n)
        for j in range(n)
        if groups[i] == groups[j]
    ]

    def prototypes(vectors: Tensor) -> list[Tensor]:
        return [sum(vectors[i] for i in range(n) if groups[i] == g) / groups.count(g) for g in present]

    ours, theirs = prototypes(seen), prototypes(said)
    left_s, left_t = (ours, theirs) if level == "prototypes" else (list(seen), list(said))
    across = [
        (cosine(left_t[i], theirs[g]) - cosine(left_s[i], ours[g])) ** 2
        for i in range(len(left_s))
        for g in range(len(present))
    ]
    return sum(inside) / len(inside) + sum(across) / len(across)


def test_hierarchical_topology_by_hand() -> None:
    # Group 0 holds items 0 and 1, group 2 item 2, groups 1 and 3 none.
    said = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    seen = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    groups = torch.tensor([0, 0, 2])
    # Inside: five pairs, (0, 1) and (1, 0) are off by 0.6. Prototypes: the teacher's (1, 1) / 2 and (0, 2), the student's (0.8, 0.4)
    # and (1, 0). With a = 1 / sqrt 2, b = 2 / sqrt 5, c = 1 / sqrt 5, cosines with the first: a, a, a and b, 0.6 b + 0.8 c = b, b;
    # with the second: 0, 1, 1 and 1, 0.6, 1.
    a, b = 0.5**0.5, 2 / 5**0.5
    inside, entities = 2 * 0.36 / 5, (3 * (a - b) ** 2 + 1 + 0.16) / 6
    assert hierarchical_topology(seen, said, groups, 4).item() == pytest.approx(inside + entities)
    between = 2 * (a - b) ** 2 / 4
    found = hierarchical_topology(seen, said, groups, 4, between_prototypes=True)
    assert found.item() == pytest.approx(inside + between)


def test_by_hand() -> None:
    # One group. Standardised, the teacher says (-1, -1) and (1, 1), whose mean is nothing and like nothing; the student's mean is
    # (1, 2), and its items (1, 0) and (1, 4). Inside, two of four pairs are off by 1 + d, d = 1 / sqrt 17; across, by e = 1 / sqrt 5
    # and 9 d e. Networks that say 0 always miss the teacher by 1.
    said = torch.tensor([[4.0, -1.0], [6.0, 7.0]], dtype=torch.float64)
    method = HTD(HTDSettings(weight=3.0, groups=1, gamma=0.25, width=None), knowledge(said))
    method.objective = Objective(LossSettings(name="ce"), torch.ones(2))
    method.item_embedding(ItemTable(2, 2))
    method.double()
    with torch.no_grad():
        method.assign.fall.zero_()
        method.assign.bias.zero_()
    asked = Batch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), torch.tensor([7]))
    table = torch.tensor([[1.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
    parts = method.loss(asked, torch.zeros(1, 2, dtype=torch.float64), table)
    d, e = 17**-0.5, 5**-0.5
    topology = (1 + d) ** 2 / 2 + (e**2 + (9 * d * e) ** 2) / 2
    assert parts["topology"].item() == pytest.approx(3 * (0.25 * topology + 0.75))
    assert parts["target"].item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": 2, "weight": 2.5, "gamma": 0.2},
        {"groups": 3, "level": "prototypes", "temperature": 0.7},
        {"groups": 1, "width": 4},
        {"width": None, "sample": None, "level": "prototypes"},
        {"gamma": 0},
    ],
)
def test_loss_and_gradients_equal_the_equations(changes: dict[str, Any]) -> None:
    settings, method, (states, table) = HTDSettings.model_validate(changes), htd(**changes), student()
    assign, wanted = method.assign, principal(teacher(), settings.width)[NAMED]
    torch.manual_seed(1)
    gumbel = -torch.empty(len(NAMED), settings.groups, dtype=torch.float64).exponential_().log()
    total, groups = torch.zeros((), dtype=torch.float64), []
    for row, item in enumerate(NAMED):
        log_alpha = torch.log_softmax(assign.select.weight @ wanted[row] + assign.select.bias, dim=0)
        groups.append(int(log_alpha.argmax()))
        z = torch.softmax((log_alpha + gumbel[row]) / settings.temperature, dim=0)
        rebuilt = sum(z[g] * expert(assign, g, table[item]) for g in range(settings.groups))
        total = total + (wanted[row] - rebuilt).square().mean()
    topology = naive_topology(table[NAMED], wanted, groups, settings.level)
    expected = settings.weight * (settings.gamma * topology + (1 - settings.gamma) * total / len(NAMED))
    torch.manual_seed(1)
    found = method.loss(batch(), states, table)["topology"]
    torch.testing.assert_close(found, expected)
    inputs = (table, *assign.parameters())
    gradients = torch.autograd.grad(found, inputs)
    for got, want in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want)
    assert gradients[0].abs().sum(dim=1).nonzero()[:, 0].tolist() == NAMED


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.sampled_from(["entities", "prototypes"]))
def test_any_groups_whatever_their_sizes(groups: list[int], level: str) -> None:
    table = student()[1]
    seen, said = table[: len(groups)], teacher()[: len(groups)]
    found = hierarchical_topology(seen, said, torch.tensor(groups), 5, between_prototypes=level == "prototypes")
    expected = naive_topology(seen, said, groups, level)
    torch.testing.assert_close(found, expected)
    (got,), (want,) = torch.autograd.grad(found, table), torch.autograd.grad(expected, table)
    torch.testing.assert_close(got, want)


def test_gradient_by_differences() -> None:
    seen = student()[1][:6, :3].detach().requires_grad_()
    groups = torch.tensor([0, 1, 0, 3, 1, 0])
    for between in (False, True):
        assert torch.autograd.gradcheck(
            lambda vectors, between=between: hierarchical_topology(
                vectors, teacher()[:6], groups, 4, between_prototypes=between
            ),
            (seen,),
        )


def test_a_sample_is_drawn_where_items_are_more() -> None:
    learns_from_so_many(htd(sample=3), "topology", 3)


def test_every_setting_and_the_teacher_count() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"weight": 2.0},
        {"gamma": 0.7},
        {"groups": 3},
        {"temperature": 0.5},
        {"groups": 3, "level": "prototypes"},
        {"sample": 4},
        {"width": 3},
        {"vectors": teacher(1)},
    ]
    all_differ([parts_of(htd(**variant)) for variant in variants], "topology")
