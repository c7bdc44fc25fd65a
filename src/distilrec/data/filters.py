"""Filters over a log. Each returns a smaller log; `apply_filters` runs them in a fixed order and counts what each drops."""

import polars as pl

from distilrec.columns import ITEM, RATING, ROW, TIME, USER
from distilrec.config import FilterSettings, SessionSettings
from distilrec.data.interactions import Interactions
from distilrec.errors import InputError

_DAY = 86_400.0


def apply_filters(
    log: Interactions, settings: FilterSettings, sessions: SessionSettings
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Filter a log and put it in order: by user, then time, then row.

    Order: minimum rating, repeated rows, sessions, k-core (iterated), minimum history.

    Returns:
        The frame (USER, ITEM, TIME) and, per filter, the number of interactions it dropped.

    Raises:
        InputError: a filter needs a column that the log lacks, or nothing is left.
    """
    frame, dropped = log.frame, {}

    def keep(name: str, smaller: pl.DataFrame) -> pl.DataFrame:
        dropped[name] = frame.height - smaller.height
        return smaller

    if settings.min_rating is not None:
        if frame[RATING].null_count() == frame.height:
            raise InputError("min_rating is set and the log has no rating.", remedy="Drop data.filters.min_rating.")
        frame = keep("min_rating", frame.filter(pl.col(RATING) >= settings.min_rating))
    frame = keep("duplicates", deduplicate(frame, settings.duplicates))
    frame = frame.sort(USER, TIME, ROW, nulls_last=True, maintain_order=True)
    if sessions.by != "none":
        if not log.has_time:
            raise InputError("sessions need a time column and the log has none.", remedy="Set data.sessions.by=none.")
        frame = sessionise(frame, sessions)
    frame = keep("k_core", k_core(frame, settings.k_core_user, settings.k_core_item))
    frame = keep("min_history", frame.filter(pl.len().over(USER) >= settings.min_history))
    if frame.height == 0:
        counts = ", ".join(f"{name} dropped {count}" for name, count in dropped.items())
        raise InputError(
            f"no interaction of {log.frame.height} is left after the filters ({counts}).",
            remedy="Loosen data.filters (k_core_user, k_core_item, min_history, min_rating).",
        )
    if frame[ITEM].n_unique() < 2:
        raise InputError(
            f"the catalogue has one item only ({frame[ITEM][0]!r}); there is nothing to rank.",
            remedy="Check the item column (data.columns.item) or loosen data.filters.",
        )
    return frame.select(USER, ITEM, TIME), dropped


def deduplicate(frame: pl.DataFrame, which: str) -> pl.DataFrame:
    """Drop repeats: `exact` same user, item and time; `first`/`last` keep one per user and item; `none` keeps all."""
    if which == "none":
        return frame
    if which == "exact":
        if frame[TIME].null_count() == frame.height:
            return frame  # without a clock a repeated item is a repeated interaction, not a repeated row
        return frame.unique([USER, ITEM, TIME], keep="first", maintain_order=True)
    keep = "first" if which == "first" else "last"
    return frame.sort(TIME, ROW, nulls_last=True).unique([USER, ITEM], keep=keep, maintain_order=True).sort(ROW)  # type: ignore[arg-type]


def sessionise(frame: pl.DataFrame, settings: SessionSettings) -> pl.DataFrame:
    """Cut each user's history (sorted by time) into sessions, by day or where the gap is longer than `gap_minutes`."""
    if settings.by == "day":
        number = (pl.col(TIME) // _DAY).rle_id().over(USER)
    else:
        number = (pl.col(TIME).diff() > settings.gap_minutes * 60).fill_null(False).cast(pl.Int64).cum_sum().over(USER)
    return frame.with_columns(pl.concat_str([pl.col(USER), number.cast(pl.String)], separator="#").alias(USER))


def k_core(frame: pl.DataFrame, users: int, items: int) -> pl.DataFrame:
    """Drop users and items with fewer interactions than asked, again and again until none is left to drop."""
    while True:
        smaller = frame.filter(pl.len().over(ITEM) >= items).filter(pl.len().over(USER) >= users)
        if smaller.height == frame.height:
            return smaller
        frame = smaller
