"""ALKDRec's loss by hand, its negatives, whom it asks, and tuning that starts from the plain student."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import Config, LossSettings
from distilrec.data.batching import Batch
from distilrec.data.dataset import training_examples
from distilrec.errors import ConfigError
from distilrec.knowledge.select import difficulties, select
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.objective import Objective
from distilrec.methods import alkdrec
from distilrec.methods.alkdrec import ALKDRec, ALKDRecSettings, outside
from distilrec.pipeline import Pipeline
from distilrec.settings import checked
from distilrec.students.base import load_student


def make(said: Knowledge, n_items: int, **changes: Any) -> ALKDRec:
    method = ALKDRec(ALKDRecSettings.model_validate(changes), said)
    method.objective = Objective(LossSettings(name="ce"), torch.ones(n_items, dtype=torch.int64))
    return method


def batch_of(targets: list[int], examples: list[int]) -> Batch:
    unused = torch.zeros(1, dtype=torch.int64)
    return Batch(unused, unused, unused, torch.tensor(targets), torch.tensor(examples))


def test_weights_of_the_bands() -> None:
    assert ALKDRecSettings().alphas().tolist() == [3.0] * 5 + [2.0] * 10 + [1.0] * 10
    assert ALKDRecSettings(bands=(1, 3), band_weights=(2, 0.5)).alphas().tolist() == [2.0, 0.5, 0.5]


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Scores 0, log 2, log 4, log 8. The teacher says 3, 1; against each stands item 0, of score 0: with bands 1 and 2,
    # 3 log(1 + 1/8) + 2 log(1 + 1/2). Example 8 ends after item 2: 3 log(1 + 1/4). Nobody was asked about 9. Mean over three.
    table = torch.tensor([[1.0], [2], [4], [8]], dtype=torch.float64).log()
    scores = np.array([[-1.0, -2.0], [-1.0, NOTHING]], dtype=np.float32)
    said = Knowledge({}, np.array([7, 8]), np.array([[3, 1], [2, 0]]), scores, None)
    monkeypatch.setattr(alkdrec, "outside", lambda items, there, n_items: torch.zeros_like(items))
    method = make(said, 4, bands=(1, 2), band_weights=(3, 2))
    states = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    parts = method.loss(batch_of([0, 1, 2], [7, 8, 9]), states, table)
    wanted = (3 * math.log(9 / 8) + 2 * math.log(3 / 2) + 3 * math.log(5 / 4)) / 3
    assert {name: part.item() for name, part in parts.items()} == pytest.approx({"target": 0.0, "ranking": wanted})
    with_target = make(said, 4, bands=(1, 2), band_weights=(3, 2), target_weight=0.5)
    own = (math.log(15) + math.log(15 / 2) + math.log(15 / 4)) / 3
    found = with_target.loss(batch_of([0, 1, 2], [7, 8, 9]), states, table)
    assert {name: part.item() for name, part in found.items()} == pytest.approx(
        {"target": 0.5 * own, "ranking": wanted}
    )


def test_the_gradient_is_that_of_the_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    n, k = 9, 4
    items = np.stack([np.random.default_rng(row).permutation(n)[:k] for row in range(5)])
    said = Knowledge({}, np.arange(5), items, np.zeros((5, k), np.float32) - np.arange(k, dtype=np.float32), None)
    states = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    method = make(said, n, bands=(1, 3, 4), band_weights=(3, 2, 1))
    torch.manual_seed(1)
    negatives = outside(torch.from_numpy(items), torch.ones(5, k, dtype=torch.bool), n)
    torch.manual_seed(1)
    found = method.loss(batch_of([0] * 5, list(range(5))), states, table)["ranking"]
    wanted: Tensor = sum(  # type: ignore[assignment]
        -alpha * torch.log(torch.sigmoid(states[s] @ table[items[s, r]] - states[s] @ table[negatives[s, r]]))
        for s in range(5)
        for r, alpha in enumerate((3, 2, 2, 1))
    )
    torch.testing.assert_close(found, wanted / 5)
    pairs = zip(*(torch.autograd.grad(x, (states, table)) for x in (found, wanted / 5)), strict=True)
    for near, far in pairs:
        torch.testing.assert_close(near, far)


def test_negatives_are_drawn_alike_from_what_is_not_listed() -> None:
    torch.manual_seed(0)
    items = torch.tensor([[0, 1, 2], [7, 7, 7]])
    there = torch.tensor([[True, True, True], [True, False, False]])
    draws = torch.stack([outside(items, there, 8) for _ in range(1500)])
    for row, free in ((0, {3, 4, 5, 6, 7}), (1, set(range(7)))):
        values, counts = draws[:, row].unique(return_counts=True)
        own = sum(counts[place].item() for place, value in enumerate(values.tolist()) if value not in free)
        assert own <= 4500 * (3 / 8) ** 4  # after four tries a list's own item may remain
        share = 4500 / len(free)
        assert all(abs(counts[values.tolist().index(item)].item() - share) < 6 * math.sqrt(share) + 30 for item in free)
    assert outside(torch.tensor([[0, 1]]), torch.tensor([[True, True]]), 2).shape == (1, 2)  # nothing else is there


@pytest.mark.parametrize(
    "settings",
    [
        {"bands": [5, 3], "band_weights": [1, 1]}, {"bands": [5], "band_weights": [1, 1]}, {"bands": [0, 3], "band_weights": [1, 1]},
        {"band_weights": [3, 2, -1]}, {"policy": "best"}, {"budget": 0}, {"bands": [], "band_weights": []},
        {"gains": {"mu": -1}},
    ],
)  # fmt: skip
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        checked(ALKDRecSettings, settings, where="method")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    log, titles = tmp_path / "log.csv", tmp_path / "titles.csv"
    rows = [
        f"u{user:02d},i{(user * 3 + n * (1 + user % 4)) % 12:02d},{100 * n + user}"
        for n in range(9)
        for user in range(24)
    ]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    titles.write_text("item_id,title\n" + "".join(f"i{item:02d},Title i{item:02d}\n" for item in range(12)))
    return {
        "name": "tiny",
        "data": {"interactions": log, "items": titles, "filters": {"k_core_user": 1, "k_core_item": 1}},
        "student": {"name": "fpmc", "hidden_size": 6, "max_length": 8},
        "train": {"epochs": 2, "batch_tokens": 64},
        "teacher": {"name": "conventional", "recommender": {"name": "fpmc", "hidden_size": 16, "max_length": 8}},
        "annotate": {"top_k": 5, "examples": "last"},
        "method": {"name": "alkdrec", "budget": 7, "bands": [2, 5], "band_weights": [2, 1]},
        "evaluate": {"bootstrap": 10, "timing_users": 4},
    }


def test_only_chosen_examples_are_asked_and_trained_on(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pipeline(checked(Config, config, where="test"), tmp_path / "run")
    last = training_examples(run.data, "last")
    hard = difficulties(load_student(run.teaching.trained.folder / "model.safetensors", _students()), run.data, last)  # type: ignore[union-attr]
    wanted = select(last, hard, "maxmin", 7).examples
    assert sorted(run.knowledge.examples.tolist()) == sorted(wanted.tolist())
    seen: set[int] = set()
    started: list[Tensor] = []
    loss = ALKDRec.loss

    def watching(self: ALKDRec, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        started.append(table.detach().clone())
        seen.update(batch.examples.tolist())
        return loss(self, batch, states, table)

    monkeypatch.setattr(ALKDRec, "loss", watching)
    results = run.evaluate()
    assert seen == set(wanted.tolist())
    assert torch.equal(started[0], run.student.item_vectors())  # it goes on from the plain student
    assert not torch.equal(started[-1], started[0])  # what comes out may still be the plain student: validation decides
    assert [row["role"] for row in results["rows"]] == ["student", "teacher", "distilled"]


def test_a_larger_budget_keeps_what_was_asked(config: dict[str, Any], tmp_path: Path) -> None:
    first = Pipeline(checked(Config, config, where="test"), tmp_path / "run")
    before = set(first.knowledge.examples.tolist())
    config["method"]["budget"] = 11
    more = Pipeline(checked(Config, config, where="test"), tmp_path / "run")
    assert before < set(more.knowledge.examples.tolist())
    assert len(more.knowledge.examples) == 11


def _students() -> Any:
    from distilrec.students import STUDENTS

    return STUDENTS
