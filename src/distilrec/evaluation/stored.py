"""Ranks on disk: `ranks.parquet` holds the example ids and one column of ranks a role, and names the data set they are of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from distilrec.columns import EXAMPLE, ROW
from distilrec.data.tables import Table, file_format, read_table
from distilrec.errors import InputError
from distilrec.evaluation.metrics import Ints
from distilrec.files import read_json, write_with

RANKS = "ranks.parquet"
_FINGERPRINT = "dataset_fingerprint"
_RESULTS = "results.json"
_TYPES = (".parquet", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class StoredRanks:
    """Ranks read from a file.

    Attributes:
        path: the file.
        examples: [n] ids, ascending, none twice.
        roles: role -> [n] ranks.
        fingerprint: of the data set; None where the file does not say (a CSV file cannot).
    """

    path: Path
    examples: Ints
    roles: Mapping[str, Ints]
    fingerprint: str | None


def write_ranks(path: Path, examples: Ints, roles: Mapping[str, Ints], fingerprint: str) -> None:
    """Write ranks; the data set's fingerprint goes into the file's own metadata."""
    frame = pl.DataFrame({EXAMPLE: examples, **roles})
    write_with(path, lambda part: frame.write_parquet(part, metadata={_FINGERPRINT: fingerprint}))


def find_ranks(place: Path) -> Path:
    """Return the file of ranks that `place` stands for: itself, or what the last evaluation of that run left.

    Raises:
        InputError: there is no such place, or the run was not evaluated.
    """
    if place.is_file():
        if file_format(place) not in _TYPES:
            raise InputError(
                "not a file of ranks.", where=str(place), remedy=f"Give a run's folder or a file {', '.join(_TYPES)}."
            )
        return place
    if not place.is_dir():
        raise InputError("no such run or file.", where=str(place), remedy="Give a run's folder or a file of ranks.")
    if (place / RANKS).is_file():  # the folder of the stage itself
        return place / RANKS
    summary = read_json(place / _RESULTS) if (place / _RESULTS).is_file() else {}
    named = place / str(summary.get("ranks", ""))
    if named.is_file():
        return named
    done = [mark for mark in place.glob("evaluate-*/stage.json") if (mark.parent / RANKS).is_file()]
    if not done:
        raise InputError("no ranks are stored here.", where=str(place), remedy="Run distilrec evaluate on it first.")
    return max(done, key=lambda mark: mark.stat().st_mtime).parent / RANKS


def read_ranks(path: Path) -> StoredRanks:
    """Read a file of ranks, Parquet or CSV, rows in any order.

    Raises:
        InputError: no example ids, an id that occurs twice, or a rank that is not a whole number above 0.
    """
    table = read_table(path)
    roles = [name for name in table.names if name != EXAMPLE]
    if EXAMPLE not in table.names or not roles:
        raise InputError(
            f"columns {EXAMPLE!r} and at least one of ranks are expected, got {', '.join(table.names)}.",
            where=str(path),
            remedy="Rename the columns, or write the file with distilrec evaluate.",
        )
    columns = {name: _whole(table, name, least=0 if name == EXAMPLE else 1) for name in (EXAMPLE, *roles)}
    order = np.argsort(columns[EXAMPLE], kind="stable")
    examples = columns[EXAMPLE][order]
    twice = np.flatnonzero(examples[1:] == examples[:-1])
    if len(twice):
        where = table.where(int(order[twice[0] + 1]) + 1, EXAMPLE)
        raise InputError(f"example {examples[twice[0]]} occurs twice.", where=where, remedy="Keep one row an example.")
    return StoredRanks(path, examples, {role: columns[role][order] for role in roles}, _fingerprint(path))


def _whole(table: Table, name: str, *, least: int) -> Ints:
    """Return a column as whole numbers; name the first row that holds anything else."""
    raw = table.frame[name]
    if not (raw.dtype.is_numeric() or raw.dtype == pl.String):
        raise InputError(
            f"the column holds {raw.dtype}, whole numbers are expected.",
            where=f"{table.path}, column {name!r}",
            remedy="Correct it, or leave the column out.",
        )
    number = raw.cast(pl.Float64, strict=False)
    good = (number.is_finite() & (number >= least) & (number == number.floor())).fill_null(False)
    if not good.all():
        row = int(good.arg_min() or 0)
        raise InputError(
            f"{raw[row]!r} is not a whole number of at least {least}.",
            where=table.where(int(table.frame[ROW][row]), name),
            remedy="Correct it.",
        )
    return number.cast(pl.Int64).to_numpy()


def _fingerprint(path: Path) -> str | None:
    """Return the data set's fingerprint: from the file, or (evaluated by an older version) from the results beside it."""
    if file_format(path) != ".parquet":
        return None
    named = pl.read_parquet_metadata(path).get(_FINGERPRINT)
    beside = path.with_name(_RESULTS)
    if named is None and path.name == RANKS and beside.is_file():
        named = read_json(beside).get("dataset", {}).get("fingerprint")
    return named
