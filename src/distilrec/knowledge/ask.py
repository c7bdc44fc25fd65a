"""Ask a backend for text about many examples: side by side, under caps and rate limits, nothing lost and nothing paid twice.

The same command resumes a run however it ended: rows in shards and replies in the journal are never asked for again.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, runtime_checkable

from distilrec.config import AnnotateSettings
from distilrec.errors import DistilrecError
from distilrec.knowledge.account import Account
from distilrec.knowledge.budget import Ticket
from distilrec.knowledge.job import Job
from distilrec.knowledge.ledger import Ledger, Q, Read
from distilrec.knowledge.prices import Price, check_price
from distilrec.knowledge.serving import Serving
from distilrec.knowledge.store import KnowledgeWriter
from distilrec.progress import bar
from distilrec.teachers.backends.base import Backend, Batched, Prompt, Reply, Served

_WINDOW = 64  # prompts that a batched backend is given at most, and among which those of like length are put together


@runtime_checkable
class SideBySide(Batched, Protocol):
    """A batched backend that works on several batches at a time."""

    workers: int

    def complete_all(self, batches: Sequence[Sequence[Prompt]]) -> Iterator[tuple[int, list[Reply]]]:
        """Answer all batches and yield the place of each with its replies, in the order they are done."""


def ask(
    questions: Iterable[Q],
    total: int,
    backend: Backend,
    read: Read[Q],
    writer: KnowledgeWriter,
    settings: AnnotateSettings,
    *,
    price: Price | None,
    clock: Callable[[], float] = time.monotonic,
) -> Account:
    """Ask for every question that is not answered yet, and store what comes back.

    Whatever ends the run, the rows finished so far are stored and `account.json` is written beside them first. A row whose
    retries are used up is not stored, and the others go on. A served backend is closed at the end.

    Args:
        questions: taken one by one, as they are needed; a second question about the same example is skipped.
        total: how many there are.
        backend: whom to ask.
        read: makes sense of a reply.
        writer: of the store.
        settings: caps, limits, retries, sizes.
        price: see `prices.price_of_backend`; None if not known, which a cap in US dollars does not allow.
        clock: seconds, rising.

    Raises:
        ConfigError: a cap in US dollars without a price.
        BackendError: the backend cannot be asked at all (wrong key, unknown model and the like).
        DiskFullError: a reply could not be written to the journal.
    """
    check_price(price, settings.caps)
    requests = settings.requests
    ledger = Ledger(
        writer,
        read,
        tries=2 if requests.ask_again is None else 1 + requests.ask_again,
        keep_replies=settings.keep_replies,
    )
    with bar("annotate", total) as progress:
        job = Job(iter(questions), total, ledger, writer, settings, price, clock, progress)
        try:
            if isinstance(backend, Served):
                asyncio.run(Serving(job, backend).run())
            else:
                _complete(job, backend)
            job.read_leftovers()
        except BaseException as error:
            job.stop(error.line() if isinstance(error, DistilrecError) else f"an interruption ({type(error).__name__})")
            job.finish()
            raise
        return job.finish()


def _complete(job: Job[Q], backend: Batched) -> None:
    """Ask a backend batch by batch; the journal has a batch before anything else happens to it."""
    waiting: list[tuple[Q, int]] = []
    while window := _window(job, backend, waiting):
        for batch, replies in _answered(backend, _batches(window, job.settings.batch_tokens)):
            job.requests += 1
            pairs = list(zip(batch, replies, strict=True))
            job.ledger.add([job.charge(entry.question, entry.attempt, entry.ticket, reply) for entry, reply in pairs])
            for entry in batch:
                attempt = job.after_reply(entry.question)
                if attempt is not None:
                    waiting.append((entry.question, attempt))


def _answered(
    backend: Batched, batches: Sequence[list["_Entry[Q]"]]
) -> Iterator[tuple[list["_Entry[Q]"], list[Reply]]]:
    """Yield each batch with its replies as soon as they are there."""
    prompts = [[entry.question.prompt for entry in batch] for batch in batches]
    if isinstance(backend, SideBySide):
        for place, replies in backend.complete_all(prompts):
            yield batches[place], replies
    else:
        for batch, asked in zip(batches, prompts, strict=True):
            yield batch, backend.complete(asked)


class _Entry(Generic[Q]):
    """A question with its place in the budget."""

    def __init__(self, question: Q, attempt: int, ticket: Ticket, tokens: int) -> None:
        self.question, self.attempt, self.ticket, self.tokens = question, attempt, ticket, tokens


def _window(job: Job[Q], backend: Batched, waiting: list[tuple[Q, int]]) -> list[_Entry[Q]]:
    """Take the next questions, those of `waiting` first; what no cap allows any more goes back there."""
    window: list[_Entry[Q]] = []
    most = _WINDOW * (backend.workers if isinstance(backend, SideBySide) else 1)
    while len(window) < most and (found := waiting.pop(0) if waiting else job.next()) is not None:
        question, attempt = found
        tokens = backend.count_tokens(question.prompt)
        ticket = job.reserve(question, attempt, tokens)
        if ticket is None:
            waiting.insert(0, found)
            if not window:
                job.stop(job.budget.stopped_by)
            break
        window.append(_Entry(question, attempt, ticket, tokens))
    return window


def _batches(window: Sequence[_Entry[Q]], batch_tokens: int) -> list[list[_Entry[Q]]]:
    """Put prompts of like length together, at most `batch_tokens` in a batch, replies and padding included."""
    batches: list[list[_Entry[Q]]] = []
    for entry in sorted(window, key=lambda entry: entry.tokens + entry.question.prompt.max_tokens):
        width = entry.tokens + entry.question.prompt.max_tokens  # the widest so far
        if not batches or width * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(entry)
    return batches
