"""What the tests of methods that learn from item vectors share: a batch, a student and a teacher's vectors, in float64."""

import numpy as np
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.knowledge.store import Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods.base import Method
from distilrec.methods.de import Experts
from distilrec.students.base import ItemTable

N_ITEMS, WIDTH = 15, 6
NAMED = [2, 3, 4, 5, 8, 9, 12]


def batch() -> Batch:
    """Names the items `NAMED`: behind the ends of histories stand 0 and 7, and one item is masked."""
    histories = torch.tensor([[3, 4, 3, 8], [5, -1, 0, 7]])
    targets = torch.tensor([4, 9, 12, 2, 9])
    return Batch(histories, torch.tensor([4, 2]), torch.tensor([0, 1, 2, 4, 5]), targets, torch.arange(5))


def knowledge(vectors: Tensor | None) -> Knowledge:
    nothing = np.empty((0, 0))
    return Knowledge({}, np.empty(0, dtype=np.int64), nothing.astype(np.int64), nothing, vectors)


def teacher(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_ITEMS, 11, generator=generator, dtype=torch.float64) * 3 + 2


def student(seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(5, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    return states, table


def ready(method: Method, loss: str = "ce", width: int = WIDTH) -> Method:
    torch.manual_seed(0)
    method.objective = Objective(LossSettings(name=loss), torch.arange(1, N_ITEMS + 1))
    table = ItemTable(N_ITEMS, width)
    assert method.item_embedding(table) is table
    return method.double()


def expert(experts: Experts, number: int, vector: Tensor) -> Tensor:
    """One of the experts as a network of its own, for one vector [d]."""
    hidden = experts.fall.shape[0] // experts.count
    rows = slice(number * hidden, (number + 1) * hidden)
    inner = experts.rise.weight[rows] @ vector + experts.rise.bias[rows]
    return experts.fall[rows].T @ inner.clamp_min(0) + experts.bias[number]


def parts_of(method: Method) -> dict[str, Tensor]:
    """Return the parts of a method's loss, drawn from one seed."""
    torch.manual_seed(1)
    return method.loss(batch(), *student())


def learns_from_so_many(method: Method, part: str, count: int) -> None:
    """Claim that a part of the loss reaches `count` of the items that the batch names, and no other."""
    states, table = student()
    (gradient,) = torch.autograd.grad(method.loss(batch(), states, table)[part], table)
    touched = gradient.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert len(touched) == count
    assert set(touched) < set(NAMED)


def all_differ(found: list[dict[str, Tensor]], part: str) -> None:
    """Claim that a part of the loss is another with every variant, and the student's own is the same with all."""
    values = [parts[part].item() for parts in found]
    assert len({round(value, 9) for value in values}) == len(found), values
    assert len({parts["target"].item() for parts in found}) == 1
