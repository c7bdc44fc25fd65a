"""Write RecBole-style atomic files: tab separated, `name:type` headers, UTF-8, no quoting. Rows stream, nothing is held."""

import functools
import gzip
import html
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO, cast

from distilrec.columns import ITEM, RATING, USER
from distilrec.errors import InputError
from distilrec.files import write_with
from distilrec.progress import bar, say

RATED: Final = (f"{USER}:token", f"{ITEM}:token", f"{RATING}:float", "timestamp:float")
UNRATED: Final = (f"{USER}:token", f"{ITEM}:token", "timestamp:float")
_BREAKS = str.maketrans("\t\r\n", "   ")
_STEP = 20_000


def write_interactions(path: Path, rows: Iterable[tuple[str, ...]], header: Sequence[str] = RATED) -> set[str]:
    """Write interactions in the order given, atomically; rows without a user or an item are left out and counted.

    Args:
        path: NAME.inter.
        rows: cells as in `header`; user first, item second.
        header: `RATED` or `UNRATED`.

    Returns:
        the ids of all items that occur.
    """
    items: set[str] = set()

    def kept() -> Iterator[tuple[str, ...]]:
        dropped = 0
        for row in rows:
            if row[0] and row[1]:
                items.add(row[1])
                yield row
            else:
                dropped += 1
        if dropped:
            say(f"  {path.name}: {dropped} rows without a user or an item were left out")

    _write(path, header, kept())
    return items


def write_items(
    path: Path, header: Sequence[str], rows: Iterable[tuple[str, ...]], wanted: set[str] | None = None
) -> None:
    """Write item text in the order given, atomically: the first row of each item, and only items in `wanted` if given."""

    def kept() -> Iterator[tuple[str, ...]]:
        seen: set[str] = set()
        for row in rows:
            if row[0] and row[0] not in seen and (wanted is None or row[0] in wanted):
                seen.add(row[0])
                yield row

    _write(path, header, kept())


def key(value: object) -> str:
    """Return an id as a cell: text without tabs, line breaks and blanks at its ends; None becomes empty."""
    return "" if value is None else str(value).translate(_BREAKS).strip()


def text(value: object) -> str:
    """Return text as a cell: HTML entities resolved, white space collapsed; None becomes empty."""
    return "" if value is None else " ".join(html.unescape(str(value)).split())


def words(values: Iterable[object], separator: str = ", ") -> str:
    """Join the texts in `values`, each once, in order, empty ones and HTML left out."""
    cells = (text(value) for value in values)
    return separator.join(dict.fromkeys(cell for cell in cells if cell and "<" not in cell))


def number(value: object, where: str) -> str:
    """Return a number as a cell: 5.0 as 5, 4.5 as 4.5."""
    try:
        return f"{float(str(value)):.15g}"
    except ValueError:
        raise InputError(f"{value!r} is not a number.", where=where, remedy="Report this.") from None


def milliseconds(value: str, where: str) -> str:
    """Return milliseconds since 1970 as a cell in seconds, exact: 1162160236000 as 1162160236, ...236789 as ...236.789."""
    try:
        seconds, rest = divmod(int(value), 1000)
    except ValueError:
        raise InputError(f"time {value!r} is no number of milliseconds.", where=where, remedy="Report this.") from None
    return f"{seconds}.{rest:03d}" if rest else str(seconds)


def seconds_of_date(value: str, where: str) -> str:
    """Return a date, or date and time, taken as UTC, as a cell in seconds since 1970."""
    try:
        return _seconds(value)
    except ValueError:
        raise InputError(
            f"{value!r} is no date such as 2018-07-07 22:09:11.", where=where, remedy="Report this."
        ) from None


@contextmanager
def open_lines(path: Path, member: str = "", encoding: str = "utf-8") -> Iterator[Iterator[tuple[str, str]]]:
    """Give the lines of a text file, a .gz, or a member of a .zip (found by its file name), each with where it stands."""
    if member:
        with zipfile.ZipFile(path) as archive:
            names = [
                name for name in archive.namelist() if name.rpartition("/")[2] == member and "__MACOSX" not in name
            ]
            if not names:
                raise InputError(
                    f"the archive holds no {member}.", where=str(path), remedy="Delete it and fetch again."
                )
            with archive.open(names[0]) as raw, io.TextIOWrapper(raw, encoding=encoding, newline="\n") as handle:
                yield _counted(handle, f"{path.name}/{member}")
    else:
        with _open_text(path, encoding) as handle:
            yield _counted(handle, path.name)


def _open_text(path: Path, encoding: str) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding=encoding, newline="\n"))
    return path.open(encoding=encoding, newline="\n")


@functools.lru_cache(maxsize=10_000)
def _seconds(value: str) -> str:
    return str(int(datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()))


def _counted(handle: Iterable[str], name: str) -> Iterator[tuple[str, str]]:
    with bar(f"reading {name} (lines)") as progress:
        for count, line in enumerate(handle, start=1):
            if count % _STEP == 0:
                progress.advance(_STEP)
            yield f"{name}, line {count}", line.rstrip("\r\n")


def _write(path: Path, header: Sequence[str], rows: Iterable[tuple[str, ...]]) -> None:
    def fill(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as out:
            out.write("\t".join(header) + "\n")
            for row in rows:
                out.write("\t".join(row) + "\n")

    write_with(path, fill)
