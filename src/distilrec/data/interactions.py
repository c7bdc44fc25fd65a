"""Read an interaction log: any supported file in, one table of (user, item, time, rating, row) out."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.columns import ITEM, RATING, ROW, TIME, USER
from distilrec.config import ColumnSettings
from distilrec.data.guess import guess
from distilrec.data.tables import Table, as_text, check_file, file_format, open_text, read_table
from distilrec.errors import InputError

# Times above these are not seconds: nanoseconds, microseconds, milliseconds (for any date from 1973 to 5138).
_NO_UNIT = 1e8  # smaller times say nothing: 0 is 0 in every unit
_GAP = 20
_UNITS = ((1e17, 1e9, "nanoseconds"), (1e14, 1e6, "microseconds"), (1e11, 1e3, "milliseconds"))
_DATES = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f",
          "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%d.%m.%Y %H:%M", "%d.%m.%Y")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interactions:
    """A log in our columns.

    Attributes:
        frame: USER and ITEM (strings), TIME (float64 seconds; null where the log has none), RATING (float64 or null), ROW.
        roles: role -> the file's column, as guessed or given.
        has_time: whether TIME is filled. Without it the order of rows counts.
        notes: what was assumed, one line each, to be said to the user.
    """

    frame: pl.DataFrame
    roles: dict[str, str]
    has_time: bool
    notes: tuple[str, ...]


def read_interactions(path: Path, columns: ColumnSettings) -> Interactions:
    """Read a log of interactions.

    Raises:
        InputError: see `tables.read_table`; also missing or ambiguous columns, empty ids, times or ratings that are no
            numbers (times may be ISO dates too). Each message names file, line and column.
    """
    if file_format(path) == ".txt":
        return _read_sequences(path)
    table = read_table(path)
    roles = {
        role: name
        for role, given, required in (
            (USER, columns.user, True),
            (ITEM, columns.item, True),
            (TIME, columns.time, False),
            (RATING, columns.rating, False),
        )
        if (name := guess(role, table.names, given=given, where=str(path), required=required)) is not None
    }
    notes = []
    parts = [_ids(table, roles[USER]).alias(USER), _ids(table, roles[ITEM]).alias(ITEM)]
    if TIME in roles:
        seconds, note = _seconds(table, roles[TIME])
        notes += [note] if note else []
        parts.append(seconds.alias(TIME))
    else:
        notes.append("no time column: the order of the rows is taken as the order in time")
        parts.append(pl.Series(TIME, [None] * table.frame.height, dtype=pl.Float64))
    if RATING in roles:
        parts.append(_numbers(table, roles[RATING], "rating", allow_empty=True).alias(RATING))
    else:
        parts.append(pl.Series(RATING, [None] * table.frame.height, dtype=pl.Float64))
    return Interactions(pl.DataFrame([*parts, table.frame[ROW]]), roles, TIME in roles, tuple(notes))


def _ids(table: Table, column: str) -> pl.Series:
    if table.frame[column].dtype.is_nested():
        raise InputError(
            "the column holds lists, one id per row is expected.",
            where=f"{table.path}, column {column!r}",
            remedy="Unnest it first.",
        )
    values = as_text(table.frame[column])
    empty = values.is_null() | (values == "")
    if empty.any():
        raise InputError(
            "the id is missing.",
            where=table.where(int(empty.arg_true()[0]) + 1, column),
            remedy="Fill it in or delete the line.",
        )
    return values


def _numbers(table: Table, column: str, what: str, *, allow_empty: bool = False) -> pl.Series:
    raw = _stripped(table.frame[column])
    values = raw.cast(pl.Float64, strict=False)
    missing = raw.is_null() | (raw.cast(pl.String) == "")
    bad = (values.is_null() | ~values.is_finite().fill_null(True)) & ~missing
    if not allow_empty:
        bad = bad | missing
    if bad.any():
        record = int(bad.arg_true()[0]) + 1
        raise InputError(
            f"{what} {raw[record - 1]!r} is not a number.",
            where=table.where(record, column),
            remedy=f"Mend the line, or choose another column with data.columns.{what}=NAME.",
        )
    return values


def _seconds(table: Table, column: str) -> tuple[pl.Series, str]:
    """Return times in seconds since 1970 (float64) and a note on how they were read."""
    raw = _stripped(table.frame[column])
    if raw.dtype.is_temporal():
        stamps = raw.cast(pl.Datetime("us"))
        _refuse_gaps(table, column, stamps)
        return stamps.dt.epoch("us").cast(pl.Float64) / 1e6, "time read as a date"
    if raw.dtype == pl.String and raw.cast(pl.Float64, strict=False).null_count() > raw.len() // 2:
        for pattern in _DATES:
            stamps = raw.str.to_datetime(pattern, strict=False, time_unit="us")
            if stamps.null_count() <= raw.len() // 2:
                stamps = stamps.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if "z" in pattern else stamps
                _refuse_gaps(table, column, stamps)
                return stamps.dt.epoch("us").cast(pl.Float64) / 1e6, f"time read as dates ({pattern})"
        record = int(raw.cast(pl.Float64, strict=False).is_null().arg_true()[0]) + 1
        _refuse_time(table, column, record)
    values = raw.cast(pl.Float64, strict=False)
    bad = values.is_null() | ~values.is_finite().fill_null(False)
    if bad.any():
        _refuse_time(table, column, int(bad.arg_true()[0]) + 1)
    _refuse_mixed_units(table, column, values)
    middle = float(values.abs().median() or 0.0)  # type: ignore[arg-type]
    for above, per_second, unit in _UNITS:
        if middle > above:
            return values / per_second, f"time read as {unit} since 1970"
    return values, ""


def _refuse_mixed_units(table: Table, column: str, values: pl.Series) -> None:
    """Refuse times of which some are seconds and some milliseconds, say: read as one unit their order would be wrong.

    A mixture leaves a gap, since no date of today is near a border between units; a counter that runs across one leaves none.
    """
    size = values.abs()
    for border, _, unit in _UNITS:
        below, above = size.filter((size >= _NO_UNIT) & (size < border)), size.filter(size >= border)
        if len(below) and len(above) and float(above.min()) > _GAP * float(below.max()):  # type: ignore[arg-type]
            few = size >= border if len(above) < len(below) else size < border
            first = int((few & (size >= _NO_UNIT)).arg_true()[0])
            raise InputError(
                f"{len(above):,} times look like {unit} and {len(below):,} do not, such as {table.frame[column][first]!r}.",
                where=table.where(first + 1, column),
                remedy="Bring all times to one unit.",
            )


def _stripped(column: pl.Series) -> pl.Series:
    numeric = column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Date, pl.Datetime)
    return column if numeric else as_text(column)


def _refuse_gaps(table: Table, column: str, stamps: pl.Series) -> None:
    if stamps.null_count():
        _refuse_time(table, column, int(stamps.is_null().arg_true()[0]) + 1)


def _refuse_time(table: Table, column: str, record: int) -> None:
    raise InputError(
        f"time {table.frame[column][record - 1]!r} is neither a number nor a date such as 2024-05-31 12:00:00.",
        where=table.where(record, column),
        remedy="Mend the line, or choose another column with data.columns.time=NAME.",
    )


def _read_sequences(path: Path) -> Interactions:
    """Read `user item item ...` lines; items are in time order, there is no clock."""
    check_file(path)
    users: list[str] = []
    items: list[str] = []
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            cells = line.split()
            if not cells:
                continue
            if len(cells) < 2 or "," in line:
                raise InputError(
                    "expected `user item item ...`, separated by blanks.",
                    where=f"{path}, line {number}",
                    remedy="Mend the line; name the file .csv or .tsv if it is a table with a header.",
                )
            users += [cells[0]] * (len(cells) - 1)
            items += cells[1:]
    if not users:
        raise InputError("the file holds no interactions.", where=str(path), remedy="Give a file with rows.")
    empty = [None] * len(users)
    frame = pl.DataFrame(
        {USER: users, ITEM: items, TIME: empty, RATING: empty, ROW: range(1, len(users) + 1)},
        schema={USER: pl.String, ITEM: pl.String, TIME: pl.Float64, RATING: pl.Float64, ROW: pl.Int64},
    )
    roles = {USER: "first word of the line", ITEM: "further words"}
    return Interactions(frame, roles, False, ("sequence text: items are taken in the order of the line",))
