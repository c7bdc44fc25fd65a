"""From files to a prepared data set: read, filter, map ids, split, write."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from distilrec.columns import TIME, TITLE
from distilrec.config import DataSettings
from distilrec.data.dataset import Dataset, write_dataset
from distilrec.data.filters import apply_filters
from distilrec.data.interactions import read_interactions
from distilrec.data.items import ItemTexts, read_items
from distilrec.data.split import Ints, Split, split

_DAY = 86_400.0


def prepare(
    interactions: Path,
    items: Path | None,
    settings: DataSettings,
    folder: Path,
    *,
    seed: int,
    say: Callable[[str], None],
) -> Dataset:
    """Prepare a data set from a log and, where there is one, a file of item text.

    What was guessed, assumed, dropped or missing is said line by line and kept in the manifest.

    Args:
        interactions: log of interactions.
        items: item text, or None.
        settings: columns, filters, sessions, split.
        folder: where the data set is written.
        seed: for the random split.
        say: receives each line.
    """
    log = read_interactions(interactions, settings.columns)
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        say(f"  {line}")

    note(f"columns of {interactions.name}: {_roles(log.roles)}")
    for line in log.notes:
        note(line)
    if settings.sessions.by != "none" and (doubt := _within_a_day(log.frame[TIME])):
        note(doubt)
    frame, dropped = apply_filters(log, settings.filters, settings.sessions)
    if lost := ", ".join(f"{name} {count:,}" for name, count in dropped.items() if count):
        note(f"filters dropped: {lost}")

    def texts_of(item_ids: pl.Series) -> ItemTexts:
        texts = read_items(items, item_ids, settings.columns)
        if items is None:
            note("no items file: item ids stand in for titles, so the language model reads no text")
            return texts
        note(f"columns of {items.name}: {_roles(texts.roles)}")
        if texts.without_text:
            note(f"{texts.without_text:,} of {item_ids.len():,} items have no {TITLE}; their id stands in")
        if texts.repeated:
            note(f"{texts.repeated:,} ids stand in {items.name} more than once; the first row with a {TITLE} counts")
        if texts.unused:
            note(f"{texts.unused:,} rows of {items.name} belong to items outside the catalogue")
        return texts

    def split_of(offsets: Ints, times: npt.NDArray[np.float64] | None) -> Split:
        parts = split(offsets, times, settings.split, seed)
        if parts.note:
            note(parts.note)
        return parts

    details = {
        "source": settings.source or interactions.name,
        "filters": settings.filters.model_dump(),
        "sessions": settings.sessions.model_dump(),
        "split": settings.split.model_dump(),
        "columns": log.roles,
        "dropped": dropped,
        "notes": notes,  # filled by the two functions above until the manifest is written
    }
    dataset = write_dataset(folder, frame, texts_of, split_of, details)
    counts = dataset.manifest
    say(
        f"  {counts['n_users']:,} histories, {counts['n_items']:,} items, {counts['n_interactions']:,} interactions; "
        f"{counts['n_train_targets']:,} training, {counts['n_valid']:,} validation, {counts['n_test']:,} test targets"
    )
    return dataset


def _within_a_day(times: pl.Series) -> str:
    """Return a doubt about times of which sessions can make nothing, such as a spreadsheet's days read as seconds; or ""."""
    seconds = times.drop_nulls().to_numpy()
    if len(seconds) == 0 or np.ptp(seconds) >= _DAY:
        return ""
    first = str(np.datetime64(int(seconds.min()), "s")).replace("T", " ")
    return f"all times lie within a day, from {first}; if they do not, write them as dates"


def _roles(roles: dict[str, str]) -> str:
    return ", ".join(f"{role} <- {column!r}" for role, column in roles.items())
