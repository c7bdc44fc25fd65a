"""`distilrec evaluate A B`: ranks are found, joined by example id and compared; whatever does not fit is one clear line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.cli.compare_ranks import Part, is_comparison, read_part, read_side
from distilrec.config import Config
from distilrec.data.dataset import Dataset
from distilrec.evaluation.groups import main_cutoff
from distilrec.evaluation.metrics import gain
from distilrec.evaluation.stored import read_ranks, write_ranks
from distilrec.files import read_json, write_json
from distilrec.pipeline.evaluate import Entry, evaluate
from distilrec.settings import checked

Cli = Callable[..., Any]
N = 120
EXAMPLES = np.arange(N) * 7 + 3


def some_ranks(seed: int, most: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most, N)


def make_run(root: Path, fingerprint: str = "f" * 64, seed: int = 0, key: str = "abc", pointed: bool = True) -> Path:
    """Write what an evaluated run leaves: student and distilled, the second better."""
    folder = root / f"evaluate-{key}"
    roles = {"student": some_ranks(seed), "distilled": np.maximum(1, some_ranks(seed) - some_ranks(seed + 50, 20))}
    write_ranks(folder / "ranks.parquet", EXAMPLES, roles, fingerprint)
    write_json(folder / "stage.json", {})
    if pointed:
        write_json(root / "results.json", {"ranks": f"{folder.name}/ranks.parquet"})
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one")


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def compared(cli: Cli, tmp_path: Path, *parts: object) -> dict[str, Any]:
    """Run a comparison that must succeed; return what it wrote."""
    done = cli("evaluate", *words(*parts), "--json", tmp_path / "out.json", out=False)
    assert done.code == 0, done.err
    return read_json(tmp_path / "out.json")


def refused(cli: Cli, *parts: object) -> str:
    done = cli("evaluate", *words(*parts), out=False)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in done.err
    return str(line)


def test_two_roles_of_a_run(cli: Cli, run: Path, tmp_path: Path) -> None:
    found = compared(cli, tmp_path, f"{run}:student", f"{run}:distilled")
    assert (found["baseline"], found["n"], found["family"]) == (f"{run}:student", N, 2)
    assert found["dataset"]["fingerprint"] == "f" * 64
    ranks = pl.read_parquet(run / "evaluate-abc" / "ranks.parquet")
    for one, metric in zip(found["comparisons"], ("hr@10", "ndcg@10"), strict=True):
        means = {role: gain(metric, ranks[role].to_numpy()).mean() for role in ("student", "distilled")}
        assert (one["metric"], one["other"]) == (metric, f"{run}:distilled")
        assert one["baseline_mean"] == pytest.approx(means["student"])
        assert one["other_mean"] == pytest.approx(means["distilled"])
        assert one["interval"][0] < one["difference"] < one["interval"][1]
        assert one["verdict"] == "better"


def test_the_table_says_what_the_file_says(cli: Cli, run: Path, tmp_path: Path) -> None:
    done = cli("evaluate", f"{run}:student", f"{run}:distilled", "--json", tmp_path / "out.json", out=False)
    found = read_json(tmp_path / "out.json")
    for one in found["comparisons"]:
        low, high = one["interval"]
        assert f"{one['difference']:+.4f} [{low:+.4f}, {high:+.4f}]" in done.err
        assert f"{one['effect_size']:+.3f}" in done.err
    assert "Holm over 2 comparisons" in done.err
    assert done.err.splitlines()[0].startswith(f"Baseline: {run}:student. Paired over {N} examples, 10,000 resamples")
    assert done.err.splitlines()[-1] == str(tmp_path / "out.json")


def test_a_run_without_a_role_enters_all_of_them_once(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two", seed=1)
    found = compared(cli, tmp_path, f"{run}:distilled", run, other)
    assert found["baseline"] == f"{run}:distilled"
    assert [side["name"] for side in found["sides"]] == [
        f"{run}:distilled", f"{run}:student", f"{other}:student", f"{other}:distilled",
    ]  # fmt: skip
    assert found["family"] == 6


def test_no_difference_is_said_to_be_none(cli: Cli, run: Path, tmp_path: Path) -> None:
    ranks = read_ranks(run / "evaluate-abc" / "ranks.parquet").roles["student"]
    write_ranks(tmp_path / "same.parquet", EXAMPLES, {"student": ranks}, "f" * 64)
    done = cli("evaluate", f"{run}:student", tmp_path / "same.parquet", out=False)
    assert done.code == 0
    assert done.err.count("not significant") == 2
    assert "nan" not in done.err


def test_rows_are_joined_by_example_and_not_by_place(cli: Cli, run: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(run / "evaluate-abc" / "ranks.parquet")
    shuffled = frame.select("example_id", rank="student").sample(fraction=1.0, shuffle=True, seed=1)
    shuffled.write_csv(tmp_path / "same.csv")
    found = compared(cli, tmp_path, f"{run}:student", tmp_path / "same.csv")
    assert [one["difference"] for one in found["comparisons"]] == [0, 0]
    assert [one["wilcoxon_p"] for one in found["comparisons"]] == [1, 1]


def test_a_csv_file_names_no_data_set_and_that_is_said(cli: Cli, run: Path, tmp_path: Path) -> None:
    pl.DataFrame({"example_id": EXAMPLES, "rank": some_ranks(9)}).write_csv(tmp_path / "theirs.csv")
    done = cli("evaluate", f"{run}:student", tmp_path / "theirs.csv", out=False)
    assert done.code == 0
    assert f"{tmp_path / 'theirs.csv'}: the data set is not named there" in done.err


def test_several_seeds_of_a_side(cli: Cli, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    sides = [",".join(f"{one}:{role}" for one in runs) for role in ("student", "distilled")]
    found = compared(cli, tmp_path, *sides, "--metrics", "mrr@5")
    stored = [read_ranks(one / "evaluate-abc" / "ranks.parquet").roles for one in runs]
    for key, role in (("baseline_mean", "student"), ("other_mean", "distilled")):
        means = [gain("mrr@5", roles[role]).mean() for roles in stored]
        assert found["comparisons"][0][key] == pytest.approx(np.mean(means))
    assert [len(side["ranks"]) for side in found["sides"]] == [3, 3]
    by_role = compared(cli, tmp_path, ",".join(map(str, runs[:2])), f"{runs[2]}:student", "--metrics", "mrr@5")
    assert [len(side["ranks"]) for side in by_role["sides"]] == [2, 2, 1]


def test_metrics_resamples_and_seed(cli: Cli, run: Path, tmp_path: Path) -> None:
    sides = f"{run}:student", f"{run}:distilled"
    options = "--metrics", "hr@1, recall@5", "--metrics", "map@10", "--resamples", 600
    first = compared(cli, tmp_path, *sides, *options, "--seed", 1)
    assert [one["metric"] for one in first["comparisons"]] == ["hr@1", "recall@5", "map@10"]
    assert (first["resamples"], first["seed"]) == (600, 1)
    assert compared(cli, tmp_path, *sides, *options, "--seed", 1) == first
    assert compared(cli, tmp_path, *sides, *options, "--seed", 2)["comparisons"] != first["comparisons"]


def test_an_older_run_is_found_by_its_newest_evaluation(cli: Cli, tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", seed=1, key="first", pointed=False)
    make_run(tmp_path / "old", seed=2, key="second", pointed=False)
    (old / "evaluate-third").mkdir()  # killed before it was done
    os.utime(old / "evaluate-first" / "stage.json", (1, 1))
    write_json(old / "results.json", {"rows": []})
    found = compared(cli, tmp_path, f"{old}:student", f"{old}:distilled")
    assert "evaluate-second" in found["sides"][0]["ranks"][0]["file"]
    inside = compared(cli, tmp_path, f"{old / 'evaluate-first'}:student", f"{old}:student")
    assert "evaluate-first" in inside["sides"][0]["ranks"][0]["file"]


def test_an_older_file_takes_its_fingerprint_from_the_results_beside_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    path = run / "evaluate-abc" / "ranks.parquet"
    pl.read_parquet(path).write_parquet(path)  # without metadata
    assert read_ranks(path).fingerprint is None
    write_json(path.with_name("results.json"), {"dataset": {"fingerprint": "e" * 64}})
    assert read_ranks(path).fingerprint == "e" * 64
    other = make_run(tmp_path / "two")
    assert "ranks of another data set" in refused(cli, run, other)


def test_other_data(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two", fingerprint="0" * 64)
    line = refused(cli, f"{run}:student", f"{other}:student")
    assert f"{other / 'evaluate-abc' / 'ranks.parquet'}: ranks of another data set than {run}" in line
    assert "on the same prepared data" in line


def test_other_examples(cli: Cli, run: Path, tmp_path: Path) -> None:
    pl.DataFrame({"example_id": EXAMPLES[:-20], "rank": some_ranks(9)[:-20]}).write_csv(tmp_path / "fewer.csv")
    line = refused(cli, f"{run}:student", tmp_path / "fewer.csv")
    assert f"{tmp_path / 'fewer.csv'}: other examples than in {run}" in line
    assert "100 and 120, 100 of them in both" in line


@pytest.mark.parametrize("ranks", [[[1], [2]], [{"a": 1}, {"a": 2}], [b"1", b"2"], [True, False]])
def test_columns_that_hold_no_numbers(cli: Cli, run: Path, tmp_path: Path, ranks: list[Any]) -> None:
    pl.DataFrame({"example_id": [1, 2], "rank": ranks}).write_parquet(tmp_path / "odd.parquet")
    line = refused(cli, f"{run}:student", tmp_path / "odd.parquet")
    assert "whole numbers are expected" in line
    assert "column 'rank'" in line


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("user,rank\n1,2\n", "columns 'example_id' and at least one of ranks are expected, got user, rank"),
        ("example_id\n1\n", "columns 'example_id' and at least one of ranks"),
        ("example_id,rank\n1,2\n2,0\n", "line 3, column 'rank': '0' is not a whole number of at least 1"),
        ("example_id,rank\n1,2\n2,\n", "line 3, column 'rank': None is not a whole number"),
        ("example_id,rank\n1,2.5\n", "line 2, column 'rank': '2.5' is not a whole number"),
        ("example_id,rank\n-1,2\n", "line 2, column 'example_id': '-1' is not"),
        ("example_id,rank\n5,2\n4,1\n5,3\n", "line 4, column 'example_id': example 5 occurs twice"),
        ("", "the file is empty"),
    ],
)
def test_a_broken_file(cli: Cli, run: Path, tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(content)
    line = refused(cli, f"{run}:student", path)
    assert f"Error: {path}" in line
    assert problem in line


def test_missing_ranks(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    line = refused(cli, run, tmp_path / "fresh")
    assert line == f"Error: {tmp_path / 'fresh'}: no ranks are stored here. Run distilrec evaluate on it first."
    assert refused(cli, run, tmp_path / "nowhere:student") == (
        f"Error: {tmp_path / 'nowhere'}: no such run or file. Give a run's folder or a file of ranks."
    )
    (tmp_path / "a.txt").write_text("x")
    assert "not a file of ranks" in refused(cli, run, tmp_path / "a.txt")


def test_an_unknown_role(cli: Cli, run: Path) -> None:
    line = refused(cli, f"{run}:student", f"{run}:teacher")
    assert line == f"Error: {run}: no role 'teacher' is stored. There is: student, distilled."


@pytest.mark.parametrize("role", ["", ":student"])
def test_one_place_alone(cli: Cli, run: Path, role: str) -> None:
    line = refused(cli, f"{run}{role}")
    assert f"one place was given. Name two, for example {run}:student {run}:distilled." in line


def test_the_same_place_twice(cli: Cli, run: Path) -> None:
    assert "named twice; there is nothing to compare" in refused(cli, f"{run}:student", f"{run}:student")


def test_seeds_with_different_roles(cli: Cli, run: Path, tmp_path: Path) -> None:
    write_ranks(tmp_path / "x.parquet", EXAMPLES, {"student": some_ranks(3), "teacher": some_ranks(4)}, "f" * 64)
    assert "do not hold the same roles" in refused(cli, run, f"{run},{tmp_path / 'x.parquet'}")
    assert "names an empty place" in refused(cli, run, f"{run}:student,")


def test_options_in_the_wrong_place(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert "are of a comparison" in refused(cli, "configs/demo.yaml", "--json", tmp_path / "x.json")
    assert "unknown metric 'hits@3'" in refused(cli, f"{run}:student", run, "--metrics", "hits@3")
    assert "this is a folder" in refused(cli, f"{run}:student", run, "--json", tmp_path)
    assert "none of 40 comparisons" in refused(
        cli, f"{run}:student", run, "--resamples", 100, "--metrics", ",".join(f"hr@{k + 1}" for k in range(40))
    )


def test_a_configuration_is_still_a_configuration(cli: Cli, run: Path) -> None:
    assert "nowhere.yaml: no such file" in refused(cli, "nowhere.yaml")
    assert "one configuration file is expected" in refused(cli, run, "b.yaml")
    assert "one configuration file is expected" in refused(cli, run, run, "seed=3")
    assert "there are no data" in refused(cli)


def test_a_configuration_is_evaluated(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Asked:
        def __init__(self, config: Config, root: Path) -> None:
            asked.append((config.name, config.evaluate.cutoffs, root))
            raise SystemExit(0)

    monkeypatch.setattr("distilrec.pipeline.Pipeline", Asked)
    (tmp_path / "c.yaml").write_text("name: mine\ndata: {source: ml-100k}\n")
    cli("evaluate", tmp_path / "c.yaml", "evaluate.cutoffs=[3]")
    assert asked == [("mine", [3], tmp_path / "runs" / "mine")]


NAMES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="/"), min_size=1, max_size=12)


@given(place=NAMES, role=NAMES.filter(lambda text: not set(text) & {":", ","}))
def test_a_place_and_a_role_are_told_apart(place: str, role: str) -> None:
    assert read_part(f"nowhere/{place}:{role}") == Part(Path(f"nowhere/{place}"), role)


def test_seeds_are_told_apart_from_names_with_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a,b"):
        (tmp_path / name).mkdir()
    assert read_side("a:x,b:y") == [Part(Path("a"), "x"), Part(Path("b"), "y")]
    assert read_side("a:x,b") == [Part(Path("a"), "x"), Part(Path("b"), None)]
    assert read_side("b,a") == [Part(Path("b"), None), Part(Path("a"), None)]
    assert read_side("a,b") == [Part(Path("a,b"), None)]
    assert read_side("a,b:x") == [Part(Path("a,b"), "x")]


@given(NAMES.filter(lambda text: text not in (".", "..")))
def test_a_place_that_exists_is_taken_by_its_whole_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    place = tmp_path_factory.mktemp("odd") / f"x{name}"
    place.mkdir()
    assert read_side(str(place)) == [Part(place, None)]
    assert read_side(f"{place}:a") == [Part(place, "a")]


@given(st.text(max_size=20))
def test_any_word_is_read_or_refused(word: str) -> None:
    part = read_part(word)
    rebuilt = str(part.place) + (f":{part.role}" if part.role else "")
    assert Path(rebuilt) == Path(word)
    assert is_comparison([word, "other"]) == ("=" not in word and Path(word).suffix.lower() not in (".yaml", ".yml"))


class Successor(torch.nn.Module):
    """Says that item + step follows item, with the others by their distance."""

    max_length = 10

    def __init__(self, n_items: int, step: int) -> None:
        super().__init__()
        gaps = (torch.arange(n_items)[None] - torch.arange(n_items)[:, None] - step) % n_items
        self.scores = torch.nn.Parameter(-gaps.float())

    def item_vectors(self) -> torch.Tensor:
        return torch.eye(len(self.scores))

    def encode_last(self, histories: torch.Tensor, lengths: torch.Tensor, _table: torch.Tensor) -> torch.Tensor:
        return self.scores[histories[torch.arange(len(lengths)), lengths - 1]]


def test_what_the_stage_writes_is_what_is_compared(cli: Cli, tmp_path: Path, tiny_dataset: Dataset) -> None:
    settings = {"data": {"source": "x"}, "evaluate": {"bootstrap": 20, "timing_users": 3, "cutoffs": [1, 5]}}
    fit = SimpleNamespace(history=[{"epoch": 1, "loss": 1.0, "valid": {"ndcg@5": 0.5}}])
    entries: list[Any] = [
        Entry(f"model {step}", role, Successor(tiny_dataset.n_items, step), fit)  # type: ignore[arg-type]
        for role, step in (("student", 0), ("distilled", 1))
    ]
    folder = tmp_path / "run" / "evaluate-1"
    evaluate(tiny_dataset, entries, checked(Config, settings, where="test"), folder)
    write_json(folder / "stage.json", {})
    found = compared(cli, tmp_path, f"{tmp_path / 'run'}:student", tmp_path / "run", "--metrics", "hr@1")
    results = read_json(folder / "results.json")
    student, distilled = results["rows"]
    assert found["dataset"]["fingerprint"] == results["dataset"]["fingerprint"] == tiny_dataset.fingerprint
    assert found["comparisons"][0]["other_mean"] == distilled["metrics"]["hr@1"] == 1
    assert found["comparisons"][0]["baseline_mean"] == student["metrics"]["hr@1"] == 0
    assert found["comparisons"][0]["verdict"] == "better"
    check_row(distilled, n=len(tiny_dataset.examples("test")), cutoffs=[1, 5])
    assert distilled["lists"]["coverage@1"] == pytest.approx(
        len(np.unique(tiny_dataset.items[tiny_dataset.examples("test")])) / tiny_dataset.n_items
    )
    page = (folder / "report.html").read_text()
    for group in distilled["groups"]["history"]:
        assert f"<td>{group['label']}</td><td>{group['n']}</td>" in page
    assert "without cold targets" in page
    assert f"{distilled['lists']['popularity@5']:.3f}" in page
    assert json.dumps(results, allow_nan=False)


def check_row(row: dict[str, Any], n: int, cutoffs: list[int]) -> None:
    """Check that groups share out the examples and average to the whole."""
    assert row["without_cold"]["n"] <= n
    main = main_cutoff(cutoffs)
    assert set(row["groups"]) == {"history", "target_popularity"}
    for groups in row["groups"].values():
        assert sum(group["n"] for group in groups) == n
        for name in (f"hr@{main}", f"ndcg@{main}"):
            mean = sum(group["n"] * group["metrics"][name] for group in groups) / n
            assert mean == pytest.approx(row["metrics"][name])
            assert all(set(group["metrics"]) == set(group["ci95"]) for group in groups)
