"""Every kind of teacher through a whole run, on a tiny language model and tiny data."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilrec.config import Config
from distilrec.data.batching import make_batch, training_windows
from distilrec.data.dataset import training_examples
from distilrec.errors import ConfigError
from distilrec.knowledge.store import KnowledgeWriter, open_knowledge
from distilrec.pipeline import Pipeline
from distilrec.settings import checked

TEACHERS: dict[str, dict[str, Any]] = {
    "e4srec": {"name": "e4srec", "lora_rank": 2, "max_length": 8, "precision": "float32"},
    "bigrec": {"name": "bigrec", "lora_rank": 2, "max_length": 4, "max_new": 4, "beams": 2, "precision": "float32"},
    "conventional": {"name": "conventional", "recommender": {"name": "gru4rec", "hidden_size": 12, "max_length": 8}},
    "text": {"name": "text", "precision": "float32"},
}


@pytest.fixture
def settings(tmp_path: Path, tiny_llm: Path) -> dict[str, Any]:
    """Settings of a tiny run: 24 histories over 12 items."""
    log, titles = tmp_path / "log.csv", tmp_path / "titles.csv"
    with log.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows(
            (f"u{user:02d}", f"i{(user + 5 * n) % 12:02d}", 100 * n + user) for n in range(9) for user in range(24)
        )
    titles.write_text("item_id,title\n" + "".join(f"i{item:02d},Title i{item:02d}\n" for item in range(12)))
    return {
        "name": "tiny",
        "data": {"interactions": log, "items": titles, "filters": {"k_core_user": 1, "k_core_item": 1}},
        "student": {"name": "sasrec", "hidden_size": 8, "max_length": 8, "blocks": 1, "heads": 1},
        "train": {"epochs": 1, "batch_tokens": 64},
        "teach": {"epochs": 1, "batch_tokens": 256, "validate_users": 8},
        "annotate": {"top_k": 5},
        "method": {"name": "dllm2rec", "top_k": 3},
        "evaluate": {"bootstrap": 10, "timing_users": 4},
    }


def pipeline(settings: dict[str, Any], root: Path, llm: Path, kind: str, **changes: Any) -> Pipeline:
    chosen = dict(TEACHERS.get(kind, {"name": kind}))
    if kind in ("e4srec", "bigrec", "text"):
        chosen["llm"] = str(llm)
    content = {**settings, "teacher": chosen, **changes}
    return Pipeline(checked(Config, content, where="test"), root)


@pytest.mark.parametrize("teacher", ["e4srec", "bigrec", "conventional"])
def test_a_run_with_a_teacher_that_scores(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, teacher: str
) -> None:
    run = pipeline(settings, tmp_path / "run", tiny_llm, teacher)
    results = run.evaluate()
    assert [row["role"] for row in results["rows"]] == ["student", "teacher", "distilled"]
    assert run.knowledge.examples.tolist() == training_examples(run.data).tolist()
    assert run.knowledge.items.shape[1] == 5
    assert run.knowledge.item_vectors is not None
    assert len(run.knowledge.item_vectors) == run.data.n_items
    again = pipeline(settings, tmp_path / "run", tiny_llm, teacher).evaluate()
    assert all(stage["cached"] for stage in again["stages"])
    assert again["rows"] == results["rows"]


def test_a_teacher_of_vectors_alone(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"needs rankings, which the teacher text does not give. Choose .* or switch off"
    ):
        pipeline(settings, tmp_path / "run", tiny_llm, "text").evaluate()
    method = {"name": "dllm2rec", "ranking_weight": 0}
    results = pipeline(settings, tmp_path / "run", tiny_llm, "text", method=method).evaluate()
    assert [row["role"] for row in results["rows"]] == ["student", "distilled"]


def test_recorded_rankings_and_vectors_of_text(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    path = tmp_path / "said.jsonl"
    said = [{"user_id": f"u{user:02d}", "items": [f"i{(user + n) % 12:02d}" for n in range(4)]} for user in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    annotate = {"vectors": {"llm": str(tiny_llm), "precision": "float32"}}
    teacher = {"teacher": {"name": "recorded", "rankings": path}, "annotate": annotate}
    run = pipeline(settings, tmp_path / "run", tiny_llm, "recorded", **teacher)
    assert [row["role"] for row in run.evaluate()["rows"]] == ["student", "distilled"]
    assert run.knowledge.examples.tolist() == training_examples(run.data, "last").tolist()
    names = [run.data.item_ids[item] for item in run.knowledge.items[3]]
    assert names == said[3]["items"]
    said[3]["items"] = said[3]["items"][::-1]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))  # another file is other knowledge
    other = pipeline(settings, tmp_path / "run", tiny_llm, "recorded", **teacher)
    assert [other.data.item_ids[item] for item in other.knowledge.items[3]] == said[3]["items"]


def test_a_store_is_filled_up_as_more_is_wanted(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knowledge(**annotate: Any) -> Any:
        run = pipeline(settings, tmp_path / "run", tiny_llm, "conventional", annotate={"top_k": 5, **annotate})
        return run, run.knowledge

    run, few = knowledge(sample=20)
    assert len(few.examples) == 20
    _, more = knowledge(sample=50)
    assert set(few.examples) < set(more.examples)
    assert len(more.examples) == 50
    folder = run.stages["knowledge"].folder
    written: list[int] = []
    append = KnowledgeWriter.append
    monkeypatch.setattr(KnowledgeWriter, "append", lambda self, rows: (written.append(len(rows)), append(self, rows)))
    _, capped = knowledge(caps={"rows": 60})
    assert (len(capped.examples), written) == (60, [10])
    knowledge(caps={"rows": 60})
    assert written == [10]  # the cap still stands: nothing is done
    _, whole = knowledge()
    assert len(whole.examples) == len(training_examples(run.data)) == sum(written) + 50
    assert open_knowledge(folder, run.data).digest == whole.digest != few.digest


def test_each_part_of_the_histories_is_asked_of_a_teacher_that_did_not_see_it(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    teach = {**settings["teach"], "learning_rate": 0.02, "batch_tokens": 32}
    run = pipeline(settings, tmp_path / "run", tiny_llm, "e4srec", annotate={"top_k": 5, "folds": 3}, teach=teach)
    knowledge = run.knowledge
    assert knowledge.examples.tolist() == training_examples(run.data).tolist()
    parts = run.teaching.parts
    assert sorted(np.unique(parts, return_counts=True)[1].tolist()) == [8, 8, 8]
    assert len({stage.key for stage in run.teaching.parted}) == 3
    assert "teacher" not in run.stages  # the one that saw everything is only trained to be measured
    mine = parts[run.data.rows_of(knowledge.examples)]
    windows = training_windows(run.data, 8, None)
    for part, stage in enumerate(run.teaching.parted):
        teacher: Any = run.teaching.restored(stage)()
        equal = {True: 0, False: 0}
        for row in range(len(windows)):
            batch = make_batch(run.data, windows, np.array([row]))
            items, _ = teacher.rank(batch, 5)
            places = np.searchsorted(knowledge.examples, batch.examples.numpy())
            for own, place in zip(items.tolist(), places, strict=True):
                equal[bool(mine[place] == part)] += own == knowledge.items[place].tolist()
        assert equal[True] >= 0.9 * (mine == part).sum()  # but for ties that another batch's rounding turns around
        assert equal[False] < 0.9 * (mine != part).sum()
    results = run.evaluate()
    assert [row["role"] for row in results["rows"]] == ["student", "teacher", "distilled"]


def test_a_cap_ends_the_parts_too(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    capped = {"top_k": 5, "folds": 2, "caps": {"rows": 30}, "shard_rows": 10, "batch_tokens": 16}
    run = pipeline(settings, tmp_path / "run", tiny_llm, "e4srec", annotate=capped)
    first = run.knowledge.examples
    assert 0 < len(first) <= 40
    assert set(run.teaching.parts[run.data.rows_of(first)].tolist()) == {0}
    more = pipeline(settings, tmp_path / "run", tiny_llm, "e4srec", annotate={**capped, "caps": {}})
    assert more.knowledge.examples.tolist() == training_examples(run.data).tolist()


def test_parts_need_a_teacher_that_is_trained_over_the_catalogue(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    with pytest.raises(ConfigError, match=r"annotate.folds is for teachers .* bigrec is not"):
        _ = pipeline(settings, tmp_path / "run", tiny_llm, "bigrec", annotate={"folds": 2}).knowledge
