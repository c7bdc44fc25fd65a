"""Caps on an annotation, and what it will cost before a single request is sent.

Before a request is sent, the most it may cost is held back (its prompt and `max_tokens` of reply); what is spent and what is
held back together never pass a cap. So a cap can be overrun only by how much requests in flight were underestimated. A request
that failed counts for nothing unless a reply came: what a server charges for a reply that never arrived, nobody tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from distilrec.columns import COST, TOKENS_IN, TOKENS_OUT
from distilrec.config import CapSettings
from distilrec.knowledge.prices import Price
from distilrec.teachers.backends.base import Backend, Prompt

ATTEMPTS = "attempts"  # replies that were paid for one row
_COUNT_ALL, _SAMPLE = 2000, 1000
_ENOUGH = 5  # stored rows whose mean length is believed


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used up. `usd` counts what is known."""

    rows: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.rows + other.rows, self.tokens + other.tokens, self.usd + other.usd)


def spent_of(stored: pl.DataFrame, price: Price | None) -> Spent:
    """Sum up stored rows (TOKENS_IN, TOKENS_OUT, COST); one of unknown cost counts at today's price."""
    tokens_in, tokens_out = int(stored[TOKENS_IN].sum()), int(stored[TOKENS_OUT].sum())
    usd = float(stored[COST].sum())
    if price is not None:
        unknown = stored.filter(pl.col(COST).is_null())
        usd += price.usd(float(unknown[TOKENS_IN].sum()), float(unknown[TOKENS_OUT].sum()))
    return Spent(len(stored), tokens_in + tokens_out, usd)


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """What is held back for one request."""

    held: Spent


class Budget:
    """Says whether one more request fits under the caps.

    Args:
        caps: the caps.
        spent: by earlier runs.
        clock: seconds, rising; `minutes` counts from now.
    """

    def __init__(self, caps: CapSettings, spent: Spent, clock: Callable[[], float]) -> None:
        self.spent = spent
        self.stopped_by: str | None = None  # the cap that refused the last reservation, in words
        self._caps, self._clock, self._started = caps, clock, clock()
        self._open: set[Ticket] = set()

    @property
    def in_flight(self) -> int:
        """Tickets neither settled nor released."""
        return len(self._open)

    @property
    def seconds_left(self) -> float:
        """Seconds until the cap on minutes; infinity if there is none."""
        minutes = self._caps.minutes
        return float("inf") if minutes is None else self._started + 60 * minutes - self._clock()

    def try_reserve(self, tokens_in: int, tokens_out: int, usd: float | None, rows: int = 1) -> Ticket | None:
        """Hold back what a request may cost; None, and `stopped_by` set, if a cap stands against it.

        Args:
            tokens_in: of its prompt.
            tokens_out: most of its reply.
            usd: most it may cost; None if the price is not known.
            rows: 0 where the row it belongs to counts already, that is, for a second try.
        """
        ticket = Ticket(Spent(rows, tokens_in + tokens_out, usd or 0.0))
        self.stopped_by = self._against(sum((other.held for other in self._open), self.spent) + ticket.held)
        if self.stopped_by is not None:
            return None
        self._open.add(ticket)
        return ticket

    def settle(self, ticket: Ticket, actual: Spent) -> None:
        """Count what a request really cost in place of what was held back for it."""
        self._open.remove(ticket)
        self.spent += actual

    def release(self, ticket: Ticket) -> None:
        """Give back what was held for a request that brought no reply."""
        self._open.remove(ticket)

    def _against(self, total: Spent) -> str | None:
        for cap, used, words in _limits(self._caps, total):
            if used > cap:
                return words
        return minutes_words(self._caps) if self.seconds_left <= 0 else None


def minutes_words(caps: CapSettings) -> str:
    """Name the cap on minutes."""
    return f"the cap of {caps.minutes:g} {'minute' if caps.minutes == 1 else 'minutes'}"


def still_stands(stopped_by: str) -> bool:
    """Return whether what ended a run would end it again at once under the same caps: all caps but that on minutes do."""
    return stopped_by.startswith("the cap of ") and not stopped_by.endswith(("minute", "minutes"))


def _limits(caps: CapSettings, used: Spent) -> list[tuple[float, float, str]]:
    """Return (cap, used, name of the cap) of each cap that is set."""
    rows, tokens, usd = caps.rows or 0, caps.tokens or 0, caps.usd or 0.0
    usd_words = f"{usd:,.2f}" if round(usd, 2) == usd else f"{usd:g}"  # as it was set, not rounded
    every = (
        (caps.rows, used.rows, f"the cap of {rows:,} {'row' if rows == 1 else 'rows'}"),
        (caps.tokens, used.tokens, f"the cap of {tokens:,} tokens"),
        (caps.usd, used.usd, f"the cap of {usd_words} USD"),
    )
    return [(cap, amount, words) for cap, amount, words in every if cap is not None]


def usd_text(usd: float) -> str:
    """Write an amount with two decimals, or with as many as a small one needs."""
    return f"{usd:,.2f}" if usd == 0 or usd >= 0.1 else f"{usd:.2g}"


class Asked(Protocol):
    """Anything with a prompt."""

    @property
    def prompt(self) -> Prompt:
        """The request."""


class ManyAsked(Protocol):
    """Questions by their place, built when they are looked at if need be; a list will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Asked: ...


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to be asked and what it will take.

    Attributes:
        rows: rows to ask for, as many as the caps allow.
        tokens_in: of their prompts.
        tokens_out: of their replies.
        usd: what they will cost; None if the price is not known.
        limited_by: the cap that stops the run before every row is asked for, or None.
        wanted: rows that would be asked for without caps.
        price: of a million tokens.
        basis: how the tokens were counted, for people.
    """

    rows: int
    tokens_in: int
    tokens_out: int
    usd: float | None
    limited_by: str | None
    wanted: int
    price: Price | None
    basis: tuple[str, ...]

    def lines(self) -> list[str]:
        """Say it to people."""
        cost = (
            "cost unknown: no price is known for this model (annotate.prices sets one)"
            if self.price is None or self.usd is None
            else f"about {usd_text(self.usd)} USD: {self.price.line()}"
        )
        first = f"{self.rows:,} rows to ask for: about {self.tokens_in:,} tokens in, {self.tokens_out:,} out"
        stop = (
            f"ends at {self.limited_by}, {self.rows:,} of {self.wanted:,} rows asked for" if self.limited_by else None
        )
        return [first, cost, *self.basis, *([stop] if stop else [])]


def estimate(
    questions: ManyAsked,
    backend: Backend,
    *,
    price: Price | None,
    caps: CapSettings,
    ideal: str,
    stored: pl.DataFrame | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate what asking will cost.

    Args:
        questions: all that are not answered yet. Of more than 2,000 a sample of 1,000 is looked at, the others are not built.
        backend: counts tokens.
        price: see `prices.price_of`.
        caps: as set.
        ideal: a reply as it should be; its length is expected where nothing is measured yet.
        stored: TOKENS_IN, TOKENS_OUT, COST and `attempts` of the store's rows, if there is one. They count against the caps, and
            from 5 rows on their mean length is expected.
        seed: of the sample.
    """
    wanted = len(questions)
    spent = Spent() if stored is None or stored.is_empty() else spent_of(stored, price)
    reply, tries, basis = _expected(backend, ideal, stored)
    counted: Sequence[int] = range(wanted)
    if wanted > _COUNT_ALL:
        counted = np.sort(np.random.default_rng(seed).choice(wanted, _SAMPLE, replace=False)).tolist()
        basis = (*basis, f"tokens of {_SAMPLE:,} prompts drawn at random were counted, the others extrapolated")
    prompt = float(np.mean([backend.count_tokens(questions[place].prompt) for place in counted])) if wanted else 0.0
    row_in, row_out = prompt * tries, reply
    row_usd = None if price is None else price.usd(row_in, row_out)
    rows, limited_by = _fit(caps, spent, wanted, Spent(1, round(row_in + row_out), row_usd or 0.0))
    return Estimate(
        rows=rows,
        tokens_in=round(rows * row_in),
        tokens_out=round(rows * row_out),
        usd=None if row_usd is None else rows * row_usd,
        limited_by=limited_by,
        wanted=wanted,
        price=price,
        basis=basis,
    )


def _expected(backend: Backend, ideal: str, stored: pl.DataFrame | None) -> tuple[float, float, tuple[str, ...]]:
    """Return tokens of reply and number of replies that a row takes, and where both come from."""
    measured = pl.DataFrame() if stored is None or stored.is_empty() else stored.drop_nulls(TOKENS_OUT)
    if len(measured) < _ENOUGH:
        return float(backend.count_text(ideal)), 1.0, ("replies counted as long as an ideal one",)
    tries = measured[ATTEMPTS].drop_nulls().to_numpy() if ATTEMPTS in measured.columns else np.ones(1)
    words = f"replies counted as long as the {len(measured):,} stored ones were on average"
    return float(measured[TOKENS_OUT].to_numpy().mean()), float(tries.mean()) if len(tries) else 1.0, (words,)


def _fit(caps: CapSettings, spent: Spent, wanted: int, row: Spent) -> tuple[int, str | None]:
    """Return how many rows like `row` the caps leave room for, and the cap that limits them."""
    rows, limited_by = wanted, None
    for (cap, used, words), (_, each, _) in zip(_limits(caps, spent), _limits(caps, row), strict=True):
        room = max(0, int((cap - used) / each + 1e-9)) if each > 0 else wanted
        if room < rows:
            rows, limited_by = room, words
    return rows, limited_by
