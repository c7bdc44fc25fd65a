"""A real server with a real language model answers the ranker: 50 sessions of ml-100k, the estimate beside what was measured."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distilrec.data.sources import fetch_llm
from distilrec.errors import FetchError
from distilrec.knowledge.budget import ATTEMPTS
from distilrec.knowledge.ledger import REPAIRS
from distilrec.teachers.llm import best_precision

ROWS, CANDIDATES, WANTED, HINT_TOKENS = 50, 20, 10, 32
START_SECONDS, ANNOTATE_SECONDS = 120, 600  # hang guards, not expectations


@dataclass(frozen=True)
class Server:
    url: str
    model: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`transformers serve` with SmolLM2-135M-Instruct on a free port of this machine."""
    program = Path(sys.executable).with_name("transformers")
    missing = [name for name in ("fastapi", "uvicorn", "starlette") if importlib.util.find_spec(name) is None]
    if missing or not program.exists():
        pytest.skip("transformers serve is not installed: pip install 'distilrec[serving]'")
    try:
        model = fetch_llm("smollm2-135m-instruct")
    except FetchError as error:
        pytest.skip(f"the model cannot be had: {error.line()}")
    home = tmp_path_factory.mktemp("hub-home")
    (home / "hub").mkdir()  # the server lists the models in it, and fails where there is no such folder
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    precision = str(best_precision()).removeprefix("torch.")
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--dtype", precision]
    command += [
        "--continuous-batching",  # without it, one request at a time
        "--cb-max-memory-percent",  # of what is free; the default takes most of it
        "0.1",
    ]  # one request at a time without; most of the memory
    log = home / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_healthy(process, port, log)
        yield Server(f"http://127.0.0.1:{port}/v1", model)
    finally:
        process.kill()
        process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)


def annotate(server: Server, runs: Path, *further: str) -> str:
    """Run the command a user would type, and return what it says."""
    words = [
        "data.source=ml-100k", "name=real", "student={name: sasrec, hidden_size: 16, max_length: 20}",
        "train={epochs: 1, validate_users: 100}", "annotate.examples=last", f"annotate.sample={ROWS}",
        "annotate.keep_replies=true", "annotate.requests={concurrency: 4, ask_again: 0, timeout_seconds: 300}",
        "teacher={name: ranker, recommender: null, history: 5, case_top: 5, cases: 3, "
        f"candidates: {CANDIDATES}, wanted: {WANTED}, hint_tokens: {HINT_TOKENS}}}",
        f"teacher.model={server.model}", f"teacher.base_url={server.url}", f"teacher.tokenizer={server.model}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "distilrec", "annotate", *words, *further, "--out", str(runs)],
        capture_output=True,
        text=True,
        timeout=ANNOTATE_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def estimated(said: str) -> tuple[int, int]:
    found = re.search(rf"{ROWS} rows to ask for: about ([\d,]+) tokens in, ([\d,]+) out", said)
    assert found is not None, said
    first, second = (int(number.replace(",", "")) for number in found.groups())
    return first, second


def test_a_real_server_answers_the_ranker_as_the_estimate_said(server: Server, tmp_path: Path) -> None:
    expected_in, expected_out = estimated(annotate(server, tmp_path, "--dry-run"))
    folders = list(tmp_path.glob("real/knowledge-*"))
    assert [path for folder in folders for path in folder.rglob("*.parquet")] == [], "a dry run asks nothing"

    said = annotate(server, tmp_path)
    (folder,) = tmp_path.glob("real/knowledge-*")
    account: dict[str, Any] = json.loads((folder / "account.json").read_text())
    rows = pl.concat([pl.read_parquet(shard) for shard in sorted(folder.glob("shard-*.parquet"))])
    hints = pl.concat([pl.read_parquet(shard) for shard in sorted((folder / "hints").glob("shard-*.parquet"))])
    store, run = account["store"], account["run"]

    assert rows.height == rows["example_id"].n_unique() == ROWS
    assert (account["rows_done"], account["rows_total"], account["unfinished"]) == (ROWS, ROWS, 0)
    assert (store["rows"], store["usable"] + store["unusable"]) == (ROWS, ROWS)
    assert store["usable"] == int((rows["items"].list.len() > 0).sum())
    assert store["repaired"] <= store["usable"]
    assert run["failed"] == []
    assert run["stopped_by"] is None
    assert rows[ATTEMPTS].to_list() == [1] * ROWS
    assert (store["tokens_in"], store["tokens_out"]) == (rows["tokens_in"].sum(), rows["tokens_out"].sum())
    assert store["usd"] == 0.0  # a server of one's own sends no bill
    for items, repairs, reply in rows.select("items", REPAIRS, "reply").iter_rows():
        assert len(set(items)) == len(items) <= WANTED
        assert json.loads(repairs) or len(items) == WANTED
        assert reply is not None
    assert hints.height == 1
    assert hints["reply"][0].strip()

    measured_in = store["tokens_in"] + int(hints["tokens_in"].sum())
    measured_out = store["tokens_out"] + int(hints["tokens_out"].sum())
    figures = {
        "rows": ROWS,
        "usable": store["usable"],
        "repaired_share": store["repaired"] / ROWS,
        "unusable_share": store["unusable"] / ROWS,
        "repairs": store["repairs"],
        "estimated": {"tokens_in": expected_in, "tokens_out": expected_out},
        "measured": {"tokens_in": measured_in, "tokens_out": measured_out},
        "hints": {"tokens_in": int(hints["tokens_in"].sum()), "tokens_out": int(hints["tokens_out"].sum())},
        "cost_estimate_error": (expected_in + expected_out) / (measured_in + measured_out) - 1,
        "rows_per_s": run["rate"],
    }
    print(json.dumps(figures, indent=2))
    if target := os.environ.get("DISTILREC_FIGURES"):
        Path(target).write_text(json.dumps(figures, indent=2) + "\n")
    assert f"{ROWS} rows stored, {ROWS} wanted: {store['usable']} usable" in said
    assert abs(figures["cost_estimate_error"]) <= 0.1, figures
    assert measured_in == pytest.approx(expected_in, rel=0.1)
