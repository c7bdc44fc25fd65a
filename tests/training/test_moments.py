"""A training that goes on from another has the optimiser's moments as the other left them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distilrec.errors import FingerprintError
from distilrec.training.checkpoint import load_moments, save_moments
from distilrec.training.optim import RowAdamW

RATE = {"lr": 0.1, "weight_decay": 0.0}


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    module(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_next_step_is_that_of_an_unbroken_training(tmp_path: Path) -> None:
    whole, ours, fresh = model(), model(), model()
    optimizer = RowAdamW(whole.parameters(), **RATE)
    for seed in (1, 2, 3):
        step(whole, optimizer, seed)
    save_moments(tmp_path / "moments", whole, optimizer, 3)
    for other in (ours, fresh):
        other.load_state_dict(whole.state_dict())
    # named, not numbered: the order of the groups is another one
    continued = RowAdamW([{"params": [ours.bias]}, {"params": [ours.weight]}], **RATE)
    assert load_moments(tmp_path / "moments", ours, continued) == 3
    step(whole, optimizer, 4)
    step(ours, continued, 4)
    step(fresh, RowAdamW(fresh.parameters(), **RATE), 4)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not torch.equal(whole.weight, fresh.weight)


def test_parameters_of_other_names_start_at_nothing(tmp_path: Path) -> None:
    whole = model()
    optimizer = RowAdamW(whole.parameters(), **RATE)
    step(whole, optimizer, 1)
    save_moments(tmp_path / "moments", whole, optimizer, 1)
    wider = nn.ModuleDict({"own": model()})
    other = RowAdamW(wider.parameters(), **RATE)
    load_moments(tmp_path / "moments", wider, other)
    assert not other.state_dict()["state"]


def test_what_is_broken_or_of_another_model_is_refused(tmp_path: Path) -> None:
    whole = model()
    optimizer = RowAdamW(whole.parameters(), **RATE)
    step(whole, optimizer, 1)
    path = tmp_path / "moments"
    save_moments(path, whole, optimizer, 1)
    larger = nn.Linear(4, 2)
    with pytest.raises(FingerprintError, match="another model"):
        load_moments(path, larger, RowAdamW(larger.parameters(), **RATE))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FingerprintError, match="broken"):
        load_moments(path, whole, optimizer)
