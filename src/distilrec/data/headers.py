"""What may stand in the first line of a CSV or TSV file where column names should."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from distilrec.errors import InputError

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def check_names(path: Path, names: Sequence[str], separator: str, below: str) -> None:
    """Raise `InputError` where the first line holds no names, or not one for each column.

    Args:
        path: the file, for messages.
        names: the first line's cells, stripped.
        separator: what the file's kind separates columns by.
        below: the line below.
    """
    where = f"{path}, line 1"
    if not any(names):
        raise InputError("the first line is empty, column names are expected.", where=where, remedy="Add a header.")
    comment = names[0].startswith("#") and (len(names) == 1 or below.count(separator) >= len(names))
    if comment or (re.fullmatch("sep=.?", names[0], re.IGNORECASE) and not any(names[1:])):
        raise no_header(path, names)
    if len(names) == 1 and any(mark in names[0] for mark in ",;\t|"):
        tabs, commas = "tabs, or by commas in a file named .csv", "commas, or by tabs in a file named .tsv"
        raise InputError(
            f"the header {names[0]!r} is one column.",
            where=str(path),
            remedy=f"Separate columns by {tabs if separator != ',' else commas}.",
        )
    if len(set(names)) != len(names):
        if all(map(_NUMBER.fullmatch, names)):
            raise headless(path, names)
        raise InputError(f"a column name occurs twice in the header: {names}.", where=where, remedy="Rename one.")


def no_header(path: Path, names: Sequence[str]) -> InputError:
    """Return the error for a first line that is a comment or an order to a spreadsheet."""
    return InputError(f"{names[0]!r} is no header.", where=f"{path}, line 1", remedy="Delete the line.")


def headless(path: Path, names: Sequence[str]) -> InputError:
    """Return the error for a file that begins with data."""
    first = ", ".join(map(repr, names[:5])) + ", ..." * (len(names) > 5)
    return InputError(
        f"the file seems to have no header line, its first line holds {first}.",
        where=f"{path}, line 1",
        remedy="Put one first, such as user_id,item_id,timestamp (an items file: item_id,title).",
    )


def looks_like_data(frame: pl.DataFrame, names: Sequence[str]) -> bool:
    """Tell whether the names are like the text cells below: numbers over the columns of numbers, or a value once more."""
    numeric = [
        name for name in names if frame[name].cast(pl.Float64, strict=False).null_count() == frame[name].null_count()
    ]
    numeric = [name for name in numeric if frame[name].null_count() < frame.height]
    if numeric and all(_NUMBER.fullmatch(name) for name in numeric):
        return True
    return any(bool((frame[name].str.strip_chars() == name).any()) for name in names if name)
