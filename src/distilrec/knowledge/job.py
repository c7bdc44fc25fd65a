"""What a run over a text backend keeps while it asks: questions, budget, ledger, and the figures of its account."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic

from distilrec.config import AnnotateSettings
from distilrec.files import write_json
from distilrec.knowledge.account import Account, Failed, Run, account_of
from distilrec.knowledge.budget import Budget, Spent, Ticket, usd_text
from distilrec.knowledge.ledger import Ledger, Paid, Q
from distilrec.knowledge.prices import Price
from distilrec.knowledge.store import KnowledgeWriter
from distilrec.progress import Bar
from distilrec.teachers.backends.base import Reply


class Job(Generic[Q]):
    """What both kinds of backend share: questions, budget, ledger, and the figures of this run."""

    def __init__(
        self,
        questions: Iterator[Q],
        total: int,
        ledger: Ledger[Q],
        writer: KnowledgeWriter,
        settings: AnnotateSettings,
        price: Price | None,
        clock: Callable[[], float],
        progress: Bar,
    ) -> None:
        self.ledger, self.settings, self.price = ledger, settings, price
        self.budget = Budget(settings.caps, ledger.spent(price), clock)
        self.clock = clock
        self.requests = 0
        self.retries = Counter[str]()
        self.failed: list[Failed] = []
        self.stopped_by: str | None = None
        self._questions, self._total, self._writer, self._progress = questions, total, writer, progress
        self._met: set[int] = set()
        self._rows = self._tokens_in = self._tokens_out = 0
        self._usd = 0.0
        self._started = clock()

    def next(self) -> tuple[Q, int] | None:
        """Return the next question to ask and the number of its attempt; None if there is none or the run is to stop."""
        while self.stopped_by is None and (question := next(self._questions, None)) is not None:
            if question.example in self._met:
                continue
            self._met.add(question.example)
            attempt = self.ledger.next_attempt(question)
            if attempt is not None:
                return question, attempt
            self.tick()
        return None

    def reserve(self, question: Q, attempt: int, tokens: int) -> Ticket | None:
        """Hold back what a question may cost; `tokens` is the length of its prompt."""
        most = question.prompt.max_tokens
        usd = None if self.price is None else self.price.usd(tokens, most)
        return self.budget.try_reserve(tokens, most, usd, rows=int(attempt == 1))

    def charge(self, question: Q, attempt: int, ticket: Ticket, reply: Reply) -> Paid:
        """Count a reply as paid for."""
        usd = None if self.price is None else self.price.usd(reply.tokens_in, reply.tokens_out)
        self.budget.settle(ticket, Spent(int(attempt == 1), reply.tokens_in + reply.tokens_out, usd or 0.0))
        self._tokens_in += reply.tokens_in
        self._tokens_out += reply.tokens_out
        self._usd += usd or 0.0
        return Paid(question.example, reply.text, reply.tokens_in, reply.tokens_out, reply.finish, usd, attempt)

    def after_reply(self, question: Q) -> int | None:
        """Read the replies of a question; return the number of the attempt it still needs, if it needs one."""
        attempt = self.ledger.next_attempt(question)
        if attempt is None:
            self._rows += 1
            self.tick()
            if self.ledger.waiting_rows >= self.settings.shard_rows:
                self.ledger.settle()
        return attempt

    def tick(self) -> None:
        """Show that one more row is done."""
        seconds = max(self.clock() - self._started, 1e-9)
        cost = "cost not known" if self.price is None else f"{usd_text(self._usd)} USD"
        note = f"{self._tokens_in:,} tokens in, {self._tokens_out:,} out, {cost}, {self._rows / seconds:.2f} rows/s"
        self._progress.advance(1, note)

    def stop(self, reason: str | None) -> None:
        """Ask for nothing more; the first reason stands."""
        self.stopped_by = self.stopped_by or reason

    def read_leftovers(self) -> None:
        """Meet the questions of replies that a killed run left behind, where a cap ended this one before it came to them."""
        while self.ledger.unread and (question := next(self._questions, None)) is not None:
            self.ledger.next_attempt(question)

    def finish(self) -> Account:
        """Store what is known and write the account."""
        self.ledger.settle()
        run = Run(
            rows=self._rows,
            requests=self.requests,
            retries=dict(self.retries),
            failed=tuple(self.failed),
            stopped_by=self.stopped_by,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            usd=None if self.price is None else self._usd,
            seconds=self.clock() - self._started,
        )
        account = account_of(self.ledger, self._total, run)
        write_json(self._writer.folder / "account.json", account.as_json())
        return account
