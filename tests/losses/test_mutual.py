"""Two models teaching each other: weights over the case table, gradients against autograd in float64, first items against all."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distilrec.losses.mutual import Leading, Mutual, Whole, mutual_loss, ranks_of, sample_weights

N, D, T = 37, 5, 11
HOWS = [
    Mutual(),
    Mutual(adaptive=False),
    Mutual(temperature=2.5),
    Mutual(temperature=0.5, squared=True, weight=0.7),
]


@pytest.mark.parametrize(
    ("own", "other", "weight"),
    [
        (1, 1, 1.0),  # both best
        (7, 7, 1.0),  # alike
        (37, 37, 1.0),  # both last
        (2, 1, 2.0),  # 1 + 1/1
        (3, 2, 1.5),  # 1 + 1/2
        (5, 4, 1.25),
        (37, 1, 2.0),  # 1 + 36, cut
        (37, 36, 1 + 1 / 36),
        (4, 5, 0.75),  # 1 - 1/4
        (1, 2, 0.0),  # 1 - 1/1
        (2, 3, 0.5),
        (1, 37, 0.0),  # 1 - 36, cut
        (36, 37, 1 - 1 / 36),
        (0, 0, 1.0),  # no rank is 0, but nothing is divided by it
        (0, 1, 0.0),
        (1, 0, 2.0),
    ],
)
def test_weights_by_hand(own: int, other: int, weight: float) -> None:
    assert sample_weights(torch.tensor([own]), torch.tensor([other])).item() == pytest.approx(weight, abs=1e-12)


def test_weights_of_every_pair_of_ranks_against_the_published_cases() -> None:
    for own in range(1, 30):
        for other in range(1, 30):
            wanted = 1 + (own - other) / max(other, 1) if own > other else 1 - (other - own) / max(own, 1)
            found = sample_weights(torch.tensor([own]), torch.tensor([other])).item()
            assert found == pytest.approx(max(0.0, min(2.0, wanted)), abs=1e-12)


def test_ranks_count_ties_against_the_target() -> None:
    logits = torch.tensor([[3.0, 1.0, 3.0, 0.0], [5.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert ranks_of(logits, logits[:, :1]).tolist() == [2, 1, 4]
    assert ranks_of(logits, logits[:, 3:]).tolist() == [4, 2, 4]


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(T, D, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(N, D, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(N, (T,), generator=generator)
    others = 2 * torch.randn(T, N, dtype=torch.float64, generator=generator)
    others[2, targets[2]] = 50.0  # sure of the truth
    others[3, targets[3]] = -50.0
    return states, table, targets, others


def weights_of(logits: Tensor, others: Tensor, targets: Tensor, how: Mutual) -> Tensor:
    if not how.adaptive:
        return torch.ones(len(targets), dtype=torch.float64)
    ranks = [
        torch.tensor(
            [1 + sum(row[j] >= row[t] for j in range(N) if j != t) for row, t in zip(each, targets, strict=True)]
        )
        for each in (logits.detach(), others)
    ]
    return sample_weights(*ranks)


def naive(states: Tensor, table: Tensor, targets: Tensor, others: Tensor, how: Mutual) -> tuple[Tensor, Tensor]:
    logits = states @ table.T
    entropy = torch.nn.functional.cross_entropy(logits, targets)
    p = torch.log_softmax(others / how.temperature, dim=1)
    q = torch.log_softmax(logits / how.temperature, dim=1)
    divergence = torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(dim=1)
    scale = how.weight * (how.temperature**2 if how.squared else 1)
    return entropy, (weights_of(logits, others, targets, how) * divergence).mean() * scale


@pytest.mark.parametrize("chunk", [1, 4 * N, 1000 * N])
@pytest.mark.parametrize("how", HOWS, ids=str)
def test_against_float64(how: Mutual, chunk: int) -> None:
    states, table, targets, others = problem()
    entropy, divergence = naive(states, table, targets, others, how)
    wanted = torch.autograd.grad(entropy + divergence, (states, table))
    total, parts = mutual_loss(
        states, table, targets, lambda rows: Whole(others[rows].clone()), how, chunk_elements=chunk
    )
    torch.testing.assert_close(parts, torch.stack([entropy, divergence]).detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(total, parts.sum())
    for near, far in zip(torch.autograd.grad(total, (states, table)), wanted, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-9, atol=1e-10)


def test_by_hand() -> None:
    # Own probabilities 1/8, 1/8, 2/8, 4/8, the other's 4/8, 2/8, 1/8, 1/8; target 0: ranks 4 (a tie) and 1, so w = 2.
    # CE = log 8; KL = 4/8 log 4 + 2/8 log 2 + 1/8 log 1/2 + 1/8 log 1/4 = log 2 (8 + 2 - 1 - 2) / 8.
    states, table = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0], [1], [2], [4]]).double().log()
    others = torch.tensor([[4.0, 2, 1, 1]]).double().log()
    _, parts = mutual_loss(
        states, table, torch.tensor([0]), lambda rows: Whole(others[rows].clone()), Mutual(weight=0.5)
    )
    assert parts.tolist() == pytest.approx([math.log(8), 0.5 * 2 * math.log(2) * 7 / 8])


def test_hidden_items_have_no_mass_and_leave_no_infinity() -> None:
    states, table, targets, others = problem()
    hidden = [j for j in range(0, N, 3) if j not in targets.tolist()]
    others[:, hidden] = -torch.inf
    how = Mutual(temperature=1.5)
    entropy, divergence = naive(states, table, targets, others, how)
    wanted = torch.autograd.grad(entropy + divergence, (states, table))
    total, parts = mutual_loss(states, table, targets, lambda rows: Whole(others[rows].clone()), how)
    torch.testing.assert_close(parts, torch.stack([entropy, divergence]).detach(), rtol=1e-9, atol=1e-9)
    for near, far in zip(torch.autograd.grad(total, (states, table)), wanted, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-9, atol=1e-10)


def leading(others: Tensor, targets: Tensor, k: int, rows: slice) -> Leading:
    chosen = torch.log_softmax(others[rows], dim=1)
    best = chosen.topk(k, dim=1)
    ranks = ranks_of(others[rows], others[rows].gather(1, targets[rows, None]))
    return Leading(best.indices, best.values, ranks, torch.ones(len(ranks), dtype=torch.bool))


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_all_items_as_the_first_ones_are_the_whole(how: Mutual) -> None:
    states, table, targets, others = problem()
    whole, parts = mutual_loss(states, table, targets, lambda rows: Whole(others[rows].clone()), how)
    wanted = torch.autograd.grad(whole, (states, table))
    total, found = mutual_loss(states, table, targets, lambda rows: leading(others, targets, N, rows), how)
    torch.testing.assert_close(found, parts, rtol=1e-6, atol=1e-7)
    for near, far in zip(torch.autograd.grad(total, (states, table)), wanted, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-6, atol=1e-7)


def naive_cells(logits: Tensor, others: Tensor, k: int, how: Mutual) -> Tensor:
    """Return the divergence between K + 1 cells, [t]; at other temperatures the last one is spread evenly."""
    best = torch.softmax(others, dim=1).topk(k, dim=1)
    rest = 1 - best.values.sum(dim=1, keepdim=True)
    each = [best.values ** (1 / how.temperature), (N - k) * (rest / (N - k)) ** (1 / how.temperature)]
    p = torch.cat(each, dim=1)
    p = p / p.sum(dim=1, keepdim=True)
    q = torch.softmax(logits / how.temperature, dim=1)
    first = q.gather(1, best.indices)
    q = torch.cat([first, 1 - first.sum(dim=1, keepdim=True)], dim=1)
    return (p * (p.log() - q.log())).sum(dim=1)


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("k", [1, 6])
def test_first_items_and_the_rest_against_float64(k: int, how: Mutual) -> None:
    states, table, targets, others = problem(1)
    others[2:4] = others[4:6]  # no certainty: the naive form takes logarithms of what is left
    logits = states @ table.T
    weights = weights_of(logits, others, targets, how)
    scale = how.weight * (how.temperature**2 if how.squared else 1)
    divergence = (weights * naive_cells(logits, others, k, how)).mean() * scale
    entropy = torch.nn.functional.cross_entropy(logits, targets)
    wanted = torch.autograd.grad(entropy + divergence, (states, table))
    total, parts = mutual_loss(
        states, table, targets, lambda rows: leading(others, targets, k, rows), how, chunk_elements=3 * N
    )
    torch.testing.assert_close(parts, torch.stack([entropy, divergence]).detach(), rtol=1e-9, atol=1e-9)
    for near, far in zip(torch.autograd.grad(total, (states, table)), wanted, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-8, atol=1e-9)


def test_more_of_the_first_items_come_closer_to_the_whole_from_below() -> None:
    states, table, targets, others = problem(2)
    how = Mutual(adaptive=False)
    _, whole = mutual_loss(states, table, targets, lambda rows: Whole(others[rows].clone()), how)
    found = []
    for k in (1, 3, 10, 30, N):
        _, parts = mutual_loss(states, table, targets, lambda rows, k=k: leading(others, targets, k, rows), how)  # type: ignore[misc]
        found.append(parts[1].item())
    assert found == sorted(found)
    assert found[0] < 0.9 * found[-1]
    assert found[-1] == pytest.approx(whole[1].item(), rel=1e-6)


def test_states_nothing_is_known_of_keep_their_target_alone() -> None:
    states, table, targets, others = problem()
    others[2:4] = others[4:6]

    def other(rows: slice) -> Leading:
        said = leading(others, targets, 4, rows)
        known = torch.arange(T)[rows] % 2 == 0
        gone = torch.where(known[:, None], said.log_probabilities, -torch.inf)
        return Leading(said.items, gone, said.ranks, known)

    total, parts = mutual_loss(states, table, targets, other, Mutual(adaptive=False))
    cells = naive_cells(states @ table.T, others, 4, Mutual())
    entropy = torch.nn.functional.cross_entropy(states @ table.T, targets)
    divergence = cells[::2].sum() / T
    torch.testing.assert_close(parts, torch.stack([entropy, divergence]).detach(), rtol=1e-7, atol=1e-7)
    wanted = torch.autograd.grad(entropy + divergence, (states, table))
    for near, far in zip(torch.autograd.grad(total, (states, table)), wanted, strict=True):
        torch.testing.assert_close(near, far, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("form", ["whole", "leading"])
def test_sixteen_bits_come_close(form: str) -> None:
    states, table, targets, others = problem(3)
    how = Mutual(adaptive=False, temperature=1.3)

    def told(rows: slice, dtype: torch.dtype) -> Any:
        if form == "leading":
            return leading(others, targets, 5, rows)
        return Whole(others[rows].to(dtype, copy=True))

    exact = mutual_loss(states, table, targets, lambda rows: told(rows, torch.float64), how)
    wanted = torch.autograd.grad(exact[0], (states, table))
    rough = mutual_loss(
        states.float(), table.float(), targets, lambda rows: told(rows, torch.bfloat16), how, dtype=torch.bfloat16
    )
    torch.testing.assert_close(rough[1].double(), exact[1], rtol=0.02, atol=0.02)
    for near, far in zip(torch.autograd.grad(rough[0], (states, table)), wanted, strict=True):
        assert (near - far).norm() < 0.02 * far.norm()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("mass", [0.9, 0.9976, 0.9994, 0.99999])
def test_sixteen_bits_hold_where_the_student_is_sure_of_the_list(mass: float, temperature: float) -> None:
    # One state and a table of logits: K listed items share `mass`, 950 others the rest, of which the other model says 0.05.
    n, k = 1000, 50
    generator = torch.Generator().manual_seed(5)
    chances = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    listed = torch.arange(0, n, n // k)
    on_list = torch.zeros(n, dtype=torch.bool).index_fill_(0, listed, True)
    for part, share in ((on_list, mass), (~on_list, 1 - mass)):
        chances[part] *= share / chances[part].sum()
    logits = (chances.log() * temperature).bfloat16().double()  # what is left over is rounding of the loss itself
    said = torch.rand(1, k, generator=generator, dtype=torch.float64)
    said = Leading(listed[None], (said * 0.95 / said.sum()).log(), torch.ones(1, dtype=torch.int64), torch.ones(1) > 0)
    how = Mutual(adaptive=False, temperature=temperature)
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        states = torch.ones(1, 1, dtype=torch.float32 if dtype == torch.bfloat16 else dtype, requires_grad=True)
        table = logits[:, None].to(states.dtype).requires_grad_()
        total, parts = mutual_loss(states, table, listed[:1], lambda _: said, how, dtype=dtype)
        found[dtype] = parts.double(), *(one.double() for one in torch.autograd.grad(total, (table,)))
    (exact, wanted), (rough, near) = found[torch.float64], found[torch.bfloat16]
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    assert (near - wanted).norm() < 0.02 * wanted.norm()


def test_no_states() -> None:
    with pytest.raises(ValueError, match="no states"):
        mutual_loss(
            torch.empty(0, 2), torch.empty(3, 2), torch.empty(0), lambda rows: Whole(torch.empty(0, 3)), Mutual()
        )
