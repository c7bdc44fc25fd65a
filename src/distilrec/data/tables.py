"""Read a table of text cells from CSV, TSV, JSONL, Parquet or a RecBole atomic file, with the line in every complaint."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

import polars as pl

from distilrec.columns import ROW
from distilrec.data.headers import check_names
from distilrec.errors import InputError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
_JSON = (".jsonl", ".ndjson")
FORMATS = "CSV, TSV, JSONL, Parquet, RecBole .inter/.item, or sequence text (.txt: user item item ...)"
_ATOMIC = (".inter", ".item")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read.

    Attributes:
        path: the file.
        frame: the file's columns plus `ROW`, the 1-based number of the record.
        nested: of JSONL, the columns that hold lists or objects: the first record that does, and which of the two words.
    """

    path: Path
    frame: pl.DataFrame
    nested: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Column names of the file, in its order."""
        return [name for name in self.frame.columns if name != ROW]

    @property
    def has_first_line(self) -> bool:
        """Whether the names are the first line of a text file."""
        return file_format(self.path) in _SEPARATORS

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
        with path.open("rb") as raw:
            if path.suffix.lower() != ".gz" and raw.read(2) == _GZIP:
                raise InputError(
                    "the file is compressed by gzip.", where=str(path), remedy=f"Name it {path.name}.gz."
                ) from None
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
    nested: dict[str, tuple[int, str]] = {}
    if suffix in _SEPARATORS:
        frame = _read_separated(path, _SEPARATORS[suffix])
    elif suffix in _JSON:
        frame, nested = _read_jsonl(path)
    elif suffix == ".parquet":
        frame = _read_parquet(path)
    else:
        raise InputError(f"unknown kind of file {suffix or path.name!r}.", where=str(path), remedy=f"Use {FORMATS}.")
    if frame.height == 0:
        if suffix in _SEPARATORS and _ends_in_returns(path):
            raise InputError(
                "its lines end in a carriage return alone.",
                where=str(path),
                remedy="Save it with Unix or Windows line ends.",
            )
        raise InputError("the file has a header and no rows.", where=str(path), remedy="Give a file with rows.")
    if suffix in _ATOMIC:
        frame = frame.rename({name: name.split(":")[0] for name in frame.columns})
    return Table(path, frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW)), nested)


def _ends_in_returns(path: Path) -> bool:
    with open_text(path) as handle:
        start = handle.read(1 << 20)
    return "\r" in start and "\n" not in start


def _read_separated(path: Path, separator: str) -> pl.DataFrame:
    quoted = file_format(path) not in _ATOMIC  # RecBole writes quotes as plain text
    with open_text(path) as handle:
        header = next(csv.reader(handle, delimiter=separator, quoting=_quoting(quoted)), [])
        below = handle.readline()
    names = [name.strip() for name in header]
    check_names(path, names, separator, below)
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


def _read_jsonl(path: Path) -> tuple[pl.DataFrame, dict[str, tuple[int, str]]]:
    """Return the cells as text, and what `Table.nested` holds."""
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
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    nested: dict[str, tuple[int, str]] = {}
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        columns[name] = _json_cells(values)
        record = next((at for at, value in enumerate(values, start=1) if isinstance(value, (list, dict))), None)
        if record is not None:
            nested[name] = (record, "lists" if isinstance(values[record - 1], list) else "objects")
    return pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String)), nested


def _json_cells(values: Sequence[object]) -> list[str | None]:
    whole = all(value.is_integer() for value in values if isinstance(value, float))  # as in `as_text`
    return [_json_cell(int(value) if whole and isinstance(value, float) else value) for value in values]


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


def stripped(column: pl.Series) -> pl.Series:
    """Return a column of numbers, dates or truths as it is, any other as text."""
    numeric = column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Date, pl.Datetime)
    return column if numeric else as_text(column)


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
