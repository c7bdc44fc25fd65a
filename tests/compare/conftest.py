"""A tiny data set with a comparison over it, and the command line run in this process, as a user would type it."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fixtures_compare import tiny, write_yaml

from distilrec import progress
from distilrec.cli.main import main
from fixtures_toy import Done, toy_files

Cli = Callable[..., Done]


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """24 users with 9 items each out of 12; after item x comes (x + 5) mod 12."""
    folder = tmp_path_factory.mktemp("toy")
    log, titles = toy_files(folder)
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
