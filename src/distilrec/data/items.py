"""Read item text: one title and one text for the language model per item of the catalogue."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.columns import INDEX, ITEM, TEXT, TITLE
from distilrec.config import ColumnSettings
from distilrec.data.guess import guess, guess_item_id, guess_text, require_header
from distilrec.data.tables import as_text, read_table


@dataclass(frozen=True, slots=True)
class ItemTexts:
    """Text of the catalogue.

    Attributes:
        frame: INDEX, ITEM, TITLE, TEXT, one row per item of the catalogue, in the order of its internal ids.
        roles: role -> the file's column (text columns joined by a comma).
        without_text: items of the catalogue without a title; their id stands in for it, and for the text where there is none.
        unused: rows of the file whose item is not in the catalogue.
        repeated: ids that stand in the file more than once; the first row with a title counts.
    """

    frame: pl.DataFrame
    roles: dict[str, str]
    without_text: int
    unused: int
    repeated: int = 0


def read_items(path: Path | None, item_ids: pl.Series, columns: ColumnSettings) -> ItemTexts:
    """Read the text of the items `item_ids` (the catalogue, in internal order).

    Without a file, or where an item has no row or an empty title, the item's id stands in for the title; such items are counted.

    Raises:
        InputError: the file cannot be read, no column holds the catalogue's ids, or the title column is unclear.
    """
    base = pl.DataFrame({INDEX: range(item_ids.len()), ITEM: item_ids}, schema_overrides={INDEX: pl.Int64})
    if path is None:
        frame = base.with_columns(pl.col(ITEM).alias(TITLE), pl.col(ITEM).alias(TEXT))
        return ItemTexts(frame, {}, item_ids.len(), 0)
    table = read_table(path)
    if columns.item_key is None or columns.title is None:
        require_header(table)
    key = guess_item_id(table.frame, table.names, item_ids, given=columns.item_key, where=str(path))
    rest = [name for name in table.names if name != key]
    title = str(guess(TITLE, rest, given=columns.title, where=str(path)))
    texts = guess_text(table.frame, [name for name in rest if name != title], given=columns.text, where=str(path))
    texts = [name for name in dict.fromkeys(texts) if name != title]
    clean = [as_text(table.frame[name]).replace("", None) for name in (title, *texts)]
    # the file's own names may be ours
    rows = pl.DataFrame([as_text(table.frame[key]).alias(ITEM), *(one.alias(f"{at}") for at, one in enumerate(clean))])
    joined = pl.concat_str([f"{at}" for at in range(len(clean))], separator=", ", ignore_nulls=True)
    rows = rows.select(ITEM, pl.col("0").alias(TITLE), joined.replace("", None).alias(TEXT))
    repeated = rows.drop_nulls(ITEM).filter(pl.col(ITEM).is_duplicated())[ITEM].n_unique()
    rows = rows.sort(pl.col(TITLE).is_null(), pl.col(TEXT).is_null(), maintain_order=True)
    rows = rows.unique(ITEM, keep="first", maintain_order=True)
    frame = base.join(rows, on=ITEM, how="left", maintain_order="left")
    without = frame[TITLE].null_count()
    frame = frame.with_columns(pl.col(TITLE).fill_null(pl.col(ITEM)), pl.col(TEXT).fill_null(pl.col(ITEM)))
    unused = rows.height - rows.join(base, on=ITEM, how="semi").height
    roles = {"item_key": key, TITLE: title} | ({TEXT: ", ".join(texts)} if texts else {})
    return ItemTexts(frame, roles, without, unused, repeated)
