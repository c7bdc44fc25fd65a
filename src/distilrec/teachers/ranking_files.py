"""Read rankings made elsewhere from CSV, TSV, JSONL or Parquet: a key, a list of item ids, and scores where there are any."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.columns import ROW
from distilrec.data.tables import Table, as_text, check_file, file_format, open_text, read_table
from distilrec.errors import InputError
from distilrec.settings import Settings
from distilrec.teachers.vector_files import listed

EXAMPLE_NAMES = ("example_id", "example")
USER_NAMES = ("user_id", "user", "uid", "session_id", "session", "customer_id", "visitor_id")
_OTHER_KEYS = ("id", "key", "row_id", "sample_id")
_ITEM_NAMES = ("items", "item_ids", "ranking", "rankings", "recommendations", "item_list")
_ONE_ITEM_NAMES = ("item_id", "item")  # of tables with one item a row
_SCORE_NAMES = ("scores", "confidences", "confidence", "score")
_DISTANCE_NAMES = ("distances", "distance")
_JSON = (".jsonl", ".ndjson")


class RankingColumns(Settings):
    """Columns by name; null means: guess. `key` holds what a row belongs to."""

    key: str | None = None
    items: str | None = None
    scores: str | None = None


@dataclass(frozen=True, slots=True)
class RankingTable:
    """A table of rankings and which of its columns plays which role; `scores` None means that it only ranks."""

    table: Table
    key: str
    items: str
    scores: str | None

    @property
    def where(self) -> str:
        """The file, for messages."""
        return str(self.table.path)

    def keys(self) -> pl.Series:
        """Return the keys as text, null where a cell is empty."""
        return as_text(self.table.frame[self.key]).replace("", None)


def read_rankings(path: Path, columns: RankingColumns, *, distances: bool, key: str) -> RankingTable:
    """Read a table of rankings and find its columns.

    Args:
        path: the file.
        columns: the user's own choice of columns, which wins.
        distances: whether the scores are distances.
        key: `auto`, or which key is wanted: `example` or `user`.

    Raises:
        InputError: see `tables.read_table`; also a column that is missing or not clear.
    """
    table = _read_lines(path) if file_format(path) in _JSON else read_table(path)
    named = {"example": (EXAMPLE_NAMES,), "user": (USER_NAMES,)}.get(key, (EXAMPLE_NAMES, USER_NAMES))
    tiers = (_DISTANCE_NAMES, _SCORE_NAMES) if distances else (_SCORE_NAMES,)
    scores = _column(table, "scores", columns.scores, tiers, required=False)
    if scores is None and (far := _column(table, "scores", None, (_DISTANCE_NAMES,), required=False)):
        raise InputError(
            f"column {far!r} looks like distances, for which lower is surer.",
            where=str(path),
            remedy=f"Set teacher.scores_are=distances; or teacher.columns.scores={far} if higher is surer there.",
        )
    return RankingTable(
        table,
        str(_column(table, "key", columns.key, (*named, _OTHER_KEYS))),
        str(_column(table, "items", columns.items, (_ITEM_NAMES, _ONE_ITEM_NAMES))),
        scores,
    )


def list_column(table: Table, column: str) -> pl.Series:
    """Return a column as lists: lists as they are; text split at blanks, commas, semicolons and bars, or read as a JSON list.

    Returns:
        A series of lists of text or of numbers, null where the cell was empty.

    Raises:
        InputError: a cell that begins like a JSON list and is none, or a column of neither lists nor text.
    """
    cells = table.frame[column]
    if isinstance(cells.dtype, pl.Array):
        cells = cells.arr.to_list()
    if isinstance(cells.dtype, pl.List) and not cells.dtype.inner.is_nested():
        return cells
    if cells.dtype.is_nested():
        raise InputError(
            f"the column holds {cells.dtype}, a list of ids or numbers is expected.",
            where=f"{table.path}, column {column!r}",
            remedy="Write it as a plain list.",
        )
    text = as_text(cells).replace("", None)
    json_text = pl.when(pl.col("text").str.starts_with("[")).then(pl.col("text"))
    plain = pl.when(~pl.col("text").str.starts_with("[")).then(pl.col("text"))
    split = plain.str.replace_all(r"[\s,;|]+", " ").str.strip_chars(" ").str.split(" ")
    try:
        lists = json_text.str.json_decode(pl.List(pl.String))
        found = pl.DataFrame({"text": text}).select(pl.coalesce(lists, split).alias(column))
    except pl.exceptions.PolarsError:
        _refuse_json(table, column, text)
        raise
    return found[column]


def _refuse_json(table: Table, column: str, text: pl.Series) -> None:
    """Raise an error that names the first cell that is no JSON list of plain values."""
    for record, cell in zip(table.frame[ROW], text, strict=True):
        if cell is None or not cell.startswith("["):
            continue
        try:
            plain = not any(isinstance(part, (list, dict)) for part in json.loads(cell))
        except (ValueError, RecursionError):
            plain = False
        if not plain:
            raise InputError(
                f"{cell[:60]!r} begins like a JSON list and is none of plain values.",
                where=table.where(record, column),
                remedy='Write lists as ["a", "b"] or as a b.',
            )


def _read_lines(path: Path) -> Table:
    """Read JSONL; lists stay JSON text, so that ids keep their blanks and large numbers their digits."""
    check_file(path)
    with open_text(path) as handle:
        content = handle.read().encode()
    try:
        names = pl.read_ndjson(content, infer_schema_length=None).columns
        frame = pl.read_ndjson(content, schema=dict.fromkeys(names, pl.String))
    except pl.exceptions.PolarsError:
        return read_table(path)  # slower; names the broken line, and takes what only Python takes for JSON (NaN)
    return Table(path, frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW)))


def _column(
    table: Table, role: str, given: str | None, tiers: Iterable[Sequence[str]], *, required: bool = True
) -> str | None:
    """Return the column that plays a role: the given one, or the only one of the first tier of names that fits."""
    setting = f"teacher.columns.{role}"
    if given is not None:
        if given not in table.names:
            raise InputError(
                f"no column {given!r}; there are {listed(table.names)}.",
                where=str(table.path),
                remedy=f"Correct {setting}.",
            )
        return given
    for tier in tiers:
        wanted = {_plain(name) for name in tier}
        hits = [name for name in table.names if _plain(name) in wanted]
        if len(hits) > 1:
            raise InputError(
                f"the {role} column is not clear: {listed(hits)}.",
                where=str(table.path),
                remedy=f"Choose with {setting}=NAME.",
            )
        if hits:
            return hits[0]
    if required:
        raise InputError(
            f"no {role} column found among {listed(table.names)}.",
            where=str(table.path),
            remedy=f"Name it with {setting}=NAME.",
        )
    return None


def is_named(column: str, names: Sequence[str]) -> bool:
    """Tell whether a column bears one of these names, whatever its case and underscores."""
    return _plain(column) in {_plain(name) for name in names}


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())
