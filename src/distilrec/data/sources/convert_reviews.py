"""Converters for review collections: Amazon (2014, 2018, 2023), Steam, Yelp. One record a line, JSON or a Python literal."""

import ast
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distilrec.columns import ITEM, TITLE
from distilrec.data.sources.atomic import (
    UNRATED,
    key,
    milliseconds,
    number,
    open_lines,
    seconds_of_date,
    text,
    words,
    write_interactions,
    write_items,
)
from distilrec.errors import InputError

_SHOP_HEADER = (f"{ITEM}:token", f"{TITLE}:token_seq", "brand:token_seq", "categories:token_seq")
_GAME_HEADER = (f"{ITEM}:token", f"{TITLE}:token_seq", "genres:token_seq", "tags:token_seq", "developer:token_seq")
_PLACE_HEADER = (f"{ITEM}:token", f"{TITLE}:token_seq", "city:token_seq", "categories:token_seq")


def amazon_2014(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """Amazon 2014, 5-core: reviews and metadata are JSON or Python literals, line by line."""
    wanted = _amazon_reviews(files[0], interactions)
    with open_lines(files[1]) as lines:
        rows = (
            (key(one.get("asin")), _title(one), text(one.get("brand")), _flat(one.get("categories")))
            for _, one in _records(lines)
        )
        write_items(items, _SHOP_HEADER, rows, wanted)


def amazon_2018(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """Amazon 2018, 5-core. Scraped script text that stands in some title fields is dropped."""
    wanted = _amazon_reviews(files[0], interactions)
    with open_lines(files[1]) as lines:
        rows = (
            (key(one.get("asin")), _title(one), text(one.get("brand")), _flat(one.get("category")))
            for _, one in _records(lines)
        )
        write_items(items, _SHOP_HEADER, rows, wanted)


def amazon_2023(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """Amazon 2023, 5-core `rating_only` table: an item is a parent_asin, times are milliseconds, a brand is the store."""
    with open_lines(files[0]) as lines:
        wanted = write_interactions(interactions, _ratings_2023(lines))
    with open_lines(files[1]) as lines:
        rows = (
            (key(one.get("parent_asin")), _title(one), text(one.get("store")), _flat(one.get("categories")))
            for _, one in _records(lines)
        )
        write_items(items, _SHOP_HEADER, rows, wanted)


def steam(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """Steam version 2: Python literals; a review is an interaction without a rating, dated to the day."""
    with open_lines(files[0]) as lines:
        wanted = write_interactions(
            interactions,
            (
                (
                    key(one.get("username")),
                    key(one.get("product_id")),
                    seconds_of_date(str(_field(one, "date", where)), where),
                )
                for where, one in _records(lines)
            ),
            UNRATED,
        )
    with open_lines(files[1]) as lines:
        rows = (
            (
                key(one.get("id")),
                text(one.get("app_name") or one.get("title")),
                _flat(one.get("genres")),
                _flat(one.get("tags")),
                text(one.get("developer")),
            )
            for _, one in _records(lines)
        )
        write_items(items, _GAME_HEADER, rows, wanted)


def yelp(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """Yelp Open Dataset: review and business files of the JSON archive."""
    with open_lines(files[0]) as lines:
        wanted = write_interactions(
            interactions,
            (
                (
                    key(one.get("user_id")),
                    key(one.get("business_id")),
                    number(_field(one, "stars", where), where),
                    seconds_of_date(str(_field(one, "date", where)), where),
                )
                for where, one in _records(lines)
            ),
        )
    with open_lines(files[1]) as lines:
        rows = (
            (key(one.get("business_id")), text(one.get("name")), text(one.get("city")), text(one.get("categories")))
            for _, one in _records(lines)
        )
        write_items(items, _PLACE_HEADER, rows, wanted)


def _amazon_reviews(path: Path, interactions: Path) -> set[str]:
    with open_lines(path) as lines:
        return write_interactions(
            interactions,
            (
                (
                    key(one.get("reviewerID")),
                    key(one.get("asin")),
                    number(_field(one, "overall", where), where),
                    number(_field(one, "unixReviewTime", where), where),
                )
                for where, one in _records(lines)
            ),
        )


def _ratings_2023(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    where, first = next(lines, ("", ""))
    names = first.split(",")
    columns = ("user_id", "parent_asin", "rating", "timestamp")
    if any(column not in names for column in columns):
        raise InputError(
            f"header {first[:80]!r} lacks one of {', '.join(columns)}.", where=where, remedy="Report this."
        )
    places = [names.index(column) for column in columns]
    for where, line in lines:
        if not line:
            continue
        cells = next(csv.reader([line]))
        if len(cells) != len(names):
            raise InputError(
                f"{len(cells)} cells, expected {len(names)}.", where=where, remedy="Delete the file, fetch again."
            )
        user, item, rating, when = (cells[place] for place in places)
        yield key(user), key(item), number(rating, where), milliseconds(when, where)


def _records(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines:
        if line:
            yield where, _record(line, where)


def _record(line: str, where: str) -> dict[str, Any]:
    """Read one record: strict JSON first, else a Python literal (constants only, nothing is executed)."""
    try:
        found = json.loads(line)
    except ValueError:
        try:
            found = ast.literal_eval(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
    if not isinstance(found, dict):
        raise InputError(
            "neither JSON nor a Python literal of a record.", where=where, remedy="Delete the file, fetch again."
        )
    return found


def _field(record: dict[str, Any], name: str, where: str) -> object:
    if record.get(name) is None:
        raise InputError(f"the record has no {name!r}.", where=where, remedy="Report this.")
    return record[name]


def _title(record: dict[str, Any]) -> str:
    title = text(record.get("title"))
    return "" if "getTime()" in title or title.startswith("<") else title


def _flat(value: object) -> str:
    """Join category names, given as a text, a list, or (2014) a list of paths."""
    if not isinstance(value, list):
        return text(value)
    return words(part for entry in value for part in (entry if isinstance(entry, list) else [entry]))
