"""What the tests of methods that learn from rankings share: lists of a teacher, a batch over them and a student, in float64."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.methods.base import Method

N_ITEMS, WIDTH = 15, 6
LISTS = {2: [3, 1, 7, 9, 12], 3: [5], 5: [0, 8, 14], 8: [11, 4, 2, 6, 13], 9: [10, 9]}
TARGETS = {1: 4, 2: 7, 3: 5, 4: 0, 5: 6, 8: 11, 9: 9, 99: 2}  # of 2, 3, 8 and 9 it is on the teacher's list
LOSSES = ("ce", "dro", "bce", "sampled_softmax")


def knowledge(filler: int = 0, lists: dict[int, list[int]] = LISTS) -> Knowledge:
    """Lists of 1 to 5 items from a teacher that only ranks; `filler` stands behind the ends."""
    width = max(map(len, lists.values()))
    items = np.array([found + [filler] * (width - len(found)) for found in lists.values()])
    scores = np.array([[0.0] * len(found) + [NOTHING] * (width - len(found)) for found in lists.values()])
    return Knowledge({}, np.array(list(lists), dtype=np.int64), items, scores.astype(np.float32), None)


def batch(examples: Sequence[int] = tuple(TARGETS)) -> Batch:
    """Examples 1, 4 and 99 were not asked about: before, between and behind those that were."""
    targets = torch.tensor([TARGETS[example] for example in examples])
    unused = torch.zeros(1, dtype=torch.int64)
    return Batch(unused, unused, unused, targets, torch.tensor(examples))


def student(total: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(total, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    return states, table


def with_negatives(method: Method, asked: Batch) -> Batch:
    torch.manual_seed(0)
    assert method.objective is not None
    return method.objective.draw(asked)
