"""Which examples and items of a data set the ids of recorded rankings mean."""

import numpy as np
import polars as pl

from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.errors import InputError
from distilrec.teachers.ranking_files import EXAMPLE_NAMES, USER_NAMES, RankingTable, is_named

UNKNOWN, HELD_OUT = -1, -2  # in place of an id


def key_kind(asked: str, found: RankingTable, dataset: Dataset) -> str:
    """Return what the keys are, `example` or `user`: as asked for, as the column's name says, or the only one that fits."""
    if asked != "auto":
        return asked
    for kind, names in (("example", EXAMPLE_NAMES), ("user", USER_NAMES)):
        if is_named(found.key, names):
            return kind
    fits = [kind for kind in ("example", "user") if (matched(found.keys(), kind, dataset) != UNKNOWN).all()]
    if len(fits) != 1:
        which = "both as example ids and" if fits else "neither as example ids nor"
        raise InputError(
            f"the keys fit the data set {which} as user or session ids.",
            where=f"{found.where}, column {found.key!r}",
            remedy="Say what they are with teacher.key=example or teacher.key=user.",
        )
    return fits[0]


def matched(keys: pl.Series, kind: str, dataset: Dataset) -> Ints:
    """Return the example id that each key means, `UNKNOWN` or `HELD_OUT`."""
    offsets, train_end = np.asarray(dataset.offsets), np.asarray(dataset.split.train_end)
    if kind == "user":
        rows = places_in(keys, dataset.user_ids)
        last = offsets[rows] + train_end[rows] - 1
        return np.where(rows == UNKNOWN, UNKNOWN, np.where(train_end[rows] >= 2, last, HELD_OUT))
    ids = keys.cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
    inside = (ids >= 0) & (ids < len(dataset.items))
    rows = dataset.rows_of(np.where(inside, ids, 0))
    place = ids - offsets[rows]  # the first item of a history has nothing before it, so it is no example
    return np.where(~inside | (place == 0), UNKNOWN, np.where(place < train_end[rows], ids, HELD_OUT))


def places_in(values: pl.Series, known: list[str]) -> Ints:
    """Return the place of each value in `known`, `UNKNOWN` where it is not there."""
    places = values.cast(pl.Enum(known), strict=False).to_physical().cast(pl.Int64)
    return places.fill_null(UNKNOWN).to_numpy()
