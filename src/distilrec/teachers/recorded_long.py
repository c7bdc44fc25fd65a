"""Rankings in long form, one item a row: which rows are gathered into one ranking, and in which order."""

import numpy as np
import numpy.typing as npt
import polars as pl

from distilrec.columns import ROW
from distilrec.data.split import Ints
from distilrec.data.tables import Table, as_text
from distilrec.errors import InputError
from distilrec.teachers.ranking_files import RankingTable, is_named, list_column

_RANK_NAMES = ("rank",)


def gathered(found: RankingTable, examples: Ints, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which rows [R] are gathered: those of one item at most whose example has several rows, none with more.

    Args:
        found: the table.
        examples: [R] what each row is for.
        wanted: [R] rows that take part.
    """
    rows = pl.DataFrame({"row": np.flatnonzero(wanted), "example": examples[wanted]})
    rows = rows.filter(pl.col("example").is_duplicated())
    lists = list_column(Table(found.table.path, found.table.frame[rows["row"]]), found.items)
    rows = rows.with_columns(lists.list.len().fill_null(0).alias("length"))
    rows = rows.filter(pl.col("length").max().over("example") == 1)
    mask = np.zeros(len(examples), dtype=bool)
    mask[rows["row"].to_numpy()] = True
    return mask


def in_order(found: RankingTable, examples: Ints, rows: npt.NDArray[np.bool_], long: npt.NDArray[np.bool_]) -> Ints:
    """Return the places of `rows` [R], those of one example together, its rows that are `long` by their rank where there is one.

    Raises:
        InputError: a rank that is no finite number.
    """
    _, first, which = np.unique(examples, return_index=True, return_inverse=True)
    order = np.lexsort((_ranks(found.table, long), first[which]))
    return order[rows[order]]


def _ranks(table: Table, long: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    ranks = np.zeros(len(long))
    column = next((name for name in table.names if is_named(name, _RANK_NAMES)), None)
    if column is None or not long.any():
        return ranks
    numbers = as_text(table.frame[column]).cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    if len(wrong := np.flatnonzero(long & ~np.isfinite(numbers))):
        raise InputError(
            f"{len(wrong):,} ranks are no finite numbers.",
            where=table.where(int(table.frame[ROW][int(wrong[0])]), column),
            remedy="Mend or drop these rows, or give the column another name.",
        )
    return np.where(long, numbers, 0.0)
