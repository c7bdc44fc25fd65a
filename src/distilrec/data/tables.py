"""Read a table of text cells from CSV, TSV, JSONL, Parquet or a RecBole atomic file, with the line in every complaint."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import polars as pl

from distilrec.columns import ROW
from distilrec.errors import InputError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
_JSON = (".jsonl", ".ndjson")
FORMATS = "CSV, TSV, JSONL, Parquet, RecBole .inter/.item, or sequence text (.txt: user item item ...)"
_ATOMIC = (".inter", ".item")


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read. `frame` holds the file's columns plus `ROW`, the 1-based number of the record."""

    path: Path
    frame: pl.DataFrame

    @property
    def names(self) -> list[str]:
        """Column names of the file, in its order."""
        return [name for name in self.frame.columns if name != ROW]

    def where(self, record: int, column: str = "") -> str:
        """Say where a record lies: `file, line N, column C`. The line is looked up only when something is wrong."""
        suffix = file_format(self.path)
        line = f"row {record}" if suffix == ".parquet" else f"line {_line_of(self.path, suffix, record)}"
        return f"{self.path}, {line}" + (f", column {column!r}" if column else "")


def file_format(path: Path) -> str:
    """Return the lower-case extension that says how to read `path`, without a trailing `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOBase]:
    """Open a text file for reading, through gzip where its name ends in .gz.

    Raises:
        InputError: while it is read, at the first line that is not UTF-8 or where the gzip stream breaks.
    """
    try:
        with _open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as handle:
            yield handle
    except UnicodeDecodeError:
        where = f"{path}, line {_first_undecodable(path)}"
        raise InputError("the text is not UTF-8.", where=where, remedy="Save the file as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"not a whole gzip file ({error}).", where=str(path), remedy="Compress or copy it again."
        ) from None


def _open_bytes(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _first_undecodable(path: Path) -> int:
    with _open_bytes(path) as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def check_file(path: Path) -> None:
    """Refuse what is not a readable file with something in it."""
    if not path.exists():
        raise InputError("no such file.", where=str(path), remedy="Check the path.")
    if path.is_dir():
        raise InputError("this is a folder, a file is expected.", where=str(path), remedy=f"Give one file: {FORMATS}.")
    if path.stat().st_size == 0:
        raise InputError("the file is empty.", where=str(path), remedy=f"Give a file with rows: {FORMATS}.")


def read_table(path: Path) -> Table:
    """Read any supported table.

    CSV-like cells come as strings (nulls where empty), so that ids such as 007 survive; JSONL and Parquet keep types.

    Raises:
        InputError: missing or empty file, unknown extension, a broken line (its number is in the message).
    """
    check_file(path)
    suffix = file_format(path)
    if suffix in _SEPARATORS:
        frame = _read_separated(path, _SEPARATORS[suffix])
    elif suffix in _JSON:
        frame = _read_jsonl(path)
    elif suffix == ".parquet":
        frame = _read_parquet(path)
    else:
        raise InputError(f"unknown kind of file {suffix or path.name!r}.", where=str(path), remedy=f"Use {FORMATS}.")
    if frame.height == 0:
        raise InputError("the file has a header and no rows.", where=str(path), remedy="Give a file with rows.")
    if suffix in _ATOMIC:
        frame = frame.rename({name: name.split(":")[0] for name in frame.columns})
    return Table(path, frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW)))


def _read_separated(path: Path, separator: str) -> pl.DataFrame:
    quoted = file_format(path) not in _ATOMIC  # RecBole writes quotes as plain text
    with open_text(path) as handle:
        header = next(csv.reader(handle, delimiter=separator, quoting=_quoting(quoted)), [])
    names = [name.strip() for name in header]
    if not any(names):
        raise InputError(
            "the first line is empty, column names are expected.", where=f"{path}, line 1", remedy="Add a header."
        )
    if len(set(names)) != len(names):
        raise InputError(
            f"a column name occurs twice in the header: {names}.", where=f"{path}, line 1", remedy="Rename one."
        )
    try:
        frame = pl.read_csv(
            path,
            separator=separator,
            infer_schema=False,
            has_header=False,
            skip_rows=1,
            schema=dict.fromkeys(names, pl.String),
            quote_char='"' if quoted else None,
            glob=False,
        )
    except (pl.exceptions.PolarsError, OSError):
        frame = _read_line_by_line(path, separator, names, quoted=quoted)
    filled = [pl.col(name).is_not_null() & (pl.col(name) != "") for name in names]
    return frame.filter(pl.any_horizontal(filled))  # blank lines, and lines of separators only


def _read_line_by_line(path: Path, separator: str, names: list[str], *, quoted: bool) -> pl.DataFrame:
    """Read slowly what polars refuses (a quote inside a cell is harmless), or raise an error that names the broken line."""
    rows = []
    with open_text(path) as handle:
        reader = csv.reader(handle, delimiter=separator, quoting=_quoting(quoted), strict=True)
        while True:
            ended = reader.line_num
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise InputError(
                    f"broken quotes ({error}).",
                    where=f"{path}, line {ended + 1}",
                    remedy='Close the quote; double a " inside a cell.',
                ) from None
            if cells is None:
                break
            if len(cells) > len(names):
                raise InputError(
                    f"{len(cells)} cells where the header has {len(names)}.",
                    where=f"{path}, line {reader.line_num}",
                    remedy="Mend or delete the line (quote cells that hold the separator).",
                )
            rows.append([cell or None for cell in cells] + [None] * (len(names) - len(cells)))
    return pl.DataFrame(rows[1:], schema=dict.fromkeys(names, pl.String), orient="row")


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _read_jsonl(path: Path) -> pl.DataFrame:
    rows = []
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(
                    "not a JSON object.", where=f"{path}, line {number}", remedy="Each line must be one {...} object."
                )
            rows.append({name: _json_cell(value) for name, value in row.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in names}, schema=dict.fromkeys(names, pl.String)
    )


def _json_cell(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        return " ".join(str(part) for part in value if not isinstance(part, (dict, list)))
    if isinstance(value, dict):
        return None
    return str(value)


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"not a Parquet file ({_first_line(error)}).", where=str(path), remedy="Write it anew."
        ) from None


def as_text(column: pl.Series) -> pl.Series:
    """Return the text of each cell, stripped: lists joined by blanks, floats without their `.0`; null where it has none or NaN."""
    if column.dtype.is_float():
        column = column.fill_nan(None)  # so pandas writes what is missing
    if column.dtype.is_float() and bool((column.drop_nulls() % 1 == 0).all()):
        column = column.cast(pl.Int64, strict=False)
    if isinstance(column.dtype, pl.List) and column.dtype.inner in (pl.String, pl.Categorical):
        column = column.cast(pl.List(pl.String)).list.join(" ")
    try:
        return column.cast(pl.String).str.strip_chars()
    except pl.exceptions.PolarsError:  # bytes, lists of lists ...
        return pl.Series(column.name, [None] * column.len(), dtype=pl.String)


def _line_of(path: Path, suffix: str, record: int) -> int:
    """Return the physical line on which a record ends (records may span lines; blank lines count in JSONL)."""
    with open_text(path) as handle:
        if suffix in _JSON or suffix not in _SEPARATORS:
            filled = (number for number, line in enumerate(handle, start=1) if line.strip())
            return next((number for count, number in enumerate(filled, start=1) if count == record), record)
        reader = csv.reader(handle, delimiter=_SEPARATORS[suffix], quoting=_quoting(suffix not in _ATOMIC))
        for count, _ in enumerate(cells for cells in reader if any(cells)):
            if count == record:
                return reader.line_num
    return record + 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
