"""A server's limits per minute, kept by waiting."""

from collections.abc import Callable

from distilrec.config import RequestSettings


class Pace:
    """Hands out times to send at.

    Requests are spread evenly and idle time is not saved up, so no minute, wherever it begins, holds more than the limit and
    one request. Tokens count a prompt and the most its reply may take, as servers count them.
    """

    def __init__(self, settings: RequestSettings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._next_request = self._next_tokens = self._closed_until = -float("inf")

    def close(self, seconds: float) -> None:
        """Send nothing for so long: the server asked for it."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)

    def book(self, tokens: int) -> float:
        """Take the next free slot; return how many seconds to wait for it."""
        now = self._clock()
        at = max(now, self._next_request, self._next_tokens, self._closed_until)
        if self._settings.per_minute is not None:
            self._next_request = at + 60 / self._settings.per_minute
        if self._settings.tokens_per_minute is not None:
            self._next_tokens = at + 60 * tokens / self._settings.tokens_per_minute
        return at - now

    @property
    def closed_for(self) -> float:
        """Seconds until the server wants to hear from us again; 0 or less if it does now."""
        return self._closed_until - self._clock()
