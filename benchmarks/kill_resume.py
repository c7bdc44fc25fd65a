"""Kill a run with SIGKILL once in every stage, let it go on each time, and compare its metrics with an unbroken run's.

    python benchmarks/kill_resume.py configs/demo.yaml --unbroken runs/demo/results.json

Each kill falls at a random moment after the stage's first line. Ends with exit code 1 if a metric differs in any digit.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from distilrec.files import read_json, write_json

STAGES = {"data": 0.2, "student": 40.0, "teacher": 90.0, "knowledge": 25.0, "distilled": 40.0, "evaluate": 4.0}


def main() -> int:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--unbroken", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/killed"))
    parser.add_argument("--out", type=Path, default=Path("results/raw/kill_resume.json"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    command = [sys.executable, "-m", "distilrec", "run", str(arguments.config), "--out", str(arguments.folder)]
    generator, killed, log = random.Random(arguments.seed), [], []
    while True:
        waiting = [stage for stage in STAGES if stage not in {entry["stage"] for entry in killed}]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            found = re.match(r"(\w+): (?:starting|going on) in", line)
            if found and found[1] in waiting:
                delay = generator.uniform(0.0, STAGES[found[1]])
                time.sleep(delay)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    killed.append({"stage": found[1], "after_s": round(delay, 2)})
                    print(f"killed in {found[1]} after {delay:.1f} s", flush=True)
                else:
                    killed.append({"stage": found[1], "after_s": None})
                break
        process.stderr.close()
        if process.wait() == 0:
            break
        if process.returncode not in (-signal.SIGKILL, 0):
            print("".join(log[-20:]))
            return 1
    name = next(path.parent for path in arguments.folder.glob("*/results.json"))
    broken, unbroken = (read_json(path)["rows"] for path in (name / "results.json", arguments.unbroken))
    same = [row["metrics"] for row in broken] == [row["metrics"] for row in unbroken]
    write_json(arguments.out, {"config": arguments.config.name, "kills": killed, "metrics_equal": same})
    print(f"{len(killed)} kills; metrics {'equal' if same else 'DIFFER'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
