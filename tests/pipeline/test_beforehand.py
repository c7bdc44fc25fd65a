"""What is wrong with a teacher shows before a student is trained for it."""

from pathlib import Path
from typing import Any

import pytest

from distilrec.config import Config
from distilrec.errors import ConfigError, DistilrecError, InputError
from distilrec.pipeline import Pipeline
from distilrec.pipeline.beforehand import look_for_key
from distilrec.settings import checked
from distilrec.teachers.backends.base import BackendError
from distilrec.teachers.backends.openai_api import OpenAIBackend
from fixtures_toy import toy_files


def run_of(folder: Path, teacher: dict[str, Any], **changes: Any) -> Pipeline:
    log, titles = toy_files(folder)
    content = {
        "name": "tiny",
        "data": {"interactions": log, "items": titles, "filters": {"k_core_user": 1, "k_core_item": 1}},
        "student": {"name": "sasrec", "hidden_size": 8, "max_length": 8, "blocks": 1, "heads": 1},
        "train": {"epochs": 1, "batch_tokens": 64},
        "teacher": teacher,
        "method": {"name": "dllm2rec", "top_k": 3},
        "evaluate": {"bootstrap": 10, "timing_users": 4},
        **changes,
    }
    return Pipeline(checked(Config, content, where="test"), folder / "run")


def wrong(run: Pipeline, kind: type[DistilrecError], words: str) -> None:
    """See that a whole run ends with these words, and that nothing was trained."""
    with pytest.raises(kind, match=words):
        run.evaluate()
    assert not [path for kind in ("student", "teacher", "distilled") for path in run.root.glob(f"{kind}*")]


@pytest.mark.parametrize("kind", ["e4srec", "bigrec"])
@pytest.mark.parametrize("verb", ["evaluate", "knowledge", "teacher"])
def test_a_model_that_is_not_there(tmp_path: Path, kind: str, verb: str) -> None:
    run = run_of(tmp_path, {"name": kind, "llm": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="no such model folder"):
        run.evaluate() if verb == "evaluate" else getattr(run, verb)
    assert not list(run.root.glob("student*"))


def test_a_model_with_too_few_layers(tmp_path: Path, tiny_llm: Path) -> None:
    wrong(run_of(tmp_path, {"name": "e4srec", "llm": str(tiny_llm), "layers": 99}), ConfigError, "teacher.layers is 99")


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_model_whose_configuration_is_none(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    run = run_of(tmp_path, {"name": "e4srec", "llm": str(folder)})
    wrong(run, InputError, "no model's configuration" if content == "[]" else "not valid JSON")


def test_a_teacher_that_was_not_trained(tmp_path: Path, tiny_llm: Path) -> None:
    teacher = {"name": "e4srec", "llm": str(tiny_llm), "trained": str(tmp_path)}
    wrong(run_of(tmp_path, teacher), InputError, "holds no trained teacher")


def test_a_model_for_the_vectors_that_is_not_there(tmp_path: Path) -> None:
    vectors = {"top_k": 5, "vectors": {"llm": str(tmp_path / "nowhere")}}
    run = run_of(tmp_path, {"name": "conventional", "recommender": {"name": "gru4rec"}}, annotate=vectors)
    wrong(run, InputError, "no such model folder")


def test_a_selection_that_is_not_there(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"name": "conventional"}, annotate={"top_k": 5, "selection": tmp_path / "none.txt"})
    wrong(run, InputError, "the selection cannot be read")


def test_recorded_rankings_are_read_first(tmp_path: Path) -> None:
    path, rankings_only = tmp_path / "said.csv", {"name": "rrd"}
    wrong(run_of(tmp_path, {"name": "recorded", "rankings": path}, method=rankings_only), InputError, "no such file")
    path.write_text("user_id,items\nnobody,i01 i02\n")
    wrong(run_of(tmp_path, {"name": "recorded", "rankings": path}, method=rankings_only), InputError, "nobody")


def test_what_no_method_reads_is_not_looked_at(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"name": "recorded", "rankings": tmp_path / "none.csv"}, method={"name": "plain"})
    assert [row["role"] for row in run.evaluate()["rows"]] == ["student", "distilled"]


@pytest.mark.parametrize("own", [True, False])
def test_a_key_is_missed_before_training_and_not_where_it_may_not_be_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    recommender = {"name": "gru4rec", "hidden_size": 8, "max_length": 8} if own else None
    teacher = {"name": "ranker", "model": "any", "api_key_env": "NO_SUCH_KEY", "recommender": recommender}
    teacher |= {"candidates": 5, "wanted": 3, "hints": False}
    method = {"name": "rrd"}
    run = run_of(tmp_path, teacher, method=method)
    wrong(run, BackendError, "NO_SUCH_KEY is not set")
    with pytest.raises(BackendError, match="NO_SUCH_KEY is not set"):
        look_for_key(run.teaching)
    assert run.teaching.estimate()  # asks nobody, so that no key is missed, and trains the recommender
    look_for_key(
        run_of(tmp_path, teacher, method=method).teaching
    )  # all answers may be stored now: that is not known yet
    asked: list[str] = []
    monkeypatch.setattr(OpenAIBackend, "look_beforehand", lambda backend: asked.append(repr(backend)))
    look_for_key(run_of(tmp_path, teacher, method=method, seed=7).teaching)  # another recommender, not trained
    assert len(asked) == 1
    with pytest.raises(BackendError, match="NO_SUCH_KEY is not set"):  # it is, where something is left to ask
        _ = run_of(tmp_path, teacher, method=method).knowledge
