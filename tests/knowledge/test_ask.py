"""Asking backends: nothing lost, nothing paid twice, caps and limits kept, whatever fails or kills the run. In virtual time."""

import asyncio
import json
import selectors
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.columns import COST, EXAMPLE, ITEMS, REPLY, SCORES, TOKENS_IN, TOKENS_OUT
from distilrec.config import AnnotateSettings
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, DiskFullError
from distilrec.knowledge.account import Account
from distilrec.knowledge.ask import ask
from distilrec.knowledge.journal import Journal
from distilrec.knowledge.prices import Price
from distilrec.knowledge.store import KnowledgeWriter, open_knowledge, writing
from distilrec.teachers.backends.base import BackendError, Prompt, Reply, RetryableError

PRICE = Price(1000.0, 2000.0, "test")  # 0.001 USD a token in, 0.002 out
TOKENS_OF_PROMPT, MOST = 10, 8


class KilledError(BaseException):
    """Stands for `kill -9`: after it, nothing reaches the disk."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class VirtualSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "every task waits and nothing will ever happen"
        self.clock.now += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(VirtualSelector(clock))
        self.clock = clock

    def time(self) -> float:
        return self.clock.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    time = Clock()
    monkeypatch.setattr(asyncio.events, "new_event_loop", lambda: VirtualLoop(time))
    return time


@dataclass(frozen=True)
class Question:
    example: int
    prompt: Prompt


@dataclass(frozen=True)
class Parsed:
    items: list[int]
    repairs: dict[str, int]
    usable: bool


def make_questions(count: int) -> list[Question]:
    return [Question(7 * n, Prompt("", str(7 * n), MOST)) for n in range(1, count + 1)]


def read(question: Question, reply: Reply) -> Parsed:
    """`good` ranks (example, example + 1) mod 20; `mended` says so; anything else is no use."""
    usable = reply.text.startswith(("good", "mended"))
    items = [question.example % 20, (question.example + 1) % 20] if usable else []
    repairs = {"missing": 2, "prose": 1} if reply.text.startswith("mended") else {} if usable else {"unusable": 1}
    return Parsed(items, repairs, usable)


Outcome = str | BaseException


@dataclass
class Fake:
    """A scripted backend. `script`: example -> outcomes, one a request; `good` when it runs out."""

    clock: Clock = field(default_factory=Clock)
    script: dict[int, list[Outcome]] = field(default_factory=dict)
    seconds: Callable[[int], float] = lambda example: 1.0 + example % 3
    tokens_out: int = 4
    model: str = "fake"

    def __post_init__(self) -> None:
        self.replies = Counter[int]()
        self.requests = Counter[int]()
        self.sent_at: list[tuple[float, int]] = []
        self.in_flight = self.most_in_flight = self.closed = 0
        self.outcomes = {example: list(outcomes) for example, outcomes in self.script.items()}

    def identity(self) -> dict[str, Any]:
        return {"kind": "fake"}

    def count_tokens(self, prompt: Prompt) -> int:
        return TOKENS_OF_PROMPT

    def count_text(self, text: str) -> int:
        return len(text)

    def answer(self, prompt: Prompt) -> Reply:
        example = int(prompt.user)
        outcome = self.outcomes[example].pop(0) if self.outcomes.get(example) else f"good {example}"
        if isinstance(outcome, BaseException):
            raise outcome
        self.replies[example] += 1
        return Reply(outcome, TOKENS_OF_PROMPT, self.tokens_out)


class Server(Fake):
    async def ask(self, prompt: Prompt) -> Reply:
        example = int(prompt.user)
        self.requests[example] += 1
        self.sent_at.append((self.clock.now, example))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds(example))
            return self.answer(prompt)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        self.closed += 1


class Process(Fake):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.batches: list[int] = []

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        self.batches.append(len(prompts))
        for prompt in prompts:
            self.requests[int(prompt.user)] += 1
        self.clock.now += 1.0
        return [self.answer(prompt) for prompt in prompts]


KINDS = pytest.mark.parametrize("kind", [Server, Process])


def settings_of(
    *, caps: dict[str, float] | None = None, requests: dict[str, Any] | None = None, **rest: Any
) -> AnnotateSettings:
    return AnnotateSettings.model_validate({"caps": caps or {}, "requests": requests or {}, "shard_rows": 7, **rest})


@contextmanager
def opened(folder: Path, dataset: Dataset) -> Iterator[KnowledgeWriter]:
    with writing(folder, dataset, {"teacher": "fake"}) as writer:
        yield writer


def go(
    folder: Path,
    dataset: Dataset,
    backend: Any,
    questions: Iterable[Question],
    *,
    price: Price | None = PRICE,
    **settings: Any,
) -> Account:
    with opened(folder, dataset) as writer:
        return ask(questions, 30, backend, read, writer, settings_of(**settings), price=price, clock=backend.clock)


COLUMNS = [EXAMPLE, ITEMS, TOKENS_IN, TOKENS_OUT, COST, "repairs", "attempts"]


def rows_of(folder: Path, *more: str) -> pl.DataFrame:
    return KnowledgeWriter(folder).stored([*COLUMNS, *more]).sort(EXAMPLE)


def assert_same_store(folder: Path, other: Path, dataset: Dataset, *more: str) -> None:
    one, two = open_knowledge(folder, dataset), open_knowledge(other, dataset)
    assert one.examples.tolist() == two.examples.tolist()
    np.testing.assert_array_equal(one.items, two.items)
    np.testing.assert_array_equal(one.scores, two.scores)
    assert rows_of(folder, *more).equals(rows_of(other, *more))
    assert not (folder / "journal.jsonl").exists()


# --- the plain run -----------------------------------------------------------------------------------------------------------


@KINDS
def test_every_question_is_asked_once_and_stored(
    kind: Any, tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    backend = kind(clock, {questions[3].example: ["mended"], questions[5].example: ["mended"]})
    account = go(tmp_path, tiny_dataset, backend, [*questions, questions[0]], keep_replies=True)
    rows = rows_of(tmp_path, SCORES, REPLY)
    asked = sorted(question.example for question in questions)
    assert rows[EXAMPLE].to_list() == asked
    assert rows[ITEMS].to_list() == [[example % 20, (example + 1) % 20] for example in asked]
    assert rows[SCORES].to_list() == [[0.0, 0.0]] * 30
    assert set(rows[REPLY]) == {f"good {e}" for e in asked} - {f"good {questions[n].example}" for n in (3, 5)} | {
        "mended"
    }
    assert rows["attempts"].to_list() == [1] * 30
    assert rows[COST].to_list() == pytest.approx([0.018] * 30)  # 10 * 0.001 + 4 * 0.002
    assert set(backend.replies.values()) == {1} == set(backend.requests.values())
    assert account.rows_done == account.store.usable == account.run.rows == 30 and account.stopped_by is None
    assert (account.store.repaired, account.store.repairs) == (2, {"missing": 4, "prose": 2})
    assert (account.store.tokens_in, account.store.tokens_out) == (300, 120)
    assert account.store.usd == pytest.approx(0.54)
    assert json.loads((tmp_path / "account.json").read_text()) == account.as_json()
    for shard in tmp_path.glob("shard-*"):
        frame = pl.read_parquet(shard)
        assert frame[EXAMPLE].is_sorted() and frame.schema[ITEMS] == pl.List(pl.Int32) and len(frame) < 25
    assert len(list(tmp_path.glob("shard-*"))) > 1
    assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == asked


@KINDS
def test_a_finished_store_costs_nothing_more(kind: Any, tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(10)
    first = go(tmp_path, tiny_dataset, kind(clock), questions)
    again = kind(clock)
    account = go(tmp_path, tiny_dataset, again, questions)
    assert not again.requests and account.run.requests == 0
    assert account.store == first.store and len(list(tmp_path.glob("shard-*"))) == 2
    wider = kind(clock)
    go(tmp_path, tiny_dataset, wider, [*questions, Question(900, Prompt("", "900", MOST))])
    assert dict(wider.requests) == {900: 1}


def test_questions_are_taken_as_needed_and_no_more_than_allowed_are_in_flight(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    taken, ahead = 0, []
    backend = Server(clock, seconds=lambda example: 1.0)

    def lazily() -> Iterator[Question]:
        nonlocal taken
        for question in make_questions(40):
            taken += 1
            ahead.append(taken - sum(backend.replies.values()))
            yield question

    go(tmp_path, tiny_dataset, backend, lazily(), requests={"concurrency": 5})
    assert backend.most_in_flight == 5 and max(ahead) <= 5
    assert clock.now == 8.0  # 40 requests of a second, five at once
    assert backend.closed == 1


def test_replies_of_one_turn_share_one_wait_for_the_disk(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    add = Journal.add
    monkeypatch.setattr(
        Journal, "add", lambda self, records: (sizes.append(len(kept := list(records))), add(self, kept))[1]
    )
    go(tmp_path, tiny_dataset, Server(clock, seconds=lambda _: 1.0), make_questions(32), requests={"concurrency": 8})
    assert sum(sizes) == 32 and max(sizes) == 8


def test_batches_hold_prompts_of_so_many_tokens(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    backend = Process(clock)
    go(tmp_path, tiny_dataset, backend, make_questions(100), batch_tokens=3 * (TOKENS_OF_PROMPT + MOST) + 1)
    assert max(backend.batches) == 3 and sum(backend.batches) == 100
    wide = Process(clock)
    go(tmp_path / "wide", tiny_dataset, wide, make_questions(100), batch_tokens=10**6)
    assert wide.batches == [64, 36]
    narrow = Process(clock)
    go(tmp_path / "narrow", tiny_dataset, narrow, make_questions(3), batch_tokens=1)
    assert narrow.batches == [1, 1, 1]


def test_unknown_price(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    account = go(tmp_path, tiny_dataset, Server(clock), make_questions(3), price=None)
    assert account.store.usd is None and account.as_json()["store"]["usd"] is None
    assert any("cost not known" in line for line in account.lines())
    assert rows_of(tmp_path)[COST].null_count() == 3
    with pytest.raises(ConfigError, match="annotate.prices"):
        go(tmp_path, tiny_dataset, Server(clock), make_questions(4), price=None, caps={"usd": 1})
    # Once a price is known, rows of unknown cost count at it: three of 0.018 USD are spent.
    account = go(tmp_path, tiny_dataset, Server(clock), make_questions(9), caps={"usd": 0.09})
    assert account.rows_done == 4 and account.stopped_by == "the cap of 0.09 USD"


# --- failures ----------------------------------------------------------------------------------------------------------------


def busy(after: float | None = None) -> RetryableError:
    return RetryableError("the server is busy (429).", after=after)


def test_passing_failures_are_sent_again_with_growing_waits(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    question = make_questions(1)[0]
    cut = RetryableError("the connection was cut.")
    backend = Server(clock, {question.example: [busy(), cut, busy(), busy(), busy()]}, seconds=lambda _: 0.0)
    requests = {"concurrency": 1, "backoff_seconds": 2.0, "longest_wait_seconds": 10.0, "retries": 5}
    account = go(tmp_path, tiny_dataset, backend, [question], requests=requests)
    times = [at for at, _ in backend.sent_at]
    waits = [later - earlier for earlier, later in pairwise(times)]
    for wait, longest in zip(waits, [2, 4, 8, 10, 10], strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == 5
    assert account.rows_done == 1 and account.run.requests == 6
    assert account.run.retries == {"the server is busy (429).": 4, "the connection was cut.": 1}


def test_the_server_says_how_long_to_wait_and_all_workers_do(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(12)
    backend = Server(clock, {questions[0].example: [busy(after=100.0)]}, seconds=lambda e: 1.0 if e == 7 else 2.0)
    account = go(tmp_path, tiny_dataset, backend, questions, requests={"concurrency": 3})
    assert account.rows_done == 12
    assert sorted(at for at, _ in backend.sent_at)[:3] == [0, 0, 0]
    assert min(at for at, _ in backend.sent_at[3:]) == 101.0


def test_a_row_whose_retries_are_used_up_is_left_for_the_next_run(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    bad = [questions[4].example, questions[20].example]
    backend = Server(clock, {example: [busy()] * 3 for example in bad})
    account = go(tmp_path, tiny_dataset, backend, questions, requests={"retries": 2})
    assert account.rows_done == 28 and account.stopped_by is None
    assert sorted(row.example for row in account.failed) == sorted(bad)
    assert backend.requests[bad[0]] == 3 and account.run.retries == {"the server is busy (429).": 4}
    assert any("the same command" in line and "busy" in line for line in account.lines())
    assert not set(bad) & set(rows_of(tmp_path)[EXAMPLE])
    next_run = Server(clock)
    assert go(tmp_path, tiny_dataset, next_run, questions).rows_done == 30
    assert dict(next_run.requests) == dict.fromkeys(bad, 1)


def test_a_server_that_answers_nobody_is_given_up_early(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(200)
    backend = Server(clock, {question.example: [busy()] * 9 for question in questions})
    account = go(tmp_path, tiny_dataset, backend, questions, requests={"retries": 1, "concurrency": 4})
    assert 20 <= len(account.failed) <= 23 and account.rows_done == 0
    assert account.stopped_by is not None and "20 failed rows" in account.stopped_by
    # Failures with replies in between are no such sign.
    backend = Server(clock, {question.example: [busy()] * 2 for question in questions[::2]})
    account = go(tmp_path, tiny_dataset, backend, questions, requests={"retries": 1, "concurrency": 1})
    assert len(account.failed) == 100 and account.stopped_by is None


@KINDS
def test_an_error_that_no_repetition_mends_stops_all_and_keeps_what_came(
    kind: Any, tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    error = BackendError("wrong key.")
    backend = kind(clock, {questions[17].example: [error]})
    with pytest.raises(BackendError, match="wrong key"):
        go(tmp_path, tiny_dataset, backend, questions, requests={"concurrency": 4}, batch_tokens=100)
    rows = rows_of(tmp_path)
    if kind is Server:  # the rest of a batch that fails in the process never was a reply
        assert set(rows[EXAMPLE]) == set(backend.replies)
    assert 5 <= len(rows) < 30 and backend.in_flight == 0 and sum(backend.requests.values()) <= 22
    assert json.loads((tmp_path / "account.json").read_text())["run"]["stopped_by"] == "wrong key."
    next_run = kind(clock)
    assert go(tmp_path, tiny_dataset, next_run, questions).rows_done == 30
    assert not set(next_run.requests) & set(rows[EXAMPLE])


@KINDS
def test_unusable_replies(kind: Any, tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(10)
    never, second, third = (questions[n].example for n in (2, 5, 8))
    script: dict[int, list[Outcome]] = {never: ["?", "!", "."], second: ["?", "good"], third: ["", "", "mended"]}
    backend = kind(clock, script)
    account = go(tmp_path, tiny_dataset, backend, questions, requests={"ask_again": 2}, keep_replies=True)
    rows = {row[EXAMPLE]: row for row in rows_of(tmp_path, REPLY).to_dicts()}
    assert rows[never][ITEMS] == [] and rows[never]["attempts"] == 3 and rows[never][REPLY] == "."
    assert (rows[second]["attempts"], rows[second][TOKENS_IN], rows[second][TOKENS_OUT]) == (2, 20, 8)
    assert rows[second][ITEMS] == [second % 20, (second + 1) % 20] and rows[second][REPLY] == "good"
    assert rows[third]["attempts"] == 3 and rows[third][COST] == pytest.approx(3 * 0.018)
    assert (account.rows_done, account.store.usable, account.store.unusable) == (10, 9, 1)
    assert account.store.repaired == 1 and account.store.repairs == {"missing": 2, "prose": 1, "unusable": 1}
    again = kind(clock)
    go(tmp_path, tiny_dataset, again, questions)
    assert not again.requests  # paid for once, whatever it was worth
    assert never not in open_knowledge(tmp_path, tiny_dataset).examples


# --- caps --------------------------------------------------------------------------------------------------------------------


def test_a_failed_row_leaves_its_room_to_others(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(8)
    backend = Server(clock, {questions[1].example: [busy()]})
    account = go(
        tmp_path, tiny_dataset, backend, questions, caps={"rows": 5}, requests={"retries": 0, "concurrency": 2}
    )
    assert account.rows_done == 5 and len(account.failed) == 1


@KINDS
@pytest.mark.parametrize(
    ("caps", "rows", "words"),
    [
        ({"rows": 13}, 13, "the cap of 13 rows"),
        ({"tokens": 14 * 11 + 4}, 11, "the cap of 158 tokens"),  # the 12th may take 18
        ({"usd": 0.018 * 11 + 0.0081}, 11, "the cap of 0.2061 USD"),
    ],
)
def test_caps_are_used_to_the_full_and_never_passed(
    kind: Any, caps: dict[str, float], rows: int, words: str, tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    backend = kind(clock)
    account = go(tmp_path, tiny_dataset, backend, questions, caps=caps, requests={"concurrency": 8})
    assert account.stopped_by == words and account.rows_done == rows == len(backend.replies)
    assert any(words in line for line in account.lines())
    if kind is Process:
        assert set(backend.replies) == {question.example for question in questions[:rows]}
    # What earlier runs stored counts; a higher cap goes on where this one ended.
    idle = kind(clock)
    assert go(tmp_path, tiny_dataset, idle, questions, caps=caps).stopped_by == words and not idle.requests
    more = kind(clock)
    assert go(tmp_path, tiny_dataset, more, questions).rows_done == 30
    assert not set(more.requests) & set(backend.replies)


def test_a_cap_is_passed_only_by_requests_in_flight_that_took_more_than_they_might(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    backend = Server(clock, tokens_out=MOST + 5)  # 5 more than held back
    account = go(tmp_path, tiny_dataset, backend, make_questions(30), caps={"tokens": 200}, requests={"concurrency": 4})
    assert account.store.tokens_in + account.store.tokens_out <= 200 + 4 * 5


def test_minutes(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    clock.now = 500.0
    backend = Server(clock, seconds=lambda _: 10.0)
    account = go(tmp_path, tiny_dataset, backend, make_questions(30), caps={"minutes": 1}, requests={"concurrency": 2})
    assert account.stopped_by == "the cap of 1 minute" and account.rows_done == 12  # two every ten seconds
    assert account.run.seconds == 60 and account.run.rate == pytest.approx(0.2)


def test_minutes_are_not_slept_through(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(5)
    backend = Server(clock, {questions[0].example: [busy(after=3600.0)]}, seconds=lambda _: 1.0)
    account = go(tmp_path, tiny_dataset, backend, questions, caps={"minutes": 2}, requests={"concurrency": 2})
    assert clock.now < 60 and account.stopped_by == "the cap of 2 minutes" and not account.failed


@KINDS
def test_a_row_between_two_tries_when_the_cap_comes_is_taken_up_by_the_next_run(
    kind: Any, tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(3)
    example = questions[2].example
    script: dict[int, list[Outcome]] = {example: ["?", "good"]}
    backend = kind(clock, script)
    # Three replies of 14 tokens; the second try may take 18.
    account = go(tmp_path, tiny_dataset, backend, questions, caps={"tokens": 14 * 3 + 17}, requests={"concurrency": 1})
    assert backend.replies[example] == 1
    assert (account.rows_done, account.unfinished, account.stopped_by) == (2, 1, "the cap of 59 tokens")
    idle = kind(clock)
    go(tmp_path, tiny_dataset, idle, questions, caps={"tokens": 14 * 3 + 17})
    assert not idle.requests  # its first try counts as spent
    more = kind(clock, {example: ["good"]})
    account = go(tmp_path, tiny_dataset, more, questions)
    assert dict(more.requests) == {example: 1} and account.unfinished == 0
    unbroken = tmp_path / "unbroken"
    go(unbroken, tiny_dataset, kind(clock, script), questions)
    assert_same_store(tmp_path, unbroken, tiny_dataset)


def test_a_cap_on_rows_lets_begun_rows_have_their_second_try(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(6)
    backend = Server(clock, {question.example: ["?", "good"] for question in questions})
    account = go(tmp_path, tiny_dataset, backend, questions, caps={"rows": 4})
    assert account.rows_done == account.store.usable == 4 and account.unfinished == 0


# --- rate limits -------------------------------------------------------------------------------------------------------------


def busiest_minute(sent: list[float]) -> int:
    return max(sum(start <= at < start + 60 for at in sent) for start in sent)


@pytest.mark.parametrize(
    ("limits", "a_minute", "seconds"),
    [
        ({"per_minute": 30}, 30, 2 * 99.0),
        ({"tokens_per_minute": 360}, 20, 3 * 99.0),  # 18 tokens each: one every three seconds
        ({"per_minute": 30, "tokens_per_minute": 360}, 20, 3 * 99.0),
    ],
)
def test_rates_hold_in_every_minute(
    limits: dict[str, float], a_minute: int, seconds: float, tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    backend = Server(clock, seconds=lambda _: 20.0)
    go(tmp_path, tiny_dataset, backend, make_questions(100), requests={"concurrency": 16, **limits})
    sent = sorted(at for at, _ in backend.sent_at)
    assert busiest_minute(sent) <= a_minute + 1
    assert sent[-1] == pytest.approx(seconds)  # and no slower than it must be


def test_retries_keep_the_rate_too(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(40)
    backend = Server(clock, {question.example: [busy(), busy()] for question in questions}, seconds=lambda _: 0.1)
    account = go(tmp_path, tiny_dataset, backend, questions, requests={"per_minute": 60})
    assert account.rows_done == 40 and len(backend.sent_at) == 120
    assert busiest_minute(sorted(at for at, _ in backend.sent_at)) <= 61


# --- killed and interrupted --------------------------------------------------------------------------------------------------


@dataclass
class Reaper:
    """Kills the run at the n-th write; afterwards nothing is written any more."""

    at: int
    after: bool  # whether that write still reaches the disk
    writes: int = 0
    dead: bool = False

    def wrap(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise KilledError
            self.writes += 1
            self.dead = self.writes == self.at
            if self.dead and not self.after:
                raise KilledError
            result = write(*args, **kwargs)
            if self.dead:
                raise KilledError
            return result

        return wrapped


SCRIPT: dict[int, list[Outcome]] = {14: ["?", "good"], 35: ["?", "!"], 63: ["mended"], 84: [busy(), "?", "mended"]}


def kill_at(
    reaper: Reaper, kind: Any, folder: Path, dataset: Dataset, clock: Clock, script: dict[int, list[Outcome]]
) -> Any:
    backend = kind(clock, script)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Journal, "add"), (Journal, "clear"), (KnowledgeWriter, "append")):
            patch.setattr(owner, name, reaper.wrap(getattr(owner, name)))
        patch.setattr("distilrec.knowledge.job.write_json", reaper.wrap(lambda *_: None))
        try:
            go(
                folder,
                dataset,
                backend,
                make_questions(13),
                requests={"concurrency": 3},
                keep_replies=True,
                batch_tokens=60,
            )
        except KilledError:
            assert reaper.dead
    return backend


@KINDS
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_write_and_resumed(
    kind: Any, after: bool, tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    script = SCRIPT if kind is Server else {**SCRIPT, 84: ["?", "mended"]}
    unbroken, at, replies_at = tmp_path / "unbroken", 0, Counter[str]()
    whole = kind(clock, script)
    options: dict[str, Any] = {"requests": {"concurrency": 3}, "keep_replies": True, "batch_tokens": 60}
    go(unbroken, tiny_dataset, whole, make_questions(13), **options)
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        reaper = Reaper(at, after)
        killed = kill_at(reaper, kind, folder, tiny_dataset, clock, script)
        if not reaper.dead:
            break
        on_disk = Counter(record["example"] for record in Journal(folder / "journal.jsonl").read())
        stored = set(KnowledgeWriter(folder).done().tolist())
        resumed = kind(clock)
        resumed.outcomes = {  # the server goes on with its script behind the replies that are on the disk
            example: [outcome for outcome in outcomes if isinstance(outcome, str)][on_disk[example] :]
            for example, outcomes in script.items()
        }
        go(folder, tiny_dataset, resumed, make_questions(13), **options)
        assert_same_store(folder, unbroken, tiny_dataset, REPLY)
        assert not set(resumed.requests) & stored
        for example, count in on_disk.items():
            if example not in stored:
                assert count + resumed.replies[example] == whole.replies[example]
        lost = sum(killed.replies.values()) + sum(resumed.replies.values()) - sum(whole.replies.values())
        assert lost <= 3 and (not after or lost <= 2)  # no more than was in flight to the disk
        replies_at["lost"] += lost
    assert at > 8 and replies_at["lost"] >= (0 if after else 1)


def test_a_journal_torn_at_any_byte_loses_only_the_torn_reply(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    unbroken = tmp_path / "unbroken"
    questions = make_questions(5)
    go(unbroken, tiny_dataset, Server(clock), questions)
    records = [
        {"example": q.example, "text": f"good {q.example}", "tokens_in": 10, "tokens_out": 4, "finish": "stop", "usd": 0.018,
         "attempt": 1}
        for q in questions[:3]
    ]  # fmt: skip
    whole = Journal(tmp_path / "whole.jsonl")
    whole.add(records[:2])
    before = whole.path.stat().st_size
    whole.add(records[2:])
    content = whole.path.read_bytes()
    for cut in range(before, len(content) + 1):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(content[:cut])
        backend = Server(clock)
        account = go(folder, tiny_dataset, backend, questions)
        # Only its end of line may be missing for a record to be whole.
        kept = 3 if cut >= len(content) - 1 else 2
        assert set(backend.requests) == {q.example for q in questions[kept:]}
        assert account.rows_done == 5 and account.run.rows == 5 - 3 + 3 - kept
        assert_same_store(folder, unbroken, tiny_dataset)


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
@KINDS
def test_an_interruption_keeps_what_came(
    kind: Any, error: type[BaseException], tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    backend = kind(clock, {questions[17].example: [error()]})
    with pytest.raises(error):
        go(tmp_path, tiny_dataset, backend, questions, requests={"concurrency": 4}, batch_tokens=60)
    rows = set(rows_of(tmp_path)[EXAMPLE])
    assert 12 <= len(rows) < 30 and not (tmp_path / "journal.jsonl").exists()
    if kind is Server:
        assert rows == set(backend.replies) and backend.in_flight == 0
    assert "interruption" in json.loads((tmp_path / "account.json").read_text())["run"]["stopped_by"]
    next_run = kind(clock)
    assert go(tmp_path, tiny_dataset, next_run, questions).rows_done == 30
    assert not set(next_run.requests) & rows


def test_a_reply_of_the_very_moment_of_an_interruption_is_kept(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    backend = Server(clock, {questions[13].example: [KeyboardInterrupt()]}, seconds=lambda _: 1.0)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, tiny_dataset, backend, questions, requests={"concurrency": 4})
    assert backend.replies[questions[12].example] == 1
    next_run = Server(clock)
    assert go(tmp_path, tiny_dataset, next_run, questions).rows_done == 30
    assert not set(next_run.requests) & set(backend.replies)


def test_an_interruption_between_writing_a_shard_and_noting_it_stores_no_row_twice(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, calls = KnowledgeWriter.append, []

    def interrupted(self: KnowledgeWriter, rows: pl.DataFrame) -> None:
        append(self, rows)
        calls.append(len(rows))
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(KnowledgeWriter, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, tiny_dataset, Process(clock), make_questions(20), batch_tokens=200)
    rows = rows_of(tmp_path)
    assert rows[EXAMPLE].is_unique().all() and len(rows) >= 7


@KINDS
def test_a_full_disk_stops_everything_and_loses_nothing_that_is_on_it(
    kind: Any, tmp_path: Path, tiny_dataset: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, add, kept = make_questions(30), Journal.add, []

    def full(self: Journal, records: Iterable[dict[str, Any]]) -> None:
        records = list(records)
        if len(kept) >= 5:
            raise DiskFullError("no space left.")
        kept.extend(record["example"] for record in records)
        add(self, records)

    monkeypatch.setattr(Journal, "add", full)
    backend = kind(clock)
    with pytest.raises(DiskFullError):
        go(tmp_path, tiny_dataset, backend, questions, requests={"concurrency": 3}, batch_tokens=60)
    assert sum(backend.requests.values()) <= len(kept) + 6 and backend.in_flight == 0
    monkeypatch.setattr(Journal, "add", add)
    next_run = kind(clock)
    assert go(tmp_path, tiny_dataset, next_run, questions).rows_done == 30
    assert not set(next_run.requests) & set(kept)


def test_replies_of_a_killed_run_are_settled_though_the_cap_allows_no_more(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    questions = make_questions(30)
    reaper = Reaper(9, after=True)
    kill_at(reaper, Server, tmp_path, tiny_dataset, clock, {})
    left = {record["example"] for record in Journal(tmp_path / "journal.jsonl").read()}
    stored = set(KnowledgeWriter(tmp_path).done().tolist())
    assert left - stored
    backend = Server(clock)
    others = [question for question in questions if question.example not in left | stored]
    mixed = [*others, *(question for question in questions if question.example in left | stored)]
    account = go(tmp_path, tiny_dataset, backend, mixed, caps={"rows": len(left | stored) + 2})
    assert len(backend.requests) == 2 and account.rows_done == len(left | stored) + 2
    assert not (tmp_path / "journal.jsonl").exists()


def test_replies_whose_question_does_not_come_by_stay_in_the_journal(
    tmp_path: Path, tiny_dataset: Dataset, clock: Clock
) -> None:
    kill_at(Reaper(2, after=True), Server, tmp_path, tiny_dataset, clock, {})
    left = {record["example"] for record in Journal(tmp_path / "journal.jsonl").read()}
    questions = make_questions(13)
    others = [question for question in questions if question.example not in left]
    account = go(tmp_path, tiny_dataset, Server(clock), others)
    assert account.unfinished == len(left) > 0 and account.rows_done == 13 - len(left)
    backend = Server(clock)
    assert go(tmp_path, tiny_dataset, backend, questions).rows_done == 13
    assert not backend.requests and not (tmp_path / "journal.jsonl").exists()


# --- everything at once ------------------------------------------------------------------------------------------------------

OUTCOMES = st.lists(st.sampled_from(["429", "500", "after", "?", "mended", "good"]), max_size=4)


@given(
    st.dictionaries(st.integers(1, 20).map(lambda n: 7 * n), OUTCOMES, max_size=12),
    st.integers(1, 6),
    st.integers(1, 9),
)
def test_any_script_of_failures_ends_complete(
    tiny_dataset: Dataset, script: dict[int, list[str]], concurrency: int, shard_rows: int
) -> None:
    def outcome(word: str) -> Outcome:
        errors = {"429": busy(), "500": RetryableError("server error."), "after": busy(after=7.0)}
        return errors.get(word, word)

    virtual = Clock()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(asyncio.events, "new_event_loop", lambda: VirtualLoop(virtual))
        backend = Server(virtual, {example: [outcome(word) for word in words] for example, words in script.items()})
        requests = {"concurrency": concurrency, "retries": 4}
        account = go(Path(folder), tiny_dataset, backend, make_questions(20), requests=requests, shard_rows=shard_rows)
        rows = rows_of(Path(folder))
        assert rows[EXAMPLE].to_list() == [7 * n for n in range(1, 21)]
        for row in rows.to_dicts():
            says = [word for word in script.get(row[EXAMPLE], []) if word in ("?", "mended", "good")]
            replies = [*says, "good", "good"][:2]
            used = 1 if replies[0] != "?" else 2
            assert row["attempts"] == used == backend.replies[row[EXAMPLE]]
            assert bool(row[ITEMS]) == (replies[used - 1] != "?")
            assert row[TOKENS_IN] == 10 * used and row[TOKENS_OUT] == 4 * used
        assert account.store.tokens_in == 10 * sum(backend.replies.values()) == account.run.tokens_in
        assert sum(account.run.retries.values()) == account.run.requests - sum(backend.replies.values())


RECORD = st.fixed_dictionaries(
    {
        "example": st.integers(0, 2**40),
        "text": st.text(),
        "tokens_in": st.integers(0, 10**6),
        "tokens_out": st.integers(0, 10**6),
        "finish": st.sampled_from(["stop", "length", "content_filter"]),
        "usd": st.none() | st.floats(0, 100),
        "attempt": st.integers(1, 9),
    }
)


@given(st.lists(st.lists(RECORD, max_size=4), max_size=4), st.integers(0, 10**6))
def test_the_journal_gives_back_what_it_was_given_up_to_the_tear(groups: list[list[dict[str, Any]]], tear: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        for group in groups:
            journal.add(group)
        everything = [record for group in groups for record in group]
        assert journal.read() == everything
        if everything:
            content = journal.path.read_bytes()
            cut = tear % (len(content) + 1)
            journal.path.write_bytes(content[:cut])
            whole = len(content[: cut + 1].split(b"\n")) - 1  # a record may lack its end of line
            assert journal.read() == everything[:whole]
            journal.add(everything[:1])
            assert journal.read() == [*everything[:whole], everything[0]]


def test_half_a_surrogate_pair_is_stored(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    questions = make_questions(1)
    backend = Server(clock, {questions[0].example: ["good \ud83d"]})
    go(tmp_path, tiny_dataset, backend, questions, keep_replies=True)
    assert rows_of(tmp_path, REPLY)[REPLY].to_list() == ["good ?"]


def test_a_store_written_by_another_teacher_has_no_tokens(tmp_path: Path, tiny_dataset: Dataset, clock: Clock) -> None:
    with opened(tmp_path, tiny_dataset) as writer:
        kinds = {EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)}
        writer.append(pl.DataFrame({EXAMPLE: [7], ITEMS: [[1]], SCORES: [[0.5]]}, schema=kinds))
    backend = Server(clock)
    account = go(tmp_path, tiny_dataset, backend, make_questions(2))
    assert dict(backend.requests) == {14: 1} and account.rows_done == 2 and account.store.usd is None
