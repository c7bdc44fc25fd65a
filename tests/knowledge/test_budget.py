"""The budget keeps caps whatever the order of events; the estimate is right by hand."""

from dataclasses import dataclass

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.columns import COST, TOKENS_IN, TOKENS_OUT
from distilrec.config import CapSettings
from distilrec.knowledge.budget import ATTEMPTS, Budget, Spent, Ticket, estimate, usd_text
from distilrec.knowledge.prices import Price
from distilrec.teachers.backends.base import Prompt, Reply


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def budget(spent: Spent | None = None, clock: Clock | None = None, **caps: float) -> Budget:
    return Budget(CapSettings.model_validate(caps), spent or Spent(), clock or Clock())


def test_without_caps_everything_fits() -> None:
    free = budget()
    assert all(free.try_reserve(10**9, 10**9, 1e9) for _ in range(100))
    assert free.stopped_by is None and free.in_flight == 100 and free.seconds_left == float("inf")


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"rows": 2}, "the cap of 2 rows"),
        ({"tokens": 2000}, "the cap of 2,000 tokens"),
        ({"usd": 5.0}, "the cap of 5.00 USD"),
        ({"usd": 0.005}, "the cap of 0.005 USD"),
    ],
)
def test_two_fit_and_the_third_is_refused_by_name(caps: dict[str, float], words: str) -> None:
    usd = caps.get("usd", 5.0) / 2
    some = budget(**caps)
    first, second = (some.try_reserve(900, 100, usd) for _ in range(2))
    assert first and second and some.stopped_by is None
    assert some.try_reserve(900, 100, usd) is None
    assert some.stopped_by == words
    some.release(first)
    third = some.try_reserve(900, 100, usd)
    assert third and some.stopped_by is None  # there is room again
    some.settle(third, Spent(1, 1000, usd))
    some.settle(second, Spent(1, 1000, usd))
    assert some.spent == Spent(2, 2000, 2 * usd) and some.in_flight == 0
    assert some.try_reserve(900, 100, usd) is None


def test_a_cheap_reply_leaves_room_for_more() -> None:
    some = budget(tokens=1000)
    ticket = some.try_reserve(100, 900, None)
    assert ticket and some.try_reserve(1, 0, None) is None
    some.settle(ticket, Spent(1, 150))
    assert some.try_reserve(100, 750, None)


def test_earlier_runs_count_but_not_their_minutes() -> None:
    assert budget(Spent(rows=5), rows=5).try_reserve(1, 1, None) is None
    assert budget(Spent(tokens=99), tokens=100).try_reserve(1, 1, None) is None
    assert budget(Spent(usd=4.99), usd=5.0).try_reserve(1, 1, 0.02) is None
    assert budget(Spent(5, 99, 4.99), minutes=1).try_reserve(1, 1, 1.0)


def test_a_second_try_is_no_second_row() -> None:
    some = budget(Spent(rows=5), rows=5)
    assert some.try_reserve(1, 1, None, rows=0)


def test_minutes_end_the_run_on_the_clock() -> None:
    clock = Clock()
    clock.now = 1000.0
    some = budget(clock=clock, minutes=1.5)
    assert some.seconds_left == 90
    clock.now = 1089.9
    assert some.try_reserve(1, 1, None)
    clock.now = 1090.0
    assert some.try_reserve(1, 1, None) is None and some.stopped_by == "the cap of 1.5 minutes"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle", "release"]),
        st.integers(0, 20),  # which ticket
        st.integers(0, 50),  # tokens held
        st.integers(-50, 80),  # estimation error in tokens
    ),
    max_size=80,
)


@given(EVENTS, st.integers(1, 200), st.integers(1, 12), st.integers(0, 100))
def test_no_interleaving_passes_a_cap_by_more_than_requests_in_flight_were_underestimated(
    events: list[tuple[str, int, int, int]], tokens_cap: int, rows_cap: int, before: int
) -> None:
    usd = 1 / 64  # of a token; a power of two, so that sums are exact
    some = Budget(
        CapSettings(tokens=tokens_cap, rows=rows_cap, usd=tokens_cap * usd), Spent(0, before, before * usd), Clock()
    )
    held: list[tuple[Ticket, int]] = []
    spent, rows = before, 0
    excess = max(
        0, before - tokens_cap
    )  # how far past the cap is explained by what was underestimated since the last yes
    for kind, which, tokens, error in events:
        if kind == "reserve":
            ticket = some.try_reserve(tokens, 0, tokens * usd)
            fits = spent + sum(size for _, size in held) + tokens <= tokens_cap and rows + len(held) + 1 <= rows_cap
            assert (ticket is not None) == fits
            if ticket is not None:
                held.append((ticket, tokens))
                excess = 0
        elif held:
            ticket, size = held.pop(which % len(held))
            if kind == "settle":
                actual = max(0, size + error)
                some.settle(ticket, Spent(1, actual, actual * usd))
                spent, rows = spent + actual, rows + 1
                excess += max(0, actual - size)
            else:
                some.release(ticket)
        assert some.in_flight == len(held)
        assert some.spent == Spent(rows, spent, spent * usd)
        assert rows <= rows_cap and spent <= tokens_cap + excess


@dataclass(frozen=True)
class Asked:
    prompt: Prompt


class Words:
    """Counts characters as tokens, and remembers how many prompts it looked at."""

    model = "words"

    def __init__(self) -> None:
        self.looked = 0

    def identity(self) -> dict[str, str]:
        return {}

    def count_tokens(self, prompt: Prompt) -> int:
        self.looked += 1
        return len(prompt.user)

    def count_text(self, text: str) -> int:
        return len(text)

    def complete(self, prompts: list[Prompt]) -> list[Reply]:
        return []


class Lazy:
    """A sequence of prompts of 100 to 199 tokens that builds each one when it is looked at."""

    def __init__(self, size: int) -> None:
        self.size, self.built = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Asked:
        self.built += 1
        return Asked(Prompt("", "x" * (100 + place % 100), 50))


PRICE = Price(10.0, 100.0, "test")
ASKED = [Asked(Prompt("", "x" * length, 50)) for length in (10, 20, 30, 40)]


def test_estimate_by_hand() -> None:
    found = estimate(ASKED, Words(), price=PRICE, caps=CapSettings(), ideal="y" * 7)
    assert (found.rows, found.tokens_in, found.tokens_out, found.limited_by) == (4, 100, 28, None)
    assert found.usd == pytest.approx((100 * 10 + 28 * 100) / 1e6)
    assert any("ideal" in line for line in found.lines())


def test_measured_replies_count_from_five_rows_on() -> None:
    stored = pl.DataFrame(
        {TOKENS_IN: [1] * 5, TOKENS_OUT: [10, 20, 30, 40, 100], COST: [0.0] * 5, ATTEMPTS: [1, 1, 1, 1, 2]}
    )
    few = estimate(ASKED, Words(), price=None, caps=CapSettings(), ideal="y" * 7, stored=stored.head(4))
    assert few.tokens_out == 28 and few.usd is None and any("cost unknown" in line for line in few.lines())
    enough = estimate(ASKED, Words(), price=None, caps=CapSettings(), ideal="y" * 7, stored=stored)
    assert enough.tokens_out == 4 * 40
    assert enough.tokens_in == 120  # 1.2 tries a row


@pytest.mark.parametrize(
    ("caps", "stored", "rows", "words"),  # stored: tokens in, tokens out, USD
    [
        ({"rows": 3}, [], 3, "the cap of 3 rows"),
        ({"rows": 3}, [(5, 5, 0.1)] * 2, 1, "the cap of 3 rows"),
        ({"rows": 9}, [(5, 5, 0.1)] * 2, 4, None),
        ({"tokens": 64}, [], 2, "the cap of 64 tokens"),  # 32 a row
        ({"tokens": 64}, [(1, 0, 0.1)], 1, "the cap of 64 tokens"),
        ({"tokens": 64, "rows": 1}, [], 1, "the cap of 1 row"),
        ({"usd": 0.00285}, [], 3, "the cap of 0.00285 USD"),  # 0.00095 a row
        ({"usd": 0.00285}, [(1, 1, 0.001)], 1, "the cap of 0.00285 USD"),
        ({"usd": 0.00285}, [(90, 1, None)], 1, "the cap of 0.00285 USD"),  # 0.001 USD at today's price
        ({"usd": 0.00285}, [(1, 1, 1.0)], 0, "the cap of 0.00285 USD"),
    ],
)
def test_estimate_under_caps(
    caps: dict[str, float], stored: list[tuple[int, int, float | None]], rows: int, words: str | None
) -> None:
    columns = {TOKENS_IN: pl.Int64, TOKENS_OUT: pl.Int64, COST: pl.Float64}
    frame = pl.DataFrame(stored, schema=columns, orient="row") if stored else None
    limits = CapSettings.model_validate(caps)
    found = estimate(ASKED, Words(), price=PRICE, caps=limits, ideal="y" * 7, stored=frame)
    assert (found.rows, found.limited_by, found.wanted) == (rows, words, 4)
    assert found.tokens_in == rows * 25
    assert any("ends at" in line for line in found.lines()) == (words is not None)


def test_a_large_job_is_sampled_with_a_seed_and_says_so() -> None:
    lazy, counter = Lazy(5000), Words()
    found = estimate(lazy, counter, price=PRICE, caps=CapSettings(), ideal="y", seed=3)
    assert lazy.built == counter.looked == 1000
    assert found.tokens_in == pytest.approx(5000 * 149.5, rel=0.02)
    assert any("extrapolated" in line for line in found.lines())
    again = estimate(Lazy(5000), Words(), price=PRICE, caps=CapSettings(), ideal="y", seed=3)
    assert again == found
    exact = estimate(Lazy(2000), Words(), price=PRICE, caps=CapSettings(), ideal="y")
    assert exact.tokens_in == 2000 * 149.5 and not any("extrapolated" in line for line in exact.lines())


def test_nothing_left_to_ask() -> None:
    found = estimate([], Words(), price=PRICE, caps=CapSettings(rows=1), ideal="y")
    assert (found.rows, found.tokens_in, found.usd, found.limited_by) == (0, 0, 0.0, None)


def test_amounts_of_money() -> None:
    assert [usd_text(x) for x in (0, 5, 1234.5, 0.15, 0.00021)] == ["0.00", "5.00", "1,234.50", "0.15", "0.00021"]
