"""Read a column of times in whatever form it comes: numbers since 1970, dates as text, dates as numbers."""

import polars as pl

from distilrec.data.tables import Table, stripped
from distilrec.errors import InputError

FORMS = (
    "seconds, milliseconds, microseconds or nanoseconds since 1970, 2024-05-31, 2024-05-31 12:00:00, 2024-05-31T12:00:00Z, "
    "2024/05/31 12:00, 31.05.2024 12:00, 31/05/2024 12:00, 05/31/2024 12:00, 20240531, 20240531120000"
)
# Times above these are not seconds: nanoseconds, microseconds, milliseconds (for any date from 1973 to 5138).
_NO_UNIT = 1e8  # smaller times say nothing: 0 is 0 in every unit
_GAP = 20
_UNITS = ((1e17, 1e9, "nanoseconds"), (1e14, 1e6, "microseconds"), (1e11, 1e3, "milliseconds"))
# fmt: off
_DATES = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f",
          "%Y-%m-%dT%H:%M%#z", "%Y-%m-%d %H:%M%#z", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d",
          "%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d.%m.%Y %H:%M:%S%.f", "%d.%m.%Y %H:%M", "%d.%m.%Y")
# fmt: on
_CLOCKS = (" %H:%M:%S%.f", " %H:%M", "")
_FIRST_YEAR = 1000  # 31.05.24 would be read as the year 24
_CALENDAR = (("%Y%m%d", 19_700_101, 21_001_231), ("%Y%m%d%H%M%S", 19_700_101_000_000, 21_001_231_235_959))


def read_times(table: Table, column: str) -> tuple[pl.Series, str]:
    """Return times in seconds since 1970 (float64) and a note on how they were read.

    Raises:
        InputError: a time that is neither a number nor a date of the column's form, numbers of two units, or dates of which
            nothing says whether the day or the month comes first.
    """
    raw = stripped(table.frame[column])
    if raw.dtype.is_temporal():
        return _epoch(table, column, raw.cast(pl.Datetime("us"))), "time read as a date"
    values = raw.cast(pl.Float64, strict=False)
    if raw.dtype == pl.String and values.null_count() > raw.len() // 2:
        return _dates(table, column, raw)
    bad = values.is_null() | ~values.is_finite().fill_null(False)
    if bad.any():
        raise _bad_time(table, column, int(bad.arg_true()[0]) + 1)
    for pattern, first, last in _CALENDAR:
        if bool(((values >= first) & (values <= last) & (values % 1 == 0)).all()):
            stamps = values.cast(pl.Int64).cast(pl.String).str.to_datetime(pattern, strict=False, time_unit="us")
            if not stamps.null_count():
                return _epoch(table, column, stamps), f"time read as dates ({pattern})"
    _refuse_mixed_units(table, column, values)
    middle = float(values.abs().median() or 0.0)  # type: ignore[arg-type]
    for above, per_second, unit in _UNITS:
        if middle > above:
            return values / per_second, f"time read as {unit} since 1970"
    return values, ""


def _dates(table: Table, column: str, raw: pl.Series) -> tuple[pl.Series, str]:
    text = raw.str.replace(r"(:\d\d),(\d+)", "$1.$2").str.replace(r" ?(?:UTC|GMT)$", "Z")
    for pattern in _DATES:
        stamps = text.str.to_datetime(pattern, strict=False, time_unit="us")
        if stamps.null_count() <= raw.len() // 2:
            stamps = stamps.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if "z" in pattern else stamps
            return _epoch(table, column, stamps), f"time read as dates ({pattern})"
    for clock in _CLOCKS:
        patterns = (f"%d/%m/%Y{clock}", f"%m/%d/%Y{clock}")
        both = [text.str.to_datetime(pattern, strict=False, time_unit="us") for pattern in patterns]
        gaps = [stamps.null_count() for stamps in both]
        if min(gaps) <= raw.len() // 2:
            either = both[0] != both[1]
            if gaps == [0, 0] and either.any():
                raise _either(table, column, int(either.arg_true()[0]) + 1)
            better = gaps.index(min(gaps))
            return _epoch(table, column, both[better]), f"time read as dates ({patterns[better]})"
    record = int(raw.cast(pl.Float64, strict=False).is_null().arg_true()[0]) + 1
    raise _bad_time(table, column, record)


def _epoch(table: Table, column: str, stamps: pl.Series) -> pl.Series:
    bad = stamps.is_null() | (stamps.dt.year() < _FIRST_YEAR).fill_null(False)
    if bad.any():
        raise _bad_time(table, column, int(bad.arg_true()[0]) + 1)
    return stamps.dt.epoch("us").cast(pl.Float64) / 1e6


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


def _either(table: Table, column: str, record: int) -> InputError:
    return InputError(
        f"time {table.frame[column][record - 1]!r} may be day/month or month/day, and no other line tells which.",
        where=table.where(record, column),
        remedy="Write the column as 2024-05-31 or 31.05.2024.",
    )


def _bad_time(table: Table, column: str, record: int) -> InputError:
    return InputError(
        f"time {table.frame[column][record - 1]!r} is neither a number nor a date such as 2024-05-31 12:00:00.",
        where=table.where(record, column),
        remedy=f"Mend the line, or choose another column with data.columns.time=NAME. Forms that are read: {FORMS}.",
    )
