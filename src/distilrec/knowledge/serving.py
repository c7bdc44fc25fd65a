"""Asks a backend that answers one prompt at a time: many side by side, with rate limits and retries."""

import asyncio
from typing import Generic

import numpy as np

from distilrec.knowledge.account import Failed
from distilrec.knowledge.budget import Ticket, minutes_words
from distilrec.knowledge.job import Job
from distilrec.knowledge.ledger import Paid, Q
from distilrec.knowledge.pace import Pace
from distilrec.teachers.backends.base import Reply, RetryableError, Served

_HOPELESS = 20  # rows in a row that fail before the run gives up: the server is not coming back
GAVE_UP = f"{_HOPELESS} failed rows without a reply in between"
_REASONS = 20  # different reasons for sending again that are told apart


class Serving(Generic[Q]):
    """Asks a served backend with so many workers side by side."""

    def __init__(self, job: Job[Q], backend: Served) -> None:
        self._job, self._backend, self._requests = job, backend, job.settings.requests
        self._pace = Pace(self._requests, job.clock)
        self._jitter = np.random.default_rng(0)
        self._room = asyncio.Event()  # set, and replaced, whenever something held back is settled or released
        self._failed_in_a_row = 0

    async def run(self) -> None:
        """Work until there is nothing left to ask, or the first error that concerns more than one row."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._requests.concurrency)]
        done: set[asyncio.Task[None]] = set()
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._backend.close()
        for worker in workers:
            if worker in done:
                worker.result()

    async def _work(self) -> None:
        while (found := self._job.next()) is not None:
            question, number = found
            attempt: int | None = number
            while attempt is not None:
                paid = await self._pay(question, attempt)
                if paid is None:
                    break
                await self._job.ledger.keep(paid)
                attempt = self._job.after_reply(question)

    async def _pay(self, question: Q, attempt: int) -> Paid | None:
        """Ask for one reply; None if a cap or failures stand against it."""
        tokens = self._backend.count_tokens(question.prompt)
        ticket = await self._ticket(question, attempt, tokens)
        if ticket is None:
            return None
        reply = None
        try:
            reply = await self._send(question, tokens)
            return None if reply is None else self._job.charge(question, attempt, ticket, reply)
        finally:
            if reply is None:
                self._job.budget.release(ticket)
            self._room.set()
            self._room = asyncio.Event()

    async def _ticket(self, question: Q, attempt: int, tokens: int) -> Ticket | None:
        """Hold back what the request may cost, waiting where requests in flight may turn out cheaper than feared."""
        job = self._job
        while job.stopped_by is None or attempt > 1:
            ticket = job.reserve(question, attempt, tokens)
            if ticket is not None:
                return ticket
            if job.budget.in_flight == 0:
                job.stop(job.budget.stopped_by)
                return None
            await self._room.wait()
        return None

    async def _send(self, question: Q, tokens: int) -> Reply | None:
        """Send a request, again and again where it fails for a passing reason; None if it is given up."""
        booked = tokens + question.prompt.max_tokens
        sent = 0
        while await self._wait(self._pace.book(booked)):
            sent += 1
            self._job.requests += 1
            try:
                reply = await self._backend.ask(question.prompt)
            except RetryableError as error:
                if sent > self._requests.retries:
                    self._give_up(question, error)
                    return None
                self._count(error)
                if error.after is not None:
                    self._pace.close(error.after)  # a server that is busy for one request is busy for all
                elif not await self._wait(self._backoff(sent)):
                    return None
            else:
                self._failed_in_a_row = 0
                return reply
        return None

    async def _wait(self, seconds: float) -> bool:
        """Wait, and as long as the server wants no request; False, at once, if the time for the whole run ends before that."""
        job = self._job
        while True:
            if seconds > job.budget.seconds_left or job.budget.seconds_left <= 0:
                job.stop(minutes_words(job.settings.caps))
                return False
            if seconds > 0:
                await asyncio.sleep(seconds)
            seconds = self._pace.closed_for
            if seconds <= 0:
                return True

    def _backoff(self, sent: int) -> float:
        longest = min(self._requests.backoff_seconds * 2.0 ** (sent - 1), self._requests.longest_wait_seconds)
        return longest * float(
            self._jitter.uniform(0.5, 1.0)
        )  # so that workers that failed together do not return together

    def _count(self, error: RetryableError) -> None:
        retries = self._job.retries
        retries[error.problem if error.problem in retries or len(retries) < _REASONS else "other reasons"] += 1

    def _give_up(self, question: Q, error: RetryableError) -> None:
        self._job.failed.append(Failed(question.example, error.line()))
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _HOPELESS:
            self._job.stop(GAVE_UP)
