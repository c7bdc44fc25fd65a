"""Read an interaction log: any supported file in, one table of (user, item, time, rating, row) out."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.columns import ITEM, RATING, ROW, TIME, USER
from distilrec.config import ColumnSettings
from distilrec.data.guess import guess, require_header
from distilrec.data.tables import Table, as_text, check_file, file_format, open_text, read_table, stripped
from distilrec.data.times import read_times
from distilrec.errors import InputError


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
            numbers (times may be dates too: `times.FORMS`). Each message names file, line and column.
    """
    if file_format(path) == ".txt":
        return _read_sequences(path)
    table = read_table(path)
    if columns.user is None or columns.item is None:
        require_header(table)
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
        seconds, note = read_times(table, roles[TIME])
        notes += [note] if note else []
        parts.append(seconds.alias(TIME))
    else:
        notes.append("no time column: the order of the rows is taken as the order in time")
        if unused := [repr(name) for name in table.names if name not in roles.values()]:
            notes[-1] += f"; if {' or '.join(unused)} is the time, set data.columns.time=NAME"
        parts.append(pl.Series(TIME, [None] * table.frame.height, dtype=pl.Float64))
    if RATING in roles:
        parts.append(_numbers(table, roles[RATING], "rating", allow_empty=True).alias(RATING))
    else:
        parts.append(pl.Series(RATING, [None] * table.frame.height, dtype=pl.Float64))
    return Interactions(pl.DataFrame([*parts, table.frame[ROW]]), roles, TIME in roles, tuple(notes))


def _ids(table: Table, column: str) -> pl.Series:
    kind, where = table.frame[column].dtype, f"{table.path}, column {column!r}"
    if kind.is_nested():
        raise _nested("objects" if kind == pl.Struct else "lists", where)
    if column in table.nested:
        record, what = table.nested[column]
        raise _nested(what, table.where(record, column))
    values = as_text(table.frame[column])
    empty = values.is_null() | (values == "")
    if empty.any():
        raise InputError(
            "the id is missing.",
            where=table.where(int(empty.arg_true()[0]) + 1, column),
            remedy="Fill it in or delete the line.",
        )
    return values


def _nested(what: str, where: str) -> InputError:
    return InputError(f"the column holds {what}, one id per row is expected.", where=where, remedy="Unnest it first.")


def _numbers(table: Table, column: str, what: str, *, allow_empty: bool = False) -> pl.Series:
    raw = stripped(table.frame[column])
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
