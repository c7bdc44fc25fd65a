"""Run the command line in this process, as a user would type it."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distilrec import progress
from distilrec.cli.main import main
from fixtures_toy import Done

Cli = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Return `cli(*words)`: runs `distilrec words... --out runs` and tells how it went; other exceptions come through."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object, out: bool = True) -> Done:
        runs = tmp_path / "runs"
        monkeypatch.setattr(sys, "argv", ["distilrec", *map(str, words), *(["--out", str(runs)] if out else [])])
        monkeypatch.setattr(progress.console, "_file", None)  # whatever standard error is at the time
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return Done(code, said.err, runs, said.out)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """15 users, 12 items, 8 interactions each: enough to pass the default filters."""
    path = tmp_path / "log.csv"
    rows = [
        f"u{user:02d},i{(user * 3 + n) % 12:02d},{1_700_000_000 + 60 * n + user}\n"
        for user in range(15)
        for n in range(8)
    ]
    path.write_text("user_id,item_id,timestamp\n" + "".join(rows))
    return path


@pytest.fixture
def titles(tmp_path: Path) -> Path:
    """Titles of the twelve items of `log`."""
    path = tmp_path / "titles.csv"
    path.write_text("item_id,title\n" + "".join(f"i{n:02d},Title {n}\n" for n in range(12)))
    return path
