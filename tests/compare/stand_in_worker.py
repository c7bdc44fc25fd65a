"""What stands in for a worker process where only the parent is tested: it trains nothing, loads nothing, and does as it is told.

`orders.json` in the comparison's folder says what becomes of a job: `die`, `hang` or an error; all others give an answer at once.
Every job writes a line into `jobs.log` when it begins and one when it ends.
"""

import json
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
    """Take the place of `distilrec.compare.schedule._work`."""
    orders = json.loads((Path(root) / "orders.json").read_text())
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
