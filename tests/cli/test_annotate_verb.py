"""`distilrec annotate` as a user types it: what it will cost, whom it asks, how it ends; and the key, which nothing may show."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import fixtures_asking as asking
from distilrec.data.dataset import Dataset, open_dataset, training_examples
from distilrec.teachers.backends.tokens import TokenCounter
from fixtures_asking import Base, WarmCli
from fixtures_server import Act, Asked, ScriptedServer, echo_key, hang, ok

Cli = Callable[..., Any]
Done = Any  # see conftest.py
ROWS = 60
CANARY = "sk-canary-7Qm2xZ9vT4Lw8Rb1"
VARIABLE = "CANARY_API_KEY"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return asking.make_base(tmp_path_factory.mktemp("asking"))


@pytest.fixture
def annotate(cli: Cli, base: Base, tmp_path: Path) -> Cli:
    """Return `annotate(url, *further)`, which works in a run that has everything but knowledge."""
    base.copy(tmp_path / "runs" / "asking")
    return lambda url, *further: cli("annotate", *base.words(url, *further))


@pytest.fixture
def data(base: Base) -> Dataset:
    (folder,) = base.root.glob("data-*")
    return open_dataset(folder)


def model(request: Asked) -> Act:
    return ok(asking.HINTS if asking.is_summary(request.user) else asking.said(request.user).text)


def estimate_of(done: Done) -> tuple[int, int, int]:
    """Return rows, tokens in and tokens out as the command foretold them."""
    found = re.search(r"([\d,]+) rows to ask for: about ([\d,]+) tokens in, ([\d,]+) out", done.err)
    assert found is not None, done.err
    rows, first, second = (int(number.replace(",", "")) for number in found.groups())
    return rows, first, second


def account_of(done: Done) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((asking.knowledge_of(done.runs / "asking") / "account.json").read_text())
    return content


@pytest.mark.parametrize("hints", ["false", "true"])
def test_a_dry_run_foretells_what_is_then_measured(hints: str, annotate: Cli) -> None:
    prices = "annotate.prices={input_per_million: 200, output_per_million: 400}"
    words = (f"annotate.sample={ROWS}", f"teacher.hints={hints}", "teacher.hint_tokens=20", prices)
    with ScriptedServer(model, count=TokenCounter(None).count_text) as server:
        dry = annotate(server.url, "--dry-run", *words)
        assert (dry.code, dry.out) == (0, "")
        assert server.records == []
        assert list(dry.runs.glob("*/knowledge-*")) == []
        assert "200 USD for a million tokens in, 400 out (annotate.prices)" in dry.err
        assert annotate(server.url, *words).code == 0
        account = account_of(dry)
        rows, tokens_in, tokens_out = estimate_of(dry)
        assert rows == account["rows_done"] == ROWS
        assert tokens_in == pytest.approx(account["store"]["tokens_in"], rel=0.1)
        assert tokens_out == pytest.approx(account["store"]["tokens_out"], rel=0.1)
        usd = re.search(r"about ([\d.]+) USD", dry.err)
        assert usd is not None
        assert float(usd[1]) == pytest.approx(account["store"]["usd"], rel=0.1)
        asked = len(server.records)
        assert estimate_of(annotate(server.url, "--dry-run", *words)) == (0, 0, 0)
        more = annotate(server.url, "--dry-run", *words, "annotate.sample=100")
        assert estimate_of(more)[0] == 100 - ROWS
        assert f"as long as the {ROWS} stored ones were on average" in more.err
        assert len(server.records) == asked == ROWS + (hints == "true")


def test_a_selection_says_whom_to_ask(annotate: Cli, data: Dataset, tmp_path: Path) -> None:
    path, known = tmp_path / "chosen.txt", training_examples(data)
    chosen = [int(known[place]) for place in (3, 500, 77, 2000)]
    path.write_text("".join(f"{example}\n" for example in chosen))
    with ScriptedServer(model) as server:
        done = annotate(server.url, "--selection", path)
        assert done.code == 0, done.err
        assert sorted(asking.example_of(record.user, data) for record in server.records) == sorted(chosen)
        path.write_text("\n".join(f"u{user:03d}" for user in (5, 7)))
        more = annotate(server.url, "--selection", path, "annotate.selection_by=user")
        assert more.code == 0, more.err
    last = sorted(int(data.offsets[user] + data.split.train_end[user] - 1) for user in (5, 7))
    assert sorted(asking.example_of(record.user, data) for record in server.records[4:]) == last
    rows = asking.stored_rows(asking.knowledge_of(done.runs / "asking"))
    assert rows["example_id"].to_list() == sorted(chosen + last)


@pytest.mark.parametrize(
    ("cap", "words", "rows"),
    [
        ("rows=25", "the cap of 25 rows", 25),
        ("tokens=5000", "the cap of 5,000 tokens", None),
        ("usd=0.5", "the cap of 0.50 USD", None),
    ],
)
def test_a_cap_ends_a_run_in_good_order(cap: str, words: str, rows: int | None, annotate: Cli) -> None:
    prices = "annotate.prices={input_per_million: 100, output_per_million: 100}"
    with ScriptedServer(model) as server:
        foretold = annotate(server.url, "--dry-run", prices, f"annotate.caps.{cap}")
        done = annotate(server.url, prices, f"annotate.caps.{cap}")
    assert done.code == 0
    assert f"ends at {words}" in foretold.err
    assert f"stopped by {words}" in done.err
    stored = account_of(done)["rows_done"]
    assert 0 < stored < asking.EXAMPLES
    assert len(server.records) == stored
    if rows is not None:
        assert estimate_of(foretold)[0] == stored == rows


# The key.


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmCli]:
    """Processes with the key in their environment, in which the client of the API logs all it does."""
    with WarmCli(**{VARIABLE: CANARY, "OPENAI_LOG": "debug"}) as warm:
        yield warm


def leaks(folder: Path) -> list[str]:
    """Return where below a folder the key, or its first 12 characters, can be read: in names, in files, in packed tables."""
    found = []
    for path in sorted(folder.rglob("*")):
        content = path.name.encode()
        if path.is_file():
            content += path.read_bytes()
        if path.suffix == ".parquet":
            content += json.dumps(pl.read_parquet(path).to_dicts(), default=str).encode()
        if CANARY[:12].encode() in content:
            found.append(str(path))
    return found


def test_the_search_for_the_key_finds_it(tmp_path: Path) -> None:
    pl.DataFrame({"reply": [f"it is {CANARY[:12]}"] * 100}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.log").write_text(f"Bearer {CANARY}")
    (tmp_path / "c.log").write_text("Bearer ***")
    assert [Path(path).name for path in leaks(tmp_path)] == ["a.parquet", "b.log"]


def talkative(request: Asked) -> Act:
    """Answer, and repeat the key: whole, shortened as servers shorten it, in the hints, in words about the reply's end."""
    key = str(request.authorization).removeprefix("Bearer ")
    if asking.is_summary(request.user):
        return ok(f"Your key is {key}.\nPrefer the sequel.")
    said = asking.said(request.user).text
    told = (said, f"{said} {key}", f"{key[:12]}****{key[-4:]} {said}", f"Only {key}, nothing else")[request.number % 4]
    return ok(told, finish=key if request.number % 5 == 0 else "stop")


def refusing(request: Asked) -> Act:
    return echo_key(request)


def failing(request: Asked) -> Act:
    return echo_key(request, 500)


def knowing_no_model(request: Asked) -> Act:
    return echo_key(request, 404)


def stuck(request: Asked) -> Act:
    """Answer some questions like `talkative`, and let the others wait."""
    return talkative(request) if request.number < 20 else hang()


class Canary:
    """Runs the verb with the key in its environment, all it says in a log beside the run."""

    def __init__(self, warm: WarmCli, base: Base, folder: Path) -> None:
        self._warm, self._base = warm, base
        self.folder, self.log = folder, folder / "log.txt"
        base.copy(folder / "runs" / "asking")

    def start(self, server: ScriptedServer, *further: str) -> int:
        own = (
            f"annotate.sample={ROWS}", "annotate.keep_replies=true", f"teacher.api_key_env={VARIABLE}",
            "teacher.hints=true", "annotate.requests.retries=1",
        )  # fmt: skip
        words = ["annotate", *self._base.words(server.url, *own, *further), "--out", str(self.folder / "runs")]
        return self._warm.start(words, self.log)

    def run(self, server: ScriptedServer, *further: str) -> int:
        self.start(server, *further)
        return self.wait()

    def wait(self) -> int:
        return self._warm.wait()

    def check(self, server: ScriptedServer) -> str:
        """The server was given the key, the client did log what it did, and the key is nowhere; return the log."""
        text = self.log.read_text()
        assert {record.authorization for record in server.records} == {f"Bearer {CANARY}"}
        assert "- DEBUG]" in text
        assert leaks(self.folder) == []
        return text


@pytest.fixture
def canary(warm: WarmCli, base: Base, tmp_path: Path) -> Canary:
    return Canary(warm, base, tmp_path)


def test_no_key_in_what_a_talkative_server_leaves_behind(canary: Canary) -> None:
    with ScriptedServer(talkative) as server:
        assert canary.run(server, "--dry-run") == 0
        assert canary.run(server) == 0
    canary.check(server)
    folder = asking.knowledge_of(canary.folder / "runs" / "asking")
    replies = asking.stored_rows(folder)["reply"].to_list()
    assert len(replies) == ROWS
    assert sum("[secret removed]" in reply for reply in replies) >= ROWS // 4  # the key was said, and cut out
    (hints,) = asking.stored_rows(folder / "hints")["reply"].to_list()
    assert hints == "Your key is [secret removed].\nPrefer the sequel."


@pytest.mark.parametrize("script", [refusing, failing, knowing_no_model])
def test_no_key_in_errors_that_repeat_it(script: Callable[[Asked], Act], canary: Canary) -> None:
    with ScriptedServer(script, models=("small", f"model-{CANARY}")) as server:
        assert canary.run(server) == 2
        assert canary.run(server, "teacher.hints=false", "annotate.requests.concurrency=4") == 2
    text = canary.check(server)
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("Error: ")
    assert "[secret removed]" in text


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_key_in_what_an_ended_run_leaves_behind(how: signal.Signals, canary: Canary, data: Dataset) -> None:
    """Nor is anything lost or paid twice: the same command goes on."""
    with ScriptedServer(stuck) as server:
        process, deadline = canary.start(server, "annotate.requests.concurrency=4"), time.monotonic() + 30
        while len(server.records) < 24:
            assert time.monotonic() < deadline, canary.log.read_text()[-2000:]
            time.sleep(0.01)
        os.kill(process, how)
        assert canary.wait() == (-how if how == signal.SIGKILL else 130)
        text = canary.check(server)
        if how != signal.SIGKILL:
            assert text.splitlines()[-1] == "Interrupted. The same command goes on where it was."
            assert "Traceback" not in text
        asked = {
            asking.example_of(record.user, data)
            for record in server.records
            if record.answered and not asking.is_summary(record.user)
        }
        before = len(server.records)
        server.script = model
        assert canary.run(server) == 0
    canary.check(server)
    rows = asking.stored_rows(asking.knowledge_of(canary.folder / "runs" / "asking"))
    assert rows.height == ROWS
    again = [asking.example_of(record.user, data) for record in server.records[before:]]
    assert len(again) == len(set(again))
    assert len(asked.intersection(again)) <= 4 + 20 // 4  # in flight, or useless the first time


def test_no_key_in_the_traceback_of_a_fault_of_ours(canary: Canary) -> None:
    with ScriptedServer(talkative) as server:
        assert canary.run(server, "annotate.caps.rows=5") == 0
        account = asking.knowledge_of(canary.folder / "runs" / "asking") / "account.json"
        account.write_text("[]")  # what nobody foresees
        assert canary.run(server) == 1
    assert "Traceback" in canary.check(server)
