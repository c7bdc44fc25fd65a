"""Worker processes, with stand-ins that train nothing: who dies, who hangs, who is late; see `stand_in_worker`."""

import itertools
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import stand_in_worker
from fixtures_compare import matrix_of

from distilrec.compare import workers as processes
from distilrec.compare.plan import Plan
from distilrec.compare.work import Job
from distilrec.compare.workers import Workers

Run = Callable[..., tuple[Plan, Workers]]
INFINITE = float("inf")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return `run(orders, count=..., deadline=...)`: 1 teacher, 2 methods, 2 seeds, done by stand-ins."""
    monkeypatch.setattr(processes, "_work", stand_in_worker.work)

    def start(orders: dict[str, str], *, count: int = 1, deadline: float = INFINITE) -> tuple[Plan, Workers]:
        (tmp_path / "orders.json").write_text(json.dumps(orders))
        matrix = matrix_of()
        plan, workers = Plan(matrix), Workers(matrix, tmp_path, count)
        workers.run(plan, deadline)
        return plan, workers

    return start


def noted(root: Path) -> list[str]:
    return (root / "jobs.log").read_text().splitlines()


def trained(plan: Plan) -> set[tuple[str, int]]:
    return {(one.method, seed) for one, seed in plan.outcome.trained}


ALL = {(method, seed) for method in ("plain", "soft_labels") for seed in (1, 2)}


def test_two_workers_share_the_jobs(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, workers = run({}, count=2)
    workers.close()
    assert trained(plan) == ALL
    assert sorted(line.split(" ", 1)[1].rsplit(" ", 1)[0] for line in noted(tmp_path) if line.startswith("begin")) == [
        "teacher big", "training plain 1", "training plain 2", "training soft_labels 1", "training soft_labels 2",
    ]  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[0] for line in said] == [f"[{n}/5]" for n in range(1, 6)]
    assert any("toy/a/plain (seed 1): validation 0.5000, " in line for line in said)
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_ends_one_job_and_not_the_comparison(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, workers = run({"training soft_labels 1": "die"})
    workers.close()
    log = tmp_path / "logs" / "worker-0.log"
    reason = f"the worker died (exit code -9); see {log}."
    assert plan.outcome.failed == {"toy/a/soft_labels/big (seed 1)": reason}
    assert plan.outcome.skipped == ["toy/a/soft_labels/big (seed 2)"]
    assert trained(plan) == {("plain", 1), ("plain", 2)}
    assert f"toy/a/soft_labels/big (seed 1): failed. {reason}" in capsys.readouterr().err


def test_a_worker_leaves_an_interruption_to_its_parent_from_its_first_moment(run: Run, tmp_path: Path) -> None:
    """Loading takes seconds, in which Ctrl-C in a terminal would end a worker with a traceback."""
    run({})[1].close()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert [path.name for path in tmp_path.glob("worker-*-*")] == ["worker-0-deaf"]


def test_an_error_is_told_and_the_same_worker_goes_on(run: Run, tmp_path: Path) -> None:
    plan, workers = run({"training plain 2": "the loss is nan."})
    workers.close()
    assert plan.outcome.failed == {"toy/a/plain (seed 2)": "the loss is nan."}
    assert trained(plan) == ALL - {("plain", 2)}
    assert {line.rsplit(" ", 1)[1] for line in noted(tmp_path)} == {"0"}


def test_when_time_is_over_the_running_job_is_ended_and_the_rest_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time is over as soon as the third job hangs: no clock is waited for."""

    def now() -> float:
        log = tmp_path / "jobs.log"
        return 1.0 if log.exists() and "hanging" in log.read_text() else 0.0

    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=now))
    plan, workers = run({"training soft_labels 1": "hang"}, deadline=0.1)
    assert multiprocessing.active_children() == []
    assert trained(plan) == {("plain", 1)}
    assert plan.outcome.skipped == [
        "toy/a/soft_labels/big (seed 1)", "toy/a/plain (seed 2)", "toy/a/soft_labels/big (seed 2)",
    ]  # fmt: skip
    assert not plan.outcome.failed
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "time is over: 2 of 5 jobs are done, the same command goes on with the rest."
    workers.time(plan, 0.1)
    assert not plan.outcome.timings
    assert plan.outcome.skipped[3:] == ["toy/a/plain (time)"]


def test_without_any_time_no_worker_is_started(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, workers = run({}, deadline=-INFINITE)
    workers.close()
    assert not (tmp_path / "logs").exists()
    assert len(plan.outcome.skipped) == plan.total == 5
    assert "time is over: 0 of 5 jobs are done" in capsys.readouterr().err


def test_times_are_taken_one_after_the_other(run: Run, tmp_path: Path) -> None:
    plan, workers = run({"timing soft_labels": "no model."}, count=2)
    before = len(noted(tmp_path))
    workers.time(plan, INFINITE)
    workers.close()
    assert plan.outcome.failed == {"toy/a/soft_labels/big (time)": "no model."}
    assert plan.outcome.timings == {"toy/a/plain (time)": {"valid": 0.5, "ms_per_user": 1.0, "latency_ms": 2.0}}
    begun = noted(tmp_path)[before:]
    assert [line.split()[:3] for line in begun] == [
        ["begin", "timing", "plain"], ["end", "timing", "plain"],
        ["begin", "timing", "soft_labels"], ["end", "timing", "soft_labels"],
    ]  # fmt: skip
    assert len({line.rsplit(" ", 1)[1] for line in begun}) == 1


@pytest.mark.parametrize(("deadline", "words"), [(INFINITE, "no model."), (-INFINITE, "time is over")])
def test_times_that_are_missing_are_said(
    run: Run, capsys: pytest.CaptureFixture[str], deadline: float, words: str
) -> None:
    plan, workers = run({"timing soft_labels": "no model."})
    capsys.readouterr()
    workers.time(plan, deadline)
    workers.close()
    assert words in capsys.readouterr().err


def test_what_a_running_job_says_is_repeated_now_and_then(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    ticks = itertools.count()

    def now() -> float:
        return INFINITE if "  toy/a/plain (seed 1): at training plain 1" in lines else 0.03 * next(ticks)

    monkeypatch.setattr(processes, "_ECHO_SECONDS", 0.05)
    monkeypatch.setattr(processes, "say", lines.append)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=now))
    plan, _ = run({"training plain 1": "hang"}, deadline=1e9)  # ends when the line was said
    assert plan.outcome.skipped[0] == "toy/a/plain (seed 1)"


def test_a_worker_at_work_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(matrix_of().settings.model_dump_json())
    (tmp_path / "job.json").write_text(json.dumps(asdict(Job("teacher", "toy", "big"))))
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import stand_in_worker; "
    parent = subprocess.Popen([sys.executable, "-c", f"{script}stand_in_worker.start_busy({str(tmp_path)!r})"])
    until = time.monotonic() + 120
    while not (tmp_path / "jobs.log").exists():
        assert parent.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    parent.kill()
    parent.wait()
    with suppress(psutil.NoSuchProcess):
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                worker.kill()
                raise AssertionError("the worker is still at work")
            time.sleep(0.01)
