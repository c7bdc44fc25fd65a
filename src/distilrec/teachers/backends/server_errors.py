"""What a server says instead of a reply, in one form whatever the server, and which error it becomes."""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from distilrec.errors import DistilrecError
from distilrec.secrets import Scrubber
from distilrec.teachers.backends.base import BackendError, RetryableError

_LONGEST_MESSAGE = 300
_PASSING = {408, 409, 425, 429}  # and all from 500 on
_SPENT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|maximum context|max_model_len|string_above_max_length|too many (input )?tokens"
    r"|\b(prompt|input)\b.{0,40}\b(too long|too large|exceeds?)\b"
)
_NO_MODEL = re.compile(
    r"model_not_found|not a valid model|unknown model|invalid model|deploymentnotfound"
    r"|\b(model|deployment)\b.{0,120}\b(not found|not exist|no such|unknown|not available)\b"
)
_UNSUPPORTED = (
    r"unsupported|unrecognized|unexpected|unknown|not (supported|permitted|allowed|enabled)|n[o']t support"
    r"|only the default|deprecated|extra"
)
_DURATION = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer that is no reply, with nothing secret in it.

    Attributes:
        status: HTTP status.
        code: the server's own word for it, "" if it has none.
        message: what it says, one line.
        after: seconds it asks to wait, or None.
    """

    status: int
    code: str
    message: str
    after: float | None

    @property
    def about(self) -> str:
        """Code and message in lower case, to look for words in."""
        return f"{self.code} {self.message}".lower()

    @property
    def bad_request(self) -> bool:
        """Whether the server found fault with the form of the request."""
        return self.status in (400, 404, 422)

    @property
    def too_long(self) -> bool:
        """Whether prompt and reply together exceed what the model reads."""
        return self.status == 413 or (self.status in (400, 422, 500) and bool(_TOO_LONG.search(self.about)))

    @property
    def unknown_model(self) -> bool:
        """Whether the server does not have the model."""
        return self.status in (400, 404, 422) and bool(_NO_MODEL.search(self.about))

    def rejects(self, parameter: str) -> bool:
        """Whether the server does not take a parameter (a pattern) at all; not: whether it dislikes the value."""
        pattern = rf"\b{parameter}\b.*({_UNSUPPORTED})|({_UNSUPPORTED}).*\b{parameter}\b"
        return self.bad_request and bool(re.search(pattern, self.about))


def read_refusal(status: int, headers: Mapping[str, str], body: bytes, scrubber: Scrubber) -> Refusal:
    """Read an error answer: JSON of OpenAI's form, of FastAPI's, or any text."""
    text = body.decode("utf-8", "replace")
    try:
        code, message = _words(json.loads(text))
    except (ValueError, RecursionError):
        code, message = "", re.sub(r"<[^>]*>", " ", text)  # an HTML page of a proxy
    return Refusal(status, one_line(code, scrubber), one_line(message, scrubber), wait_asked(headers))


def one_line(text: str, scrubber: Scrubber) -> str:
    """Return foreign text fit for a message: without secrets, control characters and length."""
    clean = scrubber.clean(text)  # before it is shortened, or half a key would remain
    line = " ".join("".join(c if c.isprintable() else " " for c in clean).split())
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + " ..."


def as_error(refusal: Refusal, *, where: str, variable: str, has_key: bool) -> DistilrecError:
    """Return the error that a refusal is: one that may pass, or one that no repetition can mend.

    Args:
        refusal: what the server said.
        where: its address.
        variable: environment variable of the key.
        has_key: whether that is set.
    """
    status, said = refusal.status, f" ({refusal.message})" if refusal.message else ""
    if status in (401, 403):
        problem = f"the server refuses the API key of {variable}" if has_key else "the server wants an API key"
        remedy = f"Put a valid key into the environment variable {variable}."
        return BackendError(f"{problem} ({status}){said}.", remedy=remedy, where=where)
    if status == 402 or refusal.code in _SPENT:
        return BackendError(f"the account's quota is used up{said}.", remedy="Check plan and billing.", where=where)
    if status == 404:
        problem = f"the server has nothing at this address (404){said}."
        return BackendError(problem, remedy="Check base_url: with most servers it ends in /v1.", where=where)
    if status in _PASSING or status >= 500:
        word = "is asked too often" if status == 429 else "failed"
        return RetryableError(f"the server {word} ({status}){said}.", after=refusal.after, where=where)
    return BackendError(f"the server refuses the request ({status}){said}.", where=where)


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait: Retry-After, or when a rate limit that is used up is renewed."""
    if (milliseconds := _seconds(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    if (asked := headers.get("retry-after")) is not None:
        return _seconds(asked) if _seconds(asked) is not None else _until(asked)
    waits = [
        wait
        for kind in ("", "-requests", "-tokens")
        if headers.get(f"x-ratelimit-remaining{kind}", "").strip() == "0"
        and (wait := _reset(headers.get(f"x-ratelimit-reset{kind}", ""))) is not None
    ]
    return max(waits, default=None)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _until(date: str) -> float | None:
    try:
        return max(parsedate_to_datetime(date).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _reset(text: str) -> float | None:
    """Read `6m0s`, `20ms`, seconds, or a moment since 1970 in seconds or milliseconds."""
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text.strip():
        values = [_seconds(number) for number, _ in parts]
        return (
            None if None in values else sum((v or 0.0) * _SECONDS[u] for v, (_, u) in zip(values, parts, strict=True))
        )
    seconds = _seconds(text)
    if seconds is None or seconds < 1e9:
        return seconds
    return max((seconds / 1000 if seconds > 1e11 else seconds) - time.time(), 0.0)


def _words(content: Any) -> tuple[str, str]:
    """Return the server's code and message; only fields known to hold them, for others may echo the whole prompt."""
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        return "", content if isinstance(content, str) else ""
    error = content.get("error", content)
    if not isinstance(error, dict):
        return "", str(error)
    message = error.get("message") or error.get("detail") or ""
    if isinstance(message, list):  # FastAPI: one entry for each field it disliked
        message = "; ".join(
            f"{_last(part.get('loc'))}: {part.get('msg')}" for part in message if isinstance(part, dict)
        )
    codes = [error.get(key) for key in ("code", "type", "param")]
    named = [code for code in codes if isinstance(code, str) and code]
    if error.get("param") and isinstance(error["param"], str) and error["param"] not in str(message):
        message = f"{error['param']}: {message}"
    return (named[0] if named else ""), str(message)


def _last(places: Any) -> str:
    return str(places[-1]) if isinstance(places, list) and places else "request"
