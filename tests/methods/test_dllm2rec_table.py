"""DLLM2Rec's settings, each of which counts, and its item table: projected vectors of the teacher, folded for serving."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch
from distilrec.errors import ConfigError, InputError
from distilrec.knowledge.store import Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods.dllm2rec import DLLM2Rec, DLLM2RecSettings, InformedTable
from distilrec.methods.item_vectors import principal, standardised
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import ItemTable, Student, build_student

N_ITEMS, WIDTH, ENTERING = 15, 6, 11


VARIANTS: list[dict[str, Any]] = [
    {},
    {"vector_width": 4},
    {"vector_width": None},
    {"whiten": 1.0},
    {"projection": "mlp", "projection_hidden": 7},
    {"offset": False},
    {"offset": False, "projection": "mlp"},
    {"paper_compat": True},
    {"paper_compat": True, "offset": False},
    {"paper_compat": True, "projection": "mlp"},
]


def knowledge(vectors: bool = True, rankings: bool = True) -> Knowledge:
    generator = np.random.default_rng(0)
    examples = np.array([2, 3, 5, 8] if rankings else [], dtype=np.int64)
    items = np.array([generator.permutation(N_ITEMS)[:5] for _ in examples], dtype=np.int64).reshape(-1, 5)
    scores = -np.sort(generator.exponential(2.0, items.shape), axis=1).astype(np.float32)
    told = torch.from_numpy(generator.normal(3.0, 2.0, (N_ITEMS, ENTERING))).float()
    return Knowledge({}, examples, items, scores, told if vectors else None)


def table_of(free: ItemTable | None = None, **changes: Any) -> InformedTable:
    torch.manual_seed(0)
    free = ItemTable(N_ITEMS, WIDTH) if free is None else free
    module = DLLM2Rec(DLLM2RecSettings.model_validate(changes), knowledge()).item_embedding(free)
    assert isinstance(module, InformedTable)
    return module


def step(loss: str = "ce", **changes: Any) -> tuple[Tensor, ...]:
    """Return everything that one training step makes of the settings: the parts of the loss, and the table's numbers."""
    torch.manual_seed(0)
    method = DLLM2Rec(DLLM2RecSettings.model_validate(changes), knowledge())
    method.objective = Objective(LossSettings(name=loss, negatives=4), torch.ones(N_ITEMS))
    table = method.item_embedding(ItemTable(N_ITEMS, WIDTH))()
    generator = torch.Generator().manual_seed(1)
    states = 2 * torch.randn(5, WIDTH, generator=generator)
    unused = torch.zeros(1, dtype=torch.int64)
    batch = Batch(unused, unused, unused, torch.tensor([0, 3, 3, 9, 14]), torch.tensor([1, 2, 3, 5, 8]))
    torch.manual_seed(0)
    parts = method.loss(method.objective.draw(batch), states, table)
    return *(part.detach() for part in parts.values()), table.detach()


CHANGES: dict[str, tuple[dict[str, Any], Any]] = {  # what else is set, and another value than the default
    "top_k": ({}, 2),
    "ranking_weight": ({}, 0.5),
    "position_weight": ({}, 0.0),
    "confidence_weight": ({}, 0.0),
    "consistency_weight": ({}, 0.0),
    "beta": ({}, 3.0),
    "confidence_temperature": ({}, 3.0),
    "examples": ({}, "by_mass"),
    "embedding_weight": ({}, 0.6),
    "projection": ({}, "mlp"),
    "projection_hidden": ({"projection": "mlp"}, 9),
    "vector_width": ({}, 4),
    "whiten": ({}, 0.5),
    "offset": ({}, False),
    "paper_compat": ({}, True),
}


def test_the_defaults_are_those_of_the_paper() -> None:
    paper = {
        "ranking_weight": 0.7,
        "top_k": 10,
        "position_weight": 0.3,
        "confidence_weight": 0.5,
        "consistency_weight": 0.1,
        "beta": 1.0,
        "embedding_weight": 0.3,
    }
    assert DLLM2RecSettings().model_dump(include=set(paper)) == paper


def test_every_setting_is_tried() -> None:
    assert set(CHANGES) == set(DLLM2RecSettings.model_fields)


@pytest.mark.parametrize("name", list(CHANGES))
def test_each_setting_changes_the_result(name: str) -> None:
    base, other = CHANGES[name]
    once, again, changed = step(**base), step(**base), step(**(base | {name: other}))
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))
    assert len(changed) == len(once)
    assert max((one - two).abs().max().item() for one, two in zip(once, changed, strict=True)) > 1e-4
    table = {"embedding_weight", "projection", "projection_hidden", "vector_width", "whiten", "offset", "paper_compat"}
    assert torch.equal(once[-1], changed[-1]) == (name not in table)


def test_the_published_formulas_change_the_loss_too() -> None:
    plain = {"embedding_weight": 0, "confidence_temperature": 1.0}
    for loss, changes in (("bce", {}), ("ce", {"confidence_temperature": 9.0})):
        found = step(loss, **(plain | changes))
        published = step(loss, paper_compat=True, **(plain | changes))
        assert found[0].item() == pytest.approx(published[0].item(), rel=1e-6)  # the target's part is the same
        assert abs(found[1].item() - published[1].item()) > 1e-3
    # Cross-entropy at temperature 1: only 1e-8 beside the confidences.
    near = zip(step(**plain), step(paper_compat=True, **plain), strict=True)
    assert all((one - two).abs().max() < 1e-4 for one, two in near)


def test_standardised_by_hand() -> None:
    vectors = torch.tensor([[1.0, 7.0, 100.0], [3.0, 7.0, 300.0]])
    assert standardised(vectors).tolist() == [[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]
    some = standardised(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 9 + 40)
    torch.testing.assert_close(some.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(some.square().mean(dim=0), torch.ones(4), atol=1e-5, rtol=0)


def test_item_embedding_by_hand() -> None:
    offset = ItemTable(N_ITEMS, WIDTH)
    module = table_of(offset, embedding_weight=0.25, vector_width=None)
    told = knowledge().item_vectors
    assert told is not None
    expected = offset.weight + 0.25 * standardised(told) @ module.project.weight.T
    torch.testing.assert_close(module(), expected)
    # Free vectors and projection learn; the teacher's vectors do not, and are not kept in a student's file.
    assert {name for name, _ in module.named_parameters()} == {"offset.weight", "project.weight"}
    assert "vectors" not in module.state_dict()
    before = module().detach()
    doubled = InformedTable(offset, WIDTH, standardised(told), 0.5)
    doubled.project = module.project
    torch.testing.assert_close(doubled() - offset.weight, 2 * (before - offset.weight), rtol=1e-4, atol=1e-6)


def test_projections_of_small_numbers_by_hand() -> None:
    offset = ItemTable(2, 1)
    vectors = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    linear = InformedTable(offset, 1, vectors, 0.5, bias=True)
    deep = InformedTable(offset, 1, vectors, 0.5, hidden=1)
    alone = InformedTable(offset, 1, vectors, 0.5, keep_offset=False)
    with torch.no_grad():
        offset.weight.copy_(torch.tensor([[10.0], [20.0]]))
        for module in (linear, alone):
            module.project.weight.copy_(torch.tensor([[1.0, 10.0]]))
        linear.project.bias.fill_(4.0)
        assert deep.hidden is not None
        deep.hidden.weight.copy_(torch.tensor([[1.0, -1.0]]))
        deep.hidden.bias.fill_(1.0)
        deep.project.weight.fill_(3.0)
        deep.project.bias.fill_(-2.0)
    assert linear().tolist() == [[10 + 0.5 * (21 + 4)], [20 + 0.5 * (3 + 4)]]
    assert alone().tolist() == [[10.5], [1.5]]
    # gelu(1 - 2 + 1) = 0 and gelu(3 - 0 + 1) = 4 Phi(4) = 3.999873.
    assert deep().flatten().tolist() == pytest.approx([10 - 1, 20 + 0.5 * (3 * 3.999873 - 2)], abs=1e-5)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_what_each_variant_projects(changes: dict[str, Any]) -> None:
    module = table_of(**changes)
    told = knowledge().item_vectors
    assert told is not None
    if changes.get("paper_compat"):
        torch.testing.assert_close(module.vectors, told)
    else:
        wanted = principal(told, changes.get("vector_width", 256), whiten=changes.get("whiten", 0.0))
        torch.testing.assert_close(module.vectors, wanted)
    learnt = {"project.weight"} | ({"offset.weight"} if changes.get("offset", True) else set())
    if changes.get("projection") == "mlp" and not changes.get("paper_compat"):
        learnt |= {"hidden.weight", "hidden.bias", "project.bias"}
    if changes.get("paper_compat"):
        learnt |= {"project.bias"}
    assert {name for name, _ in module.named_parameters()} == learnt
    module().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_some_rows_are_those_of_the_whole_table(changes: dict[str, Any]) -> None:
    module, rows = table_of(**changes), torch.tensor([0, 3, 14, 3])
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)  # biases too
    torch.testing.assert_close(module(rows), module()[rows])


@pytest.mark.parametrize("name", list(STUDENTS))
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_folding_leaves_a_plain_student_of_the_same_size(changes: dict[str, Any], name: str) -> None:
    def build() -> Student:
        torch.manual_seed(0)
        return build_student(name, {"hidden_size": 8, "max_length": 6}, N_ITEMS, STUDENTS)

    plain, informed = build(), build()
    informed.item_table = DLLM2Rec(DLLM2RecSettings.model_validate(changes), knowledge()).item_embedding(
        informed.item_table
    )
    folded = informed.eval().folded()
    assert {key: value.shape for key, value in folded.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in plain.parameters())
    assert type(folded.item_table) is ItemTable
    assert not torch.allclose(folded.item_vectors(), plain.item_vectors())
    histories, lengths = torch.tensor([[1, 2, 3], [4, 14, 0]]), torch.tensor([3, 2])
    with torch.no_grad():
        served, trained = (
            model.encode_last(histories, lengths, model.item_vectors()) @ model.item_vectors().T
            for model in (folded, informed)
        )
    torch.testing.assert_close(served, trained)


def test_embedding_weight_zero_leaves_the_table_alone() -> None:
    table = ItemTable(N_ITEMS, WIDTH)
    for changes in ({}, {"projection": "mlp"}, {"offset": False}, {"paper_compat": True}):
        settings = DLLM2RecSettings.model_validate({"embedding_weight": 0} | changes)
        assert DLLM2Rec(settings, knowledge()).item_embedding(table) is table


def test_missing_knowledge() -> None:
    with pytest.raises(InputError, match="Annotate first"):
        DLLM2Rec(DLLM2RecSettings(), None)


def test_missing_item_vectors() -> None:
    with pytest.raises(InputError, match="item vectors"):
        DLLM2Rec(DLLM2RecSettings(), knowledge(vectors=False))


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"beta": 0},
        {"confidence_temperature": 0},
        {"ranking_weight": -1},
        {"embedding_weight": -0.1},
        {"postion_weight": 0.3},
        {"projection": "deep"},
        {"projection_hidden": 0},
        {"vector_width": 0},
        {"whiten": 1.5},
    ],
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(DLLM2RecSettings, settings, where="method")


def test_what_is_switched_off_needs_nothing() -> None:
    cases = {
        (0.7, 0.3): {"rankings", "item_vectors"},
        (0.7, 0.0): {"rankings"},
        (0.0, 0.3): {"item_vectors"},
        (0.0, 0.0): set(),
    }
    for (ranking, embedding), needs in cases.items():
        settings = DLLM2RecSettings(ranking_weight=ranking, embedding_weight=embedding)
        assert DLLM2Rec.needs_of(settings) == needs
    DLLM2Rec(DLLM2RecSettings(ranking_weight=0, embedding_weight=0), None)
    DLLM2Rec(DLLM2RecSettings(embedding_weight=0), knowledge(vectors=False))


def test_item_vectors_alone_are_enough_where_rankings_weigh_nothing() -> None:
    method = DLLM2Rec(DLLM2RecSettings(ranking_weight=0), knowledge(rankings=False))
    assert isinstance(method.item_embedding(ItemTable(N_ITEMS, WIDTH)), InformedTable)
    with pytest.raises(InputError, match="needs rankings and this teacher gave none"):
        DLLM2Rec(DLLM2RecSettings(), knowledge(rankings=False))


def test_without_the_students_loss_there_is_no_ranking() -> None:
    unused = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="student's loss"):
        DLLM2Rec(DLLM2RecSettings(), knowledge()).loss(
            Batch(unused, unused, unused, unused, unused), torch.zeros(1, WIDTH), torch.zeros(N_ITEMS, WIDTH)
        )
