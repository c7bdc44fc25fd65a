"""What a comparison writes: Markdown, CSV, LaTeX, a page that needs nothing from outside, whatever the labels are."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fixtures_compare import matrix_of, outcome_of

from distilrec.compare.drawing import forest, standalone
from distilrec.compare.matrix import Matrix
from distilrec.compare.report import write_comparison
from distilrec.data.dataset import Dataset

DATASET, STUDENT, UP, DOWN, TEACHER = "toy <i>1", "<b>a & 50%_#", "soft|labels^~$", "rd", '"big" {x}\\y <script>'
NAMES = {
    "up": f"{STUDENT} + {UP} ({TEACHER})",
    "plain": f"{STUDENT} + plain",
    "down": f"{STUDENT} + {DOWN} ({TEACHER})",
    "teacher": f"{TEACHER} (teacher)",
}
METRICS = ["mrr@10", "hr@5"]
WEB = re.compile(r"https?://[^\s\"'<>]*")
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br"}


@dataclass
class Written:
    content: dict[str, Any]
    folder: Path

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Written:
    """Four users. Every target has rank 4 for the plain student, 2 and 8 for those distilled, 3 for the teacher."""
    return write(tmp_path_factory.mktemp("report"), make_dataset(["abeg", "abdc", "acefba", "abcdefcb"]))


def hard_names(**changes: Any) -> Matrix:
    return matrix_of(
        name="hard", datasets={DATASET: {"data": {"interactions": "log.csv"}}}, students={STUDENT: {"name": "sasrec"}},
        methods={"plain": None, UP: {"name": "soft_labels"}, DOWN: {"name": "rd"}},
        teachers={TEACHER: {"name": "conventional"}},
        metrics=METRICS, **changes,
    )  # fmt: skip


def write(folder: Path, dataset: Dataset, *, missing: Sequence[str] = (), **changes: Any) -> Written:
    matrix = hard_names(**changes)
    ranks = {
        (STUDENT, "plain", None): 4,
        (STUDENT, UP, TEACHER): 2,
        (STUDENT, DOWN, TEACHER): 8,
        (None, None, TEACHER): 3,
    }
    outcome = outcome_of(matrix, dataset, folder, {key: [[rank] * 4] * 2 for key, rank in ranks.items()})
    outcome.failed = {"toy/<b>": "the loss is <nan>."} if "failed" in missing else {}
    outcome.skipped = ["one", "two"] if "skipped" in missing else []
    return Written(write_comparison(matrix, outcome, {DATASET: dataset}, folder), folder)


def test_results_are_json_of_what_is_shown(written: Written) -> None:
    assert json.loads(written.text("results.json")) == json.loads(json.dumps(written.content))
    assert [row["method"] for row in written.content["rows"]] == [UP, None, "plain", DOWN]
    assert written.content["complete"] is True
    assert written.content["family"] == 4
    assert written.content["datasets"] == [DATASET]
    assert written.content["about"][DATASET]["n_users"] == 4


def test_markdown(written: Written) -> None:
    text = written.text("report.md")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {8}  # a bar in a label would make a cell of its own
    assert [cell.strip() for cell in table[0].split("|")][1:-1] == [
        "model", "MRR@10", "HR@5", "gain", "verdict", "ms a user", "parameters",
    ]  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")][1:-1] for line in table[2:]]
    whole = "1.0000 (1.0000 to 1.0000)"
    assert lines == [
        [
            NAMES["up"].replace("|", "/"), "0.5000 (0.5000 to 0.5000)", whole, "+0.2500", "better (p <0.0001)", "2.000",
            "1,001",
        ],
        [NAMES["teacher"], "0.3333 (0.3333 to 0.3333)", whole, "", "", "4.000", "1,003"],
        [NAMES["plain"], "0.2500 (0.2500 to 0.2500)", whole, "", "", "1.000", "1,000"],
        [
            NAMES["down"], "0.1250 (0.1250 to 0.1250)", "0.0000 (0.0000 to 0.0000)", "-0.1250", "worse (p <0.0001)",
            "3.000", "1,002",
        ],
    ]  # fmt: skip
    assert f"**{DATASET}.** Take {NAMES['up']}: mrr@10 0.5000" in text
    assert "- Nothing was tuned here: every row" in text


def test_csv_comes_back_as_it_was(written: Written) -> None:
    lines = list(csv.DictReader(io.StringIO(written.text("results.csv"))))
    assert len(lines) == 4 * 7  # rows x (the two metrics, and hr and ndcg at 5, 10 and 20 that are not among them)
    by_key = {(row["student"] or "", row["method"] or "", row["teacher"] or ""): row for row in written.content["rows"]}
    for line in lines:
        row, metric = by_key[line["student"], line["method"], line["teacher"]], line["metric"]
        assert line["dataset"] == DATASET
        assert float(line["mean"]) == row["metrics"][metric]
        assert [float(line["low"]), float(line["high"])] == row["ci95"][metric]
        assert line["seeds"] == " ".join(str(seed) for seed in row["seeds"])
        assert float(line["ms_per_user"]) == row["ms_per_user"]
        assert int(line["parameters"]) == row["parameters"]
        assert float(line["usd"]) == row["usd"]
        tested = metric in row.get("p_value", {})
        assert line["verdict"] == (row["verdict"][metric] if tested else "")
        assert line["p_holm"] == (str(row["p_value"][metric]) if tested else "")
        if tested:
            edges = [float(line["difference_low"]), float(line["difference_high"])]
            assert [float(line["difference"]), *edges] == [row["difference"][metric], *row["difference_ci95"][metric]]
    assert {line["metric"] for line in lines if line["verdict"]} == set(METRICS)


def test_latex_is_escaped_and_the_best_is_bold(written: Written) -> None:
    lines = written.text("table.tex").splitlines()
    body = [line for line in lines if line.endswith(r" \\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in body)  # three cells, the label's own & is none
    student, up = r"<b>a \& 50\%\_\#", r"soft|labels\textasciicircum{}\textasciitilde{}\$"
    teacher = r'"big" \{x\}\textbackslash{}y <script>'
    assert body == [
        r"model & MRR@10 & HR@5 \\",
        rf"{student} + {up} ({teacher}) & \textbf{{0.5000}}$^\uparrow$ & \textbf{{1.0000}} \\",
        rf"{teacher} (teacher) & 0.3333 & \textbf{{1.0000}} \\",
        rf"{student} + plain & 0.2500 & \textbf{{1.0000}} \\",
        rf"{student} + rd ({teacher}) & 0.1250$^\downarrow$ & 0.0000$^\downarrow$ \\",
    ]
    assert r"\begin{tabular}{lrr}" in lines
    assert lines.count(r"\end{tabular}") == 1


@dataclass
class Page(HTMLParser):
    """Reads a page: its tags, attributes and text, and that every tag is closed in its turn."""

    tags: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    open: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read_page(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def test_the_page_needs_nothing_from_outside(written: Written) -> None:
    text = written.text("report.html")
    assert "Partial" not in text
    assert set(WEB.findall(text)) == {"http://www.w3.org/2000/svg"}
    page = read_page(text)
    assert not page.names & {"src", "href", "srcset", "xlink:href", "data", "action", "style"}
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert text.isascii() or '<meta charset="utf-8">' in text


def test_labels_are_text_and_no_markup(written: Written) -> None:
    page = read_page(written.text("report.html"))
    assert not {"b", "i", "script"} & set(page.tags)
    said = " ".join(page.words)
    for name in NAMES.values():
        assert name in said
    assert DATASET in said
    assert "+0.2500 better" in said
    assert "-0.1250 worse" in said
    assert "<0.0001" in said


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(markup) for markup in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_the_plots_are_valid_and_show_every_row(written: Written) -> None:
    gains, speeds = drawings(written.text("report.html"))
    zero = float(gains.find(f"{SVG}line[@class='zero']").attrib["x1"])  # type: ignore[union-attr]
    dots = {dot.attrib["class"]: float(dot.attrib["cx"]) for dot in gains.iter(f"{SVG}circle")}
    assert list(dots) == ["dot better", "dot worse"]
    # +0.25 stands twice as far to the right of zero as -0.125 to the left.
    assert dots["dot better"] - zero == pytest.approx(2 * (zero - dots["dot worse"]), abs=0.3)
    words = [text.text for text in gains.iter(f"{SVG}text")]
    assert NAMES["up"] in words
    assert NAMES["down"] in words
    assert len(list(speeds.iter(f"{SVG}circle"))) == 4
    named = {name for name in NAMES.values() if name in [text.text for text in speeds.iter(f"{SVG}text")]}
    assert named == {NAMES["up"], NAMES["plain"]}  # `up` is better and faster than the others
    assert [speeds.find(f"{SVG}title").text, gains.find(f"{SVG}title").text] == [  # type: ignore[union-attr]
        "mrr@10 against time to rank a user", "Gain in mrr@10 over the plain student, with 95 % intervals",
    ]  # fmt: skip


def test_a_drawing_as_a_file_of_its_own(written: Written) -> None:
    alone = standalone(forest(written.content["rows"], "mrr@10"))
    drawing = ElementTree.fromstring(alone)
    assert drawing.find(f"{SVG}style") is not None
    assert len(list(drawing.iter(f"{SVG}circle"))) == 2


def test_what_is_missing_is_said(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    made = write(
        tmp_path,
        make_dataset(["abeg", "abdc", "acefba", "abcdefcb"]),
        missing=("failed", "skipped"),
        seeds=[1, 2, 3],
        tune={"trials": 4, "space": {"train.learning_rate": [0.1, 0.2, 0.3, 0.4]}},
    )
    page = read_page(made.text("report.html"))
    said = " ".join(page.words)
    assert "Partial: 2 jobs were not done, 1 failed. The same command goes on with the rest." in said
    assert "toy/<b>: the loss is <nan>." in said
    assert "b" not in page.tags
    assert made.content["complete"] is False
    notes = made.content["notes"]
    assert any(note.startswith("Tuning: 4 trials for every row, the plain students included") for note in notes)
    assert "3 rows have fewer seeds than wanted." in notes
    assert "Left out: " not in " ".join(notes)
    assert any(note.startswith("3 rows had fewer trials:") for note in notes)


@pytest.mark.parametrize("missing", ["failed", "skipped"])
def test_anything_missing_makes_it_partial(tmp_path: Path, make_dataset: Callable[..., Dataset], missing: str) -> None:
    made = write(tmp_path, make_dataset(["abeg", "abdc", "acefba", "abcdefcb"]), missing=[missing])
    assert made.content["complete"] is False
    assert "Partial: " in made.text("report.html")


def test_the_configuration_in_the_page_is_the_comparison(written: Written) -> None:
    text = "".join(read_page(written.text("report.html")).words)
    for part in (STUDENT, "- mrr@10", "seeds:"):
        assert part in text
    assert written.content["config"] in text


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
def test_light_and_dark_in_a_browser(written: Written, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    shots = {}
    for number, name in enumerate(("dark", "light")):
        path = tmp_path / f"{name}.png"
        command = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--window-size=1000,1400", f"--blink-settings=preferredColorScheme={number}",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={path}", (written.folder / "report.html").resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        shots[name] = image.open(path).convert("RGB")
    seen: Mapping[str, Any] = {
        name: {colour: count for count, colour in shot.getcolors(1 << 24)} for name, shot in shots.items()
    }
    paper = {name: shot.getpixel((2, 2)) for name, shot in shots.items()}
    assert paper == {"light": (255, 255, 255), "dark": (0x14, 0x18, 0x1F)}
    for name, colours in seen.items():
        drawn = sum(colours.values()) - colours[paper[name]]
        assert drawn > 0.05 * sum(colours.values())
        ink = max(abs(sum(colour) - sum(paper[name])) for colour in colours)
        assert ink > 500  # of 765: text stands out from the paper
    up = {"light": (0x0A, 0x7D, 0x46), "dark": (0x4B, 0xD0, 0x8B)}
    assert all(seen[name].get(colour, 0) > 20 for name, colour in up.items())  # the dot of what is better
