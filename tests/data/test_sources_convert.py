"""Every converter on a small hand-written sample of the official format, compared byte for byte."""

import gzip
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.config import ColumnSettings
from distilrec.data.interactions import read_interactions
from distilrec.data.sources.atomic import key, milliseconds, text, words
from distilrec.data.sources.catalogue import SOURCES
from distilrec.data.sources.convert import CONVERTERS
from distilrec.errors import InputError

RATED = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def convert(name: str, folder: Path, files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Run a converter; return the lines of both files."""
    interactions, items = folder / "x.inter", folder / "x.item"
    CONVERTERS[name](files, interactions, items)
    return interactions.read_text("utf-8").split("\n")[:-1], items.read_text("utf-8").split("\n")[:-1]


def archive(folder: Path, encoding: str = "latin-1", **members: str) -> Path:
    path = folder / "raw.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, content in members.items():
            out.writestr("top/" + name.replace("__", "-").replace("_dot_", "."), content.encode(encoding))
    return path


def packed(folder: Path, name: str, lines: Sequence[object]) -> Path:
    """Write lines into a .gz; dicts as JSON, texts as they are."""
    path = folder / name
    rows = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(gzip.compress("".join(f"{row}\n" for row in rows).encode()))
    return path


def flags(*on: int) -> str:
    return "|".join("1" if place in on else "0" for place in range(19))


def test_ml_100k_gives_the_form_of_the_wheel(tmp_path: Path) -> None:
    rows = [
        f"1|Toy Story (1995)|01-Jan-1995||http://x/(1995)|{flags(3, 4, 5)}",
        f"15|Postino, Il (1994)|01-Jan-1994||http://x|{flags(8, 14)}",
        f"242|Kolya (1996)|24-Jan-1997||http://x|{flags(5)}",
        f"267|unknown||||{flags(0)}",
        f"306|Mrs. Brown (Her Majesty, Mrs. Brown) (1997)|01-Jan-1997||http://x|{flags(8, 14)}",
        f"1006|Double vie de Véronique, La (Double Life of Veronique, The) (1991)|01-Jan-1991||x|{flags(8)}",
        f"1201|Marlene Dietrich: Shadow and Light (1996) |02-Apr-1996||x|{flags(7)}",
        f"1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||x|{flags(3, 4)}",
    ]
    raw = archive(
        tmp_path, u_dot_data="196\t242\t3\t881250949\n186\t306\t3\t891717742\n", u_dot_item="\n".join(rows) + "\n\n"
    )
    interactions, items = convert("ml-100k", tmp_path, [raw])
    assert interactions == [RATED, "196\t242\t3\t881250949", "186\t306\t3\t891717742"]
    assert items == [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tToy Story\t1995\tAnimation Children's Comedy",
        "15\tPostino, Il\t1994\tDrama Romance",
        "242\tKolya\t1996\tComedy",
        "267\tunkonwn\tunkonwn\tunknown",
        "306\tMrs. Brown (Her Majesty, Mrs. Brown)\t1997\tDrama Romance",
        "1006\tDouble vie de Véronique, La (Double Life of Veronique, The)\t1991\tDrama",
        "1201\tMarlene Dietrich: Shadow and Light\t1996\tDocumentary",
        "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's",
    ]


@pytest.mark.parametrize(("name", "encoding"), [("ml-1m", "latin-1"), ("ml-10m", "utf-8")])
def test_ml_1m_and_10m(tmp_path: Path, name: str, encoding: str) -> None:
    movies = "1::Toy Story (1995)::Animation|Children's\r\n2::Misérables, Les (1998)::Drama\r\n3::No Year::(no genres listed)\n"
    raw = archive(
        tmp_path, encoding, ratings_dot_dat="1::2::3.5::978300760\n1::1::5::978300761\n", movies_dot_dat=movies
    )
    interactions, items = convert(name, tmp_path, [raw])
    assert interactions == [RATED, "1\t2\t3.5\t978300760", "1\t1\t5\t978300761"]
    assert items == [
        "item_id:token\ttitle:token_seq\trelease_year:token\tgenres:token_seq",
        "1\tToy Story\t1995\tAnimation Children's",
        "2\tMisérables, Les\t1998\tDrama",
        "3\tNo Year\t\t",
    ]


def test_hetrec(tmp_path: Path) -> None:
    raw = archive(
        tmp_path,
        user_ratedmovies__timestamps_dot_dat="userID\tmovieID\trating\ttimestamp\r\n75\t3\t1\t1162160236000\r\n75\t1\t4.5\t1162160624123\r\n",
        movies_dot_dat="id\ttitle\timdbID\tspanishTitle\tyear\r\n1\tToy story\t01\tToy story (juguetes)\t1995\r\n3\tGrumpy Old Men\t02\tViejos gruñones\t1993\r\n",  # noqa: E501
        movie_genres_dot_dat="movieID\tgenre\r\n1\tAdventure\r\n1\tAnimation\r\n",
        movie_directors_dot_dat="movieID\tdirectorID\tdirectorName\r\n1\tjohn_lasseter\tJohn Lasseter\r\n",
    )
    interactions, items = convert("hetrec2011-ml", tmp_path, [raw])
    assert interactions == [RATED, "75\t3\t1\t1162160236", "75\t1\t4.5\t1162160624.123"]
    assert items[1:] == ["1\tToy story\t1995\tAdventure Animation\tJohn Lasseter", "3\tGrumpy Old Men\t1993\t\t"]


REVIEWS: list[dict[str, object]] = [
    {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1369699200, "reviewText": "x\ny"},
    {"reviewerID": "A2", "asin": "B2", "overall": 4.5, "unixReviewTime": 1355443200},
    {"reviewerID": None, "asin": "B2", "overall": 1.0, "unixReviewTime": 1355443200},
]


def test_amazon_2014_reads_python_literals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = [
        "{'asin': 'B1', 'title': 'Tom&#39;s \\'Brush\\'\\tSet', 'brand': 'E', 'categories': [['Beauty', 'Tools'], ['Beauty', 'Men']]}",
        "{'asin': 'B9', 'title': 'not reviewed', 'categories': [['Beauty']]}",
        {"asin": "B2", "categories": [["Beauty"]]},
        "{'asin': 'B1', 'title': 'a second row of the same item'}",
    ]
    files = [packed(tmp_path, "r.json.gz", REVIEWS), packed(tmp_path, "m.json.gz", meta)]
    interactions, items = convert("amazon-2014", tmp_path, files)
    assert interactions == [RATED, "A1\tB1\t5\t1369699200", "A2\tB2\t4.5\t1355443200"]
    assert items == [
        "item_id:token\ttitle:token_seq\tbrand:token_seq\tcategories:token_seq",
        "B1\tTom's 'Brush' Set\tE\tBeauty, Tools, Men",
        "B2\t\t\tBeauty",
    ]
    assert "1 rows without a user or an item were left out" in capsys.readouterr().err


def test_amazon_2018(tmp_path: Path) -> None:
    meta = [
        {"asin": "B1", "title": "A &amp; B", "brand": "E", "category": ["Beauty", "<span>junk</span>", "Skin Care"]},
        {"asin": "B2", "title": "var aPageStart = (new Date()).getTime();", "brand": "", "category": []},
    ]
    files = [packed(tmp_path, "r.json.gz", REVIEWS[:2]), packed(tmp_path, "m.json.gz", meta)]
    _, items = convert("amazon-2018", tmp_path, files)
    assert items[1:] == ["B1\tA & B\tE\tBeauty, Skin Care", "B2\t\t\t"]


def test_amazon_2023(tmp_path: Path) -> None:
    ratings = ["user_id,parent_asin,rating,timestamp", "AE,B1,5.0,1588687728923", '"A,F",B1,1.0,1588615855000']
    meta = [{"parent_asin": "B1", "title": "Spray", "store": "Herbivore", "categories": ["Beauty"]}]
    files = [packed(tmp_path, "r.csv.gz", ratings), packed(tmp_path, "m.jsonl.gz", meta)]
    interactions, items = convert("amazon-2023", tmp_path, files)
    assert interactions == [RATED, "AE\tB1\t5\t1588687728.923", "A,F\tB1\t1\t1588615855"]
    assert items[1:] == ["B1\tSpray\tHerbivore\tBeauty"]


def test_steam_has_no_ratings(tmp_path: Path) -> None:
    reviews = [
        "{u'username': u'Chaos Syren', u'product_id': u'725280', u'date': u'2017-12-17', u'hours': 0.1, u'text': u'it\\'s fine'}",
        "{u'username': u'tab\\there', u'product_id': u'328100', u'date': u'2017-11-01', u'early_access': False}",
    ]
    games = [
        "{u'app_name': u'Psycho Train', u'genres': [u'Action', u'Indie'], u'tags': [u'VR'], u'developer': u'D', u'id': u'725280'}",
        "{u'title': u'no id'}",
        "{u'title': u'Only a title', u'id': u'328100'}",
    ]
    files = [packed(tmp_path, "r.json.gz", reviews), packed(tmp_path, "g.json.gz", games)]
    interactions, items = convert("steam", tmp_path, files)
    assert interactions == [
        "user_id:token\titem_id:token\ttimestamp:float",
        "Chaos Syren\t725280\t1513468800",
        "tab here\t328100\t1509494400",
    ]
    assert items[1:] == ["725280\tPsycho Train\tAction, Indie\tVR\tD", "328100\tOnly a title\t\t\t"]


def test_yelp(tmp_path: Path) -> None:
    reviews = tmp_path / "reviews.json"
    reviews.write_text(
        json.dumps({"user_id": "u", "business_id": "b", "stars": 3.0, "date": "2018-07-07 22:09:11", "text": "t"})
        + "\n"
    )
    places = tmp_path / "business.json"
    rows = [
        {"business_id": "z", "name": "never visited"},
        {"business_id": "b", "name": "Café “X”", "city": "Tucson", "categories": "Food, Bars"},
    ]
    places.write_text("".join(json.dumps(row) + "\n" for row in rows))
    interactions, items = convert("yelp", tmp_path, [reviews, places])
    assert interactions == [RATED, "u\tb\t3\t1531001351"]
    assert items[1:] == ["b\tCafé “X”\tTucson\tFood, Bars"]


@pytest.mark.parametrize("line", ["{'a': __import__('os')}", "[1, 2]", "{broken", "(" * 5000])
def test_what_is_no_record_is_refused_with_its_line_and_not_run(tmp_path: Path, line: str) -> None:
    files = [packed(tmp_path, "r.json.gz", [REVIEWS[0], line]), packed(tmp_path, "m.json.gz", [])]
    with pytest.raises(InputError, match=r"r\.json\.gz, line 2"):
        convert("amazon-2014", tmp_path, files)
    assert not (tmp_path / "x.inter").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overall": "good"}, "'good' is not a number"),
        ({"overall": None}, "no 'overall'"),
        ({"unixReviewTime": None}, "unixR"),
    ],
)
def test_a_bad_field_is_told_with_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    files = [packed(tmp_path, "r.json.gz", [REVIEWS[0] | change]), packed(tmp_path, "m.json.gz", [])]
    with pytest.raises(InputError, match=message) as told:
        convert("amazon-2018", tmp_path, files)
    assert "line 1" in told.value.line()


def test_a_missing_member_or_field_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no u\.data"):
        convert("ml-100k", tmp_path, [archive(tmp_path, other="x")])
    with pytest.raises(InputError, match=r"ratings\.dat, line 1: 3 fields, expected 4"):
        convert("ml-1m", tmp_path, [archive(tmp_path, ratings_dot_dat="1::2::3\n", movies_dot_dat="")])


def test_the_reader_of_logs_reads_what_we_write(tmp_path: Path) -> None:
    raw = archive(tmp_path, u_dot_data='"196\t242\t3\t881250949\n186\t306\t3\t891717742\n', u_dot_item="\n")
    convert("ml-100k", tmp_path, [raw])
    log = read_interactions(tmp_path / "x.inter", ColumnSettings())
    assert log.frame["user_id"].to_list() == ['"196', "186"]
    assert log.frame["time"].to_list() == [881250949.0, 891717742.0]


def test_every_source_has_a_converter() -> None:
    assert {source.converter for source in SOURCES.values()} == set(CONVERTERS)


@given(st.one_of(st.none(), st.text(), st.integers(), st.floats()))
def test_no_cell_can_break_a_row(value: object) -> None:
    for cell in (key(value), text(value), words([value, value])):
        assert not set(cell) & {"\t", "\n", "\r"}


@given(st.integers(0, 10**14))
def test_milliseconds_lose_nothing(value: int) -> None:
    seconds, _, rest = milliseconds(str(value), "").partition(".")
    assert int(seconds) * 1000 + int(rest or 0) == value
