"""A small run with the `ranker` as teacher, a scripted model that reads its prompts, and what the store must then hold.

No two prompts of the made-up data are alike, and each tells by its titles which example it is about. So a test can hold the
store against what the server was asked and said, without the code that made the prompts.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from distilrec.cli.stages import read_words
from distilrec.config import Config
from distilrec.data.dataset import Dataset
from distilrec.pipeline import Pipeline

USERS, ITEMS, LENGTH = 120, 150, 20
EXAMPLES = USERS * (LENGTH - 3)  # leave-one-out keeps two targets, and the first item has nothing before it
CANDIDATES, WANTED = 12, 6
HINTS = "Prefer the sequel.\nThe last title counts most."
FLAWS = ("prose", "repeated", "unknown", "missing", "truncated")
SETTINGS = (
    "name=asking", "seed=3", "threads=1", "data.filters={k_core_user: 1, k_core_item: 1, duplicates: none}",
    "student={name: sasrec, hidden_size: 8, max_length: 20, blocks: 1, inner_size: 8}", "train={epochs: 1}",
    "teacher={name: ranker, recommender: null, hints: false, model: scripted, cases: 2, case_top: 5, "
    f"candidates: {CANDIDATES}, wanted: {WANTED}}}",
    "annotate={examples: all, requests: {ask_again: 1, backoff_seconds: 0.01, longest_wait_seconds: 0.05}}",
)  # fmt: skip


def write_files(folder: Path, *, seed: int = 7) -> list[str]:
    """Write log and titles; return the words that name them. Item `i003` is called `Title i003`; user u begins with item u."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            others = rng.choice([item for item in range(ITEMS) if item != user], LENGTH - 1, replace=False)
            for n, item in enumerate([user, *others.tolist()]):
                writer.writerow([f"u{user:03d}", f"i{item:03d}", 1_000_000 + 1000 * n + user])
    with (folder / "titles.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["item_id", "title"])
        writer.writerows([f"i{item:03d}", f"Title i{item:03d}"] for item in range(ITEMS))
    return [f"data.interactions={folder / 'log.csv'}", f"data.items={folder / 'titles.csv'}"]


@dataclass(frozen=True)
class Base:
    """Data and a trained student, from which runs are copied."""

    files: list[str]
    root: Path

    def words(self, url: str, *further: str) -> list[str]:
        """Return a command's words."""
        return [*self.files, *SETTINGS, f"teacher.base_url={url}", *further]

    def config(self, url: str, *further: str) -> Config:
        return read_words(self.words(url, *further), None, None, None)

    def copy(self, root: Path) -> Path:
        """Make a run that has everything but knowledge."""
        return shutil.copytree(self.root, root)

    def pipeline(self, root: Path, url: str, *further: str) -> Pipeline:
        """Open a run, made anew if there is none, in this process."""
        return Pipeline(self.config(url, *further), root if root.exists() else self.copy(root))


def make_base(folder: Path) -> Base:
    files = write_files(folder / "files")
    base = Base(files, folder / "runs" / "asking")
    _ = Pipeline(base.config("http://127.0.0.1:1/v1"), base.root).student
    return base


def titles_of(user: str) -> tuple[list[int], list[int]]:
    """Return item ids of the history and of the candidates that a question shows."""
    history, _, candidates = user.partition("Candidates:")
    shown = [[int(line[-3:]) for line in part.splitlines() if "Title i" in line] for part in (history, candidates)]
    return shown[0], shown[1]


def example_of(user: str, data: Dataset) -> int:
    """Return the id of the example that a question is about: its first title names the user, their number the place."""
    history, _ = titles_of(user)
    return int(data.offsets[data.user_ids.index(f"u{history[0]:03d}")]) + len(history)


def is_summary(user: str) -> bool:
    return user.startswith("Case 1")


def draw(text: str, *, salt: str = "") -> int:
    """Return a number that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Said:
    """What the scripted model says to a question, and what must be stored of it."""

    text: str
    finish: str
    items: tuple[int, ...]
    repairs: Mapping[str, int]


def said(user: str, flaw: str = "") -> Said:
    """Answer a question; `flaw` is one of `FLAWS` or "" for none."""
    _, candidates = titles_of(user)
    places = sorted(range(1, len(candidates) + 1), key=lambda place: draw(user, salt=str(place)))[:WANTED]
    numbers, kept, before, finish = list(places), list(places), "", "stop"
    repairs = {"prose": {"prose": 1}, "repeated": {"repeated": 1}, "unknown": {"unknown": 2}, "": {}}.get(flaw)
    if flaw == "prose":
        before = "Of course! Here it is:\n"
    elif flaw == "repeated":
        numbers.insert(2, places[0])
    elif flaw == "unknown":  # beyond the candidates, and beyond the catalogue
        numbers[1:1] = [CANDIDATES + 1, 10 * ITEMS]
    elif flaw == "missing":
        numbers = kept = places[:-2]
        repairs = {"missing": 2}
    elif flaw == "truncated":
        kept, finish = places[:3], "length"
        repairs = {"truncated": 1, "missing": WANTED - 3}
    text = before + json.dumps({"ranking": numbers})
    if flaw == "truncated":
        text = '{"ranking": [' + ", ".join(map(str, kept)) + ", "
    assert repairs is not None
    return Said(text, finish, tuple(candidates[place - 1] for place in kept), repairs)


def flaw_of(user: str) -> str:
    """Return the flaw in the answer to a question: none in half of them."""
    drawn = draw(user, salt="flaw") % (2 * len(FLAWS))
    return FLAWS[drawn] if drawn < len(FLAWS) else ""


def stored_rows(knowledge: Path) -> pl.DataFrame:
    """Return all rows of a store, by example."""
    shards = sorted(knowledge.glob("shard-*.parquet"))
    return pl.concat([pl.read_parquet(shard) for shard in shards]).sort("example_id") if shards else pl.DataFrame()


def knowledge_of(root: Path) -> Path:
    """Return the only store of a run."""
    (folder,) = root.glob("knowledge-*")
    return folder


class WarmCli:
    """Runs the command line again and again, each time in a process forked from a warm one (see warm_cli.py). A context manager."""

    def __init__(self, **environment: str) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_cli.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        assert self._read() == "ready"

    def start(self, words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
        """Start `distilrec words...`, both streams appended to `log`; return the process id, which stays taken until `wait`."""
        return int(self._ask({"words": words, "log": str(log), "environment": dict(environment or {})}))

    def wait(self) -> int:
        """Wait for the end of what was started; return its exit code, below 0 for a signal."""
        return int(self._ask("wait"))

    def run(self, words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
        self.start(words, log, environment)
        return self.wait()

    def _ask(self, order: Any) -> str:
        assert self._helper.stdin is not None
        self._helper.stdin.write(json.dumps(order) + "\n")
        self._helper.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._helper.stdout is not None
        return self._helper.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._helper.stdin is not None
        self._helper.stdin.close()  # the helper ends with its orders, and ends what it has started
        assert self._helper.wait(timeout=30) == 0
