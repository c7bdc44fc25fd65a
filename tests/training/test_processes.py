"""Two processes train one model: the same weights in both, better than at the start, and a stage is done once."""

import json
import subprocess
import sys
from pathlib import Path

from distilrec.files import read_json
from distilrec.students import STUDENTS
from distilrec.students.base import load_student


def test_torchrun_with_two_processes(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"u{u} " + " ".join(f"i{(u + n) % 20:02d}" for n in range(12)) + "\n" for u in range(40)))
    words = [
        *(
            "data.filters={duplicates: none, k_core_user: 1, k_core_item: 1}",
            "train.loss={name: sampled_softmax, negatives: 8}",
        ),
        *(
            "train.epochs=25",
            "train.learning_rate=0.01",
            "train.batch_tokens=100",
            "train.average=0",
            "train.clip_norm=5",
        ),
        *("student.hidden_size=16", "student.dropout=0.1", "threads=1"),
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "distilrec",
    ]
    done = subprocess.run(
        [*command, "train", "--name", "two", "--interactions", str(log), *words, "--out", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("student: done in") == 1
    (folder,) = (tmp_path / "runs" / "two").glob("student-*")
    history = read_json(folder / "fit.json")["history"]
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert max(entry["valid"]["hr@10"] for entry in history) > 0.95
    assert load_student(folder / "model.safetensors", STUDENTS).n_items == 20
    assert json.loads((folder / "stage.json").read_text())["cached"] is False
