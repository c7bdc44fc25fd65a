"""From the official raw files to NAME.inter and NAME.item. Films here, shops and reviews in `convert_reviews`.

A converter takes the raw files in the order of `Source.files`, the path of the interactions and the path of the item
text. Interactions keep the order of the raw file. Times are seconds since 1970.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from distilrec.columns import ITEM, TITLE
from distilrec.data.sources import convert_reviews
from distilrec.data.sources.atomic import (
    key,
    milliseconds,
    number,
    open_lines,
    text,
    words,
    write_interactions,
    write_items,
)
from distilrec.errors import InputError

Converter = Callable[[Sequence[Path], Path, Path], None]

_GENRES_100K = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
                "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
                "Western")  # fmt: skip
_LAST_BRACKET = re.compile(r"(.*)\(([^()]*)\)\s*")
_YEAR = re.compile(r"(.*)\((\d{4})\)\s*")
_NO_YEAR_100K = "unkonwn"  # so spelt in the wheel's file: both sources must give the same bytes
_FILM_HEADER = (f"{ITEM}:token", f"{TITLE}:token_seq", "release_year:token", "genres:token_seq")


def ml_100k(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """MovieLens 100K: u.data and u.item, into the very bytes that the wheel of recbole carries.

    What follows from that: the year is whatever stands in the title's last brackets (`V` for film 1412), a title without
    brackets (film 267) becomes `unkonwn`, and the columns are called movie_title and class.
    """
    with open_lines(files[0], "u.data") as lines:
        rows = (_fields(line, "\t", 4, where) for where, line in lines)
        write_interactions(interactions, ((user, item, rating, when) for user, item, rating, when in rows))
    header = (f"{ITEM}:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
    with open_lines(files[0], "u.item", "latin-1") as lines:
        write_items(items, header, (_film_100k(line, where) for where, line in lines if line))


def ml_1m(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """MovieLens 1M: ratings.dat and movies.dat, fields parted by `::`, Latin-1."""
    _double_colons(files[0], interactions, items, "latin-1")


def ml_10m(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """MovieLens 10M: as 1M, but UTF-8 and half stars."""
    _double_colons(files[0], interactions, items, "utf-8")


def hetrec(files: Sequence[Path], interactions: Path, items: Path) -> None:
    """HetRec 2011 MovieLens-2K v2: times in milliseconds, genres and directors in files of their own, Latin-1."""
    archive = files[0]
    with open_lines(archive, "user_ratedmovies-timestamps.dat", "latin-1") as lines:
        rows = _table(lines, ("userID", "movieID", "rating", "timestamp"))
        write_interactions(
            interactions,
            (
                (user, item, number(rating, where), milliseconds(when, where))
                for where, (user, item, rating, when) in rows
            ),
        )
    genres = _grouped(archive, "movie_genres.dat", ("movieID", "genre"))
    directors = _grouped(archive, "movie_directors.dat", ("movieID", "directorName"))
    with open_lines(archive, "movies.dat", "latin-1") as lines:
        films = _table(lines, ("id", "title", "year"))
        write_items(
            items,
            (*_FILM_HEADER, "directors:token_seq"),
            (
                (film, text(title), year, words(genres.get(film, ()), " "), words(directors.get(film, ())))
                for _, (film, title, year) in films
            ),
        )


CONVERTERS: Final[dict[str, Converter]] = {
    "ml-100k": ml_100k,
    "ml-1m": ml_1m,
    "ml-10m": ml_10m,
    "hetrec2011-ml": hetrec,
    "amazon-2014": convert_reviews.amazon_2014,
    "amazon-2018": convert_reviews.amazon_2018,
    "amazon-2023": convert_reviews.amazon_2023,
    "steam": convert_reviews.steam,
    "yelp": convert_reviews.yelp,
}


def _film_100k(line: str, where: str) -> tuple[str, ...]:
    film, name, _, _, _, *flags = _fields(line, "|", 5 + len(_GENRES_100K), where)
    match = _LAST_BRACKET.fullmatch(name)
    title, year = (match[1].strip(), match[2]) if match else (_NO_YEAR_100K, _NO_YEAR_100K)
    return film, title, year, " ".join(genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1")


def _double_colons(archive: Path, interactions: Path, items: Path, encoding: str) -> None:
    with open_lines(archive, "ratings.dat", encoding) as lines:
        rows = (_fields(line, "::", 4, where) for where, line in lines if line)
        write_interactions(interactions, ((user, item, rating, when) for user, item, rating, when in rows))
    with open_lines(archive, "movies.dat", encoding) as lines:
        write_items(items, _FILM_HEADER, (_film(line, where) for where, line in lines if line))


def _film(line: str, where: str) -> tuple[str, ...]:
    film, name, genres = _fields(line, "::", 3, where)
    match = _YEAR.fullmatch(name)
    title, year = (match[1], match[2]) if match else (name, "")
    return film, text(title), year, words((genre for genre in genres.split("|") if genre != "(no genres listed)"), " ")


def _fields(line: str, separator: str, count: int, where: str) -> list[str]:
    fields = line.split(separator)
    if len(fields) != count:
        raise InputError(
            f"{len(fields)} fields, expected {count}.", where=where, remedy="Delete the file and fetch again."
        )
    return fields


def _table(lines: Iterator[tuple[str, str]], columns: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the wanted columns of a tab-separated file with a header."""
    where, first = next(lines, ("", ""))
    names = first.split("\t")
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(f"no column {', '.join(missing)}.", where=where, remedy="Delete the file and fetch again.")
    places = [names.index(column) for column in columns]
    for where, line in lines:
        if line:
            fields = _fields(line, "\t", len(names), where)
            yield where, tuple(key(fields[place]) for place in places)


def _grouped(archive: Path, member: str, columns: tuple[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    with open_lines(archive, member, "latin-1") as lines:
        for _, (film, value) in _table(lines, columns):
            groups.setdefault(film, []).append(value)
    return groups
