"""`distilrec compare`, as a user types it: with worker processes, broken off, killed, out of time, with wrong input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from fixtures_compare import write_yaml

from distilrec.compare.plan import Plan
from distilrec.compare.workers import Workers
from distilrec.files import locked

Content = dict[str, Any]
Cli = Callable[..., Any]
Done = Any  # see conftest.py
FILES = ("results.json", "report.html", "report.md", "results.csv", "table.tex")
TIMES = ("ms_per_user", "latency_ms", "train_seconds", "teacher_seconds", "on_front")  # what differs from run to run
METHODS = ("plain", "soft_labels", "alkdrec", "llmd4rec")


def results(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "results.json").read_text())
    return found


def timeless(root: Path) -> dict[Any, dict[str, Any]]:
    """Return the rows without times, by their labels."""
    return {
        (row["student"], row["method"], row["teacher"]): {key: row[key] for key in row if key not in TIMES}
        for row in results(root)["rows"]
    }


def stages(root: Path) -> int:
    return len(list(root.glob("**/stage.json")))


def trainings(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.glob("**/fit.json")}


def test_everything_is_compared_and_written(whole: Done) -> None:
    assert whole.code == 0, whole.err
    for name in FILES:
        assert (whole.root / name).stat().st_size > 0
    found = results(whole.root)
    assert found["complete"] is True
    assert found["failed"] == {}
    assert found["skipped"] == []
    wanted = {
        (student, method, None if method == "plain" else "big") for student in ("sasrec", "fpmc") for method in METHODS
    }
    assert {(row["student"], row["method"], row["teacher"]) for row in found["rows"]} == {*wanted, (None, None, "big")}
    means = [row["metrics"]["ndcg@10"] for row in found["rows"]]
    assert means == sorted(means, reverse=True)
    for row in found["rows"]:
        student = row["student"] is not None
        assert row["seeds"] == ([1, 2] if student else [1])
        assert row["trials"] == (2 if student else 0)
        assert row["ms_per_user"] > 0
        assert row["latency_ms"] > 0
        assert sum(group["n"] for group in row["groups"]["history"]) == 24
        assert set(row.get("p_value", {})) == (set() if row["method"] in ("plain", None) else {"ndcg@10", "hr@10"})
        assert ("overlap" in row) == ("p_value" in row)
        assert (row["teacher_seconds"] > 0) == (row["teacher"] is not None)
        assert row["train_seconds"] > 0
    assert found["family"] == 2 * 3 * 2
    assert [advice["dataset"] for advice in found["advice"]] == ["toy"]


def test_tuning_is_alike_for_all_and_validation_decides(whole: Done) -> None:
    found = results(whole.root)
    assert len(found["trials"]) == 8
    drawn = {tuple(trial["values"].items()) for one in found["trials"] for trial in one["trials"]}
    assert len(drawn) == 2  # as configured, and one learning rate for all
    rows = {(row["student"], row["method"]): row for row in found["rows"]}
    for one in found["trials"]:
        best = max(one["trials"], key=lambda trial: (trial["valid"], -trial["number"]))
        row = rows[one["student"], one["method"]]
        assert row["values"] == best["values"]
        assert row["valid"][0] == pytest.approx(best["valid"], abs=1e-6)


def test_progress_and_the_table_are_said(whole: Done) -> None:
    lines = whole.err.splitlines()
    assert lines[0] == "8 combinations, 2 trials each and 2 seeds: 25 jobs"
    counted = [line.split(" ", 1)[0] for line in lines if line.startswith("[")]
    assert counted == [f"[{n}/25]" for n in range(1, 26)]
    assert any(line.startswith("toy: Take ") for line in lines)
    assert lines[-2:] == [str(whole.root / "results.json"), str(whole.root / "report.html")]
    assert "Traceback" not in whole.err


def test_data_and_teachers_are_shared(whole: Done) -> None:
    """One data set, prepared before there are workers; one stored teacher; one plain student for all methods."""
    for log in whole.root.glob("logs/*.log"):
        said = log.read_text().splitlines()
        assert any(line.startswith("data: done before") for line in said)
        assert not any(line.startswith(("data: starting", "data: going on")) for line in said)
    assert len(list(whole.root.glob("*/data-*"))) == 1
    assert len(list(whole.root.glob("*/knowledge-*"))) == 1
    for folder in whole.root.glob("toy-*-2"):
        names = [path.parent.name for path in folder.glob("student-*/fit.json")]
        rounds = [name for name in names if name.startswith("student-round-")]
        assert len(names) == len(rounds) + 1
        assert sum(name.startswith("student-round-1-") for name in rounds) == 1  # round 0 may be the plain student


def test_again_nothing_is_trained(whole: Done, compare: Cli, content: Content, tmp_path: Path) -> None:
    before, rows = trainings(whole.root), results(whole.root)["rows"]
    assert len(before) > 25
    (tmp_path / "runs").symlink_to(whole.runs)
    again = compare(content, "--jobs", 1)
    assert again.code == 0, again.err
    assert trainings(whole.root) == before
    assert results(whole.root)["rows"] == rows  # times, too: they were taken once


def alive(workers: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that still run; who has ended and waits to be fetched does not."""
    running = []
    for one in workers:
        with suppress(psutil.NoSuchProcess):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                running.append(one)
    return running


def ignores_interruption(pid: int) -> bool:
    """Return whether the system drops Ctrl-C for a process, whatever Python or a library in it believes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return bool(mask >> (signal.SIGINT - 1) & 1)


def test_killed_outright_it_leaves_nobody_behind_and_goes_on(
    whole: Done, tmp_path: Path, content: Content, compare: Cli
) -> None:
    """Two workers are at work when Ctrl-C reaches them (it is the parent's to heed), and then the parent is killed."""
    root, said = tmp_path / "runs" / "tiny", tmp_path / "said"
    config = write_yaml(tmp_path / "compare.yaml", content)
    command = [
        sys.executable,
        "-m",
        "distilrec",
        "compare",
        str(config),
        "--out",
        str(tmp_path / "runs"),
        "--jobs",
        "2",
    ]
    with said.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wanted, until = stages(whole.root), time.monotonic() + 300
    interrupted: list[psutil.Process] = []
    while (done := stages(root)) < wanted // 2 or not interrupted:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until, said.read_text()
        if done >= wanted // 4 and not interrupted and len(list(root.glob("logs/*.log"))) == 2:
            interrupted = psutil.Process(process.pid).children(recursive=True)
            for worker in interrupted:
                assert sys.platform != "linux" or ignores_interruption(
                    worker.pid
                )  # one signal would show it by luck only
                worker.send_signal(signal.SIGINT)
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert {worker.pid for worker in interrupted} == {worker.pid for worker in workers}  # nobody was replaced
    assert len(workers) >= 2
    while alive(workers):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert "Traceback" not in said.read_text()
    assert "failed" not in said.read_text()
    assert not (root / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in root.glob("**/stage.json")}
    assert len(kept) < wanted
    again = compare(content, "--jobs", 1)
    assert again.code == 0, again.err
    assert timeless(root) == timeless(whole.root)
    assert stages(root) == wanted
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())  # what was done is not done again


def test_an_interruption_ends_the_workers_and_is_one_line(
    compare: Cli, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def interrupted(_workers: Workers, _plan: Plan, _deadline: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workers, "run", interrupted)
    monkeypatch.setattr(Workers, "close", lambda workers: ended.append(workers))
    done = compare(content)
    assert done.code == 130
    assert done.last == "Interrupted. The same command goes on where it was."
    assert len(ended) == 1
    assert not (done.root / "results.json").exists()


def test_what_fails_is_reported_and_the_rest_goes_on(compare: Cli, content: Content, tmp_path: Path) -> None:
    content["students"].pop("sasrec")
    content["methods"] = {"plain": None, "soft_labels": None}
    content["teachers"] = {"file": {"name": "recorded", "rankings": str(tmp_path / "said.jsonl")}}
    content |= {"seeds": [1], "tune": {"trials": 1}}
    done = compare(content)
    assert done.code == 3, done.err
    found = results(done.root)
    assert [(row["student"], row["method"]) for row in found["rows"]] == [("fpmc", "plain")]
    assert list(found["failed"]) == ["toy/file"]
    assert found["failed"]["toy/file"].startswith(f"{tmp_path / 'said.jsonl'}: no such file")
    assert found["skipped"] == ["toy/fpmc/soft_labels/file (seed 1)"]
    assert found["complete"] is False
    lines = done.err.splitlines()
    assert any(line.startswith("[1/3] toy/file: failed. ") for line in lines)
    assert any(line.startswith("failed: toy/file: ") for line in lines)
    assert "Traceback" not in done.err
    assert "Partial: 1 jobs were not done, 1 failed." in (done.root / "report.html").read_text()
    only = found["advice"][0]["words"]
    assert only[0].startswith("Take fpmc + plain: ")
    assert "Nothing that was distilled was measured beside it." in only
    assert only[-1].startswith("One seed only")


@pytest.mark.parametrize("minutes", ["0", "0.001"])
def test_too_little_time_ends_with_a_clear_line(compare: Cli, content: Content, minutes: str) -> None:
    done = compare(content, "--budget-minutes", minutes, "--jobs", 2)
    assert done.code == 2
    lines = done.err.splitlines()
    assert lines[-2] == "time is over: 0 of 25 jobs are done, the same command goes on with the rest."
    assert lines[-1].startswith("Error: nothing was measured: no training ended in time. ")
    assert "Traceback" not in done.err
    assert not (done.root / "results.json").exists()


def test_a_comparison_without_time_leaves_the_report_that_is_there(
    whole: Done, compare: Cli, content: Content, tmp_path: Path
) -> None:
    (tmp_path / "runs").symlink_to(whole.runs)
    before = {name: (whole.root / name).read_bytes() for name in FILES}
    assert compare(content, "--budget-minutes", 0).code == 2
    assert {name: (whole.root / name).read_bytes() for name in FILES} == before


def test_a_dry_run_lists_and_trains_nothing(compare: Cli, content: Content) -> None:
    content["teachers"]["reader"] = {"name": "text"}
    content["methods"].pop("alkdrec")
    content["methods"].pop("llmd4rec")
    done = compare(content, "--dry-run")
    assert done.code == 0
    assert done.err.splitlines() == [
        "left out: soft_labels with reader: needs rankings and scores, which reader does not give",
        "4 combinations, 2 trials each and 2 seeds: 13 jobs",
        *(f"  toy/{student}/{rest}" for student in ("sasrec", "fpmc") for rest in ("plain", "soft_labels/big")),
    ]
    assert not done.runs.exists()


def test_only_one_at_a_time(compare: Cli, content: Content, tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "tiny" / ".lock", "this comparison"):
        done = compare(content)
    assert done.code == 2
    assert f"this comparison is in use by another process (pid {os.getpid()})" in done.last


WRONG: dict[str, tuple[Callable[[Content], Any], str]] = {
    "unknown key": (lambda c: c.update(sedes=[1]), "unknown setting 'sedes'. Did you mean 'seeds'?"),
    "two plain methods": (
        lambda c: c["methods"].update(bare={"name": "plain"}),
        "plain and bare are the same plain training.",
    ),
    "repeated seed": (lambda c: c.update(seeds=[1, 1]), "a seed stands twice in seeds"),
    "unknown metric": (lambda c: c.update(metrics=["precision@10"]), "unknown metric 'precision@10'. Use hr@k"),
    "slash in a label": (
        lambda c: c["teachers"].update({"big/er": {"name": "text"}}),
        "'big/er' cannot be a label: no slash",
    ),
    "unknown method": (lambda c: c["methods"].update(softlabels=None), "unknown method 'softlabels'. Known: plain"),
    "unknown student": (lambda c: c["students"].update(sasrek=None), "unknown student 'sasrek'. Known: sasrec"),
    "unknown teacher": (lambda c: c["teachers"].update(big={"name": "gpt"}), "unknown teacher 'gpt'. Known: "),
    "no choices": (lambda c: c["tune"].update(space={"train.learning_rate": 3}), "tune.space.train.learning_rate"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_input_is_one_line_before_any_work(compare: Cli, content: Content, what: str) -> None:
    change, words = WRONG[what]
    change(content)
    refused(compare(content), words)


def refused(done: Done, words: str) -> None:
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1
    assert done.last.startswith("Error: ")
    assert words in done.last
    assert not done.runs.exists()


def test_a_log_in_place_of_a_file(compare: Cli, content: Content, tmp_path: Path) -> None:
    data = content["datasets"]["toy"]["data"]
    words = ("--interactions", data["interactions"], "--items", data["items"])
    refused(
        compare(content, *words), "what is compared must come from one place. Give a YAML file, or --interactions LOG"
    )
    refused(compare(None), "what is compared must come from one place.")
    refused(compare(content, "--items", data["items"]), "--items belongs to --interactions.")
    done = compare(None, *words, "--dry-run")
    assert done.code == 0, done.err
    assert "  log/sasrec/plain" in done.err.splitlines()


def test_words_beside_a_log(compare: Cli, content: Content, tmp_path: Path) -> None:
    log = tmp_path / "orders.csv"
    text = Path(content["datasets"]["toy"]["data"]["interactions"]).read_text()
    header, rest = text.split("\n", 1)
    log.write_text("\n".join([header.replace(header.split(",")[0], "buyer"), rest]))
    words = ("--interactions", log, "data.columns.user=buyer", "data.filters={k_core_user: 1, k_core_item: 1}")
    assert "  orders/sasrec/plain" in compare(None, *words, "--dry-run").err.splitlines()
    refused(compare(None, *words, "data.source=ml-100k"), "the data are given more than once: data.source=ml-100k and")
    refused(
        compare(content, "train.epochs=3"), "train.epochs=3 belongs to --interactions. Write what all runs share under"
    )
    refused(compare(None, "train.epochs=3"), "what is compared must come from one place.")
    done = compare(None, *words, "--budget-minutes", 0)  # the data are read all the same
    assert done.last.startswith("Error: nothing was measured: no training ended in time. "), done.err


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"trials": 3}, "nothing is tuned: tune has no space, students or methods to search."),
        ({"space": {"train.epochs": [1, 2]}}, "nothing is tuned: tune.trials is 1, the configuration as it stands."),
        ({}, None),
    ],
)
def test_that_nothing_is_tuned_is_said(compare: Cli, content: Content, tune: Content, said: str | None) -> None:
    content["tune"] = tune
    lines = compare(content, "--dry-run").err.splitlines()
    assert [line for line in lines if "tune" in line] == ([] if said is None else [said])
    assert "8 combinations, 1 trials each and 2 seeds: 17 jobs" in lines


def test_a_wrong_number_and_a_missing_file(compare: Cli, content: Content, tmp_path: Path) -> None:
    for words in (("--jobs", 0), ("--budget-minutes", -1), ("--nonsense",)):
        refused(compare(content, *words), "See distilrec --help.")
    content["datasets"]["toy"]["data"]["interactions"] = str(tmp_path / "no.csv")
    done = compare(content)
    assert done.code == 2
    assert done.last.startswith(f"Error: {tmp_path / 'no.csv'}: no such file")
    assert not (done.root / "logs").exists()  # no worker was started for it
