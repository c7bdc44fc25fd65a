"""Secrets, and how they are kept out of messages, logs and whatever else is written."""

import json
import logging
import os
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

REMOVED = "[secret removed]"
_SHORTEST = 6  # what is shorter is a placeholder (`none`, `EMPTY`); to cut it out would only harm replies
_TELLING = 12  # so many first characters of a longer secret are cut out as well: servers echo keys shortened
_LIBRARIES = ("openai", "httpx", "httpcore")  # httpx2 and httpcore2 begin like that, too
_LATE = [f"httpcore{n}.{part}" for n in ("", "2") for part in ("connection", "http11", "http2", "proxy", "socks")]


class Secret:
    """A text that nothing shows: only `reveal` gives it away."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        """Return the text, to be handed on and not to be kept."""
        return self._text


def from_environment(variable: str) -> Secret | None:
    """Return what an environment variable holds, without white space around it; None if it is unset or empty."""
    text = os.environ.get(variable, "").strip()
    return Secret(text) if text else None


class Scrubber:
    """Cuts secrets out of texts, also where they are escaped for an address or for JSON, or shortened."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        texts = [secret.reveal() for secret in secrets]
        forms = {
            form
            for text in texts
            if len(text) >= _SHORTEST
            for form in (text, quote(text, safe=""), quote_plus(text), json.dumps(text)[1:-1])
        }
        patterns = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
        patterns += [re.escape(form[:_TELLING]) + r"[\w\-.*]*" for form in forms if len(form) > _TELLING]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def __repr__(self) -> str:
        return "Scrubber(***)"

    def clean(self, text: str) -> str:
        """Return the text without secrets."""
        return self._pattern.sub(REMOVED, text) if self._pattern else text

    def guard_logs(self) -> None:
        """Clean what the libraries log that talk to servers, at whatever level, for the rest of the process."""
        if self._pattern is not None:
            _FILTER.scrubbers[self._pattern.pattern] = self
        names = [name for name in logging.root.manager.loggerDict if name.startswith(_LIBRARIES)]
        # A logger's filter is not asked about the records of loggers below it, so each one needs its own, and also those that the
        # libraries make only when they first need them.
        for name in (*_LIBRARIES, *_LATE, *names):
            logging.getLogger(name).addFilter(_FILTER)


class _LogFilter(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.scrubbers: dict[str, Scrubber] = {}

    def _clean(self, text: str) -> str:
        for scrubber in self.scrubbers.values():
            text = scrubber.clean(text)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        clean = self._clean(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            clean = self._clean(trace)
            if clean != trace:
                record.exc_text, record.exc_info = clean, None
        return True


_FILTER = _LogFilter()  # one for the process, so that a logger gets it once however many clients are opened
