"""`distilrec annotate` given what it cannot use: one clear line, exit code 2, what came before is kept and never paid for again."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import fixtures_asking as asking
from distilrec.data.dataset import open_dataset
from distilrec.files import locked
from distilrec.knowledge.journal import Journal
from fixtures_asking import Base
from fixtures_server import Act, Asked, ScriptedServer, drop, ok, status

Cli = Callable[..., Any]
Done = Any  # see conftest.py
ROWS = 40
QUICK = ("annotate.requests.retries=1", "annotate.requests.concurrency=4")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return asking.make_base(tmp_path_factory.mktemp("asking"))


@pytest.fixture
def annotate(cli: Cli, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return `annotate(url, *further)`, which asks about 40 examples in a run that has everything but knowledge."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-1234567890")
    base.copy(tmp_path / "runs" / "asking")
    return lambda url, *further: cli("annotate", *base.words(url, f"annotate.sample={ROWS}", *further))


def model(request: Asked) -> Act:
    return ok(asking.said(request.user).text)


def check_line(done: Done, *words: str) -> None:
    """Exit code 2; the last line alone is the error, and holds `words`; no traceback."""
    assert done.code == 2, done.err
    assert done.out == ""
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:], done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.last, done.last


def check(done: Done, *words: str, stored: int = 0) -> None:
    """As `check_line`; so many rows are stored, and nothing counts as done."""
    check_line(done, *words)
    assert len(rows_of(done)) == stored
    assert list(done.runs.rglob("knowledge-*/stage.json")) == []
    assert list(done.runs.rglob("*.part")) == []


def rows_of(done: Done) -> pl.DataFrame:
    folders = list(done.runs.glob("asking/knowledge-*"))
    return asking.stored_rows(folders[0]) if folders else pl.DataFrame()


def account_of(done: Done) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((asking.knowledge_of(done.runs / "asking") / "account.json").read_text())
    return content


def test_good_input_is_the_yardstick(annotate: Cli) -> None:
    with ScriptedServer(model) as server:
        done = annotate(server.url)
    assert done.code == 0
    assert len(rows_of(done)) == ROWS


def test_a_wrong_key(annotate: Cli) -> None:
    refusal = status(401, "Incorrect API key provided.", error_code="invalid_api_key")
    with ScriptedServer(lambda _: refusal) as server:
        done = annotate(server.url)
        assert len(server.records) <= 8  # those in flight when the first came back
    check(done, f"{server.url}: the server refuses the API key of OPENAI_API_KEY (401)", "Put a valid key")


def test_a_key_that_is_missing(annotate: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with ScriptedServer(lambda _: status(401)) as server:
        check(annotate(server.url), "the server wants an API key (401)", "OPENAI_API_KEY")


def test_a_key_that_is_missing_is_found_before_anything_is_sent(annotate: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    done = annotate("https://llm.example.com/v1", "annotate.prices={input_per_million: 1, output_per_million: 1}")
    check(done, "no API key: the environment variable OPENAI_API_KEY is not set.", "Set OPENAI_API_KEY")


def test_an_unknown_model(annotate: Cli) -> None:
    refusal = status(404, "The model `scripted` does not exist", error_code="model_not_found")
    with ScriptedServer(lambda _: refusal, models=("small", "large")) as server:
        done = annotate(server.url)
    check(done, f"{server.url}: the server knows no model scripted (it has small, large).", "Correct model.")


def test_a_server_with_several_models_when_none_is_named(annotate: Cli) -> None:
    with ScriptedServer(model, models=("small", "large")) as server:
        done = annotate(server.url, "teacher.model=null")
    check(done, "no model is named, and the server has 2 models: small, large.", "Set model.")


@pytest.mark.parametrize("hints", ["false", "true"])
def test_a_server_that_is_down(annotate: Cli, hints: str) -> None:
    with ScriptedServer(model) as server:
        url = server.url
    done = annotate(url, f"teacher.hints={hints}")
    check(done, f"no server answers at {url}", "Start it, or check")


def test_an_address_that_is_none(annotate: Cli) -> None:
    check(annotate("127.0.0.1:8000"), "base_url must be an address like http://127.0.0.1:8000/v1")


def test_a_server_that_dies_midway(annotate: Cli) -> None:
    """What came is kept, the run does not count as done, and the same command goes on once the server is back."""
    dead = threading.Event()

    def mortal(request: Asked) -> Act:
        if request.number == 15:
            dead.set()
            threading.Thread(target=server.__exit__).start()  # new connections are refused from here on
        return drop() if dead.is_set() else model(request)

    with ScriptedServer(mortal) as server:
        url, port = server.url, server.port
        done = annotate(url, *QUICK)
    kept = len(server.answers())
    assert 0 < kept <= 15
    check(done, "20 failed rows without a reply in between", "the connection failed", "run again", stored=kept)
    assert f"{kept} rows stored, {ROWS} wanted" in done.err
    assert account_of(done)["run"]["stopped_by"] == "20 failed rows without a reply in between"
    with ScriptedServer(model, port=port) as second:
        again = annotate(url, *QUICK)
    assert again.code == 0, again.err
    assert len(rows_of(again)) == ROWS
    assert len(second.records) == ROWS - kept
    assert not server.answers().keys() & second.answers().keys()


def test_hints_that_cannot_be_had(annotate: Cli) -> None:
    with ScriptedServer(lambda _: status(503, "overloaded")) as server:
        done = annotate(server.url, "teacher.hints=true", *QUICK)
    check(done, "no hints came back: ", "the server failed (503) (overloaded)", "teacher.hints=false")


REPLIES = {
    "in the wrong language": ("Es tut mir leid, dazu kann ich nichts sagen.", None, {"unusable": 1}),
    "in the wrong language, with numbers": (
        "Meine Reihenfolge: 3, 5, 1, 2, 4, 6",
        [3, 5, 1, 2, 4, 6],
        {"not_json": 1, "prose": 1},
    ),
    "empty": ("", None, {"empty": 1}),
    "white space": (" \n", None, {"empty": 1}),
    "ids outside the catalogue": ('{"ranking": [900, 901, 902, 903, 904, 905]}', None, {"unknown": 6, "unusable": 1}),
    "ids outside the candidates": ('{"ranking": [2, 13, 1, 0, 4, 3, 6, 5]}', [2, 1, 4, 3, 6, 5], {"unknown": 2}),
    "duplicate ids": ('{"ranking": [2, 2, 1, 2, 4, 3]}', [2, 1, 4, 3], {"repeated": 2, "missing": 2}),
}


@pytest.mark.parametrize("what", REPLIES)
def test_a_reply_that_is_not_as_asked_for_is_mended_or_counted(what: str, annotate: Cli) -> None:
    """One bad reply stops nobody: it is mended where that can be done, and counted."""
    text, places, repairs = REPLIES[what]
    with ScriptedServer(lambda _: ok(text)) as server:
        done = annotate(server.url)
    assert done.code == 0, done.err
    rows, store = rows_of(done), account_of(done)["store"]
    assert len(rows) == ROWS == store["usable"] + store["unusable"]
    assert {json.dumps(repairs, sort_keys=True)} == set(rows["repairs"])
    assert store["repairs"] == {kind: ROWS * times for kind, times in repairs.items()}
    if places is None:
        assert set(rows["items"].list.len()) == {0}
        assert set(rows["attempts"]) == {2}
        assert (store["usable"], store["repaired"]) == (0, 0)
        assert f"0 usable, {ROWS} unusable" in done.err
        return
    assert store["repaired"] == store["usable"] == ROWS
    expected = {tuple(asking.titles_of(record.user)[1][place - 1] for place in places) for record in server.records}
    assert {tuple(items) for items in rows["items"]} == expected


@pytest.mark.parametrize("marked", [True, False], ids=["finished", "unfinished"])
def test_knowledge_of_another_data_set(annotate: Cli, base: Base, cli: Cli, tmp_path: Path, marked: bool) -> None:
    with ScriptedServer(model) as server:
        done = annotate(server.url)
        other = asking.write_files(tmp_path / "other", seed=8)
        words = [word for word in base.words(server.url) if word not in base.files]
        assert cli("annotate", *other, *words, "name=other", f"annotate.sample={ROWS}").code == 0
        mine, foreign = asking.knowledge_of(done.runs / "asking"), asking.knowledge_of(done.runs / "other")
        shutil.rmtree(mine)
        shutil.copytree(foreign, mine)
        if not marked:
            (mine / "stage.json").unlink()
        before, asked = asking.stored_rows(mine), len(server.records)
        again = annotate(server.url)
        assert len(server.records) == asked
    check_line(again, str(mine), "data set" if marked else "the store was made with other dataset")
    assert asking.stored_rows(mine).equals(before)


def fill_disk(patch: pytest.MonkeyPatch, where: str, runs: Path) -> None:
    """Make the disk full when a journal of 20 lines is to grow, or when a shard is written."""
    real = os.fsync

    def full(handle: int) -> None:
        if any(path.read_bytes().count(b"\n") > 20 for path in runs.rglob("journal.jsonl")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    def no_shard(frame: pl.DataFrame, target: Path) -> None:
        target.write_bytes(b"PAR1")
        raise OSError("No space left on device (os error 28)")  # in the words of the library

    if where == "journal":
        patch.setattr(os, "fsync", full)
    else:
        patch.setattr(pl.DataFrame, "write_parquet", no_shard)


@pytest.mark.parametrize("where", ["journal", "shard"])
def test_a_full_disk(annotate: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """What the journal has is not paid for again."""
    with ScriptedServer(model) as server:
        with monkeypatch.context() as patch:
            fill_disk(patch, where, tmp_path / "runs")
            done = annotate(server.url, *QUICK)
        folder = asking.knowledge_of(done.runs / "asking")
        check(done, str(folder), "no space left on the disk (", "Free some room and run again.")
        kept = {record["example"] for record in Journal(folder / "journal.jsonl").read()}
        assert len(kept) == ROWS if where == "shard" else 20 < len(kept) < ROWS
        asked = len(server.records)
        again = annotate(server.url, *QUICK)
        assert again.code == 0, again.err
        assert len(rows_of(again)) == ROWS
        (folder,) = (done.runs / "asking").glob("data-*")
        data = open_dataset(folder)
        assert kept.isdisjoint(asking.example_of(record.user, data) for record in server.records[asked:])


def test_a_run_and_a_store_that_another_process_writes(annotate: Cli) -> None:
    with ScriptedServer(model) as server:
        done = annotate(server.url, "annotate.sample=10")
        assert done.code == 0
        asked, run = len(server.records), done.runs / "asking"
        store = asking.knowledge_of(run)
        with locked(run / ".lock", "this run"):
            second = annotate(server.url)
        check_line(second, f"{run}: this run is in use by another process (pid {os.getpid()}).", "Wait for it")
        with locked(store / ".lock", "the knowledge store"):
            third = annotate(server.url)
        check_line(
            third, f"{store}: the knowledge store is in use by another process (pid {os.getpid()}).", "Wait for it"
        )
        assert len(server.records) == asked
        assert len(rows_of(third)) == 10
        assert annotate(server.url).code == 0


SELECTIONS = [
    (None, "the selection cannot be read (No such file or directory)"),
    (b"\xff\xfe", "the selection cannot be read (not text)"),
    (b" \n", "the selection names no example"),
    (b"1\n2\nfour\n999999\n0\n", "3 of 5 ids are no training examples of this data set: four, 999999, 0."),
]


@pytest.mark.parametrize(("content", "words"), SELECTIONS, ids=["missing", "no-text", "empty", "unknown-ids"])
def test_a_bad_selection(annotate: Cli, tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "chosen.txt"
    if content is not None:
        path.write_bytes(content)
    with ScriptedServer(model) as server:
        check(annotate(server.url, "--selection", path), f"{path}: {words}")
        assert server.records == []


SETTINGS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--engine", "spark"), ("annotate.engine", "got 'spark'")),
    (("annotate.caps.usd=5", "teacher.base_url=https://llm.example.com/v1"), ("annotate.caps.usd", "annotate.prices")),
    (("annotate.caps.usd=-1",), ("annotate.caps.usd", "got -1")),
    (("annotate.caps.dollars=1",), ("unknown setting 'annotate.caps.dollars'",)),
    (("teacher.backend=transformers", "teacher.temperature=1"), ("teacher.temperature", "it does not sample")),
    (("teacher.backend=llama",), ("teacher: backend", "got 'llama'")),
    (("teacher.wanted=13",), ("wanted (13) is more than candidates (12)",)),
    (("teacher.tokenizer=./nowhere",), ("./nowhere: no such model folder.",)),
    (("teacher.api_key_env=sk-a-secret-1234",), ("api_key_env", "the name (capitals) of the environment variable")),
]


@pytest.mark.parametrize(("words", "said"), SETTINGS, ids=lambda value: value[0] if isinstance(value, tuple) else None)
def test_a_setting_that_cannot_be(annotate: Cli, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    with ScriptedServer(model) as server:
        done = annotate(server.url, *words)
        assert server.records == []
    check(done, *said)
    assert "sk-a-secret" not in done.err


def test_a_recorded_file_whose_ids_do_not_match(annotate: Cli, base: Base, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rankings.csv"
    path.write_text(
        "user_id,items\n" + "".join(f'u{user:03d},"i000 i{n:03d}"\n' for user, n in ((1, 5), (2, 900), (777, 3)))
    )
    words = [word for word in base.words("http://127.0.0.1:1/v1") if not word.startswith("teacher")]
    teacher = f"teacher={{name: recorded, rankings: '{path}', key: user}}"
    done = cli("annotate", *words, teacher)
    check(done, str(path), "u777")
    assert cli("annotate", *words, teacher, "teacher.tolerance=0.5").code == 0
