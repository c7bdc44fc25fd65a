"""Three students under six methods on MovieLens-100K: `distilrec compare`, killed on the way, to the end; with the time it took.

    python benchmarks/compare_ml100k.py                  # results/compare_ml100k.json: rows, minutes, and when it was killed
    python benchmarks/compare_ml100k.py --kill-at        # without kills

The comparison is configs/compare/ml-100k.yaml. It is killed with SIGKILL after so many minutes of work, and started again by the same
command. `null_false_positive_rate` and `coverage` in the same file are from benchmarks/compare_null.py.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from distilrec.files import read_json, write_json
from distilrec.progress import say

CONFIG = Path("configs/compare/ml-100k.yaml")
KEPT = ("rows", "advice", "notes", "about", "versions", "config", "trials", "family", "complete")


def main() -> None:
    """Run, kill, run again, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kill-at", nargs="*", type=float, default=[10, 25], help="minutes of work")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--keep", action="store_true", help="go on with what is there instead of starting anew")
    parser.add_argument("--out", type=Path, default=Path("results/compare_ml100k.json"))
    arguments = parser.parse_args()
    root = arguments.runs / "ml-100k"
    if root.exists() and not arguments.keep:
        shutil.rmtree(root)
    command = [
        sys.executable,
        "-m",
        "distilrec",
        "compare",
        str(CONFIG),
        "--jobs",
        str(arguments.jobs),
        "--out",
        str(arguments.runs),
    ]
    worked, killed = 0.0, []
    for limit in [*arguments.kill_at, None]:
        started = time.monotonic()
        process = subprocess.Popen(command)
        try:
            process.wait(None if limit is None else max(0.1, 60 * limit - worked))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed.append(limit)
            say(f"killed after {limit:g} minutes of work")
        worked += time.monotonic() - started
        if process.returncode == 0:
            break
    if process.returncode != 0:
        sys.exit(process.returncode)
    found = read_json(root / "results.json")
    content = read_json(arguments.out) if arguments.out.exists() else {}
    content |= {key: found[key] for key in KEPT} | {
        "minutes": round(worked / 60, 1), "killed_at_minutes": killed, "jobs": arguments.jobs, "cores": os.cpu_count(),
        "command": "python benchmarks/compare_ml100k.py",
    }  # fmt: skip
    write_json(arguments.out, content)
    say(f"{worked / 60:.1f} minutes of work, killed after {killed}")


if __name__ == "__main__":
    main()
