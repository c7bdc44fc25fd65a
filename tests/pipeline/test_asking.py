"""The ranker asked over a faulty server, end to end: nothing lost, nothing paid twice, caps kept, and killed at any moment."""

import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import fixtures_asking as asking
from distilrec.data.dataset import Dataset
from distilrec.errors import InputError
from distilrec.knowledge.journal import Journal
from distilrec.knowledge.store import open_knowledge
from distilrec.teachers.backends.base import BackendError
from fixtures_asking import Base, WarmCli
from fixtures_server import Act, Asked, Record, ScriptedServer, faulty, ok, status

FAULTS = {
    "429": 0.04, "500": 0.03, "503": 0.02, "hang": 0.004, "broken": 0.03, "cut": 0.03, "drop": 0.02, "empty": 0.15, "null": 0.02,
    "no_choices": 0.02, "no_usage": 0.03, "bad_usage": 0.02,
}  # fmt: skip
NOTHING_SAID = ("empty", "null")
TIMEOUT = 3.0  # seconds; the server answers in milliseconds unless it hangs


def model(request: Asked) -> Act:
    """Answer with what the question is due, flaws included."""
    if asking.is_summary(request.user):
        return ok(asking.HINTS)
    said = asking.said(request.user, asking.flaw_of(request.user))
    return ok(said.text, finish=said.finish)


def with_faults(seed: int, rates: dict[str, float]) -> Callable[[Asked], Act]:
    """Let things go wrong at these rates; half of the 429s do not say how long to wait, and the others in different words."""
    faults = faulty(seed, rates, lambda body: asking.said(body["messages"][-1]["content"]).text)

    def script(request: Asked) -> Act:
        if asking.is_summary(request.user):
            return model(request)
        act = faults(request)
        assert not isinstance(act, str)
        if act.kind == "ok":
            return model(request)
        if act.kind == "429":
            waits: list[dict[str, Any]] = [{}, {"retry_after": 0.01}, {"headers": {"retry-after-ms": "12"}}]
            return status(429, "slow down", **waits[asking.draw(request.user, salt="wait") % 3])
        return act

    return script


def by_example(server: ScriptedServer, data: Dataset) -> dict[int, list[Record]]:
    """Return what happened to the questions about each example, in order."""
    records = defaultdict(list)
    for record in server.records:
        if not asking.is_summary(record.user):
            records[asking.example_of(record.user, data)].append(record)
    return records


def account_of(root: Path) -> dict[str, Any]:
    account: dict[str, Any] = json.loads((asking.knowledge_of(root) / "account.json").read_text())
    return account


def words_in(record: Record) -> int:
    return sum(len(message["content"].split()) for message in record.body["messages"])


def test_two_thousand_rows_through_every_fault(base: Base, tmp_path: Path) -> None:
    with ScriptedServer(with_faults(11, FAULTS)) as server:
        run = base.pipeline(
            tmp_path / "run",
            server.url,
            "annotate.sample=2000",
            "annotate.shard_rows=300",
            "annotate.keep_replies=true",
            f"annotate.requests.timeout_seconds={TIMEOUT}",
            "annotate.requests.concurrency=24",
            "teacher.hints=true",
        )
        knowledge = run.knowledge
        kinds, in_flight = server.kinds(), server.max_in_flight
    rows, account, records = (
        asking.stored_rows(asking.knowledge_of(run.root)),
        account_of(run.root),
        by_example(server, run.data),
    )

    assert set(kinds) == {*FAULTS, "ok"}  # all of it did happen
    assert in_flight <= 24 + kinds["hang"]
    assert rows.height == rows["example_id"].n_unique() == len(records) == 2000
    assert set(rows["example_id"]) == set(records)
    expected_repairs: dict[str, int] = defaultdict(int)
    repaired = unusable = 0
    for row in rows.iter_rows(named=True):
        asked = records[row["example_id"]]
        answers = [record for record in asked if record.answered]
        silent = [record.kind in NOTHING_SAID for record in answers]
        # Asked until the first reply of any use, or for the second useless one; and never after that.
        assert silent in ([False], [True, False], [True, True])
        assert asked[-1] is answers[-1]
        assert row["attempts"] == len(answers)
        user = asked[0].user
        due = asking.said(user, asking.flaw_of(user) if answers[-1].kind == "ok" else "")
        if silent[-1]:
            unusable += 1
            assert (row["items"], json.loads(row["repairs"]), row["reply"]) == ([], {"empty": 1}, "")
            expected_repairs["empty"] += 1
            continue
        assert row["items"] == list(due.items)  # the right reply at the right row
        assert row["scores"] == [0.0] * len(due.items)
        assert json.loads(row["repairs"]) == due.repairs
        assert row["reply"] == due.text
        repaired += bool(due.repairs)
        for kind, times in due.repairs.items():
            expected_repairs[kind] += times
        if all(record.kind in ("ok", *NOTHING_SAID) for record in answers):  # the others do not tell their tokens
            assert row["tokens_in"] == sum(words_in(record) for record in answers)
            assert row["tokens_out"] == len(due.text.split())
    store = account["store"]
    assert unusable >= 20
    assert set(expected_repairs) == {*asking.FLAWS, "empty"}
    assert store["repairs"] == dict(sorted(expected_repairs.items()))
    assert (store["rows"], store["usable"], store["unusable"]) == (2000, 2000 - unusable, unusable)
    assert store["repaired"] == repaired
    assert (account["rows_done"], account["rows_total"], account["unfinished"]) == (2000, 2000, 0)
    assert (account["run"]["stopped_by"], account["run"]["failed"]) == (None, [])
    assert account["run"]["requests"] == sum(len(asked) for asked in records.values())
    assert sum(account["run"]["retries"].values()) == sum(
        not record.answered for asked in records.values() for record in asked
    )
    # Readers see the usable rows, and every question but the first had the hints in it.
    assert knowledge.examples.tolist() == rows.filter(pl.col("items").list.len() > 0)["example_id"].to_list()
    hints = [record for record in server.records if asking.is_summary(record.user)]
    assert [record.answered for record in hints] == [True]
    assert all(asking.HINTS in record.body["messages"][0]["content"] for asked in records.values() for record in asked)


def test_nothing_is_asked_when_all_is_there(base: Base, tmp_path: Path) -> None:
    with ScriptedServer(model) as server:
        words = ("annotate.sample=40", "teacher.hints=true")
        first = base.pipeline(tmp_path / "run", server.url, *words).knowledge
        asked = len(server.records)
        assert asked == 41
        again = base.pipeline(tmp_path / "run", server.url, *words).knowledge
        assert len(server.records) == asked
        # A larger sample holds the smaller one; the hints are kept.
        more = base.pipeline(tmp_path / "run", server.url, "annotate.sample=60", "teacher.hints=true").knowledge
        assert len(server.records) == asked + 20
    assert set(server.answers().values()) == {1}
    assert again.digest == first.digest
    assert set(first.examples.tolist()) < set(more.examples.tolist())


@pytest.mark.parametrize("cap", ["rows", "tokens", "usd"])
def test_a_cap_holds_by_the_servers_own_count(cap: str, base: Base, tmp_path: Path) -> None:
    """The server counts more tokens than we expect, so that requests in flight are underestimated: that much, and no more."""

    def count(text: str) -> int:
        return len(text)

    concurrency, price = 8, (1000.0, 3000.0)  # USD for a million tokens
    rates = {"429": 0.05, "cut": 0.05, "broken": 0.05, "500": 0.05, "empty": 0.1}
    caps = {"rows": 100, "tokens": 90_000, "usd": 95.0}
    with ScriptedServer(with_faults(5, rates), count=count) as server:

        def run(caps: dict[str, Any]) -> dict[str, Any]:
            settings = json.dumps({"input_per_million": price[0], "output_per_million": price[1]})
            pipeline = base.pipeline(
                tmp_path / "run",
                server.url,
                "annotate.sample=600",
                "annotate.shard_rows=32",
                f"annotate.requests.concurrency={concurrency}",
                f"annotate.prices={settings}",
                f"annotate.caps={json.dumps(caps)}",
            )
            _ = pipeline.knowledge
            return account_of(tmp_path / "run")

        def used() -> dict[str, Any]:
            amounts = [
                (
                    sum(count(message["content"]) for message in record.body["messages"]),
                    count(asking.said(record.user, asking.flaw_of(record.user)).text if record.kind == "ok" else ""),
                )
                for record in server.records
                if record.answered
            ]
            usd = [(first * price[0] + second * price[1]) / 1e6 for first, second in amounts]
            largest = {"rows": 0, "tokens": max(map(sum, amounts)), "usd": max(usd)}
            return {
                "rows": len(server.answers()),
                "tokens": sum(map(sum, amounts)),
                "usd": sum(usd),
                "largest": largest,
            }

        account = run({cap: caps[cap]})
        first = used()
        assert first[cap] <= caps[cap] + concurrency * first["largest"][cap]
        assert first[cap] > caps[cap] - 2 * max(first["largest"][cap], 1)  # and it was made use of
        assert account["run"]["stopped_by"].startswith(f"the cap of {caps[cap]:,.0f}")
        assert account["run"]["tokens_in"] + account["run"]["tokens_out"] == first["tokens"]
        assert account["run"]["usd"] == pytest.approx(first["usd"])
        # A row whose first reply was useless may have no room for the second: it counts, and is not finished.
        assert account["rows_done"] + account["unfinished"] == first["rows"] < 600
        if cap == "rows":
            assert first["rows"] == 100
        asked = len(server.records)
        assert run({cap: caps[cap]})["rows_done"] == account["rows_done"]
        assert len(server.records) == asked, "the same cap allows nothing more"

        before, unfinished = server.answers(), account["unfinished"]
        account = run({cap: 2 * caps[cap]})
        second = used()
        assert second[cap] <= 2 * caps[cap] + concurrency * second["largest"][cap]
        assert second["rows"] > 1.5 * first["rows"]
        assert account["rows_done"] + account["unfinished"] == second["rows"]
        again = [user for user in before if server.answers()[user] != before[user]]
        assert len(again) <= unfinished, "what is stored is not asked again"


def test_rows_that_were_given_up_are_asked_again_by_the_same_command(base: Base, tmp_path: Path) -> None:
    broken = True

    def script(request: Asked) -> Act:
        refused = broken and asking.draw(request.user) % 8 == 0
        return status(503) if refused else model(request)

    words = ("annotate.sample=100", "annotate.requests.retries=1", "annotate.requests.concurrency=4")
    with ScriptedServer(script) as server:
        first = base.pipeline(tmp_path / "run", server.url, *words)
        _ = first.knowledge
        account = account_of(tmp_path / "run")
        hopeless = sum(asking.draw(user) % 8 == 0 for user in {record.user for record in server.records})
        assert hopeless >= 5
        assert len(account["run"]["failed"]) == hopeless
        assert account["rows_done"] == 100 - hopeless
        broken = False
        _ = base.pipeline(tmp_path / "run", server.url, *words).knowledge
    assert account_of(tmp_path / "run")["rows_done"] == 100
    assert set(server.answers().values()) == {1}


@pytest.mark.parametrize("reply", ["", " \n"])
def test_hints_that_say_nothing_are_an_error(reply: str, base: Base, tmp_path: Path) -> None:
    with ScriptedServer(lambda _request: reply) as server:
        for _ in range(2):
            run = base.pipeline(tmp_path / "run", server.url, "annotate.sample=10", "teacher.hints=true")
            with pytest.raises(BackendError, match=r"hints that came back are empty.*teacher\.hints=false"):
                _ = run.knowledge
    assert len(server.records) == 2  # asked again once, and never after that


# What is killed, how often, and what it may cost.
KILLS, KILL_ROWS, KILL_CONCURRENCY = 20, 900, 4
USELESS = 20  # one question in so many is never answered in a useful way


def slow_model(request: Asked) -> Act:
    """Answer the same whenever asked, after a few milliseconds."""
    if asking.draw(request.user, salt="useless") % USELESS == 0:
        return ok("I do not know these films.", wait=0.01)
    said = asking.said(request.user, asking.flaw_of(request.user))
    return ok(said.text, finish=said.finish, wait=0.01)


class Reader(threading.Thread):
    """Reads a store over and over, as a training would; remembers what went wrong, and how much it saw when."""

    def __init__(self, folder: Path, data: Dataset) -> None:
        super().__init__(daemon=True)
        self.folder, self.data = folder, data
        self.ended = threading.Event()
        self.rows: list[int] = []
        self.problem: Exception | None = None
        self._seen: dict[int, tuple[int, ...]] = {}
        self._shards: set[Path] = set()

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                self._read()
                time.sleep(0.01)
        except Exception as error:
            self.problem = error

    def _read(self) -> None:
        there = set(self.folder.glob("shard-*.parquet"))
        assert self._shards <= there, "a shard is gone"
        self._shards = there
        try:
            found = open_knowledge(self.folder, self.data)
        except InputError:
            assert not there, "there are shards"
            return
        widths = np.isfinite(found.scores).sum(axis=1).tolist()
        rows = zip(found.examples.tolist(), found.items.tolist(), widths, strict=True)
        now = {example: tuple(items[:width]) for example, items, width in rows}
        assert len(now) == len(found.examples)
        assert self._seen.items() <= now.items(), "a row is gone or has changed"
        self._seen = now
        self.rows.append(len(now))


class Moment:
    """When to kill a run: after some requests, after some time, behind a new shard, or while one is being written.

    It comes, whatever happens, after so few requests that the run cannot end before.
    """

    MOST = 40

    def __init__(self, kind: str, rng: np.random.Generator, folder: Path, requests: Callable[[], int]) -> None:
        self._kind, self._folder, self._requests = kind, folder, requests
        goal = int(rng.integers(1, self.MOST)) if kind == "requests" else self.MOST
        self._goal, self._shards = requests() + goal, self._names("shard-")
        self._wait = {"time": rng.uniform(0, 1.5), "shard": rng.uniform(0, 0.004)}.get(kind, 0.0)
        self._since = time.monotonic() if kind == "time" else float("inf")

    def has_come(self) -> bool:
        now = time.monotonic()
        if self._since > now and self._happened():
            self._since = now
        return now - self._since >= self._wait or self._requests() >= self._goal

    def _happened(self) -> bool:
        if self._kind == "shard":
            return bool(self._names("shard-") - self._shards)
        return self._kind == "part" and bool(self._names(".shard-"))

    def _names(self, start: str) -> set[str]:
        return {path.name for path in self._folder.glob(f"{start}*")}


def finished_examples(folder: Path) -> set[int]:
    """Return the examples that must never be asked about again: stored, or with enough replies in the journal."""
    rows = asking.stored_rows(folder)
    useful = defaultdict(list)
    for record in Journal(folder / "journal.jsonl").read():
        useful[record["example"]].append('"ranking"' in record["text"])
    enough = {example for example, replies in useful.items() if any(replies) or len(replies) == 2}
    return enough | (set(rows["example_id"]) if rows.height else set())


def test_killed_at_twenty_moments_it_ends_with_the_same_store(base: Base, tmp_path: Path) -> None:
    further = (
        f"annotate.sample={KILL_ROWS}", "annotate.shard_rows=20", "annotate.keep_replies=true",
        f"annotate.requests.concurrency={KILL_CONCURRENCY}",
    )  # fmt: skip
    log, rng = tmp_path / "log.txt", np.random.default_rng(17)
    for name in ("whole", "killed"):
        base.copy(tmp_path / name / "asking")
    data = base.pipeline(tmp_path / "whole" / "asking", "http://127.0.0.1:1/v1", *further).data
    with WarmCli() as warm, ScriptedServer(slow_model) as calm, ScriptedServer(slow_model) as server:
        words = ["annotate", *base.words(calm.url, *further), "--out", str(tmp_path / "whole")]
        assert warm.run(words, log) == 0, log.read_text()[-2000:]
        whole = asking.knowledge_of(tmp_path / "whole" / "asking")
        folder = tmp_path / "killed" / "asking" / whole.name
        words = ["annotate", *base.words(server.url, *further), "--out", str(tmp_path / "killed")]
        reader = Reader(folder, data)
        reader.start()
        kills: list[tuple[int, set[int]]] = []  # requests until then, and what was finished by then
        for n in range(KILLS):
            moment = Moment(("requests", "time", "shard", "part")[n % 4], rng, folder, lambda: len(server.records))
            process, deadline = warm.start(words, log), time.monotonic() + 30
            while not moment.has_come():
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.001)
            os.kill(process, signal.SIGKILL)
            assert warm.wait() == -signal.SIGKILL, log.read_text()[-2000:]
            kills.append((len(server.records), finished_examples(folder)))
        assert warm.run(words, log) == 0, log.read_text()[-2000:]
        reader.ended.set()
        reader.join()
    if reader.problem is not None:
        raise reader.problem
    assert len(set(reader.rows)) > KILLS  # it did see the store grow

    one, other = asking.stored_rows(whole), asking.stored_rows(folder)
    assert one.height == one["example_id"].n_unique() == KILL_ROWS
    assert other.equals(one)
    assert not (folder / "journal.jsonl").exists()
    assert list(folder.glob(".*.part")) == []
    accounts = [account_of(tmp_path / name / "asking") for name in ("whole", "killed")]
    assert accounts[0]["store"] == accounts[1]["store"]
    assert (accounts[1]["rows_done"], accounts[1]["unfinished"]) == (KILL_ROWS, 0)
    assert 0 < accounts[1]["store"]["unusable"] < KILL_ROWS / 10

    needed = int(one["attempts"].sum())
    assert sum(calm.answers().values()) == needed
    assert needed <= sum(server.answers().values()) <= needed + KILLS * KILL_CONCURRENCY
    asked = [asking.example_of(record.user, data) for record in server.records]
    for requests, finished in kills:
        assert finished.isdisjoint(asked[requests:])
    assert len(kills[-1][1]) > KILL_ROWS / 6  # the kills were spread over the run


@pytest.mark.parametrize(("temperature", "tries"), [(0, 1), (0.7, 2)])
def test_a_reply_that_would_be_the_same_is_not_paid_for_again(
    base: Base, tmp_path: Path, temperature: float, tries: int
) -> None:
    with ScriptedServer(lambda _request: "no idea") as server:
        words = ["annotate.sample=5", "annotate.requests.ask_again=null", f"teacher.temperature={temperature}"]
        _ = base.pipeline(tmp_path / "run", server.url, *words).knowledge
    assert len(server.records) == 5 * tries
