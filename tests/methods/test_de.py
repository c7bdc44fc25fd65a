"""DE against hand-computed numbers and its equations written out item by item and expert by expert, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.losses.objective import Objective
from distilrec.methods.de import DE, DESettings, Experts, gumbel_softmax, some_of
from distilrec.methods.item_vectors import principal
from distilrec.students.base import ItemTable
from distilrec.training.checkpoint import load_checkpoint, save_checkpoint
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


def de(vectors: Tensor | None = None, **changes: Any) -> DE:
    method = DE(DESettings.model_validate(changes), knowledge(teacher() if vectors is None else vectors))
    ready(method)
    return method


def counted(steps: int = 0, **changes: Any) -> DE:
    """A method that has taken so many steps."""
    method = de(**changes)
    method.steps.fill_(steps)
    return method


def noise(*shape: int) -> Tensor:
    """What the method draws after `torch.manual_seed(1)`."""
    torch.manual_seed(1)
    return -torch.empty(*shape, dtype=torch.float64).exponential_().log()


def test_experts_by_hand() -> None:
    # Two experts from 1 number to 1, with (1 + 1) // 2 = 1 hidden unit: E_1(s) = 5 relu(s + 1) + 1/2, E_2(s) = 7 relu(-2 s).
    experts = Experts(1, 1, 2).double()
    with torch.no_grad():
        experts.rise.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        experts.rise.bias.copy_(torch.tensor([1.0, 0.0]))
        experts.fall.copy_(torch.tensor([[5.0], [7.0]]))
        experts.bias.copy_(torch.tensor([[0.5], [0.0]]))
    seen = torch.tensor([[2.0], [-3.0], [-0.5]], dtype=torch.float64)
    for number, expected in enumerate([[15.5, 0.5, 3.0], [0.0, 42.0, 7.0]]):
        chosen = torch.zeros(3, 2, dtype=torch.float64)
        chosen[:, number] = 1
        assert experts(seen, chosen)[:, 0].tolist() == expected
    assert experts(seen, torch.tensor([[0.25, 0.75]] * 3, dtype=torch.float64))[:, 0].tolist() == [3.875, 31.625, 6.0]


def test_one_expert_by_hand() -> None:
    # Standardised, the teacher says 1 and -1. relu(s), doubled, less 1/2, says 0 and -1/2 of 1/4 and -1.
    method = DE(DESettings(weight=3.0, experts=1, width=None), knowledge(torch.tensor([[4.0], [2.0]])))
    method.objective = Objective(LossSettings(name="ce"), torch.ones(2))
    method.item_embedding(ItemTable(2, 1))
    method.double()
    with torch.no_grad():
        method.experts.rise.weight.fill_(1.0)
        method.experts.rise.bias.fill_(0.0)
        method.experts.fall.fill_(2.0)
        method.experts.bias.fill_(-0.5)
    asked = Batch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), torch.tensor([7]))
    table = torch.tensor([[0.25], [-1.0]], dtype=torch.float64)
    parts = method.loss(asked, torch.zeros(1, 1, dtype=torch.float64), table)
    assert parts["experts"].item() == pytest.approx(3 * (1 + 0.25) / 2)
    assert parts["target"].item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (0, {}),
        (7, {"experts": 4, "anneal_steps": 20, "weight": 2.5}),
        (20, {"experts": 1}),
        (99, {"experts": 3, "anneal_steps": 20, "start_temperature": 5.0, "end_temperature": 0.5, "width": 4}),
        (3, {"width": None, "sample": None}),
    ],
)
def test_loss_and_gradients_equal_the_equations(steps: int, changes: dict[str, Any]) -> None:
    settings, method, (states, table) = DESettings.model_validate(changes), de(**changes), student()
    method.steps.fill_(steps)
    experts, wanted = method.experts, principal(teacher(), settings.width)
    share = min(steps / settings.anneal_steps, 1)
    tau = settings.start_temperature ** (1 - share) * settings.end_temperature**share
    gumbel = noise(len(NAMED), settings.experts)
    total = torch.zeros((), dtype=torch.float64)
    for row, item in enumerate(NAMED):
        log_alpha = torch.log_softmax(experts.select.weight @ wanted[item] + experts.select.bias, dim=0)
        z = torch.softmax((log_alpha + gumbel[row]) / tau, dim=0)
        rebuilt = sum(z[m] * expert(experts, m, table[item]) for m in range(settings.experts))
        total = total + (wanted[item] - rebuilt).square().sum()
    expected = settings.weight * total / (len(NAMED) * wanted.shape[1])
    torch.manual_seed(1)
    found = method.loss(batch(), states, table)["experts"]
    torch.testing.assert_close(found, expected)
    inputs = (table, *experts.parameters())
    gradients = torch.autograd.grad(found, inputs)
    for got, want in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want)
    assert gradients[0].abs().sum(dim=1).nonzero()[:, 0].tolist() == NAMED


def test_the_noise_is_gumbel() -> None:
    """An expert is picked as often as the selection network says, and softly where the temperature is high."""
    torch.manual_seed(0)
    share = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    drawn = gumbel_softmax(share.log().expand(20_000, 3), 0.01)
    assert drawn.argmax(dim=1).bincount().div(20_000).tolist() == pytest.approx(share.tolist(), abs=0.015)
    assert (drawn.max(dim=1).values > 0.99).double().mean() > 0.9
    assert gumbel_softmax(share.log().expand(1000, 3), 100.0).max() < 0.5
    assert gumbel_softmax(share.log().bfloat16()[None], 1.0).dtype == torch.float32


def test_temperature_falls_from_one_end_to_the_other() -> None:
    method = de(start_temperature=2.0, end_temperature=0.02, anneal_steps=10)
    found = []
    for steps in (0, 5, 10, 11, 10**9):
        method.steps.fill_(steps)
        found.append(method.temperature().item())
    assert found == pytest.approx([2.0, 0.2, 0.02, 0.02, 0.02])


def test_steps_are_counted_in_training_only() -> None:
    method = de()
    for _ in range(3):
        method.loss(batch(), *student())
    assert method.steps.item() == 3
    method.eval()
    method.loss(batch(), *student())
    assert method.steps.item() == 3


def test_a_resumed_training_anneals_on(tmp_path: Path) -> None:
    def step(method: DE, optimizer: torch.optim.Optimizer) -> float:
        loss = method.loss(batch(), *student())["experts"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def new() -> tuple[DE, torch.optim.Optimizer]:
        method = de(anneal_steps=8, sample=4)
        return method, torch.optim.AdamW(method.parameters(), lr=0.01)

    method, optimizer = new()
    torch.manual_seed(3)
    before = [step(method, optimizer) for _ in range(3)]
    save_checkpoint(tmp_path / "c", method, optimizer, {}, {"identity": "x"})
    unbroken = [step(method, optimizer) for _ in range(3)]
    resumed, other = new()
    assert load_checkpoint(tmp_path / "c", resumed, other, (), "x") is not None
    assert resumed.steps.item() == 3
    assert [step(resumed, other) for _ in range(3)] == unbroken
    assert before != unbroken


def test_a_sample_is_drawn_where_items_are_more() -> None:
    torch.manual_seed(0)
    items = torch.arange(50, 60)
    assert torch.equal(some_of(items, None), items)
    assert torch.equal(some_of(items, 10), items)
    drawn = [some_of(items, 4).tolist() for _ in range(200)]
    assert all(len(set(some)) == 4 for some in drawn)
    assert {item for some in drawn for item in some} == set(range(50, 60))
    learns_from_so_many(de(sample=3), "experts", 3)


def test_every_setting_and_the_teacher_count() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"weight": 2.0},
        {"experts": 3},
        {"start_temperature": 2.0},
        {"end_temperature": 0.5},
        {"anneal_steps": 20},
        {"sample": 4},
        {"width": 3},
        {"vectors": teacher(1)},
        {"steps": 0},
    ]
    all_differ([parts_of(counted(**{"steps": 10, **variant})) for variant in variants], "experts")


def test_two_experts_may_tie() -> None:
    logits = torch.zeros(1000, 30, dtype=torch.float32, requires_grad=True)
    chosen = gumbel_softmax(logits, 0.01)
    torch.testing.assert_close(chosen.sum(dim=1), torch.ones(1000))
    (gradient,) = torch.autograd.grad(chosen.square().sum(), logits)
    assert torch.isfinite(gradient).all()
