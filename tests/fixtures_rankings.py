"""Shared by tests of methods that learn from rankings: lists of a teacher, a batch over them, a student in float64, claims."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods.base import Method

N_ITEMS, WIDTH = 15, 6
LISTS = {2: [3, 1, 7, 9, 12], 3: [5], 5: [0, 8, 14], 8: [11, 4, 2, 6, 13], 9: [10, 9]}
TARGETS = {1: 4, 2: 7, 3: 5, 4: 0, 5: 6, 8: 11, 9: 9, 99: 2}  # of 2, 3, 8 and 9 it is on the teacher's list
M = TypeVar("M", bound=Method)
LOSSES = ("ce", "dro", "bce", "sampled_softmax")


def knowledge(
    filler: int = 0, lists: dict[int, list[int]] = LISTS, scores: dict[int, list[float]] | None = None
) -> Knowledge:
    """Lists of a teacher that only ranks, unless there are scores; `filler` stands behind the ends."""
    width = max(map(len, lists.values()))
    items = np.array([found + [filler] * (width - len(found)) for found in lists.values()])
    given = [[0.0] * len(found) for found in lists.values()] if scores is None else list(scores.values())
    filled = np.array([row + [NOTHING] * (width - len(row)) for row in given], dtype=np.float32)
    return Knowledge({}, np.array(list(lists), dtype=np.int64), items, filled, None)


def batch(examples: Sequence[int] = tuple(TARGETS), targets: Sequence[int] | None = None) -> Batch:
    """Examples 1, 4 and 99 were not asked about: before, between and behind those that were."""
    own = [TARGETS[example] for example in examples] if targets is None else targets
    unused = torch.zeros(1, dtype=torch.int64)
    return Batch(unused, unused, unused, torch.tensor(own), torch.tensor(examples))


def student(total: int = 8, n_items: int = N_ITEMS, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Return states [total, width] and an item table [n_items, width]."""
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(total, width, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(n_items, width, dtype=torch.float64, generator=generator, requires_grad=True)
    return states, table


def made(kind: type[M], changes: dict[str, Any], said: Knowledge | None = None, loss: str = "ce") -> M:
    """Return a method with these settings, a teacher's lists and the student's loss put in."""
    method = kind(kind.Settings.model_validate(changes), said if said is not None else knowledge())
    method.objective = Objective(LossSettings(name=loss, negatives=4), torch.arange(1, N_ITEMS + 1))
    return method


def with_negatives(method: Method, asked: Batch) -> Batch:
    torch.manual_seed(0)
    assert method.objective is not None
    return method.objective.draw(asked)


def same_with_gradients(found: Tensor, wanted: Tensor, of: tuple[Tensor, ...]) -> None:
    """Claim that two numbers, and their gradients, are equal but for rounding."""
    torch.testing.assert_close(found, wanted)
    pairs = zip(torch.autograd.grad(found, of), torch.autograd.grad(wanted, of, retain_graph=True), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want)


def plain_to_the_bit(method: Method, loss: str) -> None:
    """Claim that a method whose weight is zero is the student's own loss, draws nothing and asks nobody."""
    method.objective = Objective(
        LossSettings.model_validate({"name": loss, "negatives": 4}), torch.arange(1, N_ITEMS + 1)
    )
    assert method.needs_of(method.settings) == frozenset()
    asked = with_negatives(method, batch())
    states, table = student()
    before = torch.get_rng_state()
    parts, plain = method.loss(asked, states, table), method.objective(asked, states, table)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: part.item() for name, part in parts.items()} == {name: part.item() for name, part in plain.items()}
    found = [torch.autograd.grad(sum(one.values()), (states, table)) for one in (parts, plain)]
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def deaf_behind_the_ends(make: Callable[[Knowledge], Method], said: Callable[[int], Knowledge] = knowledge) -> None:
    """Claim that what fills the places behind the end of a list is never looked at."""
    found = []
    for filler in (0, 11):
        torch.manual_seed(0)
        states, table = student()
        parts = make(said(filler)).loss(batch(), states, table)
        gradients = torch.autograd.grad(sum(parts.values()), (states, table))
        found.append([*(part.detach() for part in parts.values()), *gradients])
    for first, second in zip(*found, strict=True):
        assert torch.isfinite(first).all()
        torch.testing.assert_close(first, second)
