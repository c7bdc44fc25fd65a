"""What is paid for and what is stored: replies in the journal, rows in shards, and the way from one to the other.

A reply goes to the disk before anything reads it. A row is finished by its first usable reply, or by its last try; finished rows
become a shard, and then the journal is cleared. A run killed between the two finds replies of stored rows in the journal and
drops them. Replies whose row is not finished, or whose question has not come by, keep the journal as it is.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

import polars as pl

from distilrec.columns import COST, EXAMPLE, ITEMS, REPLY, SCORES, TOKENS_IN, TOKENS_OUT
from distilrec.knowledge.budget import ATTEMPTS, Spent, spent_of
from distilrec.knowledge.prices import Price
from distilrec.knowledge.store import KnowledgeWriter
from distilrec.teachers.backends.base import Prompt, Reply

REPAIRS = "repairs"  # what was put right in a reply, as JSON: {kind: how often}
_SCHEMA: dict[str, Any] = {
    EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32), TOKENS_IN: pl.Int64, TOKENS_OUT: pl.Int64,
    COST: pl.Float64, REPAIRS: pl.String, ATTEMPTS: pl.Int32,
}  # fmt: skip


class Question(Protocol):
    """What is asked about one example."""

    @property
    def example(self) -> int:
        """Id of the example."""

    @property
    def prompt(self) -> Prompt:
        """The request."""


class Answer(Protocol):
    """What a reply says."""

    @property
    def items(self) -> Sequence[int]:
        """Item ids, best first."""

    @property
    def repairs(self) -> Mapping[str, int]:
        """What had to be put right: kind -> how often."""

    @property
    def usable(self) -> bool:
        """Whether it says anything at all."""


Q = TypeVar("Q", bound=Question)
Read = Callable[[Q, Reply], Answer]


@dataclass(frozen=True, slots=True)
class Paid:
    """A reply as the journal has it; `attempt` counts the replies of an example from 1."""

    example: int
    text: str
    tokens_in: int
    tokens_out: int
    finish: str
    usd: float | None
    attempt: int

    def reply(self) -> Reply:
        """Return it as the backend gave it."""
        return Reply(self.text, self.tokens_in, self.tokens_out, self.finish)


@dataclass(frozen=True, slots=True)
class _Row:
    answer: Answer  # the last usable one; if there is none, the last
    paid: Paid  # the reply it was read from
    replies: list[Paid]


class Ledger(Generic[Q]):
    """The rows of a store in the making.

    Args:
        writer: of the store.
        read: makes sense of a reply; it may be called again for the same one.
        tries: replies paid for one example before it is stored as unusable.
        keep_replies: store the replies' text, too.
    """

    def __init__(self, writer: KnowledgeWriter, read: Read[Q], *, tries: int, keep_replies: bool) -> None:
        self._writer, self._read, self._tries, self._keep_replies = writer, read, tries, keep_replies
        self._stored = set(writer.done().tolist())
        self._paid: dict[int, list[Paid]] = {}  # replies whose row is not finished
        self._rows: dict[int, _Row] = {}  # finished, not in a shard yet
        self._queue: list[Paid] = []
        for record in writer.journal.read():
            self._enter(Paid(**record))
        self._unread = set(self._paid)

    @property
    def waiting_rows(self) -> int:
        """Finished rows that are not in a shard yet."""
        return len(self._rows)

    @property
    def unread(self) -> bool:
        """Whether an earlier run left replies behind whose question has not come by yet."""
        return bool(self._unread)

    def spent(self, price: Price | None) -> Spent:
        """Return what is paid for so far. A row counts from its first reply on; one of unknown cost at today's price."""
        stored, replies = spent_of(self.stored_rows(), price), self.unfinished()
        tokens = sum(paid.tokens_in + paid.tokens_out for paid in replies)
        usd = sum(paid.usd or 0.0 for paid in replies)
        if price is not None:
            usd += sum(price.usd(paid.tokens_in, paid.tokens_out) for paid in replies if paid.usd is None)
        return stored + Spent(len(self._paid), tokens, usd)

    def next_attempt(self, question: Q) -> int | None:
        """Return which reply of a row is to be asked for next, counted from 1; None if the row needs no more."""
        example = question.example
        self._unread.discard(example)
        if example in self._stored or example in self._rows:
            return None
        replies = self._paid.get(example, [])
        answers = [(self._read(question, paid.reply()), paid) for paid in replies]
        usable = [pair for pair in answers if pair[0].usable]
        if not usable and len(replies) < self._tries:
            return len(replies) + 1
        self._rows[example] = _Row(*(usable or answers)[-1], replies)
        self._paid.pop(example, None)
        return None

    async def keep(self, paid: Paid) -> None:
        """Write a reply to the journal; replies that arrive in the same turn of the event loop share one wait for the disk."""
        self._queue.append(paid)
        await asyncio.sleep(0)
        if any(other is paid for other in self._queue):  # else one that arrived with it has written both
            self.commit()

    def add(self, paid: Sequence[Paid]) -> None:
        """Write replies to the journal."""
        self._queue += paid
        self.commit()

    def commit(self) -> None:
        """Write the replies that wait for it to the journal; they count only once the disk has them."""
        if self._queue:
            self._writer.journal.add(asdict(paid) for paid in self._queue)
            for paid in self._queue:
                self._enter(paid)
            self._queue = []

    def settle(self) -> None:
        """Make a shard of the finished rows, and clear the journal if nothing but stored rows is in it."""
        self.commit()
        # Asked of the disk: an interruption may have come between writing the last shard and taking note of it.
        self._stored |= set(self._writer.done().tolist())
        rows = sorted((example, row) for example, row in self._rows.items() if example not in self._stored)
        if rows:
            self._writer.append(self._frame(rows))
            self._stored |= {example for example, _ in rows}
        self._rows.clear()
        if not self._paid:
            self._writer.journal.clear()

    def stored_rows(self) -> pl.DataFrame:
        """Return the rows in shards without scores and replies; columns that a shard lacks are null."""
        schema = {name: kind for name, kind in _SCHEMA.items() if name != SCORES}
        if not self._stored:
            return pl.DataFrame(schema=schema)
        frame = self._writer.stored(list(schema))
        missing = [pl.lit(None, dtype=kind).alias(name) for name, kind in schema.items() if name not in frame.columns]
        return frame.with_columns(missing).select(list(schema))

    def unfinished(self) -> list[Paid]:
        """Return the paid replies whose row is not finished."""
        return [paid for replies in self._paid.values() for paid in replies]

    def _enter(self, paid: Paid) -> None:
        replies = self._paid.setdefault(paid.example, []) if paid.example not in self._stored else []
        # The same reply may stand twice in a journal that the disk refused in the middle of writing.
        if all(other.attempt != paid.attempt for other in replies):
            replies.append(paid)

    def _frame(self, rows: Sequence[tuple[int, _Row]]) -> pl.DataFrame:
        items = [list(row.answer.items) if row.answer.usable else [] for _, row in rows]
        columns: dict[str, Any] = {
            EXAMPLE: [example for example, _ in rows],
            ITEMS: items,
            SCORES: [[0.0] * len(ranking) for ranking in items],
            TOKENS_IN: [sum(paid.tokens_in for paid in row.replies) for _, row in rows],
            TOKENS_OUT: [sum(paid.tokens_out for paid in row.replies) for _, row in rows],
            COST: [_total([paid.usd for paid in row.replies]) for _, row in rows],
            REPAIRS: [json.dumps(dict(row.answer.repairs), sort_keys=True) for _, row in rows],
            ATTEMPTS: [len(row.replies) for _, row in rows],
        }
        if not self._keep_replies:
            return pl.DataFrame(columns, schema=_SCHEMA)
        # Half of a surrogate pair, which a model can produce, is no UTF-8.
        columns[REPLY] = [row.paid.text.encode("utf-8", "replace").decode() for _, row in rows]
        return pl.DataFrame(columns, schema={**_SCHEMA, REPLY: pl.String})


def _total(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None
