"""A tiny data set with a comparison over it, and the command line run in this process, as a user would type it."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fixtures_compare import tiny, write_yaml

from distilrec import progress
from distilrec.cli.main import main

N_ITEMS, N_USERS = 12, 24


@dataclass(frozen=True)
class Done:
    """What a command left behind: exit code, what it said, and the folder of runs."""

    code: int
    err: str
    runs: Path

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]

    @property
    def root(self) -> Path:
        return self.runs / "tiny"


Cli = Callable[..., Done]


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """24 users with 9 items each out of 12; after item x comes (x + 5) mod 12."""
    folder = tmp_path_factory.mktemp("toy")
    log, titles = folder / "log.csv", folder / "titles.csv"
    rows = [
        f"u{user:02d},i{(user + 5 * n) % N_ITEMS:02d},{100 * n + user}" for n in range(9) for user in range(N_USERS)
    ]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    titles.write_text("item_id,title\n" + "".join(f"i{item:02d},Title i{item:02d}\n" for item in range(N_ITEMS)))
    return {"interactions": str(log), "items": str(titles), "filters": {"k_core_user": 1, "k_core_item": 1}}


@pytest.fixture
def content(toy_data: dict[str, Any]) -> dict[str, Any]:
    """A comparison of 2 students x 4 methods, 2 trials each on seed 1, then seed 2: 1 teacher and 24 trainings."""
    return tiny(toy_data)


@pytest.fixture
def compare(tmp_path: Path) -> Iterator[Cli]:
    """Return `compare(content, *words)`: writes the YAML file, if any, runs `distilrec compare FILE words...`."""
    with command_line() as run:

        def written(content: dict[str, Any] | None, *words: object) -> Done:
            file = [] if content is None else [write_yaml(tmp_path / "compare.yaml", content)]
            return run(tmp_path / "runs", *file, *words)

        yield written


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_data: dict[str, Any]) -> Done:
    """The tiny comparison, run once in one go with two workers."""
    folder = tmp_path_factory.mktemp("whole")
    with command_line() as run:
        return run(folder / "runs", write_yaml(folder / "compare.yaml", tiny(toy_data)), "--jobs", 2)


@contextmanager
def command_line() -> Iterator[Cli]:
    before = signal.getsignal(signal.SIGTERM)

    def run(runs: Path, *words: object) -> Done:
        said = StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(said), pytest.raises(SystemExit) as stopped:
            patch.setattr(sys, "argv", ["distilrec", "compare", *map(str, words), "--out", str(runs)])
            patch.setattr(progress.console, "_file", None)  # whatever standard error is at the time
            main()
        assert isinstance(stopped.value.code, int)
        return Done(stopped.value.code, said.getvalue(), runs)

    yield run
    signal.signal(signal.SIGTERM, before)
