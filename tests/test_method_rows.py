"""Rows of the table of methods: which stay from an earlier report, and what a student is held against."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import methods  # the benchmark
from methods import base_of, configuration, gain_over, merged, over_students
from tables_methods import ablations_table, baselines_table, method_table, results_table

SETTINGS = {"students": {"sasrec": None, "wide": {"name": "sasrec", "hidden_size": 8, "against": "sasrec"}, "dros": {}}}


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "settings_of", lambda name: SETTINGS)


def row(student: str, method: str, seeds: int, value: float, base: float | None = None, **more: Any) -> dict[str, Any]:
    cells = dict.fromkeys(("hr@10", "ndcg@10"), value)
    made = {"dataset": "amazon-beauty", "student": student, "method": method, "seeds": list(range(seeds))}
    made |= {"metrics": cells, "ci95": {metric: [value, value] for metric in cells}, **more}
    if base is not None:
        made |= {"difference": {"ndcg@10": value - base}, "p_value": {"ndcg@10": 0.01}}
        made["users_and_seeds"] = {"ndcg@10": {"p": 0.02}}
    return made


def test_an_earlier_row_stays_until_as_many_seeds_are_there() -> None:
    earlier = [row("dros", "plain", 3, 0.1), row("sasrec", "plain", 3, 0.2), row("sasrec", "rd", 1, 0.3)]
    made = [row("sasrec", "rd", 1, 0.4), row("sasrec", "plain", 2, 0.5), row("wide", "rd", 1, 0.6)]
    asked: set[tuple[str, str, str, str | None]] = {
        ("amazon-beauty", student, method, None) for student in ("sasrec", "wide") for method in ("plain", "rd")
    }
    rows = merged(earlier, made, asked)
    found = [(one["student"], one["method"], one["metrics"]["hr@10"], "earlier" in one) for one in rows]
    assert found == [
        ("sasrec", "plain", 0.2, True), ("sasrec", "rd", 0.4, False), ("wide", "rd", 0.6, False), ("dros", "plain", 0.1, False),
    ]  # fmt: skip


def test_a_student_is_held_against_its_own_plain_training_or_the_one_it_names() -> None:
    assert [base_of("any", student) for student in SETTINGS["students"]] == ["sasrec", "sasrec", "dros"]


def test_a_gain_is_over_the_plain_student_that_was_tested_against() -> None:
    rows = [
        row("sasrec", "plain", 3, 0.1), row("sasrec", "dllm2rec", 3, 0.11, base=0.1),
        row("wide", "plain", 3, 0.05, base=0.1, against="sasrec"),
        row("wide", "dllm2rec", 3, 0.12, base=0.1, against="sasrec"),
    ]  # fmt: skip
    brief = results_table(rows).splitlines()
    assert [line.split(" | ")[1:3] for line in brief if "sasrec" in line or "wide" in line][:3] == [
        ["sasrec", "alone"],
        ["sasrec", "with an LLM teacher (dllm2rec)"],
        ["wide", "with an LLM teacher (dllm2rec)"],
    ]
    assert "+20.0%" in next(line for line in brief if "wide" in line)
    whole = method_table(rows)
    assert "+20.0%" in next(line for line in whole.splitlines() if "wide | dllm2rec" in line)
    for table in ("\n".join(brief), whole):
        assert "wide is held against plain sasrec" in table


def test_baselines_stand_beside_dllm2rec_over_the_cells_of_both() -> None:
    """By hand: at rank 1 NDCG@10 is 1, at rank 3 1/2; ranks below 10 give nothing."""

    def kept_ranks(*ranks: int) -> tuple[Any, dict[str, Any]]:
        return np.array(ranks * 20), {}

    one, three, far = kept_ranks(1, 30), kept_ranks(3, 30), kept_ranks(30, 30)
    found: methods.Found = {
        ("amazon-beauty", "sasrec", "plain", None): {1: three, 2: three},
        ("amazon-beauty", "sasrec", "rd", None): {1: three},
        ("amazon-beauty", "sasrec", "dllm2rec", None): {1: one, 2: far},
        ("amazon-beauty", "dros", "plain", None): {1: three},
        ("amazon-beauty", "dros", "rd", None): {1: one},
        ("amazon-beauty", "dros", "dllm2rec", None): {1: one},
        ("amazon-beauty", "wide", "plain", None): {1: three},  # held against another, so it is not counted
        ("amazon-beauty", "wide", "rd", None): {1: far},
        ("amazon-beauty", "wide", "dllm2rec", None): {1: one},
        ("amazon-beauty", "sasrec", "hint", None): {3: one},  # no other has this seed
    }
    (row,) = over_students(found)
    assert (row["method"], row["cells"]) == ("rd", {"sasrec": [1], "dros": [1]})
    assert (row["gain"], row["dllm2rec_gain"]) == (pytest.approx(0.5), pytest.approx(1.0))
    assert row["difference"] == {"hr@10": 0.0, "ndcg@10": pytest.approx(0.125)}  # 1 against 3/4, for one user of two
    assert row["p_value"]["ndcg@10"] < 0.01
    (line,) = [line for line in baselines_table([row]).splitlines() if "| rd |" in line]
    low, high = row["difference_ci95"]["ndcg@10"]
    assert 0 < low < 0.125 < high
    shown = [
        "sasrec (1), dros (1)",
        "+50.0%",
        "+100.0%",
        "+0.0000 (+0.0000 to +0.0000)",
        f"+0.1250 ({low:+.4f} to {high:+.4f})",
    ]
    assert line.split(" | ")[2:7] == shown


def test_an_ablation_is_beside_others_of_its_own_seeds() -> None:
    """By hand: at rank 1 NDCG@10 is 1, at rank 3 1/2; below 10 nothing."""
    by_seed: dict[int, tuple[Any, dict[str, Any]]] = {1: (np.array([3, 30]), {}), 2: (np.array([1, 1]), {})}
    without = row("sasrec", "dllm2rec", 1, 0.5, base=0.4, ablation="no w_p") | {"seeds": [1]}
    assert gain_over(without, by_seed) == pytest.approx(1.0)  # 1/2 where seed 1 has 1/4, and not where both have 5/8
    assert gain_over({**without, "seeds": [1, 3]}, by_seed) is None
    rows = [
        row("sasrec", "plain", 3, 0.2), row("sasrec", "dllm2rec", 3, 0.4, base=0.2), row("sasrec", "rd", 3, 0.9, base=0.2),
        row("dros", "plain", 3, 0.7),
    ]  # fmt: skip
    table = ablations_table(rows, [{**without, "gains": {"plain": 1.5, "dllm2rec": -0.25}}]).splitlines()
    assert [line.split(" | ")[2:4] + line.split(" | ")[6:] for line in table[2:5]] == [
        ["plain", "3", "", "", " |"],
        ["dllm2rec", "3", "+100.0%", "", " |"],
        ["no w_p", "1", "+150.0%", "-25.0%", "0.01 |"],
    ]
    assert table[5] == ""
    assert "against the whole method" in table[-1]


def test_what_a_student_is_held_against_is_no_setting_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    content = {
        **SETTINGS, "data": {"interactions": "log.csv", "items": "items.csv"}, "train": {"epochs": 2}, "methods": {"plain": None},
        "ablations": {}, "teacher_train": {},
    }  # fmt: skip
    monkeypatch.setattr(methods, "settings_of", lambda name: dict(content))
    found = configuration("any", "wide", "plain", 1, tmp_path)
    assert (found.student.name, found.student.settings()) == ("sasrec", {"hidden_size": 8})


def test_a_method_may_be_set_for_one_student_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dros = {"hidden_size": 8, "train": {"loss": {"dro_weight": 0.1}}}
    tuned = {"dllm2rec": {"ranking_weight": 2, "train": {"loss": {"dro_weight": 0.3}}}}
    content: dict[str, Any] = {
        "data": {"interactions": "a.txt", "items": "a.csv"}, "train": {"epochs": 3}, "evaluate": {},
        "students": {"sasrec": None, "dros": dros}, "teacher_train": {},
        "methods": {"plain": None, "rd": {}, "dllm2rec": {"ranking_weight": 1, "top_k": 7}}, "ablations": {"none": {"top_k": 9}},
    }  # fmt: skip
    monkeypatch.setattr(methods, "settings_of", lambda name: dict(content))
    arguments = argparse.Namespace(out=tmp_path / "some.json")

    def kept_for(student: str, method: str) -> Any:
        return methods.place(("any", student, method, None, 1), arguments)[1]

    def made(student: str, method: str, ablation: str | None = None) -> tuple[Any, ...]:
        one = configuration("any", student, method, 1, tmp_path, ablation)
        return one.train.epochs, one.train.loss.dro_weight, one.method.settings()

    cells = [("sasrec", "dllm2rec"), ("dros", "plain"), ("dros", "rd"), ("dros", "dllm2rec")]
    before = {cell: (made(*cell), kept_for(*cell)) for cell in cells}
    dros["methods"] = tuned
    for cell in cells[:3]:
        assert (made(*cell), kept_for(*cell)) == before[cell]
    assert made("dros", "dllm2rec") == (3, 0.3, {"ranking_weight": 2, "top_k": 7})
    assert made("dros", "dllm2rec", "none") == (3, 0.3, {"ranking_weight": 2, "top_k": 9})
    assert kept_for("dros", "dllm2rec") != before["dros", "dllm2rec"][1]
    assert tuned["dllm2rec"]["train"] == {"loss": {"dro_weight": 0.3}}  # the file's own are left as they are


def test_a_report_of_a_part_forms_the_table_of_baselines_from_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def none_kept(arguments: argparse.Namespace) -> methods.Found:
        asked.append((arguments.students, arguments.seeds, arguments.methods))
        return {}

    monkeypatch.setattr(methods, "settings_of", lambda name: {**SETTINGS, "methods": {"plain": None}, "ablations": {}})
    monkeypatch.setattr(methods, "kept_cells", none_kept)
    part = {"datasets": ["amazon-beauty"], "students": ["dros"], "methods": ["plain"], "seeds": [42]}
    methods.report(argparse.Namespace(**part, out=tmp_path / "some.json"))
    assert asked == [(["dros"], [42], ["plain"]), (None, methods.SEEDS, None)]


def test_what_was_tried_is_noted_once_with_its_settings_and_lies_over_those_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content: dict[str, Any] = {
        "data": {"interactions": "a.txt", "items": "a.csv"}, "train": {"epochs": 3}, "teacher_train": {}, "ablations": {},
        "students": {"dros": {"hidden_size": 8, "methods": {"rd": {"alpha": 0.1, "train": {"loss": {"dro_weight": 0.3}}}}}},
        "methods": {"rd": {"top_k": 7}},
    }  # fmt: skip
    made = []

    def trained(cell: Any, arguments: argparse.Namespace, changes: Sequence[str] = ()) -> Any:
        run = SimpleNamespace(config=configuration(*cell[:3], cell[4], arguments.data, cell[3], changes))
        made.append(run.config)
        return run, None, SimpleNamespace(best=0.123456, best_epoch=4, history=[{}] * 6)

    monkeypatch.setattr(methods, "settings_of", lambda name: dict(content))
    monkeypatch.setattr(methods, "trained", trained)
    lines = tmp_path / "raw" / "some_tried.jsonl"
    for words in (["method.alpha=0.8"], ["method.alpha=0.8"], ["student.hidden_size=4", "train.loss.dro_weight=0.5"]):
        arguments = argparse.Namespace(out=tmp_path / "some.json", data=tmp_path, runs=tmp_path, set=words)
        methods.attempt(("any", "dros", "rd", None, 1), arguments)
    first, second = (json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines())
    assert (first["valid"], first["best_epoch"], first["epochs"], first["seed"]) == (0.12346, 4, 6, 1)
    assert (first["set"], first["method"], first["settings"]["method"]) == (
        ["method.alpha=0.8"], "rd", {"alpha": 0.8, "top_k": 7},
    )  # fmt: skip
    assert first["settings"]["train"]["loss"]["dro_weight"] == 0.3
    assert second["settings"]["method"] == {"alpha": 0.1, "top_k": 7}
    assert (second["settings"]["student"], second["settings"]["train"]["loss"]["dro_weight"]) == (
        {"hidden_size": 4},
        0.5,
    )
    assert [one.seed for one in made] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--datasets", "amazon-beuty"], "no 'amazon-beuty' in"),
        (["--students", "sasrec", "dross"], "no 'dross' in"),
        (["--methods", "ablations", "dllm2rek"], "no 'dllm2rek' in"),
    ],
)
def test_a_misspelt_name_is_refused_in_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"students": {"sasrec": {}, "gru4rec": None}, "methods": {"plain": None, "dllm2rec": {}}}
    monkeypatch.setattr(methods, "settings_of", lambda name: content)
    monkeypatch.setattr("sys.argv", ["methods.py", "report", *words])
    with pytest.raises(SystemExit):
        methods.main()
    assert said in capsys.readouterr().err.splitlines()[-1]
