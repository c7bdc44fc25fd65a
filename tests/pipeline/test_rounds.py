"""Teacher and student in rounds: both sides come out, frozen sides stay as they are, and a killed run goes on in its half-step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distilrec.config import Config
from distilrec.errors import ConfigError, FingerprintError, InputError
from distilrec.evaluation.rank import target_ranks
from distilrec.methods.llmd4rec import LLMD4RecSettings
from distilrec.pipeline import Pipeline, alternating
from distilrec.pipeline.alternating import Alternation
from distilrec.settings import checked
from distilrec.training import loop
from distilrec.training.loop import load_fit
from fixtures_toy import toy_files

TEACHERS: dict[str, dict[str, Any]] = {
    "e4srec": {"name": "e4srec", "lora_rank": 2, "max_length": 8, "precision": "float32"},
    "conventional": {"name": "conventional", "recommender": {"name": "gru4rec", "hidden_size": 12, "max_length": 8}},
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    log, titles = toy_files(tmp_path)
    return {
        "name": "tiny",
        "data": {"interactions": log, "items": titles, "filters": {"k_core_user": 1, "k_core_item": 1}},
        "student": {"name": "sasrec", "hidden_size": 8, "max_length": 8, "blocks": 1, "heads": 1},
        "train": {"epochs": 2, "batch_tokens": 64, "learning_rate": 0.01},
        "teach": {"batch_tokens": 256, "validate_users": 8, "learning_rate": 0.01},
        "annotate": {"top_k": 5},
        "method": {"name": "llmd4rec", "rounds": 2, "student_epochs": 2},
        "evaluate": {"bootstrap": 10, "timing_users": 4, "filter_seen": True},
    }


def pipeline(settings: dict[str, Any], root: Path, llm: Path, kind: str = "e4srec", **method: Any) -> Pipeline:
    teacher = TEACHERS.get(kind, {"name": kind}) | ({"llm": str(llm)} if kind in ("e4srec", "bigrec") else {})
    content = {**settings, "teacher": teacher, "method": settings["method"] | method}
    return Pipeline(checked(Config, content, where="test"), root)


def folders(root: Path, name: str) -> list[Path]:
    return sorted(root.glob(f"{name}-*"))


@pytest.mark.parametrize(
    ("teacher", "method"),
    [
        ("e4srec", {}),
        ("e4srec", {"told": "first", "top_k": 4, "teacher_temperature": 2.0, "squared": True}),
        ("e4srec", {"embedding_weight": 0.3, "vector_width": 4}),
        ("e4srec", {"teacher_weight": 0.0, "sample_weights": False, "refresh": False}),
        ("conventional", {}),
    ],
)
def test_both_sides_come_out(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, teacher: str, method: dict[str, Any]
) -> None:
    run = pipeline(settings, tmp_path / "run", tiny_llm, teacher, **method)
    results = run.evaluate()
    assert [row["role"] for row in results["rows"]] == ["student", "teacher", "distilled"]
    names = [one["name"] for one in results["stages"]]
    assert {"student", "teacher-round-1", "student-round-1"} < set(names)
    assert len(names) == len(set(names))
    assert ("student-round-0" in names) == ("embedding_weight" in method)  # else it is the plain student
    assert len(run.alternation.course.teachers) == len(run.alternation.course.students) - 1
    assert list(tmp_path.glob("run/**/peer_states.bin")) == []
    again = pipeline(settings, tmp_path / "run", tiny_llm, teacher, **method).evaluate()
    assert all(stage["cached"] for stage in again["stages"])
    assert again["rows"] == results["rows"]


def test_every_setting_matters(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting away from the default, the first teacher or the student after it is another one."""
    monkeypatch.setattr(alternating, "_after", lambda *_, **__: {})  # also where it is worse than its start
    changes: list[dict[str, Any]] = [
        {}, {"teacher_weight": 0.0}, {"teacher_weight": 0.5}, {"student_weight": 0.5}, {"sample_weights": False},
        {"teacher_temperature": 2.0}, {"student_temperature": 2.0}, {"teacher_temperature": 2.0, "squared": True},
        {"told": "first", "top_k": 3}, {"told": "first", "top_k": 4},
        {"embedding_weight": 0.5, "vector_width": 4}, {"embedding_weight": 0.5, "vector_width": 3},
        {"embedding_weight": 0.5, "vector_width": 4, "whiten": 1.0}, {"student_anew": True},
    ]  # fmt: skip
    found = set()
    for number, change in enumerate(changes):
        run = pipeline(settings, tmp_path / str(number), tiny_llm, rounds=1, **change)
        _ = run.alternation.course
        (student,) = folders(run.root, "student-round-1")
        weights = load_file(student / "model.safetensors")
        found.add(tuple(round(value.double().sum().item(), 7) for value in weights.values()))
    assert len(found) == len(changes)


def test_rounds_from_the_plain_student_are_those_from_one_trained_like_it(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    shared = pipeline(settings, tmp_path / "shared", tiny_llm).alternation.course
    like_it = {**settings, "distil": {**settings["train"], "patience": 7}}  # two epochs: no patience is ever at its end
    own = pipeline(like_it, tmp_path / "own", tiny_llm).alternation.course
    assert (shared.students[0].made.name, own.students[0].made.name) == ("student", "student-round-0")
    for one, other in zip(shared.students, own.students, strict=True):
        ours, theirs = (load_file(half.made.folder / "model.safetensors") for half in (one, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_student_that_begins_anew_is_one_that_never_was_anything_else(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    run = pipeline(settings, tmp_path / "run", tiny_llm, "conventional", student_anew=True, student_epochs=1)
    course, rounds = run.alternation.course, run.alternation
    for half, teacher in zip(course.students[1:], course.teachers, strict=True):
        assert len(load_fit(half.made.folder).history) == settings["train"]["epochs"] == 2  # as a training has
        student, method = rounds._new_student()
        method.learn_from(rounds._peer(run.teaching.restored(teacher.made)(), teacher.made))
        folder = tmp_path / f"alone-{half.number}"
        folder.mkdir()
        seed = rounds._seed(half.number)
        rounds._fit_student(student, method, rounds._learning, folder, "", "alone", None, seed)
        ours, theirs = (load_file(one / "model.safetensors") for one in (half.made.folder, folder))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_setting_that_came_later_leaves_the_identity_of_earlier_runs_alone() -> None:
    assert LLMD4RecSettings(student_anew=True).model_dump()["student_anew"]
    assert "student_anew" not in LLMD4RecSettings().model_dump()


def test_a_teacher_may_start_on_the_targets_alone(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    run = pipeline(settings, tmp_path / "run", tiny_llm, teacher_start_epochs=3)
    course = run.alternation.course
    start = course.teachers[0]
    assert (start.number, start.made.name, len(load_fit(start.made.folder).history)) == (0, "teacher-round-0", 3)
    assert "mutual" not in load_fit(start.made.folder).history[0]["parts"]
    assert "mutual" in load_fit(course.teachers[1].made.folder).history[0]["parts"]
    # what the method does in rounds is nothing to it: another variant in the same folder begins from the same one
    other = pipeline(settings, tmp_path / "run", tiny_llm, teacher_start_epochs=3, student_weight=0.3).alternation
    assert other.course.teachers[0].made.key == start.made.key
    assert len(folders(tmp_path / "run", "teacher-round-0")) == 1


def test_students_of_other_seeds_learn_from_the_teachers_of_rounds_that_lead(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    led = pipeline(settings, tmp_path / "led", tiny_llm).alternation
    courses = {
        seed: Alternation(pipeline({**settings, "seed": seed}, tmp_path / str(seed), tiny_llm), led).course
        for seed in (42, 43)
    }
    weights = {}
    for seed, course in courses.items():
        own = led.course.teachers[: len(course.teachers)]
        assert [half.made.key for half in course.teachers] == [half.made.key for half in own]
        weights[seed] = [load_file(half.made.folder / "model.safetensors") for half in course.students]
    leading = [load_file(half.made.folder / "model.safetensors") for half in led.course.students]
    assert len(weights[42]) == len(leading)
    for ours, theirs in zip(weights[42], leading, strict=True):  # the leader's own seed: the leader's own students
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert any(not torch.equal(weights[43][-1][key], value) for key, value in weights[42][-1].items())
    assert not folders(tmp_path / "43", "teacher-round")


def test_rounds_that_lead_are_of_the_same_data(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    led = pipeline(settings, tmp_path / "led", tiny_llm).alternation
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("".join(Path(settings["data"]["interactions"]).read_text().splitlines(keepends=True)[:-30]))
    other = {**settings, "data": {**settings["data"], "interactions": str(shorter)}}
    with pytest.raises(ValueError, match="other data"):
        Alternation(pipeline(other, tmp_path / "other", tiny_llm), led)


def test_as_many_epochs_and_rounds_as_wanted(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    run = pipeline(settings, tmp_path / "run", tiny_llm, rounds=1, teacher_epochs=3, student_epochs=4)
    course = run.alternation.course
    assert len(course.teachers) == 1
    assert len(load_fit(course.teachers[0].made.folder).history) == 3
    assert len(load_fit(course.students[1].made.folder).history) == 4


def test_fresh_id_embeddings_reach_the_second_round_only_if_wanted(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    read = {}
    for refresh in (True, False):
        run = pipeline(settings, tmp_path / str(refresh), tiny_llm, refresh=refresh, student_epochs=3)
        course = run.alternation.course
        heads = [load_file(half.made.folder / "heads.safetensors")["id_embeddings"] for half in course.teachers]
        tables = [load_file(half.made.folder / "model.safetensors")["item_table.weight"] for half in course.students]
        scaled = [table / table.square().mean().sqrt() for table in tables]
        torch.testing.assert_close(heads[0], scaled[0])
        read[refresh] = heads
        if len(heads) > 1:
            torch.testing.assert_close(heads[1], scaled[1] if refresh else scaled[0])
    assert any(len(heads) > 1 for heads in read.values())


def test_a_half_step_changes_its_own_side_alone(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frozen model of each half-step is the same, bit for bit, when its states are read and after the training."""
    frozen: list[tuple[Any, dict[str, torch.Tensor]]] = []
    peer = Alternation._peer

    def watching(self: Alternation, model: Any, of: Any) -> Any:
        frozen.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return peer(self, model, of)

    monkeypatch.setattr(Alternation, "_peer", watching)
    _ = pipeline(settings, tmp_path / "run", tiny_llm).alternation.course
    assert len(frozen) >= 2
    for model, before in frozen:
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("killed_in", ["teacher-round-1", "student-round-1", "teacher-round-2"])
def test_a_killed_run_goes_on_in_its_half_step(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    settings["train"]["checkpoint_seconds"] = settings["teach"]["checkpoint_seconds"] = 0.0
    settings["teach"]["batch_tokens"] = 64
    whole = pipeline(settings, tmp_path / "whole", tiny_llm).alternation.course
    step, steps = loop._Run._step, 0

    def dying(self: Any, batch: Any, *, last: bool) -> None:
        nonlocal steps
        step(self, batch, last=last)
        if killed_in in str(self.path):
            steps += 1
            if steps == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        _ = pipeline(settings, tmp_path / "cut", tiny_llm).alternation.course
    monkeypatch.setattr(loop._Run, "_step", step)
    done = {path.parent.name for path in (tmp_path / "cut").glob("*/stage.json")}
    assert not any(name.startswith(killed_in) for name in done)
    course = pipeline(settings, tmp_path / "cut", tiny_llm).alternation.course
    assert [half.measure for half in course.teachers + course.students] == [
        half.measure for half in whole.teachers + whole.students
    ]
    pairs = zip(course.teachers + course.students, whole.teachers + whole.students, strict=True)
    for one, other in pairs:
        for name in ("model.safetensors", "heads.safetensors", "adapter_model.safetensors"):
            if (other.made.folder / name).exists():
                ours, theirs = load_file(one.made.folder / name), load_file(other.made.folder / name)
                assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_teacher_that_only_ranks_is_asked_once(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "said.jsonl"
    said = [{"user_id": f"u{user:02d}", "items": [f"i{(user + n) % 12:02d}" for n in range(4)]} for user in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    content = {**settings, "teacher": {"name": "recorded", "rankings": path}}
    run = Pipeline(checked(Config, content, where="test"), tmp_path / "run")
    results = run.evaluate()
    assert [row["role"] for row in results["rows"]] == ["student", "distilled"]
    assert (
        "the teacher recorded cannot train in rounds: llmd4rec learns from its stored rankings"
        in capsys.readouterr().err
    )
    plain = Pipeline(checked(Config, {**content, "method": "plain"}, where="test"), tmp_path / "plain")
    assert not np.array_equal(plain.student.item_vectors().detach(), run.distilled.item_vectors().detach())


def test_the_teacher_that_comes_out_can_teach_by_other_methods(
    settings: dict[str, Any], tmp_path: Path, tiny_llm: Path
) -> None:
    run = pipeline(settings, tmp_path / "run", tiny_llm)
    folder = run.alternation.course.best_teacher.made.folder
    teacher = {**TEACHERS["e4srec"], "llm": str(tiny_llm), "trained": folder}
    content = {**settings, "teacher": teacher, "method": {"name": "soft_labels"}}
    other = Pipeline(checked(Config, content, where="test"), tmp_path / "other")
    results = other.evaluate()
    assert [row["role"] for row in results["rows"]] == ["student", "teacher", "distilled"]
    assert not list((tmp_path / "other").glob("teacher-*"))
    examples = np.asarray(other.data.examples("test"))
    wanted, found = (target_ranks(one, other.data, examples) for one in (run.teacher, other.teacher))
    assert np.array_equal(wanted, found)
    assert pipeline(settings, tmp_path / "alone", tiny_llm, rounds=1).teacher_settings.model_dump().keys() == (
        other.teacher_settings.model_dump().keys()
    )
    with pytest.raises(InputError, match=r"no trained teacher.*RUN/teacher-KEY"):
        wrong = {**content, "teacher": {**teacher, "trained": tmp_path}}
        _ = Pipeline(checked(Config, wrong, where="test"), tmp_path / "wrong").knowledge
    small = tmp_path / "small.csv"
    small.write_text("\n".join(line for line in (tmp_path / "log.csv").read_text().splitlines() if ",i11," not in line))
    with pytest.raises(FingerprintError, match="knows 12 items and the data set has 11"):
        fewer = {**content, "data": {**settings["data"], "interactions": small}}
        _ = Pipeline(checked(Config, fewer, where="test"), tmp_path / "fewer").knowledge


def test_what_is_missing_is_said_before_any_work(settings: dict[str, Any], tmp_path: Path, tiny_llm: Path) -> None:
    with pytest.raises(ConfigError, match=r"llmd4rec needs rankings, which the teacher text does not give"):
        pipeline(settings, tmp_path / "run", tiny_llm, "text").evaluate()
    with pytest.raises(ConfigError, match=r"item vectors that are there before the teacher is trained"):
        pipeline(settings, tmp_path / "run", tiny_llm, "conventional", embedding_weight=0.3).evaluate()
