"""Filters: k-core against a naive loop, repeats, sessions, and what is counted."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.columns import ITEM, RATING, ROW, TIME, USER
from distilrec.config import FilterSettings, SessionSettings
from distilrec.data.filters import apply_filters, deduplicate, k_core, sessionise
from distilrec.data.interactions import Interactions
from distilrec.errors import InputError

Event = tuple[str, str, float | None]
KEEP_ALL = FilterSettings(k_core_user=1, k_core_item=1, min_history=2, duplicates="none")
NO_SESSIONS = SessionSettings()
EVENTS = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde"), st.integers(0, 3).map(float)), min_size=1, max_size=30
)


def frame_of(events: list[Event], ratings: list[float | None] | None = None) -> pl.DataFrame:
    users, items, times = zip(*events, strict=True)
    return pl.DataFrame(
        {
            USER: users,
            ITEM: items,
            TIME: times,
            RATING: ratings or [None] * len(events),
            ROW: range(1, len(events) + 1),
        },
        schema={USER: pl.String, ITEM: pl.String, TIME: pl.Float64, RATING: pl.Float64, ROW: pl.Int64},
    )


def log_of(events: list[Event], ratings: list[float | None] | None = None) -> Interactions:
    return Interactions(frame_of(events, ratings), {}, events[0][2] is not None, ())


def naive_k_core(pairs: list[tuple[str, str]], users: int, items: int) -> list[tuple[str, str]]:
    """Drop one interaction of a too rare user or item at a time."""
    pairs = list(pairs)
    while True:
        rare = [
            n
            for n, (user, item) in enumerate(pairs)
            if sum(pair[0] == user for pair in pairs) < users or sum(pair[1] == item for pair in pairs) < items
        ]
        if not rare:
            return pairs
        del pairs[rare[0]]


@given(events=EVENTS, users=st.integers(1, 5), items=st.integers(1, 5))
def test_k_core_like_a_naive_loop(events: list[Event], users: int, items: int) -> None:
    pairs = [event[:2] for event in events]
    assert k_core(frame_of(events), users, items).select(USER, ITEM).rows() == naive_k_core(pairs, users, items)


def test_k_core_goes_on_until_nothing_falls() -> None:
    # u loses c (seen once), so u is too short, so a is too rare, so v is too short: one pass would keep v.
    events = [(user, item, 0.0) for user, item in ("ua", "uc", "va", "vb", "wb", "wd", "xb", "xd")]
    kept = k_core(frame_of(events), 2, 2).select(USER, ITEM).rows()
    assert kept == [("w", "b"), ("w", "d"), ("x", "b"), ("x", "d")]


REPEATS: list[Event] = [
    ("u", "a", 2.0),
    ("u", "b", 1.0),
    ("u", "a", 2.0),
    ("u", "a", 1.0),
    ("v", "a", 2.0),
    ("u", "a", 2.0),
]


@pytest.mark.parametrize(
    ("which", "rows"),
    [("none", [1, 2, 3, 4, 5, 6]), ("exact", [1, 2, 4, 5]), ("first", [2, 4, 5]), ("last", [2, 5, 6])],
)
def test_duplicates(which: str, rows: list[int]) -> None:
    assert deduplicate(frame_of(REPEATS), which)[ROW].to_list() == rows


@pytest.mark.parametrize(
    ("which", "rows"),
    [("none", [1, 2, 3, 4, 5, 6]), ("exact", [1, 2, 3, 4, 5, 6]), ("first", [1, 2, 5]), ("last", [2, 5, 6])],
)
def test_duplicates_without_a_clock(which: str, rows: list[int]) -> None:
    # A repeated item is a repeated interaction then, not a repeated row.
    assert deduplicate(frame_of([(user, item, None) for user, item, _ in REPEATS]), which)[ROW].to_list() == rows


def test_sessions_by_gap() -> None:
    events: list[Event] = [
        ("u", "a", 0.0),
        ("u", "b", 1800.0),
        ("u", "c", 3601.0),
        ("v", "a", 5000.0),
        ("v", "b", 9000.0),
        ("v", "c", 9001.0),
    ]
    cut = sessionise(frame_of(events), SessionSettings(by="gap", gap_minutes=30))
    assert cut[USER].to_list() == ["u#0", "u#0", "u#1", "v#0", "v#1", "v#1"]  # 1800 s is no longer than 30 minutes


def test_sessions_by_day() -> None:
    day = 86_400.0
    events: list[Event] = [
        ("u", "a", day - 1),
        ("u", "b", day),
        ("u", "c", 2 * day - 1),
        ("u", "d", 5 * day),
        ("v", "a", 5 * day),
    ]
    cut = sessionise(frame_of(events), SessionSettings(by="day"))
    groups = [list(group[ITEM]) for _, group in cut.group_by(USER, maintain_order=True)]
    assert groups == [["a"], ["b", "c"], ["d"], ["a"]]


@given(events=EVENTS, gap=st.sampled_from([0.5, 1.0, 2.0]))
def test_sessions_like_a_naive_loop(events: list[Event], gap: float) -> None:
    events = sorted(events, key=lambda event: (event[0], event[2]))
    expected, number = [], 0
    for before, (user, _, time) in zip([None, *events], events, strict=False):
        same = before is not None and before[0] == user
        number = number + (time - before[2] > gap) if same else 0
        expected.append(f"{user}#{number}")
    assert sessionise(frame_of(events), SessionSettings(by="gap", gap_minutes=gap / 60))[USER].to_list() == expected


@given(events=EVENTS)
def test_histories_come_out_by_user_then_time_then_row(events: list[Event]) -> None:
    log = log_of(events)
    try:
        frame, dropped = apply_filters(log, KEEP_ALL, NO_SESSIONS)
    except InputError:
        return
    long = {user for user, _, _ in events if sum(event[0] == user for event in events) >= 2}
    expected = sorted((user, time, n, item) for n, (user, item, time) in enumerate(events) if user in long)
    assert frame.rows() == [(user, item, time) for user, time, _, item in expected]
    assert sum(dropped.values()) == len(events) - len(expected)


def test_each_filter_counts_what_it_drops() -> None:
    events: list[Event] = [
        *(("u", item, n) for n, item in enumerate("aabc")),
        *(("v", item, n) for n, item in enumerate("abc")),
        ("w", "a", 0.0),
    ]
    events.append(("u", "a", 0.0))
    ratings = [5.0, 5.0, 5.0, 1.0, 5.0, 5.0, None, 5.0, 5.0]
    settings = FilterSettings(min_rating=2, duplicates="exact", k_core_user=1, k_core_item=2, min_history=3)
    frame, dropped = apply_filters(log_of(events, ratings), settings, NO_SESSIONS)
    assert frame.rows() == [("u", "a", 0.0), ("u", "a", 1.0), ("u", "b", 2.0)]
    assert dropped == {"min_rating": 2, "duplicates": 1, "k_core": 0, "min_history": 3}


def test_sessions_are_cut_before_the_core_is_taken() -> None:
    events: list[Event] = [("u", item, time) for item, time in zip("abab", (0.0, 1.0, 1e6, 1e6 + 1), strict=True)]
    settings = KEEP_ALL.model_copy(update={"k_core_user": 3})
    with pytest.raises(InputError, match=r"no interaction of 4 is left after the filters .*k_core dropped 4"):
        apply_filters(log_of(events), settings, SessionSettings(by="gap"))
    frame, _ = apply_filters(log_of(events), KEEP_ALL, SessionSettings(by="gap"))
    assert frame[USER].to_list() == ["u#0", "u#0", "u#1", "u#1"]


def test_a_catalogue_of_one_item_is_refused() -> None:
    with pytest.raises(InputError, match=r"one item only \('a'\).*data\.columns\.item"):
        apply_filters(log_of([("u", "a", 0.0), ("u", "a", 1.0)]), KEEP_ALL, NO_SESSIONS)


def test_a_filter_that_needs_a_column_says_so() -> None:
    events: list[Event] = [("u", "a", None), ("u", "b", None)]
    with pytest.raises(InputError, match="the log has no rating"):
        apply_filters(log_of(events), KEEP_ALL.model_copy(update={"min_rating": 3.0}), NO_SESSIONS)
    with pytest.raises(InputError, match="sessions need a time column"):
        apply_filters(log_of(events), KEEP_ALL, SessionSettings(by="day"))
