"""ALKDRec with nothing recorded: SmolLM2 behind `transformers serve` ranks for 100 chosen sessions, and a student learns from it.

    python benchmarks/alkdrec_server.py       # `end_to_end` of results/alkdrec.json

Everything is one `distilrec run configs/alkdrec/ml-100k.yaml`: the conventional teacher, hints, the choice of sessions, questions and
replies, the tuning of the student, the report. Needs `pip install 'distilrec[serving]'`.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distilrec.config_file import load_config
from distilrec.data.sources import fetch_llm
from distilrec.files import read_json, write_json
from distilrec.progress import say
from distilrec.teachers.llm import best_precision

CONFIG = Path("configs/alkdrec/ml-100k.yaml")
START_SECONDS = 180


def main() -> None:
    """Serve, run, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/alkdrec.json"))
    arguments = parser.parse_args()
    root = arguments.runs / load_config(CONFIG).name
    shutil.rmtree(root, ignore_errors=True)
    model = fetch_llm("smollm2-135m-instruct")
    with served(model) as address:
        started = time.monotonic()
        words = [f"teacher.model={model}", f"teacher.tokenizer={model}", f"teacher.base_url={address}"]
        subprocess.run(
            [sys.executable, "-m", "distilrec", "run", str(CONFIG), *words, "--out", str(arguments.runs)], check=True
        )
        minutes = (time.monotonic() - started) / 60
    found = summary(root) | {"minutes": round(minutes, 1), "command": "python benchmarks/alkdrec_server.py"}
    content = read_json(arguments.out) if arguments.out.exists() else {}
    write_json(arguments.out, content | {"end_to_end": found})
    say(str(found))


def summary(root: Path) -> dict[str, Any]:
    """Return what a finished run shows."""
    results = read_json(root / "results.json")
    (account,) = (read_json(path) for path in root.glob("knowledge-*/account.json"))
    store = account["store"]
    return {
        "asked": store["rows"],
        "usable": store["usable"],
        "repaired": store["repaired"],
        "tokens_in": store["tokens_in"],
        "tokens_out": store["tokens_out"],
        "rows": [{key: row[key] for key in ("model", "role", "metrics", "ci95")} for row in results["rows"]],
        "stages": results["stages"],
        "report": (root / "report.html").exists(),
    }


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a model with `transformers serve` on a free port of this machine; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "hub").mkdir()  # the server lists the models in it, and fails where there is no such folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command: list[str] = [
            str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
            "--dtype", str(best_precision()).removeprefix("torch."), "--continuous-batching", "--cb-max-memory-percent", "0.1",
        ]  # fmt: skip
        with (home / "serve.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=os.environ | {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
            )
            try:
                until_healthy(process, f"http://127.0.0.1:{port}/health", home / "serve.log")
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                process.kill()
                process.wait()


def until_healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server did not start:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
