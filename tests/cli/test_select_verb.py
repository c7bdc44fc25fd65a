"""`distilrec select`: what it writes, what it prints, and that `annotate` takes it."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Cli

SETTINGS = [
    "student={name: fpmc, hidden_size: 4}", "train={epochs: 1}", "annotate.top_k=3",
    "teacher={name: conventional, recommender: {name: fpmc, hidden_size: 8}}",
]  # fmt: skip


def ids(runs: Path) -> list[int]:
    return [int(line) for line in (runs / "trial" / "selection.txt").read_text().splitlines()]


def test_it_writes_ids_account_and_plot_and_annotate_takes_them(cli: "Cli", log: Path) -> None:
    words = ["--interactions", log, "--name", "trial", *SETTINGS, "annotate.examples=last"]
    done = cli("select", *words, "--policy", "alkdrec", "--budget", 5)
    assert done.code == 0, done.err
    first = ids(done.runs)
    assert len(set(first)) == 5
    account = json.loads((done.runs / "trial" / "selection.json").read_text())
    assert (account["policy"], account["examples"], account["selected"]) == ("alkdrec", 15, 5)
    assert (done.runs / "trial" / "selection.svg").read_text().count("<svg") == 1
    assert re.search(r"alkdrec: 5 of 15 examples; it may draw the \d+ hardest; guaranteed gain", done.err)
    shown = [line.split() for line in done.err.splitlines() if re.match(r"\s*\d+-\d+\s", line)]
    assert sum(int(row[-1]) for row in shown) == 5
    assert abs(sum(float(row[-2]) for row in shown) - 1) < 1e-3
    more = cli("select", *words, "--policy", "alkdrec", "--budget", 8)
    assert ids(more.runs)[:5] == first
    asked = cli("annotate", *words, "--selection", done.runs / "trial" / "selection.txt", "method=soft_labels")
    assert asked.code == 0, asked.err
    assert "8 rows stored" in asked.err


def test_the_method_s_own_policy_and_budget(cli: "Cli", log: Path) -> None:
    words = ["--interactions", log, "--name", "trial", *SETTINGS, "method={name: alkdrec, policy: hardest, budget: 4}"]
    done = cli("select", *words)
    assert done.code == 0, done.err
    assert "hardest: 4 of " in done.err
    assert len(ids(done.runs)) == 4


def test_no_such_policy(cli: "Cli", log: Path) -> None:
    done = cli("select", "--interactions", log, "--name", "trial", *SETTINGS, "--policy", "best")
    assert done.code == 2
    assert done.last.startswith("Error: no policy is called 'best'. Choose one of alkdrec, maxmin")
