"""Guessing which column is which."""

import polars as pl
import pytest

from distilrec.columns import ITEM, RATING, TIME, TITLE, USER
from distilrec.data.guess import guess, guess_item_id, guess_text
from distilrec.errors import InputError

LOGS = {
    "RecBole": (["user_id", "item_id", "rating", "timestamp"], ["user_id", "item_id", "timestamp", "rating"]),
    "shop": (["CustomerID", "StockCode", "Quantity", "InvoiceDate"], ["CustomerID", "StockCode", "InvoiceDate", None]),
    "MovieLens": (["userId", "movieId", "rating", "timestamp"], ["userId", "movieId", "timestamp", "rating"]),
    "Amazon": (
        ["reviewerID", "asin", "overall", "unixReviewTime", "reviewText"],
        ["reviewerID", "asin", "unixReviewTime", "overall"],
    ),
    "Yelp": (["review_id", "user_id", "business_id", "stars", "date"], ["user_id", "business_id", "date", "stars"]),
    "sessions": (["session", "ts", "sku"], ["session", "sku", "ts", None]),
    "user before session": (["session_id", "visitor_id", "item", "t"], ["visitor_id", "item", "t", None]),
    "exact name before a like one": (
        ["user", "user_id", "item_id", "item", "time", "timestamp"],
        ["user_id", "item_id", "timestamp", None],
    ),
    "ending": (["the_user", "some_item", "click_time"], ["the_user", "some_item", "click_time", None]),
    "in capitals": (["USER ID", "Item-Id", "Score"], ["USER ID", "Item-Id", None, "Score"]),
}


@pytest.mark.parametrize("case", LOGS)
def test_roles_of_well_known_logs(case: str) -> None:
    names, expected = LOGS[case]
    found = [guess(role, names, where="log.csv", required=role in (USER, ITEM)) for role in (USER, ITEM, TIME, RATING)]
    assert found == expected


def test_the_users_choice_wins_and_must_exist() -> None:
    assert guess(USER, ["user_id", "buyer"], given="buyer", where="log.csv") == "buyer"
    with pytest.raises(
        InputError, match=r"log\.csv: no column 'byer'; there are 'user_id', 'buyer'\. Correct data\.columns\.user\."
    ):
        guess(USER, ["user_id", "buyer"], given="byer", where="log.csv")


def test_a_missing_role_names_the_setting() -> None:
    with pytest.raises(
        InputError,
        match=r"log\.csv: no item column found among 'user_id', 'x'\. Name it with data\.columns\.item=NAME\.",
    ):
        guess(ITEM, ["user_id", "x"], where="log.csv")
    assert guess(TIME, ["user_id", "x"], where="log.csv", required=False) is None


@pytest.mark.parametrize(
    ("role", "names"),
    [(USER, ["uid", "user"]), (ITEM, ["asin", "sku"]), (TIME, ["ts", "time"]), (TITLE, ["app_name", "song_name"])],
)
def test_two_equally_good_columns_are_not_chosen_between(role: str, names: list[str]) -> None:
    with pytest.raises(InputError, match=f"ambiguous: '{names[0]}', '{names[1]}'. Choose with data.columns"):
        guess(role, names, where="log.csv", required=False)


def test_a_lower_tier_is_not_asked_where_a_higher_one_answers() -> None:
    assert guess(ITEM, ["id", "product_id"], where="x") == "product_id"
    assert guess(TIME, ["date", "event_time", "timestamp"], where="x") == "timestamp"
    assert guess(TITLE, ["description", "name", "title"], where="x") == "title"


def test_the_id_of_the_item_table_is_the_column_that_holds_the_logs_ids() -> None:
    frame = pl.DataFrame({"item_id": [1, 2, 3], "old_number": ["a", "b", "c"], "name": ["A", "B", "C"]})
    known = pl.Series(["a", "b", "z"])
    assert guess_item_id(frame, frame.columns, known, given=None, where="items.csv") == "old_number"
    assert guess_item_id(frame, frame.columns, pl.Series(["1", "2"]), given=None, where="items.csv") == "item_id"
    assert guess_item_id(frame, frame.columns, known, given="name", where="items.csv") == "name"


def test_names_break_the_tie_between_id_columns() -> None:
    frame = pl.DataFrame({"row": [1, 2], "sku": ["1", "2"], "price": [1.0, 2.0]})
    assert guess_item_id(frame, frame.columns, pl.Series(["1", "2"]), given=None, where="items.csv") == "sku"


def test_ids_are_compared_as_text_without_blanks_around_them_and_lists_do_no_harm() -> None:
    frame = pl.DataFrame({"genres": [["x"], ["y"]], "key": [" 1", "2 "]})
    assert guess_item_id(frame, frame.columns, pl.Series(["1", "2"]), given=None, where="items.parquet") == "key"
    floats = pl.DataFrame({"key": [1.0, 2.0]})
    assert guess_item_id(floats, ["key"], pl.Series(["1", "2"]), given=None, where="items.parquet") == "key"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"": ["0", "1", "2"], "article_no": ["1", "2", "3"], "title": ["A", "B", "C"]},
            "article_no",
        ),  # a pandas index
        ({"": ["1", "2", "3"], "artikel": ["1", "2", "3"]}, r"'artikel' holds 3 of the log's 3 .*item_key=artikel"),
        ({"Unnamed: 0": ["1", "2", "3"], "id": ["3", "2", "1"]}, "id"),
        ({"stock": ["3", "2", "1"], "title": ["A", "B", "C"]}, r"'stock' holds 3 of the log's 3 .*item_key=stock"),
        ({"number": ["001", "002", "003"], "stock": ["3", "2", "1"]}, r"'number' holds 0 of the log's 3 .*'stock' 3"),
        ({"": ["1", "2", "3"], "title": ["A", "B", "C"]}, "no column holds the item ids"),
    ],
)
def test_whole_numbers_in_a_column_that_no_name_speaks_for_are_not_taken_for_ids(
    columns: dict[str, list[str]], said: str
) -> None:
    frame, known = pl.DataFrame(columns), pl.Series(["1", "2", "3"])
    if said in columns:
        assert guess_item_id(frame, frame.columns, known, given=None, where="i.csv") == said
    else:
        with pytest.raises(InputError, match=said):
            guess_item_id(frame, frame.columns, known, given=None, where="i.csv")


def test_of_two_columns_that_hold_all_ids_in_another_order_none_is_chosen() -> None:
    frame = pl.DataFrame({"like": ["b", "a"], "this": ["a", "b"]})
    with pytest.raises(InputError, match=r"'like', 'this' hold 2 of the log's 2 .*item_key=like"):
        guess_item_id(frame, frame.columns, pl.Series(["a", "b"]), given=None, where="i.csv")
    same = frame.with_columns(pl.col("this").alias("like"))
    assert guess_item_id(same, same.columns, pl.Series(["a", "b"]), given=None, where="i.csv") == "like"


def test_an_item_table_of_another_log_is_refused() -> None:
    frame = pl.DataFrame({"item_id": ["x", "y"], "title": ["X", "Y"]})
    with pytest.raises(
        InputError, match=r"items\.csv: no column holds the item ids of the log \(such as 'a', 'b', 'c'\)"
    ):
        guess_item_id(frame, frame.columns, pl.Series(["c", "b", "a", "d"]), given=None, where="items.csv")


def test_further_text_columns() -> None:
    names = ["brand", "main_category", "Genres", "image_url", "brand_id", "price", "tags", "author", "weight"]
    frame = pl.DataFrame({name: ["x"] for name in names})
    assert guess_text(frame, names, given=None, where="x") == ["brand", "main_category", "Genres", "tags", "author"]
    assert guess_text(frame, names, given=["price"], where="x") == ["price"]
    assert guess_text(frame, names, given=[], where="x") == []
    with pytest.raises(InputError, match=r"no column 'colour'.*Correct data\.columns\.text\."):
        guess_text(frame, names, given=["colour"], where="x")


@pytest.mark.parametrize(
    ("ids", "ranks", "said"),
    [
        (["1", "2", "3", "x"], ["1", "2", "3", "4"], "item_id"),  # one item is not in the log
        (["1.0", "2.0", "3.0", "4.0"], ["4", "3", "2", "1"], None),  # whole numbers that happen to be ids
        (["1", "x", "y", "z"], ["1", "2", "3", "4"], None),
    ],
)
def test_a_column_named_like_an_id_is_not_outvoted_in_silence(
    ids: list[str], ranks: list[str], said: str | None
) -> None:
    frame = pl.DataFrame({"item_id": ids, "rank": ranks})
    known = pl.Series(["1", "2", "3", "4"])
    if said is None:
        with pytest.raises(InputError, match=r"'item_id' holds [01] of the log's 4 item ids .*'rank' 4.*item_key"):
            guess_item_id(frame, frame.columns, known, given=None, where="i.csv")
    else:
        assert guess_item_id(frame, frame.columns, known, given=None, where="i.csv") == said
