"""Any server that speaks OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp, SGLang, `transformers serve`.

Servers differ in what they take. The first request is put in full; what a server turns down (structured output, `max_tokens`,
a temperature, a seed, a system message) is left out or put in another way, remembered, and said once. Retries, waits and
budgets are the caller's: one `ask` is one request, but for those that teach us how this server wants to be asked.

The key is read from the environment, given to the client and cut out of every text that leaves this module.
"""

import asyncio
import json
from dataclasses import asdict
from typing import Any, Literal

import openai

from distilrec.errors import DistilrecError
from distilrec.progress import say
from distilrec.secrets import Scrubber, from_environment
from distilrec.teachers.backends.address import Address
from distilrec.teachers.backends.base import BackendError, Prompt, Reply, RetryableError
from distilrec.teachers.backends.manner import SAID, Manner, names_schema
from distilrec.teachers.backends.server_errors import Refusal, as_error, one_line, read_refusal
from distilrec.teachers.backends.tokens import TokenCounter

OFFICIAL = "https://api.openai.com/v1"
_LISTED = 5  # models named in a message
_CONNECT_SECONDS = 15.0
Failure = Refusal | DistilrecError


class OpenAIBackend:
    """A `Served` backend. Safe to use from many tasks of one event loop at once.

    Args:
        model: as the server names it; None for the only one it has.
        base_url: address up to and without `/chat/completions`; None for OpenAI. A user name and password in it are sent as basic
            authentication in place of the key, a query with every request; neither is recorded.
        api_key_env: environment variable with the key. Servers on this machine or in a private network may do without.
        temperature: of sampling, 0 for the likeliest reply.
        structured: `auto` sends a prompt's JSON schema until the server turns it down, `schema` always, `off` never.
        tokenizer: folder of the model's tokenizer for exact token counts; None to estimate.
        timeout_seconds: longest wait for one reply, from sending to its last byte.
        seed: of sampling, for servers that take one.

    Raises:
        ConfigError: base_url is no address, or there is no such tokenizer folder.
    """

    def __init__(
        self,
        *,
        model: str | None,
        base_url: str | None,
        api_key_env: str,
        temperature: float,
        structured: Literal["auto", "schema", "off"],
        tokenizer: str | None,
        timeout_seconds: float,
        seed: int | None = None,
    ) -> None:
        self._address = Address(base_url or OFFICIAL)
        self._model, self._variable = model, api_key_env
        self._temperature, self._structured, self._seed = temperature, structured, seed
        self._timeout = timeout_seconds
        self._counter = TokenCounter(tokenizer)
        self._manner = Manner(structured=structured != "off")
        self._schema_worked = self._answered = False
        self._scrubber = Scrubber()
        self._client: tuple[asyncio.AbstractEventLoop, openai.AsyncOpenAI, asyncio.Lock] | None = None

    def __repr__(self) -> str:
        return f"OpenAIBackend(model={self._model!r}, base_url={self._address.shown!r})"

    @property
    def model(self) -> str:
        """Name of the model; where none was given, the server is asked (one request, blocking).

        Raises:
            BackendError: the server has none or several.
        """
        if self._model is None:
            names = self._models()
            if len(names) != 1:
                listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if names[_LISTED:] else "")
                has = f"has {len(names)} models: {listed}" if names else "has no model"
                raise BackendError(
                    f"no model is named, and the server {has}.", remedy="Set model.", where=self._address.shown
                )
            self._model = names[0]
        return self._model

    def look_beforehand(self) -> None:
        """See that there is a key, and a model to ask; where none was named, the server is asked for it.

        Raises:
            BackendError: there is none.
        """
        self._access()
        _ = self.model

    def identity(self) -> dict[str, Any]:
        """See `Served.identity`."""
        return {
            "kind": "openai_api",
            "model": self.model,
            "base_url": self._address.shown,
            "temperature": self._temperature,
            "structured": self._structured,
            "seed": self._seed,
        }

    def count_tokens(self, prompt: Prompt) -> int:
        """See `Served.count_tokens`."""
        return self._counter.count_prompt(prompt)

    def count_text(self, text: str) -> int:
        """See `Served.count_text`."""
        return self._counter.count_text(text)

    async def ask(self, prompt: Prompt) -> Reply:
        """See `Served.ask`."""
        client, lock = self._opened()
        if self._model is None:
            async with lock:  # the first of many tasks finds out the model, the others wait for it
                await asyncio.to_thread(lambda: self.model)
        manner = self._manner
        # Each turn gives up one thing that the server may not take, so there are at most as many as there are things.
        while True:
            request = manner.request(prompt, model=self.model, temperature=self._temperature, seed=self._seed)
            outcome = await self._send(client, prompt, request)
            if isinstance(outcome, Reply):
                self._schema_worked |= "response_format" in request
                self._remember(manner)
                return outcome
            if isinstance(outcome, DistilrecError):
                raise outcome
            free, guess = self._structured == "auto", not self._schema_worked
            changed = manner.after(outcome, request, schema_optional=free, guess=guess)
            if changed is None:
                break
            manner = changed
        if outcome.code == "content_filter":  # of the prompt itself, as some servers say it: no reply, and no fault
            return Reply("", self._counter.count_prompt(prompt), 0, "content_filter")
        raise await self._explained(outcome, prompt)

    async def close(self) -> None:
        """Let go of connections; a later `ask` opens new ones."""
        if self._client is not None:
            loop, client, _ = self._client
            self._client = None
            if loop is asyncio.get_running_loop():
                await client.close()

    def _opened(self) -> tuple[openai.AsyncOpenAI, asyncio.Lock]:
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:  # connections belong to the loop they were opened in
            access = self._access()
            http = openai.DefaultAsyncHttpxClient(**self._address.http())
            self._client = loop, openai.AsyncOpenAI(http_client=http, **access, max_retries=0), asyncio.Lock()
        return self._client[1], self._client[2]

    def _access(self) -> dict[str, Any]:
        """Return address and key for a client, and see to it that the key is cut out of all texts from now on."""
        key = from_environment(self._variable)
        if key is None and not self._address.local and self._address.login is None:
            raise BackendError(
                f"no API key: the environment variable {self._variable} is not set.",
                remedy=f"Set {self._variable}, or api_key_env to the variable that holds the key.",
                where=self._address.shown,
            )
        if key is not None and not all("!" <= c <= "~" for c in key.reveal()):
            raise BackendError(
                f"{self._variable} holds characters that no API key has.",
                remedy="Copy the key again, without quotes or spaces.",
            )
        self._scrubber = Scrubber([*([key] if key else []), *self._address.secrets])
        self._scrubber.guard_logs()
        return {
            "api_key": key.reveal() if key else "none",
            "base_url": self._address.shown,
            "default_query": self._address.query,
            "timeout": openai.Timeout(self._timeout, connect=min(self._timeout, _CONNECT_SECONDS)),
        }

    async def _send(self, client: openai.AsyncOpenAI, prompt: Prompt, request: dict[str, Any]) -> Reply | Failure:
        """Send one request. Failures are returned: an error raised while handling one of the client's would drag that along."""
        try:
            async with asyncio.timeout(self._timeout):  # the client's own limit begins anew with each byte
                raw = await client.chat.completions.with_raw_response.create(**request)
        except (TimeoutError, openai.OpenAIError) as error:
            return self._failure(error)
        self._answered = True
        return self._read(raw.content, prompt)

    def _failure(self, error: Exception) -> Failure:
        where = self._address.shown
        if isinstance(error, openai.APIStatusError):
            self._answered = True
            answer = error.response
            return read_refusal(answer.status_code, answer.headers, answer.content, self._scrubber)
        cause = type(
            error.__cause__
        ).__name__  # by name: in other versions of the client another HTTP library lies below it
        if cause in ("ConnectError", "ConnectTimeout") and not self._answered:
            said = one_line(str(error.__cause__) or cause, self._scrubber)
            return BackendError(f"no server answers at {where} ({said}).", remedy="Start it, or check base_url.")
        if isinstance(error, (TimeoutError, openai.APITimeoutError)):
            return RetryableError(f"no reply within {self._timeout:g} s.", where=where)
        if isinstance(error, openai.APIConnectionError):
            said = one_line(f"{cause}: {error.__cause__}", self._scrubber).partition(" (")[
                0
            ]  # how many bytes came is no reason
            return RetryableError(f"the connection failed ({said}).", where=where)
        return BackendError(f"the request failed ({one_line(str(error), self._scrubber)}).", where=where)

    def _read(self, body: bytes, prompt: Prompt) -> Reply | Failure:
        where = self._address.shown
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return RetryableError("the server's answer is not JSON.", where=where)
        if isinstance(content, dict) and isinstance(content.get("error"), dict):  # gateways wrap errors in a 200
            code = content["error"].get("code")
            return read_refusal(code if isinstance(code, int) and code >= 400 else 502, {}, body, self._scrubber)
        try:
            choice = content["choices"][0]
            text = _text(choice["message"].get("content"))
        except (KeyError, IndexError, TypeError, AttributeError):
            return RetryableError("the server's answer holds no reply.", where=where)
        # Half a surrogate pair, which JSON can hold, is no text: it could not be stored.
        text = self._scrubber.clean(text.encode("utf-8", "replace").decode())
        finish = choice.get("finish_reason")
        used = content.get("usage")
        usage: dict[str, Any] = used if isinstance(used, dict) else {}
        tokens_in = _count(usage.get("prompt_tokens"), least=1)
        tokens_out = _count(usage.get("completion_tokens"), least=1 if text else 0)
        return Reply(
            text,
            self.count_tokens(prompt) if tokens_in is None else tokens_in,
            self.count_text(text) if tokens_out is None else tokens_out,
            one_line(finish, self._scrubber) if isinstance(finish, str) and finish else "stop",
        )

    def _remember(self, manner: Manner) -> None:
        """Keep a manner that succeeded; what it gave up and was not given up before is said in a line."""
        kept = asdict(self._manner)
        for name, used in asdict(manner).items():
            if kept[name] and not used:
                say(f"  {self._address.shown} {SAID[name]}.")
                kept[name] = False
        self._manner = Manner(**kept)

    async def _explained(self, refusal: Refusal, prompt: Prompt) -> DistilrecError:
        where = self._address.shown
        if refusal.too_long:
            sizes = f"about {self.count_tokens(prompt)} tokens and up to {prompt.max_tokens} of the reply"
            return BackendError(
                f"the prompt is too long for the model: {sizes} ({refusal.message}).",
                remedy="Shorten histories or candidates, or take a model with a longer context.",
                where=where,
            )
        if refusal.unknown_model:
            try:
                names = await asyncio.to_thread(self._models)
            except DistilrecError:  # not every server lists them
                names = []
            has = (
                f"it has {', '.join(names[:_LISTED])}{', ...' if names[_LISTED:] else ''}" if names else refusal.message
            )
            return BackendError(
                f"the server knows no model {self._model} ({has}).", remedy="Correct model.", where=where
            )
        if self._structured == "schema" and names_schema(refusal):
            problem = f"the server does not take the JSON schema ({refusal.status}: {refusal.message})."
            return BackendError(problem, remedy="Set structured to auto or off.", where=where)
        return self._as_error(refusal)

    def _as_error(self, refusal: Refusal) -> DistilrecError:
        has_key = from_environment(self._variable) is not None
        return as_error(refusal, where=self._address.shown, variable=self._variable, has_key=has_key)

    def _models(self) -> list[str]:
        """Return the names of the server's models. Blocks."""
        access = self._access()
        failure: Failure | None = None
        try:
            with openai.OpenAI(
                http_client=openai.DefaultHttpxClient(**self._address.http()), **access, max_retries=2
            ) as client:
                body = client.models.with_raw_response.list().content
        except openai.OpenAIError as error:
            failure = self._failure(error)
        if failure is not None:
            raise failure if isinstance(failure, DistilrecError) else self._as_error(failure)
        self._answered = True
        try:
            names = [str(entry["id"]) for entry in json.loads(body)["data"]]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise RetryableError("the server's list of models cannot be read.", where=self._address.shown) from None
        return [one_line(name, self._scrubber) for name in names]


def _text(content: Any) -> str:
    """Return a message's text; some servers give it in parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise TypeError
    return content


def _count(value: Any, *, least: int) -> int | None:
    """Return a server's count of tokens; None where it is no number or cannot be right."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None
