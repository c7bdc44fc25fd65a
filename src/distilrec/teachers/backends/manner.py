"""How requests are put, as far as servers differ in what they take."""

from dataclasses import dataclass, replace
from typing import Any

from distilrec.teachers.backends.base import Prompt
from distilrec.teachers.backends.server_errors import Refusal

SAID = {
    "structured": "does not take a JSON schema; replies are parsed as plain text",
    "temperature": "does not take a temperature; its default holds",
    "seed": "does not take a seed",
    "max_tokens": "wants max_completion_tokens in place of max_tokens",
    "system": "takes no system message; its text goes before the user's",
}
_SYSTEM = r"(system|developer) (role|message|prompt|instruction)s?"
_SCHEMA_WORDS = ("response_format", "json_schema", "json schema")
_NEAR_WORDS = (*_SCHEMA_WORDS, "structured", "grammar", "guided", "not supported")


@dataclass(frozen=True, slots=True)
class Manner:
    """What a request holds. A field that is False is left out or put in the other way; none ever goes back to True.

    Attributes:
        structured: the prompt's JSON schema, if it has one.
        temperature: the temperature.
        seed: the seed.
        max_tokens: the limit under this name, else as max_completion_tokens, which newer models of OpenAI want.
        system: the system text as a message of its own, else before the user's text.
    """

    structured: bool = True
    temperature: bool = True
    seed: bool = True
    max_tokens: bool = True
    system: bool = True

    def request(self, prompt: Prompt, *, model: str, temperature: float, seed: int | None) -> dict[str, Any]:
        """Return the body of a request."""
        messages = prompt.messages()
        if not self.system and prompt.system:
            messages = [{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}]
        limit = "max_tokens" if self.max_tokens else "max_completion_tokens"
        request: dict[str, Any] = {"model": model, "messages": messages, limit: prompt.max_tokens}
        if self.temperature:
            request["temperature"] = temperature
        if self.seed and seed is not None:
            request["seed"] = seed
        if self.structured and prompt.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": prompt.schema}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        return request

    def after(self, refusal: Refusal, sent: dict[str, Any], *, schema_optional: bool, guess: bool) -> "Manner | None":
        """Return how to put a refused request so that the server may take it; None if its form is not to blame.

        Args:
            refusal: what the server said.
            sent: the request that it refused.
            schema_optional: whether the JSON schema may be left out.
            guess: whether a refusal without a reason may be for the JSON schema.
        """
        # Messages about length name max_tokens and max_completion_tokens, too.
        if refusal.too_long or refusal.unknown_model or not (refusal.bad_request or refusal.status == 501):
            return None
        if "max_tokens" in sent and "max_completion_tokens" in refusal.about:
            return replace(self, max_tokens=False)
        for name in ("temperature", "seed"):
            if name in sent and refusal.rejects(name):
                return replace(self, **{name: False})
        if sent["messages"][0]["role"] == "system" and refusal.rejects(_SYSTEM):
            return replace(self, system=False)
        if "response_format" in sent and schema_optional:
            named = any(word in refusal.about for word in _NEAR_WORDS)
            if named or (guess and refusal.status == 400):
                return replace(self, structured=False)
        return None


def names_schema(refusal: Refusal) -> bool:
    """Whether a refusal is about the JSON schema, in so many words."""
    return any(word in refusal.about for word in _SCHEMA_WORDS)
