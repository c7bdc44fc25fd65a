"""Guess which column plays which role, from its name, its values and, for item tables, the ids seen in the log."""

import re
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from distilrec.columns import ITEM, RATING, TIME, TITLE, USER
from distilrec.data.headers import headless, looks_like_data, no_header
from distilrec.data.tables import Table, as_text
from distilrec.errors import InputError

# fmt: off
# For each role: names in tiers, surest first. A column counts for the first tier that it matches.
_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    USER: (
        ("user_id", "userid", "user", "uid"),
        ("customer_id", "customerid", "customer", "visitorid", "visitor_id", "visitor", "reviewerid", "reviewer_id",
         "member_id", "account_id", "client_id", "buyer_id", "person_id", "profile_id", "user_name", "username"),
        ("session_id", "sessionid", "session"),
    ),
    ITEM: (
        ("item_id", "itemid", "item", "iid"),
        ("product_id", "productid", "product", "sku", "asin", "parent_asin", "movie_id", "movieid", "movie", "book_id",
         "bookid", "isbn", "track_id", "song_id", "business_id", "article_id", "news_id", "game_id", "video_id",
         "listing_id", "offer_id", "content_id", "stock_code", "stockcode", "app_id", "recipe_id"),
        ("id", "code"),
    ),
    TIME: (
        ("timestamp", "time", "ts", "datetime", "unixreviewtime", "unix_time"),
        ("event_time", "created_at", "time_stamp", "created", "purchase_time", "order_time", "visited_at", "event_ts",
         "invoicedate", "order_date", "purchase_date", "review_time"),
        ("date", "day", "t"),
    ),
    RATING: (("rating", "ratings", "stars", "overall"), ("score", "grade", "rate", "review_score")),
    TITLE: (
        ("title", "item_title", "movie_title", "product_title", "book_title"),
        ("name", "item_name", "product_name", "productname", "app_name", "track_name", "song_name"),
        ("label", "description", "text", "summary"),
    ),
}
# fmt: on
_FURTHER_TEXT = re.compile(
    r"brand|categor|genre|class|author|artist|director|publisher|description|developer|tags?$|type|feature|subtitle|year|"
    r"department|color|colour|material|summary|keyword|language|topic"
)  # fmt: skip
_NUMBERS = (  # of an items file, beside what a log calls its items
    "key",
    "no",
    "nr",
    "number",
    "item_no",
    "item_number",
    "article",
    "article_no",
    "article_nr",
    "article_number",
    "product_no",
    "product_number",
    "ean",
    "gtin",
    "upc",
)
_NAMELESS = re.compile(r"unnamed:? ?\d*|_duplicated_\d+", re.IGNORECASE)
_ENDS = {USER: "_user", ITEM: "_item", TIME: "_time", RATING: "_rating", TITLE: "_title"}


def guess(
    role: str, names: Sequence[str], *, given: str | None = None, where: str, required: bool = True
) -> str | None:
    """Return the column that plays `role`.

    Args:
        role: one of the roles in `columns`.
        names: the file's column names.
        given: the user's own choice, which wins.
        where: the file, for messages.
        required: whether a missing column is an error or None.

    Raises:
        InputError: no column or several columns fit, or the given one does not exist.
    """
    setting = f"data.columns.{_setting(role)}"
    if given is not None:
        if given not in names:
            raise InputError(
                f"no column {given!r}; there are {_listed(names)}.", where=where, remedy=f"Correct {setting}."
            )
        return given
    plain = {name: _plain(name) for name in names}
    for tier in _NAMES[role]:
        wanted = {_plain(candidate) for candidate in tier}
        hits = [name for name in names if plain[name] in wanted]
        exact = [name for name in hits if name.lower() == tier[0]]
        if len(exact) == 1 or len(hits) == 1:
            return (exact or hits)[0]
        if hits:
            raise InputError(
                f"the {_setting(role)} column is ambiguous: {_listed(hits)}.",
                where=where,
                remedy=f"Choose with {setting}=NAME.",
            )
    hits = [name for name in names if name.lower().endswith(_ENDS[role])]
    if len(hits) == 1:
        return hits[0]
    if required:
        raise InputError(
            f"no {_setting(role)} column found among {_listed(names)}.",
            where=where,
            remedy=f"Name it with {setting}=NAME.",
        )
    return None


def require_header(table: Table) -> None:
    """Refuse a text file whose first line is a comment or looks like data: none of its cells is a name that fits any role."""
    words = {_plain(word) for tiers in _NAMES.values() for tier in tiers for word in tier}
    ends = tuple(_ENDS.values())
    if not table.has_first_line or any(_plain(name) in words or name.lower().endswith(ends) for name in table.names):
        return
    if table.names[0].startswith("#"):
        raise no_header(table.path, table.names)
    if looks_like_data(table.frame, table.names):
        raise headless(table.path, table.names)


def guess_item_id(frame: pl.DataFrame, names: Sequence[str], known: pl.Series, *, given: str | None, where: str) -> str:
    """Return the item table's id column: the one whose values cover most of the ids seen in the log.

    A column that is named like one needs half of that to win. Where it has less, or none is named like one, and ids are whole numbers,
    which a column of ranks or prices may hold by chance, somebody must say which is meant. A column without a name (an index that was
    written along) never wins.
    """
    if given is not None:
        return guess("item_key", names, given=given, where=where) or given
    wanted = set(known.to_list())
    cover = {name: len(wanted.intersection(as_text(frame[name]).to_list())) for name in names}
    cover = {name: count for name, count in cover.items() if name.strip() and not _NAMELESS.fullmatch(name)}
    best = max(cover.values(), default=0)
    if best == 0:
        raise InputError(
            f"no column holds the item ids of the log (such as {_listed(sorted(wanted)[:3])}).",
            where=where,
            remedy="Name the id column with data.columns.item_key=NAME, or give the items file that belongs to the log.",
        )
    tiers = (*_NAMES[ITEM], _NUMBERS)
    named = [name for tier in tiers for name in cover if _plain(name) in {_plain(word) for word in tier}]
    if not named:
        leading = [name for name in cover if cover[name] == best]
        columns = [as_text(frame[name]).to_list() for name in leading]
        if all(word.isdecimal() for word in wanted) or any(column != columns[0] for column in columns):
            raise InputError(
                f"no column is named like an item id; {_listed(leading)} hold{'s' * (len(leading) == 1)} {best:,} of the log's "
                f"{len(wanted):,} (such as {_listed(sorted(wanted)[:3])}).",
                where=where,
                remedy=f"If it is one, set data.columns.item_key={leading[0]}.",
            )
        return leading[0]
    likely = max(named, key=lambda name: cover[name])
    if 2 * cover[likely] < best:
        other = next(name for name in cover if cover[name] == best)
        if not all(word.isdecimal() for word in wanted):
            return other
        raise InputError(
            f"column {likely!r} holds {cover[likely]:,} of the log's {len(wanted):,} item ids "
            f"(such as {_listed(sorted(wanted)[:3])}), {other!r} {best:,}.",
            where=where,
            remedy="Write the ids as the log does, or choose with data.columns.item_key=NAME.",
        )
    return likely


def guess_text(frame: pl.DataFrame, names: Iterable[str], *, given: Sequence[str] | None, where: str) -> list[str]:
    """Return further text columns worth showing to a language model (brand, category, genres ...)."""
    if given is not None:
        for name in given:
            guess("text", frame.columns, given=name, where=where)
        return list(given)
    return [
        name
        for name in names
        if _FURTHER_TEXT.search(name.lower()) and not re.search(r"url|image|_id$|^id$", name.lower())
    ]


def _setting(role: str) -> str:
    return role.removesuffix("_id") if role in (USER, ITEM) else role


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
