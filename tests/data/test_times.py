"""Times: every form that is read, and those that are refused because they can be read in two ways."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from distilrec.columns import TIME
from distilrec.config import ColumnSettings, DataSettings
from distilrec.data.interactions import Interactions, read_interactions
from distilrec.data.prepare import prepare
from distilrec.errors import InputError


def read(path: Path, *cells: str) -> Interactions:
    path.write_text("user_id\titem_id\ttime\n" + "".join(f"u\ti{n}\t{cell}\n" for n, cell in enumerate(cells)))
    return read_interactions(path, ColumnSettings())


def utc(*parts: int) -> float:
    return dt.datetime(*parts, tzinfo=dt.UTC).timestamp()  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("25.11.2023 05:21:42", utc(2023, 11, 25, 5, 21, 42)),
        ("25.11.2023 5:21:42", utc(2023, 11, 25, 5, 21, 42)),
        ("2023-11-25T05:21Z", utc(2023, 11, 25, 5, 21)),
        ("2023-11-25 06:21+01:00", utc(2023, 11, 25, 5, 21)),
        ("2023-11-25T05:21", utc(2023, 11, 25, 5, 21)),
        ("2023/11/25 05:21", utc(2023, 11, 25, 5, 21)),
        ("2023-11-25 05:21:42 UTC", utc(2023, 11, 25, 5, 21, 42)),
        ("2023-11-25T05:21:42 GMT", utc(2023, 11, 25, 5, 21, 42)),
        ("2023-11-25 05:21:42,250", utc(2023, 11, 25, 5, 21, 42) + 0.25),
        ("2023-11-25T05:21:42,250Z", utc(2023, 11, 25, 5, 21, 42) + 0.25),
        ("11/25/2023 05:21", utc(2023, 11, 25, 5, 21)),
        ("25/11/2023 05:21", utc(2023, 11, 25, 5, 21)),
        ("11/25/2023", utc(2023, 11, 25)),
        ("25/11/2023 05:21:42", utc(2023, 11, 25, 5, 21, 42)),
        ("11/11/2023", utc(2023, 11, 11)),  # the same either way
        ("20231125", utc(2023, 11, 25)),
        ("20231125052142", utc(2023, 11, 25, 5, 21, 42)),
    ],
)
def test_forms(tmp_path: Path, cell: str, seconds: float) -> None:
    assert read(tmp_path / "a.tsv", cell, cell).frame[TIME].to_list() == [seconds, seconds]


def test_one_value_tells_whether_the_month_comes_first(tmp_path: Path) -> None:
    log = read(tmp_path / "a.tsv", "01/02/2023", "01/31/2023")
    assert log.frame[TIME].to_list() == [utc(2023, 1, 2), utc(2023, 1, 31)]
    assert log.notes == ("time read as dates (%m/%d/%Y)",)
    log = read(tmp_path / "a.tsv", "01/02/2023", "31/01/2023")
    assert log.frame[TIME].to_list() == [utc(2023, 2, 1), utc(2023, 1, 31)]
    assert log.notes == ("time read as dates (%d/%m/%Y)",)


def test_days_and_months_that_may_be_either_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.tsv", "03/03/2023 10:00", "01/02/2023 10:00", "05/06/2023 10:00")
    assert caught.value.where == f"{tmp_path / 'a.tsv'}, line 3, column 'time'"
    assert "'01/02/2023 10:00' may be day/month or month/day" in caught.value.problem
    assert "2024-05-31" in caught.value.remedy


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (("25/11/2023", "26/11/2023", "11/25/2023"), 4),
        (("01/02/2023", "soon", "01/03/2023"), 3),
        (("11/25/2023", "", "11/26/2023"), 3),
    ],
)
def test_the_odd_one_of_slashed_dates_is_named(tmp_path: Path, cells: tuple[str, ...], line: int) -> None:
    with pytest.raises(InputError, match=rf"line {line}, column 'time': time .* is neither a number nor a date"):
        read(tmp_path / "a.tsv", *cells)


@pytest.mark.parametrize("cell", ["31.05.24", "31/05/24 12:00", "05/31/24"])
def test_years_of_two_digits_are_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(InputError, match=f"time '{cell}' is neither a number nor a date"):
        read(tmp_path / "a.tsv", cell, cell)


def test_a_refused_time_lists_the_forms(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.tsv", "yesterday")
    for form in ("2024-05-31 12:00:00", "2024-05-31T12:00:00Z", "31.05.2024 12:00", "05/31/2024 12:00", "20240531"):
        assert form in caught.value.remedy


@pytest.mark.parametrize(
    ("cells", "pattern"),
    [
        (("20240131", "20240201"), "%Y%m%d"),
        (("20240131.0", "20240201.0"), "%Y%m%d"),
        (("20240131235959", "20240201000000"), "%Y%m%d%H%M%S"),
    ],
)
def test_calendar_numbers_are_dates_and_that_is_said(tmp_path: Path, cells: tuple[str, ...], pattern: str) -> None:
    log = read(tmp_path / "a.tsv", *cells)
    assert log.notes == (f"time read as dates ({pattern})",)
    assert log.frame[TIME].to_list()[1] == utc(2024, 2, 1)


def test_calendar_numbers_of_parquet(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [2], "time": [20240531]}).write_parquet(tmp_path / "a.parquet")
    assert read_interactions(tmp_path / "a.parquet", ColumnSettings()).frame[TIME].to_list() == [utc(2024, 5, 31)]


@pytest.mark.parametrize(
    "cells",
    [
        ("20240131", "20240230"),  # no such day
        ("20240131", "20240101.5"),
        ("19691231", "20240131"),
        ("20240131", "21010101"),
        ("20240131", "1717156800"),
    ],
)
def test_numbers_of_which_one_is_no_date_stay_numbers(tmp_path: Path, cells: tuple[str, ...]) -> None:
    assert read(tmp_path / "a.tsv", *cells).frame[TIME].to_list() == [float(cell) for cell in cells]


def histories(path: Path, times: list[str], **sessions: object) -> tuple[list[list[str]], list[str]]:
    """Prepare two users who buy a, b, c ... at these times; return the histories and what was said."""
    rows = [f"{user},{item},{time}\n" for user in "uv" for item, time in zip("abcdefghi", times, strict=False)]
    path.write_text("user_id,item_id,time\n" + "".join(rows))
    settings = DataSettings.model_validate(
        {"interactions": path, "sessions": sessions, "filters": {"k_core_user": 1, "k_core_item": 1}}
    )
    said: list[str] = []
    data = prepare(path, None, settings, path.parent / "data", seed=0, say=said.append)
    items = [data.item_ids[item] for item in data.items]
    return [items[start:end] for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True)], said


@pytest.mark.parametrize("sessions", [{"by": "day"}, {"by": "gap", "gap_minutes": 60}])
@pytest.mark.parametrize("clock", ["", "090000"])
def test_sessions_of_calendar_numbers(tmp_path: Path, sessions: dict[str, object], clock: str) -> None:
    times = [day + clock for day in ("20240131",) * 3 + ("20240201",) * 4]
    found, _ = histories(tmp_path / "a.csv", times, **sessions)
    assert found == [list("abc"), list("defg")] * 2


def test_sessions_of_times_within_a_day_are_doubted(tmp_path: Path) -> None:
    serial_days = ["45292", "45293", "45294", "45300", "45301", "45302"]
    found, said = histories(tmp_path / "a.csv", serial_days, by="day")
    assert found == [list("abcdef")] * 2
    doubt = "  all times lie within a day, from 1970-01-01 12:34:52; if they do not, write them as dates"
    assert doubt in said
    assert doubt not in histories(tmp_path / "a.csv", serial_days)[1]
    _, said = histories(tmp_path / "a.csv", ["20240131"] * 4 + ["20240201"] * 4, by="day")
    assert not any("within a day" in line for line in said)
