"""A whole run: its results, what is done again and what is not, and that a power cut changes nothing."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.errors import ConfigError, LockedError
from distilrec.knowledge.store import KnowledgeWriter
from distilrec.methods.dllm2rec import DLLM2Rec
from distilrec.pipeline import Pipeline
from distilrec.pipeline import student as student_module
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.students.base import Student, load_student
from distilrec.teachers import e4srec as e4srec_module
from distilrec.teachers.e4srec import E4SRec
from distilrec.training.loop import load_fit
from distilrec.training.tasks import Task

ITEMS, USERS = 20, 40
STAGES = ["data", "student", "teacher", "knowledge", "distilled", "evaluate"]


class KilledError(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def settings(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration: 40 histories in which item + 1 follows item, but for some noise."""
    folder = tmp_path_factory.mktemp("files")
    with (folder / "log.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            for n in range(5 + (7 * user) % 13):
                item = (3 * user + n + (user % 5 == 0 and n % 4 == 3)) % ITEMS
                writer.writerow([f"u{user:02d}", f"i{item:02d}", 1_000_000 + 100 * n + user])
    with (folder / "titles.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["item_id", "title"])
        writer.writerows([f"i{item:02d}", f"Title i{item:02d} <&>"] for item in range(ITEMS))
    training = {"epochs": 2, "batch_tokens": 128, "learning_rate": 0.01, "checkpoint_seconds": 0}
    return {
        "name": "tiny-run",
        "seed": 3,
        "data": {
            "interactions": str(folder / "log.csv"),
            "items": str(folder / "titles.csv"),
            "filters": {"k_core_user": 1, "k_core_item": 1},
        },
        "student": {"name": "sasrec", "hidden_size": 8, "max_length": 8, "blocks": 1, "inner_size": 16},
        "train": training,
        "teacher": {"name": "e4srec", "llm": str(tiny_llm), "max_length": 8, "lora_rank": 2, "precision": "float32"},
        "teach": {**training, "epochs": 1},
        "annotate": {"top_k": 5, "batch_tokens": 64, "shard_rows": 60},
        "method": {"name": "dllm2rec", "top_k": 4},
        "evaluate": {"bootstrap": 50, "timing_users": 5, "cutoffs": [1, 5, 10]},
    }


def pipeline(settings: dict[str, Any], root: Path, **changes: Any) -> Pipeline:
    """Build a run; changes are written a__b=value."""
    content = json.loads(json.dumps(settings))
    for key, value in changes.items():
        *groups, last = key.split("__")
        place = content
        for group in groups:
            place = place[group]
        place[last] = value
    return Pipeline(checked(Config, content, where="test"), root)


def measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must be equal in equal runs: all but the times."""
    return [
        {key: value for key, value in row.items() if key not in ("ms_per_user", "latency_ms")}
        for row in results["rows"]
    ]


def cached(results: dict[str, Any]) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in results["stages"]}


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("runs") / "whole"
    return root, pipeline(settings, root).evaluate()


def test_results_have_the_agreed_shape(finished: tuple[Path, dict[str, Any]]) -> None:
    root, results = finished
    assert json.loads((root / "results.json").read_text()) == results
    assert results["seed"] == 3
    assert results["settings"] == json.loads((root / "config.json").read_text())
    assert Config.model_validate(results["settings"]).method.name == "dllm2rec"
    assert results["dataset"]["name"] == "log.csv"
    assert (results["dataset"]["n_users"], results["dataset"]["n_items"]) == (USERS, ITEMS)
    assert results["dataset"]["n_test"] == USERS
    assert results["dataset"]["split"] == "leave_one_out"
    assert len(results["dataset"]["fingerprint"]) == 64
    assert [row["role"] for row in results["rows"]] == ["student", "teacher", "distilled"]
    assert results["rows"][2]["model"] == "sasrec + dllm2rec"
    names = {f"{kind}@{k}" for kind in ("hr", "ndcg", "mrr", "recall", "map") for k in (1, 5, 10)}
    for row in results["rows"]:
        assert set(row["metrics"]) == set(row["ci95"]) == names
        for name in names:
            low, high = row["ci95"][name]
            assert 0 <= low <= row["metrics"][name] <= high <= 1
        assert row["parameters"] > 0
        assert row["ms_per_user"] > 0
        assert row["latency_ms"] > 0
    assert [stage["name"] for stage in results["stages"]] == STAGES
    assert all(stage["seconds"] >= 0 and stage["cached"] is False for stage in results["stages"])
    assert results["peak_rss_mb"] > 50
    assert {"distilrec", "python", "torch", "transformers"} <= set(results["versions"])
    assert results["versions"]["torch"] == torch.__version__
    assert set(results["protocol"]) >= {"ranking", "history_filtered", "trained_on", "selected_on", "interval"}


def test_the_distilled_student_is_no_larger_and_another(finished: tuple[Path, dict[str, Any]]) -> None:
    root, results = finished
    student, teacher, distilled = results["rows"]
    assert student["parameters"] == distilled["parameters"] < teacher["parameters"]
    models = [next(root.glob(f"{name}-*")) / "model.safetensors" for name in ("student", "distilled")]
    first, second = (load_student(path, STUDENTS) for path in models)
    assert not torch.equal(first.item_vectors(), second.item_vectors())
    ranks = pl.read_parquet(next(root.glob("evaluate-*")) / "ranks.parquet")
    assert ranks.columns == ["example_id", "student", "teacher", "distilled"]
    for row in results["rows"]:
        assert (ranks[row["role"]] <= 5).mean() == pytest.approx(row["metrics"]["hr@5"])


class _Outside(HTMLParser):
    """Collects whatever a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "img", "base"):
            self.loaded.append(tag)
        self.loaded += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_needs_nothing_from_outside(finished: tuple[Path, dict[str, Any]]) -> None:
    root, results = finished
    page = (root / "report.html").read_text()
    parser = _Outside()
    parser.feed(page)
    assert parser.loaded == []
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", page)
    assert not re.search(r"url\(\s*[\"']?(?!#)", page)
    assert "@import" not in page
    text = " ".join(parser.text)
    assert "distilrec: tiny-run" in text
    assert re.search(r"Title i\d\d <&>", text)  # titles, as they are
    assert "<&>" not in page  # and escaped on the way
    for row in results["rows"]:
        assert row["model"] in text
        assert f"{row['metrics']['ndcg@10']:.4f}" in text
    assert "<svg" in page


def test_a_second_run_does_nothing(
    settings: dict[str, Any], finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, results = finished
    report = (root / "report.html").read_bytes()

    def forbidden(*_args: object, **_options: object) -> None:
        raise AssertionError("there is nothing left to do")

    monkeypatch.setattr(Task, "forward", forbidden)
    monkeypatch.setattr(KnowledgeWriter, "append", forbidden)
    monkeypatch.setattr("distilrec.pipeline.run.prepare", forbidden)
    again = pipeline(settings, root).evaluate()
    assert cached(again) == dict.fromkeys(STAGES, True)
    assert again["rows"] == results["rows"]
    assert (root / "report.html").read_bytes() == report


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({"name": "another", "threads": 1}, []),
        ({"evaluate__bootstrap": 60}, ["evaluate"]),
        ({"method__beta": 0.5}, ["distilled", "evaluate"]),
        ({"method": {"name": "plain"}}, ["distilled", "evaluate"]),
        ({"distil": {"epochs": 1, "batch_tokens": 100}}, ["distilled", "evaluate"]),
        ({"annotate__top_k": 6}, ["knowledge", "distilled", "evaluate"]),
        ({"teach__learning_rate": 0.02}, ["teacher", "knowledge", "distilled", "evaluate"]),
        ({"teach__checkpoint_seconds": 9.0, "train__checkpoint_seconds": 9.0}, []),
        ({"teacher__layers": 1}, ["teacher", "knowledge", "distilled", "evaluate"]),
        ({"student__hidden_size": 6}, STAGES[1:]),
        ({"train__epochs": 1}, STAGES[1:]),
        ({"evaluate__filter_seen": True}, STAGES[1:]),  # validation filters too, so it may keep another epoch
        ({"data__filters__k_core_user": 6}, STAGES),
        ({"seed": 4}, STAGES),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_a_changed_setting_redoes_what_depends_on_it(
    changes: dict[str, Any],
    redone: list[str],
    settings: dict[str, Any],
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    root = shutil.copytree(finished[0], tmp_path / "copy")
    results = pipeline(settings, root, **changes).evaluate()
    assert [name for name, kept in cached(results).items() if not kept] == redone
    if not redone:
        assert results["rows"] == finished[1]["rows"]
    elif redone == ["evaluate"]:
        assert [row["metrics"] for row in results["rows"]] == [row["metrics"] for row in finished[1]["rows"]]


def test_a_changed_file_redoes_everything(
    settings: dict[str, Any], finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root = shutil.copytree(finished[0], tmp_path / "copy")
    log = tmp_path / "log.csv"
    log.write_text(Path(settings["data"]["interactions"]).read_text() + "u99,i00,1\nu99,i05,2\nu99,i07,3\n")
    results = pipeline(settings, root, data__interactions=str(log)).evaluate()
    assert cached(results) == dict.fromkeys(STAGES, False)
    assert results["dataset"]["n_users"] == USERS + 1


def dies(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], *, before: bool = True
) -> None:
    """Let a function die when `when` says so."""
    original = getattr(owner, name)

    def dying(*args: Any, **options: Any) -> Any:
        if before and when(*args):
            raise KilledError
        result = original(*args, **options)
        if not before and when(*args):
            raise KilledError
        return result

    monkeypatch.setattr(owner, name, dying)


class Countdown:
    """True at the n-th time its condition holds."""

    def __init__(self, n: int, condition: Callable[..., bool] = lambda *_args: True) -> None:
        self.left, self.condition = n, condition

    def __call__(self, *args: Any) -> bool:
        self.left -= bool(self.condition(*args))
        return self.left == 0 and self.condition(*args)


def test_killed_in_every_stage_it_ends_with_the_same_figures(
    settings: dict[str, Any], finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from distilrec.data import dataset as dataset_module
    from distilrec.pipeline import evaluate as evaluate_module
    from distilrec.pipeline import run as run_module

    def is_student(task: Task, *_args: Any) -> bool:
        return isinstance(task.model, Student) and not isinstance(task.method, DLLM2Rec)

    def is_teacher(task: Task, *_args: Any) -> bool:
        return task.method is None

    def is_distilled(task: Task, *_args: Any) -> bool:
        return isinstance(task.method, DLLM2Rec)

    deaths: list[tuple[str, Any, str, Countdown, bool]] = [
        ("data", dataset_module, "write_json", Countdown(1), True),  # all written but the manifest
        ("data", run_module, "prepare", Countdown(1), False),  # all written but the mark of the stage
        ("student", Task, "forward", Countdown(4, is_student), True),
        ("student", student_module, "save_student", Countdown(1), True),
        ("student", student_module, "save_student", Countdown(1), False),
        ("teacher", Task, "forward", Countdown(3, is_teacher), True),
        ("teacher", Task, "validate", Countdown(1, is_teacher), True),
        ("teacher", E4SRec, "save", Countdown(1), False),
        ("knowledge", e4srec_module, "text_vectors", Countdown(1), True),
        ("knowledge", KnowledgeWriter, "append", Countdown(2), False),
        ("knowledge", KnowledgeWriter, "append", Countdown(2), True),
        ("distilled", Task, "forward", Countdown(5, is_distilled), True),
        ("distilled", Task, "validate", Countdown(1, is_distilled), False),
        ("evaluate", evaluate_module, "write_report", Countdown(1), True),
        ("evaluate", run_module, "evaluate", Countdown(1), False),
    ]
    root = tmp_path / "run"
    for stage, owner, name, when, before in deaths:
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, owner, name, when, before=before)
            with pytest.raises(KilledError):
                pipeline(settings, root).evaluate()
        done = {folder.name.split("-")[0] for folder in root.glob("*-*") if (folder / "stage.json").exists()}
        assert done == set(STAGES[: STAGES.index(stage)]), (stage, name)
        assert not (root / "results.json").exists()
    results = pipeline(settings, root).evaluate()
    assert cached(results) == {**dict.fromkeys(STAGES[:-1], True), "evaluate": False}
    root_of_whole, whole = finished
    assert measured(results) == measured(whole)
    first, second = (
        pl.read_parquet(next(folder.glob("evaluate-*")) / "ranks.parquet") for folder in (root_of_whole, root)
    )
    assert first.equals(second)
    assert {folder.name for folder in root.glob("*-*")} == {folder.name for folder in root_of_whole.glob("*-*")}
    for model in ("student", "distilled"):
        one, other = (next(folder.glob(f"{model}-*")) for folder in (root_of_whole, root))
        weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
        assert not (other / "checkpoint.safetensors").exists()
        fits = [json.loads((folder / "fit.json").read_text()) for folder in (one, other)]
        for entry in (*fits[0]["history"], *fits[1]["history"]):
            assert entry.pop("seconds") > 0
        assert fits[0]["history"] == fits[1]["history"]


def test_one_run_at_a_time(settings: dict[str, Any], tmp_path: Path) -> None:
    first, second = pipeline(settings, tmp_path), pipeline(settings, tmp_path)
    with first.lock(), pytest.raises(LockedError, match="in use"), second.lock():
        pass
    with second.lock():
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student__name": "sasrek"}, "unknown student 'sasrek'.*sasrec"),
        ({"method__name": "nothing"}, "unknown method 'nothing'.*dllm2rec"),
        ({"teacher__name": "oracle"}, "unknown teacher 'oracle'.*e4srec"),
        ({"student__hidden_sise": 4}, "hidden_size"),
        ({"method__beta": -1}, "beta"),
        ({"teacher__lora_rank": 0}, "lora_rank"),
    ],
)
def test_wrong_settings_are_found_before_any_work(
    changes: dict[str, Any], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline(settings, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_refit_trains_again_on_validation_targets_too(settings: dict[str, Any], tmp_path: Path) -> None:
    """Selection is shared with the run that does not refit; the test targets stay out."""
    plain = Pipeline(load_config(None, [], settings), tmp_path / "x")
    first = plain.student.item_vectors()
    refit = Pipeline(load_config(None, ["train.refit=true"], settings), tmp_path / "x")
    second = refit.student.item_vectors()
    assert refit.stages["student"].cached
    assert refit.stages["student"].key == plain.stages["student"].key
    assert not torch.equal(first, second)
    again = Pipeline(load_config(None, ["train.refit=true"], settings), tmp_path / "x")
    assert torch.equal(again.student.item_vectors(), second)
    assert again.stages["student-refit"].cached
    history = load_fit(refit.stages["student-refit"].folder).history
    assert len(history) == load_fit(refit.stages["student"].folder).best_epoch
