"""Kill a training with SIGKILL at random moments, go on, and compare its weights bit by bit with an unbroken one's.

    python benchmarks/kill_training.py --sequences ../shared/data/amazon-beauty/sequences.txt --threads 1 2

Three epochs of SASRec with averaged weights, for each loss and number of threads; a checkpoint every second, so kills fall
between them. Each run is killed `--kills` times before it may end; where one ended before it could be killed, another is begun and
killed sooner. Writes results/raw/kill_training.json.
"""

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

from distilrec.files import write_json

LOSSES = {"ce": "{name: ce}", "sampled_softmax": "{name: sampled_softmax, negatives: 256}"}


def main() -> None:
    """Run, kill, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/raw/kill_training.json"))
    arguments = parser.parse_args()
    chance, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        for threads in arguments.threads:
            for loss in LOSSES:
                folder = Path(temporary) / f"{loss}-{threads}"
                started = time.monotonic()
                run(command(arguments, folder / "unbroken", loss, threads))
                seconds = time.monotonic() - started
                expected = digest(folder / "unbroken")
                done = attempt = 0
                while done < arguments.repeats:
                    attempt += 1
                    out = folder / f"killed-{attempt}"
                    words = command(arguments, out, loss, threads)
                    waits = [chance.uniform(0.25, 0.6) * seconds for _ in range(arguments.kills)]
                    if not all(killed(words, wait) for wait in waits):
                        seconds *= 0.8
                        continue
                    run(words)
                    after = [round(wait, 2) for wait in waits]
                    equal = digest(out) == expected
                    rows.append({"loss": loss, "threads": threads, "killed_after_s": after, "bits_equal": equal})
                    print(rows[-1], flush=True)
                    done += 1
    write_json(
        arguments.out,
        {"command": "python benchmarks/kill_training.py --sequences FILE", "epochs": arguments.epochs, "rows": rows},
    )


def command(arguments: argparse.Namespace, out: Path, loss: str, threads: int) -> list[str]:
    """Return the training as a command line."""
    return [
        *(sys.executable, "-m", "distilrec", "train", "--interactions", str(arguments.sequences), "--out", str(out)),
        *("--name", "run", "data.filters={duplicates: none, k_core_user: 1, k_core_item: 1}"),
        *(f"threads={threads}", f"train.loss={LOSSES[loss]}", "train.checkpoint_seconds=1", "student.blocks=1"),
        *(f"train.epochs={arguments.epochs}", "train.validate_users=500"),
    ]


def run(words: list[str]) -> None:
    """Run to the end."""
    subprocess.run(words, check=True, capture_output=True)


def killed(words: list[str], seconds: float) -> bool:
    """Run, kill after so many seconds; return whether it was still at work."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def digest(out: Path) -> str:
    """Hash the trained weights."""
    (path,) = (out / "run").glob("student-*/model.safetensors")
    found = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            found.update(name.encode() + file.get_tensor(name).contiguous().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
