"""ALKDRec whole, over a scripted server: the chosen sessions and no others are asked about, and the replies tune the student."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import fixtures_asking as asking
from distilrec.data.dataset import training_examples
from distilrec.knowledge.select import difficulties, select
from distilrec.students import STUDENTS
from distilrec.students.base import load_student
from distilrec.training.loop import load_fit
from fixtures_asking import Base
from fixtures_server import Act, Asked, ScriptedServer, ok


def model(request: Asked) -> Act:
    if asking.is_summary(request.user):
        return ok(asking.HINTS)
    return ok(asking.said(request.user).text)


def test_the_whole_loop(base: Base, tmp_path: Path) -> None:
    words = [
        "method.name=alkdrec",
        "method.budget=40",
        "method.policy=alkdrec",
        "teacher.hints=true",
        "distil={epochs: 2}",
    ]
    with ScriptedServer(model) as server:
        run = base.pipeline(tmp_path / "run", server.url, *words)
        results = run.evaluate()
        asked = {
            asking.example_of(record.user, run.data) for record in server.records if not asking.is_summary(record.user)
        }
        summaries = sum(asking.is_summary(record.user) for record in server.records)
    trained = run.teaching.trained
    assert trained is not None
    every = training_examples(run.data)
    hard = difficulties(load_student(trained.folder / "model.safetensors", STUDENTS), run.data, every)
    assert asked == set(select(every, hard, "alkdrec", 40).examples.tolist()) == set(run.knowledge.examples.tolist())
    assert summaries == 1
    assert [row["role"] for row in results["rows"]] == ["student", "distilled"]
    assert not np.array_equal(run.distilled.item_vectors().detach(), run.student.item_vectors().detach())
    account = json.loads((asking.knowledge_of(run.root) / "account.json").read_text())
    assert account["rows_done"] == 40

    with ScriptedServer(model) as server:  # 15 more: the 40 are not asked about again
        more = base.pipeline(tmp_path / "run", server.url, *words, "method.budget=55")
        assert len(more.knowledge.examples) == 55
        assert len([record for record in server.records if not asking.is_summary(record.user)]) == 15


def test_hints_that_repeat_one_phrase_are_kept_and_not_used(base: Base, tmp_path: Path) -> None:
    echo = "best first, " * 30

    def looped(request: Asked) -> Act:
        return ok(echo) if asking.is_summary(request.user) else model(request)

    with ScriptedServer(looped) as server:
        run = base.pipeline(
            tmp_path / "run", server.url, "method.name=alkdrec", "method.budget=5", "teacher.hints=true"
        )
        assert len(run.knowledge.examples) == 5
        systems = [
            record.body["messages"][0]["content"] for record in server.records if not asking.is_summary(record.user)
        ]
    assert systems
    assert not any("best first, best first" in system for system in systems)
    (hints,) = tmp_path.glob("run/knowledge-*/hints/shard-*.parquet")
    assert pl.read_parquet(hints)["reply"].to_list() == [echo]


def test_answers_that_bring_nothing_leave_the_student_as_it_was(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(model) as server:
        words = [
            "method.name=alkdrec",
            "method.budget=5",
            "teacher.hints=true",
            "distil={epochs: 3, learning_rate: 1.0e-6}",
        ]
        run = base.pipeline(tmp_path / "run", server.url, *words)
        tuned, plain = run.distilled.state_dict(), run.student.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in tuned.items())
    assert load_fit(run.stages["distilled"].folder).best_epoch == 0
    assert "none better than the start, which is kept" in capsys.readouterr().err
