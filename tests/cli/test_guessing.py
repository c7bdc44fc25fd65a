"""Files as they come: unfamiliar columns are guessed and said, and every format of the same log gives the same data set."""

import datetime as dt
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

Cli = Callable[..., Any]
Done = Any  # see conftest.py
START = 1_700_000_000
ROWS = [(f"u{user:02d}", f"{(user * 3 + n) % 12:03d}", START + 60 * n + user) for user in range(15) for n in range(8)]
ITEMS = [(f"{n:03d}", f"Name {n}", f"Brand {n % 3}") for n in range(12)]


def table(path: Path, names: list[str], rows: list[Any], separator: str = ",") -> Path:
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in [names, *rows]))
    return path


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, Path]:
    log = table(tmp_path / "orders.csv", ["user_id", "product_id", "ts"], ROWS)
    return log, table(tmp_path / "products.csv", ["sku", "name", "brand"], ITEMS)


def manifest(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    (path,) = done.manifests
    return json.loads(path.read_text())


def prepared(cli: Cli, log: Path, items: Path | None, *words: str) -> dict[str, Any]:
    """Prepare in a run of its own and return the manifest."""
    before = set((log.parent / "runs").rglob("manifest.json"))
    done = cli(
        "prepare", "--interactions", log, *(["--items", items] if items else []), "--name", f"run{len(before)}", *words
    )
    assert done.code == 0, done.err
    (path,) = set(done.manifests) - before
    return json.loads(path.read_text())


def test_unfamiliar_columns_need_no_configuration(cli: Cli, shop: tuple[Path, Path]) -> None:
    done = cli("prepare", "--interactions", shop[0], "--items", shop[1])
    found = manifest(done)
    assert "columns of orders.csv: user_id <- 'user_id', item_id <- 'product_id', time <- 'ts'" in done.err
    assert "columns of products.csv: item_key <- 'sku', title <- 'name', text <- 'brand'" in done.err
    assert "15 histories, 12 items, 120 interactions; 75 training, 15 validation, 15 test targets" in done.err
    assert done.out == ""
    assert found["columns"] == {"user_id": "user_id", "item_id": "product_id", "time": "ts"}
    assert (done.runs / "orders" / "config.json").exists()
    texts = pl.read_parquet(done.manifests[0].parent / "items.parquet")
    assert texts.row(4)[1:] == ("004", "Name 4", "Name 4, Brand 1")  # 004 stays 004


def test_what_was_guessed_is_said_again_when_the_stage_was_done_before(cli: Cli, shop: tuple[Path, Path]) -> None:
    first = cli("prepare", "--interactions", shop[0], "--items", shop[1])
    again = cli("prepare", "--interactions", shop[0], "--items", shop[1])
    assert "data: done before" in again.err
    assert "columns of orders.csv: user_id <- 'user_id', item_id <- 'product_id', time <- 'ts'" in again.err
    assert manifest(first) == manifest(again)


def test_a_changed_file_is_prepared_anew(cli: Cli, shop: tuple[Path, Path]) -> None:
    cli("prepare", "--interactions", shop[0], "--items", shop[1])
    shop[0].write_text(shop[0].read_text() + f"u00,011,{START + 5000}\n")
    again = cli("prepare", "--interactions", shop[0], "--items", shop[1])
    assert "data: starting in" in again.err
    assert len({json.loads(path.read_text())["fingerprint"] for path in again.manifests}) == 2


def iso(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_log(folder: Path, form: str) -> Path:
    names = ["user_id", "product_id", "ts"]
    columns = dict(zip(names, zip(*ROWS, strict=True), strict=True))
    if form == "tsv":
        return table(folder / "log.tsv", names, ROWS, "\t")
    if form == "inter":
        return table(folder / "log.inter", ["user_id:token", "item_id:token", "timestamp:float"], ROWS, "\t")
    if form == "other order":
        return table(
            folder / "log.csv", ["when", "ts", "product_id", "user_id"], [("x", t, i, u) for u, i, t in reversed(ROWS)]
        )
    if form == "windows":
        path = table(folder / "log.csv", names, ROWS)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        return path
    if form == "quoted":
        return table(folder / "log.csv", names, [(f'"{u}"', f'" {i} "', f'"{t}"') for u, i, t in ROWS])
    if form == "gz":
        path = folder / "log.csv.gz"
        path.write_bytes(gzip.compress(table(folder / "plain.csv", names, ROWS).read_bytes()))
        return path
    if form == "iso dates":
        return table(folder / "log.csv", names, [(u, i, iso(t)) for u, i, t in ROWS])
    if form == "dates of a zone":
        return table(folder / "log.csv", names, [(u, i, iso(t + 7200).replace("Z", "+02:00")) for u, i, t in ROWS])
    if form == "milliseconds":
        return table(folder / "log.csv", names, [(u, i, t * 1000) for u, i, t in ROWS])
    if form == "jsonl":
        (folder / "log.jsonl").write_text(
            "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS)
        )
        return folder / "log.jsonl"
    if form == "parquet":
        pl.DataFrame(columns).write_parquet(folder / "log.parquet")
        return folder / "log.parquet"
    assert form == "parquet dates"
    frame = pl.DataFrame(columns).with_columns(pl.from_epoch("ts", time_unit="s"))
    frame.write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


FORMS = [
    "tsv", "inter", "other order", "windows", "quoted", "gz", "iso dates", "dates of a zone", "milliseconds", "jsonl", "parquet",
    "parquet dates",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=[form.replace(" ", "-") for form in FORMS])
def test_every_form_of_the_log_gives_the_same_data_set(
    cli: Cli, shop: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    folder = tmp_path / "form"
    folder.mkdir()
    plain = prepared(cli, *shop)
    path = write_log(folder, form)
    path = path.rename(tmp_path / path.name)
    assert prepared(cli, path, shop[1])["fingerprint"] == plain["fingerprint"]


@pytest.mark.parametrize("form", ["tsv", "item", "jsonl", "parquet", "gz"])
def test_every_form_of_the_item_file_gives_the_same_data_set(
    cli: Cli, shop: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    names = ["sku", "name", "brand"]
    if form == "item":
        path = table(tmp_path / "i.item", ["item_id:token", "item_title:token_seq", "brand:token"], ITEMS, "\t")
    elif form == "jsonl":
        path = tmp_path / "i.jsonl"
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ITEMS))
    elif form == "parquet":
        path = tmp_path / "i.parquet"
        pl.DataFrame(ITEMS, schema=names, orient="row").write_parquet(path)
    elif form == "gz":
        path = tmp_path / "i.csv.gz"
        path.write_bytes(gzip.compress(shop[1].read_bytes()))
    else:
        path = table(tmp_path / "i.tsv", names, ITEMS, "\t")
    assert prepared(cli, shop[0], path)["fingerprint"] == prepared(cli, *shop)["fingerprint"]


def test_sequence_text_is_a_log_without_a_clock(cli: Cli, shop: tuple[Path, Path], tmp_path: Path) -> None:
    histories: dict[str, list[str]] = {}
    for user, item, _ in ROWS:
        histories.setdefault(user, []).append(item)
    (tmp_path / "log.txt").write_text("".join(" ".join([user, *items]) + "\n" for user, items in histories.items()))
    bare = table(tmp_path / "bare.csv", ["user_id", "product_id"], [row[:2] for row in ROWS])
    text, without, timed = (
        prepared(cli, tmp_path / "log.txt", shop[1]),
        prepared(cli, bare, shop[1]),
        prepared(cli, *shop),
    )
    assert text["fingerprint"] == without["fingerprint"] != timed["fingerprint"]
    assert text["has_time"] is False
    assert any("order of the line" in note for note in text["notes"])
    assert any("order of the rows is taken" in note for note in without["notes"])


def test_without_an_item_file_ids_stand_in_and_that_is_said(cli: Cli, shop: tuple[Path, Path]) -> None:
    done = cli("prepare", "--interactions", shop[0])
    assert "no items file: item ids stand in for titles, so the language model reads no text" in done.err
    assert manifest(done)["items_without_text"] == 12


def test_what_the_filters_drop_is_said(cli: Cli, shop: tuple[Path, Path]) -> None:
    shop[0].write_text(shop[0].read_text() + f"u99,000,{START}\n" + f"u00,000,{START}\n")
    done = cli("prepare", "--interactions", shop[0], "--items", shop[1])
    assert "filters dropped: duplicates 1, k_core 1" in done.err
    assert manifest(done)["dropped"] == {"duplicates": 1, "k_core": 1, "min_history": 0}


@pytest.mark.parametrize(
    ("file", "run"),
    [
        ("2024.csv", "2024"),
        ("my log (1).csv", "my-log-1"),
        ("a#b: c.csv", "a-b-c"),
        ("[x].csv", "x"),
        ("1e5.csv", "1e5"),
        ("é.csv", "run"),
    ],
)
def test_any_file_name_will_do(cli: Cli, shop: tuple[Path, Path], tmp_path: Path, file: str, run: str) -> None:
    done = cli(
        "prepare",
        "--interactions",
        shop[0].rename(tmp_path / file),
        "--items",
        shop[1].rename(tmp_path / f"items of {file}"),
    )
    assert done.code == 0, done.err
    assert [path.name for path in done.runs.iterdir()] == [run]


def test_a_name_of_digits_is_a_name(cli: Cli, shop: tuple[Path, Path]) -> None:
    done = cli("prepare", "--interactions", shop[0], "--name", "007")
    assert done.code == 0
    assert (done.runs / "007").is_dir()


def test_the_users_columns_win_over_the_guess(cli: Cli, tmp_path: Path) -> None:
    log = table(
        tmp_path / "log.csv",
        ["user_id", "buyer", "item_id", "t1", "timestamp"],
        [("x", u, i, t, 0) for u, i, t in ROWS],
    )
    found = prepared(cli, log, None, "data.columns.user=buyer", "data.columns.time=t1")
    assert found["columns"] == {"user_id": "buyer", "item_id": "item_id", "time": "t1"}
    assert found["n_users"] == 15
