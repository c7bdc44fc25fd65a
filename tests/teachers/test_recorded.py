"""Recorded rankings: every count by hand, every kind of file, ids that do not match, and GPT-4's rankings of HetRec."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file

from distilrec.columns import EXAMPLE, ITEMS, SCORES
from distilrec.config import DataSettings
from distilrec.data.dataset import Dataset
from distilrec.data.prepare import prepare
from distilrec.errors import InputError
from distilrec.teachers.recorded import Recorded, RecordedSettings, read_recorded

MakeDataset = Callable[..., Dataset]
KEEP_ALL = {"k_core_user": 1, "k_core_item": 1, "min_history": 2, "duplicates": "none"}
SHARED = Path(os.environ.get("DISTILREC_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
HISTORIES = ["abcde", "bcde", "cde", "dabcea"]
# Internal ids: a 0, b 1, c 2, d 3, e 4. Histories begin at 0, 5, 9, 12; leave-one-out trains on 3, 2, 1, 4 items of them,
# so that the training examples are 1 2 | 6 | none | 13 14 15 and the last ones of u000, u001, u003 are 2, 6, 15.


@pytest.fixture(scope="module")
def dataset(make_dataset: MakeDataset) -> Dataset:
    return make_dataset([list(items) for items in HISTORIES])


def imported(path: Path, dataset: Dataset, content: str | None = None, **settings: Any) -> Recorded:
    if content is not None:
        path.write_text(content, encoding="utf-8")
    return read_recorded(RecordedSettings.model_validate({"rankings": path, **settings}), dataset)


def refused(path: Path, dataset: Dataset, content: str | None = None, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        imported(path, dataset, content, **settings)
    assert "\n" not in caught.value.line()
    return caught.value.line()


def rows(recorded: Recorded) -> list[tuple[int, list[int], list[float]]]:
    assert recorded.frame.schema == {EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)}
    return recorded.frame.rows()


def test_sessions_mean_their_last_training_example(dataset: Dataset, tmp_path: Path) -> None:
    recorded = imported(tmp_path / "r.csv", dataset, "session_id,items\nu003,e a\nu000,b\nu001,c d e\n")
    assert rows(recorded) == [(2, [1], [0.0]), (6, [2, 3, 4], [0.0] * 3), (15, [4, 0], [0.0] * 2)]
    assert recorded.vectors is None
    assert recorded.report.lines() == ["3 rows read, 3 kept"]


def test_every_count_by_hand(dataset: Dataset, tmp_path: Path) -> None:
    content = """user_id,items,scores
u000,a b z a c,5 4 3 2 1
u001,e d c,1 2 3
u009,a,1
u002,a,1
u000,e,1
u003,y x,2 1
,a,1
u009,b,1
"""
    recorded = imported(tmp_path / "r.csv", dataset, content, tolerance=0.5)
    assert rows(recorded) == [(2, [0, 1, 2], [5.0, 4.0, 1.0]), (6, [2, 3, 4], [3.0, 2.0, 1.0])]
    assert recorded.report.as_json() == {
        "rows": 8, "unknown_keys": 3, "unknown_key_ids": ["u009", "(empty)"], "held_out": 1, "repeated_rows": 1,
        "empty_lists": 1, "kept": 2, "mentions": 10, "unknown_items": 3, "unknown_item_ids": ["z", "y", "x"],
        "repeated_items": 1, "reordered": 1, "reversed": 1, "item_vectors": None, "gathered_rows": 0, "gathered": 0,
    }  # fmt: skip
    assert json.loads(json.dumps(recorded.report.as_json())) == recorded.report.as_json()
    assert recorded.report.lines() == [
        "8 rows read, 2 kept",
        "3 rows dropped, unknown to the data set ('u009', '(empty)')",
        "1 rows dropped, held out from training",
        "1 rows dropped, for an example that had one",
        "1 rows dropped, without any item of the catalogue",
        "3 of 10 item ids dropped, unknown ('z', 'y', 'x')",
        "1 of 10 item ids dropped, repeated in their list",
        "1 lists put in the order of their scores",
    ]


LONG = """u003,d,0.2,5
u000,b,0.5,2
u003,a,0.9,1
u001,e,0.1,1
u000,c,0.7,1
u003,e,0.4,4
u003,c,0.4,3
"""


@pytest.mark.parametrize("name", ["item_id", "item", "Item_ID", "items"])
def test_a_table_of_one_item_a_row_is_gathered_in_the_order_of_its_scores(
    dataset: Dataset, tmp_path: Path, name: str
) -> None:
    recorded = imported(tmp_path / "r.csv", dataset, f"user_id,{name},score,place\n{LONG}")
    assert [(example, items) for example, items, _ in rows(recorded)] == [(2, [2, 1]), (6, [4]), (15, [0, 4, 2, 3])]
    assert np.allclose(recorded.frame[SCORES].explode(), [0.7, 0.5, 0.1, 0.9, 0.4, 0.4, 0.2])
    assert recorded.report.lines() == [
        "7 rows read, 3 rankings kept",
        "6 rows of one item each gathered into 2 rankings",
        "2 lists put in the order of their scores",
    ]
    assert (recorded.report.rows, recorded.report.repeated_rows, recorded.report.empty_lists) == (7, 0, 0)


def test_rows_of_one_item_by_rank_and_as_they_stand(dataset: Dataset, tmp_path: Path) -> None:
    ranked = imported(tmp_path / "r.csv", dataset, f"user_id,item_id,place,rank\n{LONG}")
    assert rows(ranked) == [(2, [2, 1], [0.0] * 2), (6, [4], [0.0]), (15, [0, 2, 4, 3], [0.0] * 4)]
    standing = imported(tmp_path / "r.csv", dataset, f"user_id,item_id,place,number\n{LONG}")
    assert [items for _, items, _ in rows(standing)] == [[1, 2], [4], [3, 0, 4, 2]]
    both = imported(tmp_path / "r.csv", dataset, f"user_id,item_id,score,rank\n{LONG}")
    assert [items for _, items, _ in rows(both)] == [[2, 1], [4], [0, 2, 4, 3]]  # equal scores by rank
    nearest = imported(tmp_path / "r.csv", dataset, f"user_id,item_id,distance,n\n{LONG}", scores_are="distances")
    assert [items for _, items, _ in rows(nearest)] == [[1, 2], [4], [3, 4, 2, 0]]
    chosen = imported(tmp_path / "r.csv", dataset, f"user_id,what,x,rank\n{LONG}", columns={"items": "what"})
    assert rows(chosen) == rows(ranked)


def test_long_tables_of_every_kind_say_the_same(dataset: Dataset, tmp_path: Path) -> None:
    wanted = rows(imported(tmp_path / "r.csv", dataset, f"user_id,item_id,score,rank\n{LONG}"))
    frame = pl.read_csv(tmp_path / "r.csv")
    frame.write_parquet(tmp_path / "r.parquet")
    frame.write_ndjson(tmp_path / "r.jsonl")
    assert rows(imported(tmp_path / "r.parquet", dataset)) == wanted
    assert rows(imported(tmp_path / "r.jsonl", dataset)) == wanted


def test_a_column_of_ranks_beside_lists_is_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    frame = {"user_id": ["u000", "u000"], "items": [["a", "b"], ["c"]], "rank": [[{"x": 1}], []]}
    pl.DataFrame(frame).write_parquet(tmp_path / "r.parquet")
    recorded = imported(tmp_path / "r.parquet", dataset)
    assert rows(recorded) == [(2, [0, 1], [0.0, 0.0])]
    assert recorded.report.repeated_rows == 1


def test_in_a_long_table_every_count_by_hand(dataset: Dataset, tmp_path: Path) -> None:
    content = """user_id,item_id,score
u000,a,1
u000,z,2
u000,a,3
u000,b,0
u009,a,1
u009,b,1
u002,a,1
u002,b,1
u001,y,1
u003,c d,1 2
u003,e,3
"""
    recorded = imported(tmp_path / "r.csv", dataset, content, tolerance=0.5)
    assert rows(recorded) == [(2, [0, 1], [1.0, 0.0]), (15, [3, 2], [2.0, 1.0])]  # u003 has a list, so the first counts
    report = recorded.report
    assert (report.rows, report.unknown_keys, report.held_out, report.repeated_rows) == (11, 2, 2, 1)
    assert (report.gathered_rows, report.gathered, report.empty_lists, report.kept) == (4, 1, 1, 2)
    assert (report.mentions, report.unknown_items, report.repeated_items) == (7, 2, 1)
    assert report.unknown_item_ids == ("z", "y")
    hole = imported(tmp_path / "r.csv", dataset, "user_id,item_id\nu000,\nu000,b\nu001,a\n")
    assert rows(hole) == [(2, [1], [0.0]), (6, [0], [0.0])]
    alone = imported(tmp_path / "r.csv", dataset, "user_id,item_id\nu000,a\nu001,b\n")
    assert alone.report.lines() == ["2 rows read, 2 kept"]


def test_example_ids(dataset: Dataset, tmp_path: Path) -> None:
    # 5 is the first item of a history and 18 lies behind the last: no examples; 3 and 8 are held out.
    content = "example_id,items\n15,a\n1,b\n5,a\n3,a\n8,a\n18,a\n-1,a\nx,a\n13,c\n"
    recorded = imported(tmp_path / "r.csv", dataset, content, tolerance=0.5)
    assert rows(recorded) == [(1, [1], [0.0]), (13, [2], [0.0]), (15, [0], [0.0])]
    report = recorded.report
    assert (report.unknown_keys, report.unknown_key_ids, report.held_out) == (4, ("5", "18", "-1", "x"), 2)


@pytest.mark.parametrize(
    "cell", ["c b", '"c,b"', '"c, b"', "c;b", "c|b", " c  b ", '"[""c"", ""b""]"', '" [""c"",""b""] "', "c;;b;"]
)
def test_lists_in_cells(dataset: Dataset, tmp_path: Path, cell: str) -> None:
    assert rows(imported(tmp_path / "r.csv", dataset, f"user,items\nu000,{cell}\n")) == [(2, [2, 1], [0.0, 0.0])]


def test_the_kinds_of_files_say_the_same(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Numbers as ids, ids with leading zeros, and ids with blanks, where the file can hold them."""
    dataset = make_dataset([["7", "007", "a b", "12"], ["12", "7", "a b", "007"]])  # ids: 007 0, 12 1, 7 2, "a b" 3
    wanted = [(1, [2, 3, 0], [0.5, 0.25, -1.0]), (5, [1, 2], [2.0, 1.0])]
    lines = [
        '{"session": "u000", "items": [7, "a b", "007"], "scores": [0.5, 0.25, -1]}',
        "",
        '{"scores": [2, 1], "session": "u001", "items": ["12", 7.0]}',
    ]
    assert rows(imported(tmp_path / "r.jsonl", dataset, "\n".join(lines))) == wanted
    cells = 'session,items,scores\nu000,"[7, ""a b"", ""007""]",.5 .25 -1\nu001,12 7,2 1\n'
    assert rows(imported(tmp_path / "r.csv", dataset, cells)) == wanted
    texts = pl.DataFrame(
        {"session": ["u000", "u001"], "items": [["7", "a b", "007"], ["12", "7"]], "scores": [[0.5, 0.25, -1], [2, 1]]}
    )
    texts.write_parquet(tmp_path / "r.parquet")
    assert rows(imported(tmp_path / "r.parquet", dataset)) == wanted
    for kind in (pl.List(pl.Int64), pl.List(pl.Float64), pl.Array(pl.Int32, 2)):
        numbers = pl.DataFrame({"session": ["u001"], "items": pl.Series([[12, 7]], dtype=kind), "scores": [[2.0, 1.0]]})
        numbers.write_parquet(tmp_path / "n.parquet")
        assert rows(imported(tmp_path / "n.parquet", dataset)) == wanted[1:]


def test_numbers_as_session_ids(make_dataset: MakeDataset, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "session_id,item_id,time\n" + "".join(f"{s},{i},{t}\n" for s in (4, 12) for t, i in enumerate("abcd"))
    )
    settings = DataSettings.model_validate({"interactions": log, "filters": KEEP_ALL})
    dataset = prepare(log, None, settings, tmp_path / "data", seed=0, say=lambda _line: None)
    ids = {"12": 1, "4": 5}  # sorted as text: "12" comes first
    for session, example in ids.items():
        path = tmp_path / "r.parquet"
        for kind in (pl.Int64, pl.Float64, pl.String):
            pl.DataFrame({"session_id": pl.Series([session]).cast(kind), "items": [["a"]]}).write_parquet(path)
            assert rows(imported(path, dataset)) == [(example, [0], [0.0])]


def test_auto_takes_the_only_key_that_fits(dataset: Dataset, make_dataset: MakeDataset, tmp_path: Path) -> None:
    assert rows(imported(tmp_path / "r.csv", dataset, "id,items\nu000,a\n"))[0][0] == 2
    assert rows(imported(tmp_path / "r.csv", dataset, "id,items\n14,a\n"))[0][0] == 14
    line = refused(tmp_path / "r.csv", dataset, "id,items\nu000,a\n14,a\n")
    assert "neither as example ids nor as user or session ids" in line
    assert "column 'id'" in line
    assert "teacher.key=user" in line
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,time\n" + "".join(f"{u},{i},{t}\n" for u in (1, 2) for t, i in enumerate("abcde")))
    settings = DataSettings.model_validate({"interactions": log, "filters": KEEP_ALL})
    numbered = prepare(log, None, settings, tmp_path / "data", seed=0, say=lambda _line: None)
    content = "id,items\n1,a\n2,a\n"
    assert "both as example ids and as user" in refused(tmp_path / "r.csv", numbered, content)
    assert [row[0] for row in rows(imported(tmp_path / "r.csv", numbered, content, key="example"))] == [1, 2]
    assert [row[0] for row in rows(imported(tmp_path / "r.csv", numbered, content, key="user"))] == [2, 7]
    both = "user_id,example_id,items\n2,1,a\n"
    assert rows(imported(tmp_path / "r.csv", numbered, both))[0][0] == 1
    assert rows(imported(tmp_path / "r.csv", numbered, both, key="user"))[0][0] == 7


def test_distances_are_turned_round(dataset: Dataset, tmp_path: Path) -> None:
    content = "user_id,items,distances\nu000,a b c,0 1.5 2\nu001,a b,3 1\n"
    recorded = imported(tmp_path / "r.csv", dataset, content, scores_are="distances")
    assert rows(recorded) == [(2, [0, 1, 2], [0.0, -1.5, -2.0]), (6, [1, 0], [-1.0, -3.0])]
    assert (recorded.report.reordered, recorded.report.reversed) == (1, 1)
    assert "teacher.scores_are=distances" in refused(tmp_path / "r.csv", dataset, content)


def test_scores_that_look_like_distances_are_pointed_out(dataset: Dataset, tmp_path: Path) -> None:
    content = "user_id,items,scores\nu000,a b c,0 1 2\nu001,a b,1 3\nu003,a b c,2 1 3\n"
    report = imported(tmp_path / "r.csv", dataset, content).report
    assert (report.reordered, report.reversed) == (3, 2)
    assert "the scores of 2 lists rise from first to last: if lower is surer, they are distances" in report.lines()


def test_equal_scores_keep_their_order(dataset: Dataset, tmp_path: Path) -> None:
    recorded = imported(tmp_path / "r.csv", dataset, "user,items,scores\nu000,e d c b a,1 2 1 2 1\n")
    assert rows(recorded) == [(2, [3, 1, 4, 2, 0], [2.0, 2.0, 1.0, 1.0, 1.0])]


def test_columns_by_name(dataset: Dataset, tmp_path: Path) -> None:
    content = "who,what,sure,scores\nu000,a b,2 1,9 9\n"
    columns = {"key": "who", "items": "what", "scores": "sure"}
    assert rows(imported(tmp_path / "r.csv", dataset, content, columns=columns)) == [(2, [0, 1], [2.0, 1.0])]
    line = refused(tmp_path / "r.csv", dataset, content, columns={**columns, "items": "wat"})
    assert "no column 'wat'" in line
    assert "Correct teacher.columns.items" in line
    assert "no key column found" in refused(tmp_path / "r.csv", dataset, content)
    assert "the items column is not clear: 'items', 'Items'" in refused(
        tmp_path / "r.csv", dataset, "user_id,items,Items\nu000,a,b\n"
    )


def test_the_tolerance_is_a_share_of_rows_and_of_mentions(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    content = "user_id,items\nu000,a z\nu001,a b\nu003,a b\nu7,a\n"
    line = refused(path, dataset, content)
    assert line.startswith(f"{path}: 1 of 4 rows are for keys that are not in the data set: 'u7'.")
    assert "teacher.tolerance=0.25 or more" in line
    assert imported(path, dataset, content, tolerance=0.25).report.kept == 3
    content = "user_id,items\nu000,a z y\nu001,b\nu003,x w v u t\n"
    line = refused(path, dataset, content)
    assert "7 of 9 item ids are of items that are not in the data set: 'z', 'y', 'x', 'w', 'v'." in line
    assert "teacher.tolerance=0.778 or more" in line  # rounded up, so that the remedy does help
    assert "7 of 9" in refused(path, dataset, content, tolerance=0.777)
    assert imported(path, dataset, content, tolerance=0.778).report.empty_lists == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("user_id,items,scores\nu000,a b,1\n", ["line 2, column 'scores'", "1 scores for 2 items"]),
        ("user_id,items,scores\nu000,a,1\nu001,a b,\n", ["line 3", "0 scores for 2 items (1 rows"]),
        ("user_id,items,scores\nu000,a,1\nu002,a,1\nu001,a b,1 nan\n", ["line 4", "no finite numbers"]),
        ("user_id,items,scores\nu000,a,1\nu001,a b,1 1e39\n", ["line 3", "no finite numbers"]),
        ("user_id,items,scores\nu000,a b,1 high\n", ["line 2", "1 scores are no finite numbers"]),
        ("user_id,items\nu000,\"['a', 'b']\"\n", ["line 2, column 'items'", "begins like a JSON list"]),
        ('user_id,items\nu000,a\nu001,"[[""a""]]"\n', ["line 3, column 'items'", "plain values"]),
        ("user_id,items\nu002,a\n", ["none of 1 rows can be used", "1 are held out"]),
        ("user_id,items\nu000,\n", ["none of 1 rows can be used"]),
        ("user_id\nu000\n", ["no items column found among 'user_id'"]),
        ("user_id,item_id,rank\nu000,a,2\nu000,b,first\n", ["line 3, column 'rank'", "1 ranks are no finite numbers."]),
        ("user_id,item_id,rank\nu000,a,2\nu000,b,\n", ["line 3, column 'rank'"]),
        ("user_id,item_id,score\nu003,a,1\nu000,b,1\nu003,c,\n", ["line 4, column 'score'", "0 scores for 1 items"]),
        ("user_id,item_id,score\nu003,a,1\nu000,b,1\nu003,c,x\n", ["line 4, column 'score'", "no finite numbers"]),
        ("user_id,item_id,item\nu000,a,b\n", ["the items column is not clear: 'item_id', 'item'"]),
        ("who,item_id\nu000,a\n", ["no key column found"]),
        ("user_id,items\n", ["no rows"]),
        ("", ["empty"]),
    ],
)
def test_bad_tables(dataset: Dataset, tmp_path: Path, content: str, words: list[str]) -> None:
    line = refused(tmp_path / "r.csv", dataset, content)
    for word in words:
        assert word in line


def test_bad_files(dataset: Dataset, tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv", dataset)
    assert "line 2" in refused(tmp_path / "r.jsonl", dataset, '{"user": "u000", "items": ["a"]}\n{"user": \n')
    content = '{"user": "u000", "items": ["a"], "scores": [1]}\n\n{"user": "u001", "items": ["a"], "scores": [NaN]}\n'
    assert "line 3, column 'scores': 1 scores are no finite" in refused(tmp_path / "r.jsonl", dataset, content)
    assert "not a Parquet file" in refused(tmp_path / "r.parquet", dataset, "user,items\n")
    pl.DataFrame({"user": ["u000"], "items": [[["a"]]]}).write_parquet(tmp_path / "r.parquet")
    assert "a list of ids or numbers is expected" in refused(tmp_path / "r.parquet", dataset)


def test_scores_found_only_in_later_lines_are_read(dataset: Dataset, tmp_path: Path) -> None:
    lines = ['{"user": "u000", "items": ["a"]}', '{"user": "u001", "items": ["a"], "scores": [1]}']
    assert "line 1, column 'scores': 0 scores for 1 items" in refused(tmp_path / "r.jsonl", dataset, "\n".join(lines))


@given(data=st.data())
def test_against_a_loop(data: st.DataObject, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any table with scores, read row by row in plain Python, gives the same rows and the same counts."""
    keys = st.sampled_from(["u000", "u001", "u002", "u003", "u004"])
    mention = st.tuples(st.sampled_from("abcdexyz"), st.integers(-3, 3))
    table = data.draw(st.lists(st.tuples(keys, st.lists(mention, max_size=8)), min_size=1, max_size=8))
    examples = {"u000": 2, "u001": 6, "u003": 15}
    rows_of = {key: [ranked for other, ranked in table if other == key] for key in examples}
    long = {key for key, own in rows_of.items() if len(own) > 1 and max(map(len, own)) == 1}
    wanted: dict[int, list[tuple[int, float]]] = {}
    unknown = held = repeated = foreign = again = mentions = 0
    for key, cell in table:
        ranked = [pair for own in rows_of[key] for pair in own] if key in long else cell
        unknown += key == "u004"
        held += key == "u002"
        repeated += examples.get(key, -1) in wanted and key not in long
        if key not in examples or examples[key] in wanted:
            continue
        kept: dict[str, int] = {}
        for item, score in ranked:
            mentions += 1
            foreign += item in "xyz"
            again += item in kept
            if item in "abcde":
                kept.setdefault(item, score)
        wanted[examples[key]] = sorted(
            (("abcde".index(i), float(s)) for i, s in kept.items()), key=lambda pair: -pair[1]
        )
    empty = sum(not ranked for ranked in wanted.values())
    path = tmp_path_factory.mktemp("loop") / "r.jsonl"
    cells = [{"user": key, "items": [i for i, _ in r], "scores": [s for _, s in r]} for key, r in table]
    content = "\n".join(json.dumps(row) for row in cells)
    if not any(wanted.values()):
        assert "can be used" in refused(path, dataset, content, tolerance=1)
        return
    recorded = imported(path, dataset, content, tolerance=1)
    assert rows(recorded) == [
        (example, [item for item, _ in ranked], [score for _, score in ranked])
        for example, ranked in sorted(wanted.items())
        if ranked
    ]
    report = recorded.report
    assert (report.unknown_keys, report.held_out, report.repeated_rows) == (unknown, held, repeated)
    assert (report.mentions, report.unknown_items, report.repeated_items) == (mentions, foreign, again)
    assert report.empty_lists == empty
    assert (report.gathered_rows, report.gathered) == (sum(len(rows_of[key]) for key in long), len(long))
    assert report.rows - report.gathered_rows + report.gathered == unknown + held + repeated + empty + report.kept


VECTORS = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 1e-30]])


def vectors_of(path: Path, dataset: Dataset) -> torch.Tensor:
    recorded = read_recorded(RecordedSettings(item_vectors=path), dataset)
    assert recorded.frame.is_empty()
    assert recorded.report.lines() == ["item vectors: 5 x 2"]
    assert recorded.report.as_json()["item_vectors"] == [5, 2]
    assert rows(recorded) == []
    assert recorded.vectors is not None
    assert recorded.vectors.dtype == torch.float32
    return recorded.vectors


def test_item_vectors_of_every_kind(dataset: Dataset, tmp_path: Path) -> None:
    save_file({"item_vectors": VECTORS}, tmp_path / "v.safetensors")
    np.save(tmp_path / "v.npy", VECTORS.double().numpy())
    torch.save(VECTORS, tmp_path / "v.pt")
    order = [3, 1, 4, 0, 2]
    frame = pl.DataFrame(
        {"item_id": [*(dataset.item_ids[i] for i in order), "z"], "v": [*VECTORS[order].tolist(), [9.0, 9.0]]}
    )
    frame.write_parquet(tmp_path / "v.parquet")
    for kind in ("safetensors", "npy", "pt", "parquet"):
        assert torch.equal(vectors_of(tmp_path / f"v.{kind}", dataset), VECTORS)


class Trap:
    """A pickle that would leave a mark if it were run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_nothing_in_a_vector_file_is_run(dataset: Dataset, tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "mark"), tmp_path / "v.pt")
    np.save(tmp_path / "v.npy", np.array([Trap(tmp_path / "mark")], dtype=object), allow_pickle=True)
    for name, words in (("v.pt", "not a file of one plain tensor"), ("v.npy", "not a plain .npy array")):
        with pytest.raises(InputError, match=words):
            read_recorded(RecordedSettings(item_vectors=tmp_path / name), dataset)
    assert not (tmp_path / "mark").exists()


def test_bad_item_vectors(dataset: Dataset, tmp_path: Path) -> None:
    def line(name: str) -> str:
        with pytest.raises(InputError) as caught:
            read_recorded(RecordedSettings(item_vectors=tmp_path / name), dataset)
        assert "\n" not in caught.value.line()
        return caught.value.line()

    broken = VECTORS.clone()
    broken[3, 1] = torch.nan
    np.save(tmp_path / "nan.npy", broken.numpy())
    assert "1 of 5 item vectors hold a number that is not finite ('d')" in line("nan.npy")
    np.save(tmp_path / "short.npy", VECTORS[:4].numpy())
    assert "shape [4, 2], [5, any] is expected" in line("short.npy")
    np.save(tmp_path / "flat.npy", VECTORS[:, 0].numpy())
    assert "shape [5], [5, any]" in line("flat.npy")
    np.save(tmp_path / "int.npy", np.zeros((5, 2), dtype=np.int64))
    assert "are int64, floats are expected" in line("int.npy")
    torch.save({"a": VECTORS}, tmp_path / "dict.pt")
    assert "holds a dict, one tensor is expected" in line("dict.pt")
    save_file({"other": VECTORS}, tmp_path / "other.safetensors")
    assert "no tensor 'item_vectors'; there is 'other'" in line("other.safetensors")
    for name in ("torn.pt", "torn.npy", "torn.safetensors", "torn.parquet", "v.bin"):
        (tmp_path / name).write_bytes(b"\x00\x01 nothing of the kind")
        assert str(tmp_path / name) in line(name)
    (tmp_path / "half.npy").write_bytes(b"PK\x03\x04 the first half of an .npz")
    assert "not a plain .npy array" in line("half.npy")
    ids = dataset.item_ids
    for name, frame, words in (
        ("few", {"item_id": ids[:3], "v": VECTORS[:3].tolist()}, "2 of 5 items have no vector ('d', 'e')"),
        (
            "twice",
            {"item_id": [*ids, "a"], "v": [*VECTORS.tolist(), [1.0, 1.0]]},
            "1 items have more than one vector ('a')",
        ),
        ("ragged", {"item_id": ids, "v": [*VECTORS[:4].tolist(), [1.0]]}, "vectors of 1 to 2 numbers"),
        ("void", {"item_id": ids, "v": pl.Series([[]] * 5, dtype=pl.List(pl.Float32))}, "one length above 0"),
        ("hole", {"item_id": ids, "v": [*VECTORS[:4].tolist(), [1.0, None]]}, "not finite ('e')"),
        ("words", {"item_id": ids, "v": [["x", "y"]] * 5}, "do not hold numbers"),
        ("record", {"item_id": ids, "v": [{"x": 1.0}] * 5}, "one column of ids and one of lists are expected"),
        ("flat", {"item_id": ids, "v": [1.0] * 5}, "one column of ids and one of lists are expected"),
    ):
        pl.DataFrame(frame).write_parquet(tmp_path / f"{name}.parquet")
        assert words in line(f"{name}.parquet")


def test_settings() -> None:
    assert RecordedSettings(rankings=Path("r.csv")).model_dump() == {
        "rankings": Path("r.csv"), "item_vectors": None, "folder": None, "key": "auto", "tolerance": 0.0,
        "scores_are": "scores", "columns": {"key": None, "items": None, "scores": None},
    }  # fmt: skip
    with pytest.raises(ValidationError, match="give rankings"):
        RecordedSettings()
    with pytest.raises(ValidationError, match="not both"):
        RecordedSettings(rankings=Path("r.csv"), folder=Path("f"))
    with pytest.raises(ValidationError, match="tolerance"):
        RecordedSettings(rankings=Path("r.csv"), tolerance=1.5)


@pytest.mark.skipif(
    not (SHARED / "hetrec-ml").is_dir(), reason="needs hetrec-ml; set DISTILREC_SHARED_DATA to its parent"
)
def test_gpt4_rankings_of_hetrec(tmp_path: Path) -> None:
    """The counts equal those of a plain loop over the files, and each list that of its session's last training example."""
    source, log = SHARED / "hetrec-ml", tmp_path / "log.csv"
    with (source / "sessions.csv").open(newline="") as handle:
        sessions = {row["session_id"]: [*row["items"].split(), row["label"]] for row in csv.DictReader(handle)}
    with log.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["session_id", "item_id", "time"])
        writer.writerows((session, item, session) for session, items in sessions.items() for item in items)
    settings = DataSettings.model_validate(
        {"interactions": log, "items": source / "items.csv", "filters": KEEP_ALL, "split": {"kind": "last_sessions"}}
    )
    dataset = prepare(log, source / "items.csv", settings, tmp_path / "data", seed=0, say=lambda _line: None)
    trained = {int(dataset.user_ids[row]) for row in np.flatnonzero(dataset.split.train_end)}
    assert trained == set(range(7393))
    assert {int(dataset.user_ids[row]) for row in dataset.rows_of(dataset.split.valid)} == set(range(7393, 9858))
    assert {int(dataset.user_ids[row]) for row in dataset.rows_of(dataset.split.test)} == set(range(9858, 12_323))

    catalogue = {item for items in sessions.values() for item in items}
    wanted, mentions, unknown, repeated, empty = {}, 0, 0, 0, 0
    with (source / "gpt4_rankings.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            mentioned = row["items"].split()
            known = [item for item in mentioned if item in catalogue]
            mentions += len(mentioned)
            unknown += len(mentioned) - len(known)
            repeated += len(known) - len(set(known))
            empty += not known
            wanted[row["session_id"]] = list(dict.fromkeys(known))
    assert len(wanted) == 4992

    recorded = read_recorded(RecordedSettings(rankings=source / "gpt4_rankings.csv", tolerance=0.05), dataset)
    report = recorded.report
    assert (report.rows, report.unknown_keys, report.held_out, report.repeated_rows) == (4992, 0, 0, 0)
    assert (report.mentions, report.unknown_items, report.repeated_items) == (mentions, unknown, repeated)
    assert (report.kept, report.empty_lists) == (4992 - empty, empty)
    assert repeated > 0
    ids, users = dataset.item_ids, dataset.user_ids
    for example, items, _ in recorded.frame.iter_rows():
        row = int(dataset.rows_of(np.array([example]))[0])
        session = users[row]
        assert example == dataset.offsets[row + 1] - 1  # the session's label, as its authors use it
        assert ids[dataset.items[example]] == sessions[session][-1]
        assert [ids[item] for item in items] == wanted[session]
