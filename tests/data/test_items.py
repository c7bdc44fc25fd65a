"""Item text: titles by internal id, and items that have none."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distilrec.columns import INDEX, ITEM, TEXT, TITLE
from distilrec.config import ColumnSettings, DataSettings
from distilrec.data.items import ItemTexts, read_items
from distilrec.data.prepare import prepare
from distilrec.errors import InputError

CATALOGUE = pl.Series(["a", "b", "c", "d"])


def read(path: Path, content: str, **columns: object) -> ItemTexts:
    path.write_bytes(content.encode())
    return read_items(path, CATALOGUE, ColumnSettings.model_validate(columns))


def test_titles_in_the_order_of_internal_ids(tmp_path: Path) -> None:
    texts = read(
        tmp_path / "i.csv",
        "sku,name,brand,price,categories\nd,Delta, Dee ,1,x\nz,Zulu,,2,y\na,Alpha,,3,first\nc, ,Cee,4,z\na,Again,Bee,5,q\n",
    )
    assert texts.frame.columns == [INDEX, ITEM, TITLE, TEXT]
    assert texts.frame.rows() == [
        (0, "a", "Alpha", "Alpha, first"),  # the first row of an item counts; an empty cell leaves no comma
        (1, "b", "b", "b"),  # no row
        (2, "c", "c", "Cee, z"),  # an empty title takes no other text away
        (3, "d", "Delta", "Delta, Dee, x"),
    ]
    assert texts.without_text == 2
    assert texts.unused == 1
    assert texts.roles == {"item_key": "sku", TITLE: "name", TEXT: "brand, categories"}


@pytest.mark.parametrize(
    ("rows", "title", "text", "repeated"),
    [
        ("a,,x\na,Alpha,y\na,Again,z\n", "Alpha", "Alpha, y", 1),  # the first row with a title
        ("a,,\na, ,y\n,N,\n,N,\n", "a", "y", 1),  # without any, the first with text; rows without an id are nobody's
        ("a,Alpha,\nz,,\nz,Z,\n", "Alpha", "Alpha", 1),
        ("a,Alpha,\n", "Alpha", "Alpha", 0),
    ],
)
def test_ids_that_stand_there_more_than_once(tmp_path: Path, rows: str, title: str, text: str, repeated: int) -> None:
    texts = read(tmp_path / "i.csv", "sku,name,brand\n" + rows)
    assert texts.frame.row(0)[2:] == (title, text)
    assert texts.repeated == repeated


def test_repeated_ids_are_said(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"u{n},{item}\n" for n in range(5) for item in "abcde"))
    (tmp_path / "i.csv").write_text("sku,name\na,\na,A\nb,B\nb,B\nc,C\nd,D\n")
    said: list[str] = []
    data = prepare(
        tmp_path / "log.csv", tmp_path / "i.csv", DataSettings(source="x"), tmp_path / "data", seed=0, say=said.append
    )
    assert "  2 ids stand in i.csv more than once; the first row with a title counts" in said
    assert data.titles == ["A", "B", "C", "D", "e"]


def test_an_items_file_without_a_header_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: the file seems to have no header line.*item_id,title"):
        read(tmp_path / "i.csv", "a,Alpha,Drama\nb,Beta,Drama\nc,Gamma,War\n")


def test_an_items_file_of_semicolons_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'sku;name' is one column\. Separate columns by commas"):
        read(tmp_path / "i.csv", "sku;name\na;Alpha\n")


def test_without_a_file_ids_stand_in() -> None:
    texts = read_items(None, CATALOGUE, ColumnSettings())
    assert texts.frame[TITLE].to_list() == texts.frame[TEXT].to_list() == ["a", "b", "c", "d"]
    assert (texts.without_text, texts.unused, texts.roles) == (4, 0, {})


def test_the_users_choice_of_columns(tmp_path: Path) -> None:
    content = "sku,name,brand,price\na,A,x,1\nb,B,x,2\nc,C,x,3\nd,D,x,4\n"
    texts = read(tmp_path / "i.csv", content, title="brand", text=["price", "name"])
    assert texts.frame[TEXT].to_list() == ["x, 1, A", "x, 2, B", "x, 3, C", "x, 4, D"]
    assert read(tmp_path / "i.csv", content, text=[]).frame[TEXT].to_list() == ["A", "B", "C", "D"]
    with pytest.raises(InputError, match=r"no column 'key'.*Correct data\.columns\.item_key\."):
        read(tmp_path / "i.csv", content, item_key="key")


@pytest.mark.parametrize(
    ("choice", "texts"),
    [
        ({"text": ["name"]}, ["A", "B"]),  # the title again
        ({"text": ["title", "title"], "title": "name"}, ["A, x", "B, y"]),
        ({"text": ["item_id"]}, ["A, 1", "B, 2"]),
        ({"title": "item_id"}, ["1", "2"]),
        ({"title": "title", "text": ["item_id", "name"]}, ["x, 1, A", "y, 2, B"]),
    ],
)
def test_columns_that_are_named_as_ours_are(tmp_path: Path, choice: dict[str, Any], texts: list[str]) -> None:
    content = "sku,item_id,name,title\na,1,A,x\nb,2,B,y\nc,3,C,z\nd,4,D,u\n"
    chosen = {"item_key": "sku", "title": "name", "text": []} | choice
    assert read(tmp_path / "i.csv", content, **chosen).frame[TEXT].to_list()[:2] == texts


def test_a_table_without_titles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"i\.csv: no title column found among 'price'\. Name it with data\.columns\.title=NAME\."
    ):
        read(tmp_path / "i.csv", "sku,price\na,1\n")


def test_lists_and_numbers_of_parquet_become_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["A", "B", None, "D"],
            "genres": [["Drama", "War"], [], ["x"], None],
            "year": [1999.0, None, 2000.0, 2001.0],
        }
    )
    frame.write_parquet(tmp_path / "i.parquet")
    texts = read_items(tmp_path / "i.parquet", CATALOGUE, ColumnSettings())
    assert texts.frame[TEXT].to_list() == ["A, Drama War, 1999", "B", "x, 2000", "D, 2001"]


def test_number_ids_meet_text_ids(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [2.0, 1.0], "title": ["two", "one"]}).write_parquet(tmp_path / "i.parquet")
    texts = read_items(tmp_path / "i.parquet", pl.Series(["1", "2"]), ColumnSettings())
    assert texts.frame[TITLE].to_list() == ["one", "two"]
