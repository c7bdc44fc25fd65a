"""`distilrec tune`, as a user types it: what it says, what it leaves, and what a signal does to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilrec.training.tasks import Task

pytest.importorskip("optuna")
Cli = Callable[..., Any]
SMALL = (
    "train.epochs=2", "train.checkpoint_seconds=0", "student.hidden_size=8", "student.blocks=1", "student.inner_size=8",
    "student.max_length=8", "--name", "small",
)  # fmt: skip


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text("train.learning_rate: {low: 0.0003, high: 0.03, log: true}\nstudent.dropout: [0.1, 0.3]\n")
    return path


def test_a_search_says_what_it_tried_and_what_was_best(cli: Cli, log: Path, titles: Path, space: Path) -> None:
    words = ("tune", "--interactions", log, "--items", titles, *SMALL, "--space", space)
    done = cli(*words, "--trials", 3)
    assert done.code == 0, done.err
    assert done.out == ""
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("trial ")] == ["trial 1", "trial 2", "trial 3"]
    assert "learning_rate=0.001, dropout=0.3: ndcg@10" in next(line for line in lines if line.startswith("trial 1:"))
    best = done.runs / "small" / "tune" / "best.yaml"
    assert "over the configuration as given" in lines[-2]
    assert lines[-1] == str(best)
    assert "Warning" not in done.err
    again = cli(*words, "--trials", 3)
    assert again.code == 0
    assert not [line for line in again.err.splitlines() if line.startswith("trial ")]
    assert cli("train", best).code == 0
    assert len(list((done.runs / "small").glob("student-*"))) == 1


def test_the_default_space_serves(cli: Cli, log: Path, titles: Path) -> None:
    done = cli("tune", "--interactions", log, "--items", titles, *SMALL, "--trials", 1)
    assert done.code == 0, done.err
    assert len(json.loads((done.runs / "small" / "tune" / "trials.json").read_text())["trials"]) == 1


def test_an_unknown_key_is_one_line_before_any_work(cli: Cli, log: Path, titles: Path, space: Path) -> None:
    space.write_text("student.drop: [0.1]\n")
    done = cli("tune", "--interactions", log, "--items", titles, *SMALL, "--trials", 3, "--space", space)
    assert done.code == 2
    assert done.err.splitlines() == [
        f"Error: {space}: 'student.drop' is no setting that can be searched. Did you mean 'student.dropout'?"
    ]
    assert not done.runs.exists()


def test_without_optuna_it_says_how_to_get_it(
    cli: Cli, log: Path, titles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = cli("tune", "--interactions", log, "--items", titles, *SMALL, "--trials", 3)
    assert done.code == 2
    assert done.last == "Error: tuning needs optuna, which is not installed. Run pip install 'distilrec[tune]'."
    assert not done.runs.exists()


def test_an_interruption_leaves_it_resumable(
    cli: Cli, log: Path, titles: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("tune", "--interactions", log, "--items", titles, *SMALL, "--trials", 3, "--space", space)
    calls: list[int] = []
    original = Task.validate

    def terminated(self: Task) -> Any:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "validate", terminated)
        done = cli(*words)
    assert done.code == 130
    assert done.last == "Interrupted. The same command goes on where it was."
    again = cli(*words)
    assert again.code == 0, again.err
    assert len(json.loads((done.runs / "small" / "tune" / "trials.json").read_text())["trials"]) == 3


def test_killed_outright_it_goes_on(tmp_path: Path, log: Path, titles: Path, space: Path, cli: Cli) -> None:
    """SIGKILL at two moments, then to the end: as many trials as wanted, none of them twice, the same as in one go."""
    words = ["tune", "--interactions", log, "--items", titles, *SMALL, "--trials", "4", "--space", space]
    whole = cli(*words)
    assert whole.code == 0, whole.err
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "distilrec", *map(str, words), "--out", str(root)]
    for wanted in (1, 3):
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(command, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
        until = time.monotonic() + 60
        while len(list(root.glob("small/tune/trial-*"))) < wanted and process.poll() is None:
            assert time.monotonic() < until, (tmp_path / "said").read_text()
            time.sleep(0.005)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found, expected = (
        json.loads((folder / "small" / "tune" / "trials.json").read_text()) for folder in (root, whole.runs)
    )
    kept = ("number", "params", "state", "value", "best_epoch")
    assert [[one[name] for name in kept] for one in found["trials"]] == [
        [one[name] for name in kept] for one in expected["trials"]
    ]
    assert len(list(root.glob("small/tune/trial-*"))) == 4
