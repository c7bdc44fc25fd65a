"""Reading logs: roles, times in every dress, ids and numbers that are none."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.columns import ITEM, RATING, ROW, TIME, USER
from distilrec.config import ColumnSettings
from distilrec.data.interactions import Interactions, read_interactions
from distilrec.errors import InputError

NOON = 1_717_156_800.0  # 2024-05-31 12:00:00 UTC


def read(path: Path, content: str, **columns: str) -> Interactions:
    path.write_bytes(content.encode())
    return read_interactions(path, ColumnSettings(**columns))  # type: ignore[arg-type]


def test_a_log_in_our_columns(tmp_path: Path) -> None:
    log = read(tmp_path / "a.csv", "rating,timestamp,item_id,user_id,extra\n4.5,100,i1, u1 ,x\n,50,i 2,u1,y\n")
    assert log.frame.columns == [USER, ITEM, TIME, RATING, ROW]
    assert log.frame.rows() == [("u1", "i1", 100.0, 4.5, 1), ("u1", "i 2", 50.0, None, 2)]
    assert log.roles == {USER: "user_id", ITEM: "item_id", TIME: "timestamp", RATING: "rating"}
    assert log.has_time
    assert log.notes == ()


def test_chosen_columns_win(tmp_path: Path) -> None:
    log = read(tmp_path / "a.csv", "user_id,buyer,item_id,when\nu,b,i,7\n", user="buyer", time="when")
    assert log.frame.row(0) == ("b", "i", 7.0, None, 1)


def test_without_a_clock_the_order_of_the_rows_counts_and_that_is_said(tmp_path: Path) -> None:
    log = read(tmp_path / "a.csv", "user_id,item_id\nu,i\n")
    assert not log.has_time
    assert log.frame[TIME].to_list() == [None]
    assert log.notes == ("no time column: the order of the rows is taken as the order in time",)


def test_columns_that_may_be_the_clock_are_named(tmp_path: Path) -> None:
    log = read(tmp_path / "a.csv", "user_id,item_id,rating,when,shop\nu,i,1,2,3\n")
    assert log.notes == (
        "no time column: the order of the rows is taken as the order in time; "
        "if 'when' or 'shop' is the time, set data.columns.time=NAME",
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "u000,i010\nu000,i011\nu001,i010\n"),  # a name is a value too
        ("a.csv", "196,242,3,881250949\n186,302,3,891717742\n"),  # numbers over numbers
        ("a.tsv", "x\t242\t3\ny\t302\t3\n"),
        ("a.inter", "196\t242\t3\n186\t302\t3\n"),
    ],
)
def test_a_log_without_a_header_is_told_so(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InputError, match=r"line 1: the file seems to have no header line.*user_id,item_id,timestamp"):
        read(tmp_path / name, content)


@pytest.mark.parametrize("content", ["who,what\n1,2\n", "who,what,2019\n1,2,3\n", "who,item_id\nwho,i\n"])
def test_strange_names_are_still_names(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match="no user column found"):
        read(tmp_path / "a.csv", content)


def test_numbers_as_names_may_be_chosen(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "0,1\nu,i\nv,0\n", user="0", item="1").frame[USER].to_list() == ["u", "v"]


def test_a_comment_that_looks_like_a_header_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: '# of' is no header\. Delete the line"):
        read(tmp_path / "a.csv", "# of, May\nuser_id,item_id\nu,i\n")


@pytest.mark.parametrize(
    ("cells", "where", "words"),
    [
        ('"u", "item_id": ["i", "j"]', "line 3, column 'item_id'", "the column holds lists, one id"),
        ('"u", "item_id": {"id": 1}', "line 3, column 'item_id'", "the column holds objects, one id"),
        ('{"id": 1}, "item_id": 1', "line 3, column 'user_id'", "the column holds objects, one id"),
    ],
)
def test_nested_ids_of_json_are_refused(tmp_path: Path, cells: str, where: str, words: str) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(InputError) as caught:
        read(path, '{"user_id": "u", "item_id": "i"}\n\n{"user_id": ' + cells + "}\n")
    assert caught.value.where == f"{path}, {where}"
    assert words in caught.value.problem


def test_ids_that_json_made_floats_are_whole_again(tmp_path: Path) -> None:
    log = read(tmp_path / "a.jsonl", '{"user_id": 1.0, "item_id": 2.0}\n{"user_id": 2.0, "item_id": 1e15}\n')
    assert log.frame.select(USER, ITEM).rows() == [("1", "2"), ("2", "1000000000000000")]


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("1717156800", NOON),
        (" 1717156800 ", NOON),
        ("1717156800.25", NOON + 0.25),
        ("1717156800000", NOON),
        ("1717156800000000", NOON),
        ("1717156800000000000", NOON),
        ("-86400", -86400.0),
        ("17", 17.0),
        ("2024-05-31T12:00:00Z", NOON),
        ("2024-05-31T14:00:00+02:00", NOON),
        ("2024-05-31T12:00:00.500+0000", NOON + 0.5),
        ("2024-05-31 08:30:00-03:30", NOON),
        ("2024-05-31T12:00:00", NOON),
        ("2024-05-31 12:00:00.125", NOON + 0.125),
        ("2024-05-31 12:00", NOON),
        ("2024-05-31", NOON - 43_200),
        ("2024/05/31 12:00:00", NOON),
        ("2024/05/31", NOON - 43_200),
        ("31.05.2024 12:00", NOON),
        ("31.05.2024", NOON - 43_200),
    ],
)
def test_times(tmp_path: Path, cell: str, seconds: float) -> None:
    assert read(tmp_path / "a.csv", f"user_id,item_id,time\nu,i,{cell}\n").frame[TIME].to_list() == [seconds]


def test_the_unit_of_the_clock_is_said_and_decided_once_for_the_column(tmp_path: Path) -> None:
    log = read(tmp_path / "a.csv", "user_id,item_id,time\nu,i,0\nu,j,1717156800000\nu,k,1717156801500\n")
    assert log.frame[TIME].to_list() == [0.0, NOON, NOON + 1.5]
    assert log.notes == ("time read as milliseconds since 1970",)


@pytest.mark.parametrize(
    ("times", "line"),
    [
        ("1717156800,1717156800000,1717156801", 3),
        ("1717156800000,1717156801500,1717156800", 4),
        ("-1e9,1717156800000,2e9", 3),
    ],
)
def test_a_mixture_of_units_is_refused(tmp_path: Path, times: str, line: int) -> None:
    rows = "".join(f"u,i{n},{time}\n" for n, time in enumerate(times.split(",")))
    with pytest.raises(
        InputError, match=f"times look like milliseconds .*line {line}|line {line}.*times look like milli"
    ):
        read(tmp_path / "a.csv", "user_id,item_id,time\n" + rows)


@pytest.mark.parametrize(
    "times", ["50000000000,90000000000,110000000000,160000000000", "5,1717156800000", "1e9,4e9,9e9"]
)
def test_a_counter_that_runs_across_a_border_is_no_mixture(tmp_path: Path, times: str) -> None:
    rows = "".join(f"u,i{n},{time}\n" for n, time in enumerate(times.split(",")))
    found = read(tmp_path / "a.csv", "user_id,item_id,time\n" + rows).frame[TIME].to_list()
    assert found == sorted(found)


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([dt.datetime(2024, 5, 31, 12)]),
        pl.Series([dt.datetime(2024, 5, 31, 12)]).dt.cast_time_unit("ns"),
        pl.Series([dt.datetime(2024, 5, 31, 12)]).dt.cast_time_unit("ms"),
        pl.Series([dt.datetime(2024, 5, 31, 14, tzinfo=dt.timezone(dt.timedelta(hours=2)))]),
        pl.Series([dt.datetime(2024, 5, 31, 12)]).dt.replace_time_zone("America/New_York").dt.offset_by("-4h"),
        pl.Series([int(NOON * 1000)]),
        pl.Series([int(NOON)], dtype=pl.UInt32),
        pl.Series(["2024-05-31 12:00:00"]),
        pl.Series(["2024-05-31 12:00:00"], dtype=pl.Categorical),
    ],
)
def test_times_of_parquet(tmp_path: Path, column: pl.Series) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [2], "time": column}).write_parquet(tmp_path / "a.parquet")
    log = read_interactions(tmp_path / "a.parquet", ColumnSettings())
    assert log.frame.row(0) == ("1", "2", NOON, None, 1)


def test_ids_that_pandas_made_floats_are_whole_again(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1.0, 2.0], "item_id": [10.0, 1e15]}).write_parquet(tmp_path / "a.parquet")
    log = read_interactions(tmp_path / "a.parquet", ColumnSettings())
    assert log.frame.select(USER, ITEM).rows() == [("1", "10"), ("2", "1000000000000000")]


BROKEN = {
    "no user id": ("a.csv", "user_id,item_id,time\nu,i,1\n\n,i,1\n", "line 4, column 'user_id'", "the id is missing"),
    "item id of blanks": (
        "a.csv",
        'user_id,item_id,time\n"u\nu",i,1\nu, ,1\n',
        "line 4, column 'item_id'",
        "the id is missing",
    ),
    "short line": ("a.tsv", "user_id\titem_id\nu\ti\nu\n", "line 3, column 'item_id'", "the id is missing"),
    "JSON without an id": (
        "a.jsonl",
        '{"user_id": 1, "item_id": 2}\n{"user_id": 1}\n',
        "line 2, column 'item_id'",
        "the id is missing",
    ),
    "time of words": (
        "a.csv",
        "user_id,item_id,time\nu,i,1\nu,i,soon\nu,i,2\n",
        "line 3, column 'time'",
        "'soon' is neither",
    ),
    "no time": ("a.csv", "user_id,item_id,time\nu,i,1\nu,i,\nu,i,2\n", "line 3, column 'time'", "None is neither"),
    "endless time": (
        "a.csv",
        "user_id,item_id,time\nu,i,1\nu,i,inf\nu,i,2\n",
        "line 3, column 'time'",
        "'inf' is neither",
    ),
    "time not a number": (
        "a.csv",
        "user_id,item_id,time\nu,i,1\nu,i,NaN\nu,i,2\n",
        "line 3, column 'time'",
        "'NaN' is neither",
    ),
    "one number among dates": (
        "a.csv",
        "user_id,item_id,time\nu,i,2024-01-01\nu,i,2024-01-02\nu,i,17\n",
        "line 4, column 'time'",
        "'17' is neither",
    ),
    "a day that never was": (
        "a.csv",
        "user_id,item_id,time\nu,i,2024-02-28\nu,j,2024-02-30\n",
        "line 3, column 'time'",
        "'2024-02-30'",
    ),
    "dates of two kinds": (
        "a.csv",
        "user_id,item_id,time\nu,i,2024-02-28\nu,j,28.02.2024\nu,j,2024-02-29\n",
        "line 3, column 'time'",
        "'28.0",
    ),
    "all times are words": ("a.csv", "user_id,item_id,time\nu,i,x\nu,j,y\n", "line 2, column 'time'", "'x' is neither"),
    "rating of words": (
        "a.csv",
        "user_id,item_id,rating\nu,i,5\nu,i,good\n",
        "line 3, column 'rating'",
        "rating 'good' is not a number",
    ),
    "no user column": ("a.csv", "who,item_id\nu,i\n", "", "no user column found among 'who', 'item_id'"),
    "no item column": ("a.csv", "user_id,what\nu,i\n", "", "no item column found among 'user_id', 'what'"),
    "sequence of a user alone": ("a.txt", "u i j\n\nv\n", "line 3", "expected `user item item ...`"),
    "sequence with commas": ("a.txt", "user,item\n", "line 1", "expected `user item item ...`"),
    "no sequence": ("a.txt", "\n \n", "", "no interactions"),
    "sequence in latin-1": ("a.txt", b"u i\nu \xe9\n", "line 2", "not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN, ids=[name.replace(" ", "-") for name in BROKEN])
def test_a_broken_log_is_refused_by_line_and_column(tmp_path: Path, case: str) -> None:
    name, content, where, words = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_interactions(path, ColumnSettings())
    assert caught.value.where == (f"{path}, {where}" if where else str(path))
    assert words in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user_id": [1], "item_id": [[1, 2]]}, "the column holds lists"),
        ({"user_id": [{"id": 1}], "item_id": [2]}, "the column holds objects"),
        ({"user_id": [1, 1], "item_id": [2, None]}, "row 2, column 'item_id': the id is missing"),
        ({"user_id": [b"\xff"], "item_id": [2]}, "row 1, column 'user_id': the id is missing"),
        ({"user_id": [1], "item_id": [2], "time": [None]}, "row 1, column 'time': time None is neither"),
        ({"user_id": [1], "item_id": [2], "time": [dt.time(1)]}, "row 1, column 'time'"),
        ({"user_id": [1, 1, 1], "item_id": [2, 3, 4], "time": [5, None, None]}, "row 2, column 'time': time None"),
        (
            {"user_id": [1, 1], "item_id": [2, 2], "time": [dt.date(2024, 1, 1), None]},
            "row 2, column 'time': time None is neither",
        ),
        (
            {"user_id": [1, 1], "item_id": [2, 2], "time": [1.0, float("nan")]},
            "row 2, column 'time': time nan is neither",
        ),
        (
            {"user_id": [1], "item_id": [2], "rating": [float("inf")]},
            "row 1, column 'rating': rating inf is not a number",
        ),
    ],
)
def test_a_broken_parquet_log_is_refused_by_row(tmp_path: Path, columns: dict[str, list[object]], words: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError) as caught:
        read_interactions(tmp_path / "a.parquet", ColumnSettings())
    assert words in caught.value.line()


def test_sequence_text(tmp_path: Path) -> None:
    log = read(tmp_path / "a.txt", "u1 3 1  2\n\nu2\t9 9\n")
    assert log.frame.select(USER, ITEM, ROW).rows() == [
        ("u1", "3", 1),
        ("u1", "1", 2),
        ("u1", "2", 3),
        ("u2", "9", 4),
        ("u2", "9", 5),
    ]
    assert not log.has_time


WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4)


@given(histories=st.lists(st.tuples(WORD, st.lists(WORD, min_size=1, max_size=4)), min_size=1, max_size=5))
def test_sequence_text_says_the_same_as_a_table(tmp_path_factory: pytest.TempPathFactory, histories) -> None:
    folder = tmp_path_factory.mktemp("log")
    text = read(folder / "a.txt", "".join(" ".join([user, *items]) + "\n" for user, items in histories))
    table = read(
        folder / "a.csv", "user,item\n" + "".join(f"{user},{item}\n" for user, items in histories for item in items)
    )
    assert text.frame.equals(table.frame, null_equal=True)


@given(st.lists(st.floats(-1e10, 1e10), min_size=1, max_size=5), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_seconds_come_through_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], kind: str
) -> None:
    path = tmp_path_factory.mktemp("log") / f"a.{kind}"
    frame = pl.DataFrame({"user_id": ["u"] * len(times), "item_id": ["i"] * len(times), "time": times})
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
    assert read_interactions(path, ColumnSettings()).frame[TIME].to_list() == times
