"""What a backend for text is: prompts in, replies out, with the tokens that each took.

Two kinds. A `Served` backend answers one prompt at a time and is asked about many at once (an API, a server). A `Batched` one
lives in the process and answers a list of prompts in one go (transformers, vLLM).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from distilrec.errors import DistilrecError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    Attributes:
        system: what is the same for all requests of a run; a backend may compute it once.
        user: the request itself.
        max_tokens: most tokens of a reply.
        schema: JSON schema that the reply should follow, for backends that can enforce one; None for free text.
    """

    system: str
    user: str
    max_tokens: int
    schema: dict[str, Any] | None = None

    def messages(self) -> list[dict[str, str]]:
        """Return it in the form that chat templates and chat APIs take."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, {"role": "user", "content": self.user}]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        text: what the model said, "" if it said nothing.
        tokens_in: tokens of the prompt, as the backend counts them.
        tokens_out: tokens of the reply.
        finish: `stop`, or `length` where the reply was cut off at `max_tokens`; anything else as the backend words it.
    """

    text: str
    tokens_in: int
    tokens_out: int
    finish: str = "stop"


class RetryableError(DistilrecError):
    """A request that failed for a passing reason: 429, 5xx, time-out, a connection cut in the middle, a broken body.

    Attributes:
        after: seconds to wait that the server asked for, or None.
    """

    def __init__(self, problem: str, *, after: float | None = None, remedy: str = "", where: str = "") -> None:
        super().__init__(problem, remedy=remedy, where=where)
        self.after = after


class BackendError(DistilrecError):
    """A request that no repetition can mend: wrong key, unknown model, server down, quota used up, prompt too long."""


@runtime_checkable
class Served(Protocol):
    """A backend that answers one prompt at a time, and many side by side."""

    @property
    def model(self) -> str:
        """Name of the model, as it is asked for."""

    def identity(self) -> dict[str, Any]:
        """Return what its replies depend on, without anything secret: kind, model, address, temperature and the like."""

    def count_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt takes: exact where the tokenizer is known, else an estimate."""

    def count_text(self, text: str) -> int:
        """Return how many tokens a reply of this text would take."""

    async def ask(self, prompt: Prompt) -> Reply:
        """Answer one prompt.

        Raises:
            RetryableError: it may succeed when asked again.
            BackendError: it never will.
        """

    async def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class Batched(Protocol):
    """A backend in this process that answers many prompts in one go."""

    @property
    def model(self) -> str:
        """Name of the model."""

    def identity(self) -> dict[str, Any]:
        """See `Served.identity`."""

    def count_tokens(self, prompt: Prompt) -> int:
        """See `Served.count_tokens`."""

    def count_text(self, text: str) -> int:
        """See `Served.count_text`."""

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Answer all prompts, in order."""


Backend = Served | Batched
