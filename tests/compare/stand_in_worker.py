"""Stands in for a worker process where only the parent is tested: trains nothing, loads nothing, does as it is told.

`orders.json` in the comparison's folder says what becomes of a job: `die`, `hang` or an error; others answer at once.
Every job writes a line into `jobs.log` when it begins and one when it ends.
"""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any


def name_of(job: dict[str, Any]) -> str:
    """Return how orders call a job: `teacher big`, `training soft_labels 2`, `timing plain`."""
    one = job["combination"]
    what = job["teacher"] if one is None else one["method"]
    return f"{job['kind']} {what}" + (f" {job['seed']}" if job["kind"] == "training" else "")


def work(_settings: dict[str, Any], _folder: str, root: str, place: int, _count: int, log: str, pipe: Any) -> None:
    """Take the place of `distilrec.compare.workers._work`."""
    orders = json.loads((Path(root) / "orders.json").read_text())
    deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN or signal.SIGINT in signal.pthread_sigmask(0, [])
    (Path(root) / f"worker-{place}-{'deaf' if deaf else 'hears'}").touch()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        name = name_of(job)
        note(root, f"begin {name} {place}")
        Path(log).write_text(f"at {name}\n")
        order = orders.get(name)
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "hang":
            note(root, f"hanging {name}")
            time.sleep(600)
        note(root, f"end {name} {place}")
        found = {"valid": 0.5, "ms_per_user": 1.0, "latency_ms": 2.0}
        pipe.send({"error": order} if order else {"found": found})


def note(root: str, line: str) -> None:
    """Append one line at once, whoever else writes."""
    handle = os.open(Path(root) / "jobs.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def start_busy(root: str) -> None:
    """Be a parent whose worker, a true one this time, is at a job that takes ten minutes; `job.json` says which."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    settings = json.loads((Path(root) / "settings.json").read_text())
    arguments = (settings, "", root, 0, 1, str(Path(root) / "worker.log"), theirs)
    worker = spawn.Process(target=_busy, args=arguments, daemon=True)
    worker.start()
    (Path(root) / "pid").write_text(str(worker.pid))
    ours.send(json.loads((Path(root) / "job.json").read_text()))
    worker.join()


def _busy(*arguments: Any) -> None:
    from distilrec.compare import workers as processes

    class Workshop:
        def __init__(self, _matrix: Any, root: Path, _threads: Any) -> None:
            self.root = root

        def do(self, _job: Any) -> None:
            note(str(self.root), "hanging")
            time.sleep(600)

    processes.Workshop = Workshop  # type: ignore[assignment,misc]
    processes._work(*arguments)
