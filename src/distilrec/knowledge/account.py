"""The account of an annotation: what the store holds, what it took, and how the last run went."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from distilrec.columns import COST, ITEMS, TOKENS_IN, TOKENS_OUT
from distilrec.knowledge.budget import usd_text
from distilrec.knowledge.ledger import REPAIRS, Ledger, Q

_SHOWN = 3  # failed rows named in lines for people


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over rows.

    Attributes:
        rows: how many.
        usable: of them, those with a ranking.
        repaired: of the usable ones, those whose reply needed any repair.
        repairs: kind of repair -> how often it was needed.
        tokens_in: of prompts, every try counted.
        tokens_out: of replies, every try counted.
        usd: cost; None if that of any row is not known.
    """

    rows: int
    usable: int
    repaired: int
    repairs: dict[str, int]
    tokens_in: int
    tokens_out: int
    usd: float | None

    @property
    def unusable(self) -> int:
        """Rows stored without a ranking, because no reply could be used."""
        return self.rows - self.usable


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that is not stored because its retries were used up."""

    example: int
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the engine did.

    Attributes:
        rows: rows it finished.
        requests: requests sent, those sent again included.
        retries: reason -> how often a request was sent again for it.
        failed: rows it gave up.
        stopped_by: the cap or whatever else ended it early, in words; None if it came to the end.
        tokens_in: of prompts that were answered.
        tokens_out: of the answers.
        usd: their cost; None if not known.
        seconds: it took.
    """

    rows: int
    requests: int
    retries: dict[str, int]
    failed: tuple[Failed, ...]
    stopped_by: str | None
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Account:
    """What the store holds, all runs together, and what this run did.

    Attributes:
        rows_total: rows this run was to see to.
        store: sums over all rows stored.
        unfinished: paid replies, not in `store`, whose row needs another try or was not met; the next run takes them up.
        run: this run alone.
    """

    rows_total: int
    store: Totals
    unfinished: int
    run: Run

    @property
    def rows_done(self) -> int:
        """Rows stored."""
        return self.store.rows

    @property
    def stopped_by(self) -> str | None:
        """What ended the run early, in words."""
        return self.run.stopped_by

    @property
    def failed(self) -> tuple[Failed, ...]:
        """Rows this run gave up."""
        return self.run.failed

    def as_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        store = {**asdict(self.store), "unusable": self.store.unusable}
        run = {**asdict(self.run), "failed": [asdict(row) for row in self.failed], "rate": self.run.rate}
        return {
            "rows_done": self.rows_done,
            "rows_total": self.rows_total,
            "unfinished": self.unfinished,
            "store": store,
            "run": run,
        }

    def lines(self) -> list[str]:
        """Say it to people."""
        store, run = self.store, self.run
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(store.repairs.items()))
        cost = "cost not known" if store.usd is None else f"{usd_text(store.usd)} USD"
        sent_again = ", ".join(f"{count:,} for: {reason}" for reason, count in sorted(run.retries.items()))
        lines = [
            f"{store.rows:,} rows stored, {self.rows_total:,} wanted: {store.usable:,} usable, {store.unusable:,} unusable, "
            f"{store.repaired:,} repaired" + (f" ({kinds})" if kinds else ""),
            f"{store.tokens_in:,} tokens in, {store.tokens_out:,} out, {cost}",
            f"this run: {run.rows:,} rows in {run.seconds:.0f} s ({run.rate:.2f} rows/s), {run.requests:,} requests"
            + (f"; sent again: {sent_again}" if sent_again else ""),
        ]
        if run.stopped_by:
            lines.append(f"stopped by {run.stopped_by}")
        if run.failed:
            named = "; ".join(f"example {row.example}: {row.reason}" for row in run.failed[:_SHOWN])
            more = f"; and {len(run.failed) - _SHOWN:,} more" if len(run.failed) > _SHOWN else ""
            lines.append(f"{len(run.failed):,} rows failed; the same command asks for them again. {named}{more}")
        return lines


def totals_of(frame: pl.DataFrame) -> Totals:
    """Sum up stored rows (`Ledger.stored_rows`)."""
    repairs = Counter[str]()
    repaired = 0
    usable = frame[ITEMS].list.len() > 0
    for text, is_usable in zip(frame[REPAIRS].fill_null("{}"), usable, strict=True):
        found = json.loads(text)
        repairs.update(found)
        repaired += is_usable and any(found.values())
    known = frame[COST].null_count() == 0
    return Totals(
        rows=len(frame),
        usable=int(usable.sum()),
        repaired=repaired,
        repairs={kind: repairs[kind] for kind in sorted(repairs)},
        tokens_in=int(frame[TOKENS_IN].sum()),
        tokens_out=int(frame[TOKENS_OUT].sum()),
        usd=float(frame[COST].sum()) if known else None,
    )


def account_of(ledger: Ledger[Q], rows_total: int, run: Run) -> Account:
    """Draw up the account from what is stored."""
    return Account(rows_total, totals_of(ledger.stored_rows()), len(ledger.unfinished()), run)
