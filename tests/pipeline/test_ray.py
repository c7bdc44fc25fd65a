"""A run over Ray workers, one of them killed: the store is that of a run in one process. Real teachers, tiny ones."""

import os
import shutil
import signal
import time
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from distilrec.columns import EXAMPLE, ITEMS, REPLY
from distilrec.config import AnnotateSettings, Config
from distilrec.knowledge.annotate import Answer, Answerer, Job
from distilrec.pipeline import Pipeline, asking, teaching
from distilrec.settings import checked
from distilrec.teachers.backends import open_backend
from distilrec.teachers.backends.base import Batched, Prompt, Reply
from distilrec.teachers.backends.openai_api import OpenAIBackend
from distilrec.teachers.ranker import RankerSettings
from fixtures_ray import ray

__all__ = ["ray"]

pytestmark = pytest.mark.usefixtures("ray")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """24 histories of 5 to 17 items in which item + 1 follows item."""
    folder = tmp_path_factory.mktemp("files")
    seen = [(user, n, (3 * user + n) % 20) for user in range(24) for n in range(5 + (7 * user) % 13)]
    lines = [f"u{user:02d},i{item:02d},{1_000_000 + 100 * n + user}\n" for user, n, item in seen]
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(lines))
    (folder / "titles.csv").write_text("item_id,title\n" + "".join(f"i{n:02d},Title i{n:02d}\n" for n in range(20)))
    training = {"epochs": 1, "batch_tokens": 128, "learning_rate": 0.01}
    return {
        "data": {
            "interactions": str(folder / "log.csv"),
            "items": str(folder / "titles.csv"),
            "filters": {"k_core_user": 1, "k_core_item": 1},
        },
        "student": {"name": "sasrec", "hidden_size": 8, "max_length": 8, "blocks": 1, "inner_size": 16},
        "train": training,
        "teach": training,
        "annotate": {"top_k": 5, "batch_tokens": 32, "shard_rows": 40, "keep_replies": True, "workers": 2},
    }


def pipeline(settings: dict[str, Any], root: Path, teacher: dict[str, Any], engine: str) -> Pipeline:
    content = settings | {"teacher": teacher, "annotate": settings["annotate"] | {"engine": engine}}
    return Pipeline(checked(Config, content, where="test"), root)


def rows(run: Pipeline) -> pl.DataFrame:
    """Return all rows of all shards; a doubled one is there twice."""
    _ = run.knowledge
    shards = sorted(run.stages["knowledge"].folder.glob("shard-*.parquet"))
    return pl.concat([pl.read_parquet(shard) for shard in shards]).sort(EXAMPLE)


def without_knowledge(root: Path, copy: Path) -> Path:
    """Copy a run but for what its teacher said."""
    return Path(shutil.copytree(root, copy, ignore=shutil.ignore_patterns("knowledge-*")))


def die_once(log: Path, job: object, deadly: bool) -> None:
    """Write down what a worker begins; the first that is deadly kills it."""
    with log.open("a") as file:
        file.write(f"{os.getpid()} {job} {deadly}\n")
    if deadly and sum(line.endswith("True") for line in log.read_text().splitlines()) == 1:
        time.sleep(0.2)  # what was done before is on its way home
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Mortal(Answerer):
    """Does the same, but the worker that gets the job with example 60 dies over it, once."""

    def __call__(self) -> Answer:
        work, log = super().__call__(), self.dataset.parent / "log"

        def do(job: Job) -> pl.DataFrame:
            die_once(log, job.wanted.tolist(), 60 in job.wanted)
            return work(job)

        return do


def test_a_teacher_on_two_workers_one_of_them_killed(
    settings: dict[str, Any], tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {"name": "e4srec", "llm": str(tiny_llm), "max_length": 8, "lora_rank": 2, "precision": "float32"}
    local = pipeline(settings, tmp_path / "local", teacher, "local")
    expected = rows(local)
    monkeypatch.setattr(teaching, "Answerer", Mortal)
    spread = pipeline(settings, without_knowledge(tmp_path / "local", tmp_path / "ray"), teacher, "ray")
    found = rows(spread)
    assert found.equals(expected)  # rows, items and, bit by bit, scores
    assert found.height == 186 and found[EXAMPLE].is_unique().all()
    assert spread.knowledge.digest == local.knowledge.digest
    begun = [line.split(" ", 1) for line in (tmp_path / "ray" / "log").read_text().splitlines()]
    assert len({pid for pid, _ in begun}) >= 2 and str(os.getpid()) not in {pid for pid, _ in begun}
    times = Counter(job for _, job in begun)
    assert [job.endswith("True") for job, count in times.items() if count > 1] == [True]


@pytest.fixture(scope="module")
def chat_llm(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model that reads long prompts, with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    shutil.copytree(tiny_llm, folder)
    config = LlamaConfig.from_pretrained(folder, max_position_embeddings=1024)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} Title: {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


class Counting:
    """A backend that names three numbers before what the model says. It dies over the fifth batch, once."""

    def __init__(self, backend: Batched, log: Path, deadly: bool) -> None:
        self.backend, self.log, self.deadly = backend, log, deadly

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def complete(self, prompts: list[Prompt]) -> list[Reply]:
        begun = len(self.log.read_text().splitlines()) if self.log.exists() else 0
        die_once(self.log, "+".join(str(zlib.crc32(p.user.encode())) for p in prompts), self.deadly and begun >= 4)
        said = self.backend.complete(prompts)
        drawn = [zlib.crc32(prompt.user.encode()) for prompt in prompts]
        return [
            replace(reply, text=f"{number % 6 + 1}, {(number + 2) % 6 + 1}, 4 {reply.text}")
            for number, reply in zip(drawn, said, strict=True)
        ]


def test_a_ranker_on_two_workers_one_of_them_killed(
    settings: dict[str, Any], chat_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {"name": "ranker", "backend": "transformers", "model": str(chat_llm), "recommender": None}
    teacher |= {"candidates": 6, "wanted": 3, "history": 4, "hint_tokens": 16, "cases": 2, "case_top": 3}
    settings = settings | {"annotate": settings["annotate"] | {"batch_tokens": 1000}}
    logs = tmp_path / "local.log", tmp_path / "ray.log"
    monkeypatch.setattr(asking, "open_backend", lambda *given: Counting(open_backend(*given), logs[0], False))
    expected = rows(pipeline(settings, tmp_path / "local", teacher, "local"))
    monkeypatch.setattr(asking, "open_backend", lambda *given: Counting(open_backend(*given), logs[1], True))
    found = rows(pipeline(settings, without_knowledge(tmp_path / "local", tmp_path / "ray"), teacher, "ray"))
    assert found.equals(expected)  # rows, items, tokens and what the model said
    assert found.height == 24 and found[ITEMS].list.len().min() > 0 and found[REPLY].n_unique() > 3
    local, spread = ([line.split() for line in log.read_text().splitlines()] for log in logs)
    assert {pid for pid, _, _ in local} == {str(os.getpid())}
    assert len({pid for pid, _, _ in spread}) >= 2 and str(os.getpid()) not in {pid for pid, _, _ in spread}
    assert max(job.count("+") for _, job, _ in local) > 2
    again = next(job for _, job, deadly in spread if deadly == "True")
    assert Counter(job for _, job, _ in spread) == Counter(job for _, job, _ in local) + Counter([again])


def test_a_server_is_asked_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(asking, "say", said.append)
    served = RankerSettings(model="m", base_url="http://127.0.0.1:9/v1")
    with asking._backend(served, AnnotateSettings(engine="ray")) as backend:
        assert isinstance(backend, OpenAIBackend)
    assert said == [
        "  engine ray: a server answers many requests at once anyway (annotate.requests.concurrency), so Ray is not used"
    ]
    with asking._backend(served, AnnotateSettings()):
        assert len(said) == 1
