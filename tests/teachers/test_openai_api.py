"""The OpenAI-compatible backend against a scripted server: replies, refusals, faults, and a key that shows nowhere."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.errors import ConfigError, DistilrecError, InputError
from distilrec.secrets import REMOVED, Scrubber, Secret
from distilrec.teachers.backends import openai_api
from distilrec.teachers.backends.base import BackendError, Prompt, Reply, RetryableError, Served
from distilrec.teachers.backends.openai_api import OpenAIBackend
from distilrec.teachers.backends.server_errors import read_refusal, wait_asked
from distilrec.teachers.backends.tokens import TokenCounter
from fixtures_server import Act, Asked, ScriptedServer, broken, cut, drop, echo_key, faulty, hang, ok, raw, status
from fixtures_server import scripted_server as scripted_server

Start = Callable[..., ScriptedServer]
KEY, VARIABLE = "sk-canary-0123456789abcdef", "TEACHER_KEY"
SCHEMA = {"type": "object", "properties": {"ranking": {"type": "array"}}}
PROMPT = Prompt("Rank the films.", "1. Alien 2. Heat", 32)
WITH_SCHEMA = Prompt(PROMPT.system, PROMPT.user, 32, SCHEMA)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(openai_api, "say", lines.append)
    return lines


def backend_for(url: str | None, **settings: Any) -> OpenAIBackend:
    return OpenAIBackend(
        **{
            "model": "scripted", "base_url": url, "api_key_env": VARIABLE, "temperature": 0.0, "structured": "auto",
            "tokenizer": None, "timeout_seconds": 5.0, **settings,
        }
    )  # fmt: skip


def ask_all(backend: OpenAIBackend, *prompts: Prompt) -> list[Any]:
    """Ask one after another and return replies and errors."""

    async def run() -> list[Any]:
        found: list[Any] = []
        for prompt in prompts:
            try:
                found.append(await backend.ask(prompt))
            except DistilrecError as error:
                found.append(error)
        await backend.close()
        return found

    return asyncio.run(run())


def outcome(
    start: Start, act: Act | str | Callable[[Asked], Act | str], prompt: Prompt = PROMPT, **settings: Any
) -> Any:
    server = start(act if callable(act) else lambda _: act)
    return ask_all(backend_for(server.url, **settings), prompt)[0]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --- replies ---


def test_a_reply_comes_with_the_servers_counts(scripted_server: Start) -> None:
    server = scripted_server(lambda _: ok("2, 1", usage={"prompt_tokens": 17, "completion_tokens": 4}))
    backend = backend_for(server.url, seed=7, temperature=0.25)
    assert isinstance(backend, Served)
    assert ask_all(backend, WITH_SCHEMA) == [Reply("2, 1", 17, 4, "stop")]
    (record,) = server.records
    assert record.authorization == f"Bearer {KEY}"
    assert record.body == {
        "model": "scripted",
        "messages": [{"role": "system", "content": PROMPT.system}, {"role": "user", "content": PROMPT.user}],
        "max_tokens": 32,
        "temperature": 0.25,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA}},
    }


@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
def test_the_finish_is_passed_on(scripted_server: Start, finish: str) -> None:
    assert outcome(scripted_server, ok("x", finish=finish)).finish == finish


def test_no_finish_means_stop(scripted_server: Start) -> None:
    assert outcome(scripted_server, ok("x", finish=None)).finish == "stop"


@pytest.mark.parametrize("text", [None, ""])
def test_no_content_is_an_empty_reply(scripted_server: Start, text: str | None) -> None:
    assert outcome(scripted_server, ok(text, usage={"prompt_tokens": 5, "completion_tokens": 0})) == Reply("", 5, 0)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "none",
        [1],
        {},
        {"prompt_tokens": 0, "completion_tokens": -1},
        {"prompt_tokens": True, "completion_tokens": "4"},
    ],
)
def test_without_a_usable_usage_tokens_are_counted_here(scripted_server: Start, usage: Any) -> None:
    reply = outcome(scripted_server, ok("2, 1", usage=usage))
    assert reply.tokens_in == TokenCounter(None).count_prompt(PROMPT) > 0
    assert reply.tokens_out == 3


def test_content_in_parts_and_half_characters(scripted_server: Start) -> None:
    parts = [{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b\ud83d"}]
    body = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    assert outcome(scripted_server, raw(body)).text == "ab?"


def test_many_tasks_share_one_client_and_one_model_request(scripted_server: Start) -> None:
    server = scripted_server(lambda asked: ok(asked.user, wait=0.05), models=["only"])
    backend = backend_for(server.url, model=None)

    async def run() -> list[Reply]:
        replies = await asyncio.gather(*(backend.ask(Prompt("", f"u{n}", 5)) for n in range(20)))
        await backend.close()
        return replies

    assert [reply.text for reply in asyncio.run(run())] == [f"u{n}" for n in range(20)]
    assert server.max_in_flight > 5
    assert {record.body["model"] for record in server.records} == {"only"}
    # A backend lives on in another event loop.
    assert [reply.text for reply in asyncio.run(run())] == [f"u{n}" for n in range(20)]


# --- the model ---


def test_the_only_model_is_taken(scripted_server: Start) -> None:
    backend = backend_for(scripted_server(lambda _: "x", models=["tiny"]).url, model=None)
    assert backend.model == "tiny"
    assert backend.identity()["model"] == "tiny"


def test_of_several_models_one_must_be_named(scripted_server: Start) -> None:
    server = scripted_server(lambda _: "x", models=[f"m{n}" for n in range(7)])
    (error,) = ask_all(backend_for(server.url, model=None), PROMPT)
    assert isinstance(error, BackendError)
    assert "7 models: m0, m1, m2, m3, m4 and 2 more" in str(error) and "Set model" in str(error)


def test_a_server_without_models(scripted_server: Start) -> None:
    with pytest.raises(BackendError, match="has no model"):
        _ = backend_for(scripted_server(lambda _: "x", models=[]).url, model=None).model


@pytest.mark.parametrize(
    "act",
    [
        status(404, "The model `x` does not exist", error_code="model_not_found"),
        status(404, 'model "x" not found, try pulling it first'),
        status(400, "x is not a valid model ID"),
    ],
)
def test_an_unknown_model_names_those_there_are(scripted_server: Start, act: Act) -> None:
    error = outcome(scripted_server, act, WITH_SCHEMA, model="x")
    assert isinstance(error, BackendError)
    assert "no model x" in str(error) and "it has scripted" in str(error)


def test_a_wrong_path_is_told_from_an_unknown_model(scripted_server: Start) -> None:
    server = scripted_server(lambda _: "x")
    (error,) = ask_all(backend_for(server.url.removesuffix("/v1")), PROMPT)
    assert isinstance(error, BackendError) and "ends in /v1" in str(error)


# --- structured output and other differences among servers ---


@pytest.mark.parametrize(
    "refusal",
    [
        status(400, "'response_format' is not supported by this model"),
        status(404, "No endpoint supports json_schema"),
        raw(b'{"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs"}]}', code=422),
        status(501, "response_format is not implemented"),
        status(400, "something went wrong"),
    ],
)
def test_auto_goes_on_without_a_schema_and_says_so_once(scripted_server: Start, said: list[str], refusal: Act) -> None:
    server = scripted_server(lambda asked: refusal if "response_format" in asked.body else "1")
    replies = ask_all(backend_for(server.url), WITH_SCHEMA, WITH_SCHEMA, WITH_SCHEMA)
    assert [reply.text for reply in replies] == ["1", "1", "1"]
    assert ["response_format" in record.body for record in server.records] == [True, False, False, False]
    assert len(said) == 1 and "JSON schema" in said[0]


def test_tasks_that_start_together_say_it_once(scripted_server: Start, said: list[str]) -> None:
    server = scripted_server(lambda asked: status(400, "no json_schema") if "response_format" in asked.body else "1")
    backend = backend_for(server.url)

    async def run() -> None:
        await asyncio.gather(*(backend.ask(WITH_SCHEMA) for _ in range(8)))
        await backend.close()

    asyncio.run(run())
    assert len(said) == 1


def test_a_fault_that_is_not_the_schemas_does_not_cost_it(scripted_server: Start, said: list[str]) -> None:
    acts = iter([status(400, "strange"), status(400, "strange"), ok("1"), status(400, "strange"), ok("2")])
    server = scripted_server(lambda _: next(acts))
    first, second, third, fourth = ask_all(backend_for(server.url), *[WITH_SCHEMA] * 4)
    assert isinstance(first, BackendError) and isinstance(third, BackendError)
    assert (second.text, fourth.text) == ("1", "2")
    # The first failed with and without; once a schema had worked, the unexplained refusal was not blamed on it.
    assert ["response_format" in record.body for record in server.records] == [True, False, True, True, True]
    assert not said


def test_schema_never_falls_back_and_off_never_sends(scripted_server: Start, said: list[str]) -> None:
    server = scripted_server(
        lambda asked: status(400, "no json_schema here") if "response_format" in asked.body else "1"
    )
    (error,) = ask_all(backend_for(server.url, structured="schema"), WITH_SCHEMA)
    assert isinstance(error, BackendError) and "structured to auto or off" in str(error)
    assert len(server.records) == 1
    assert ask_all(backend_for(server.url, structured="off"), WITH_SCHEMA)[0].text == "1"
    assert "response_format" not in server.records[-1].body and not said


def test_newer_models_get_their_own_limit_and_no_temperature(scripted_server: Start, said: list[str]) -> None:
    def script(asked: Asked) -> Act | str:
        if "max_tokens" in asked.body:
            return status(
                400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens"
            )
        if "temperature" in asked.body:
            return status(
                400, "'temperature' does not support 0.2 with this model. Only the default (1) value is supported."
            )
        return "1"

    server = scripted_server(script)
    replies = ask_all(backend_for(server.url, temperature=0.2), WITH_SCHEMA, WITH_SCHEMA)
    assert [reply.text for reply in replies] == ["1", "1"]
    assert len(server.records) == 4
    last = server.records[-1].body
    assert last["max_completion_tokens"] == 32 and "max_tokens" not in last and "temperature" not in last
    assert "response_format" in last and len(said) == 2


def test_a_bad_temperature_is_an_error(scripted_server: Start) -> None:
    error = outcome(scripted_server, status(400, "temperature must be at most 2"), temperature=3.0)
    assert isinstance(error, BackendError) and "temperature must be at most 2" in str(error)


def test_seed_and_system_message_can_be_given_up(scripted_server: Start, said: list[str]) -> None:
    def script(asked: Asked) -> Act | str:
        if "seed" in asked.body:
            return status(400, "Unrecognized request argument supplied: seed")
        if asked.body["messages"][0]["role"] == "system":
            return status(400, "System role not supported")
        return "1"

    server = scripted_server(script)
    assert ask_all(backend_for(server.url, seed=1), PROMPT)[0].text == "1"
    assert server.records[-1].body["messages"] == [{"role": "user", "content": f"{PROMPT.system}\n\n{PROMPT.user}"}]
    assert len(said) == 2


# --- errors ---


@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_key_names_its_variable(scripted_server: Start, code: int) -> None:
    error = outcome(scripted_server, status(code))
    assert isinstance(error, BackendError) and "refuses the API key" in str(error) and VARIABLE in error.remedy


def test_without_a_key_a_local_server_is_asked_anyway(scripted_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "  ")
    server = scripted_server(lambda asked: status(401) if asked.number else "1")
    reply, error = ask_all(backend_for(server.url), PROMPT, PROMPT)
    assert reply.text == "1" and server.records[0].authorization == "Bearer none"
    assert isinstance(error, BackendError) and "wants an API key" in str(error)


@pytest.mark.parametrize("url", [None, "https://api.example.org/v1", "http://8.8.8.8/v1"])
def test_without_a_key_no_other_server_is_asked(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    monkeypatch.delenv(VARIABLE)
    (error,) = ask_all(backend_for(url), PROMPT)
    assert isinstance(error, BackendError) and "no API key" in str(error) and f"Set {VARIABLE}" in error.remedy


@pytest.mark.parametrize("url", ["http://10.0.0.5/v1", "http://[::1]:80/v1", "http://vllm:8000", "http://gpu.local/v1"])
def test_private_hosts_need_no_key(url: str) -> None:
    assert openai_api.Address(url).local


def test_a_key_with_a_line_break_inside_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\nx")
    (error,) = ask_all(backend_for("http://127.0.0.1:9/v1"), PROMPT)
    assert isinstance(error, BackendError) and VARIABLE in str(error) and "canary" not in str(error)


def test_a_key_is_taken_without_the_line_break_at_its_end(
    scripted_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    server = scripted_server(lambda _: "1")
    ask_all(backend_for(server.url), PROMPT)
    assert server.records[0].authorization == f"Bearer {KEY}"


def test_no_server_at_first_is_final_and_later_passing(scripted_server: Start) -> None:
    port = free_port()
    (error,) = ask_all(backend_for(f"http://127.0.0.1:{port}/v1"), PROMPT)
    assert isinstance(error, BackendError) and f"no server answers at http://127.0.0.1:{port}/v1" in str(error)
    with pytest.raises(BackendError, match="no server answers"):
        _ = backend_for(f"http://127.0.0.1:{port}/v1", model=None).model

    server = ScriptedServer(lambda _: "1").__enter__()
    backend = backend_for(server.url)

    async def run() -> None:
        assert (await backend.ask(PROMPT)).text == "1"
        await asyncio.to_thread(server.__exit__)
        await backend.close()  # else the connection that is still open would be used
        with pytest.raises(RetryableError):
            await backend.ask(PROMPT)
        with ScriptedServer(lambda _: "2", port=server.port):
            assert (await backend.ask(PROMPT)).text == "2"
            await backend.close()

    asyncio.run(run())


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 529])
def test_passing_faults(scripted_server: Start, code: int) -> None:
    error = outcome(scripted_server, status(code))
    assert isinstance(error, RetryableError) and str(code) in str(error) and error.after is None


@pytest.mark.parametrize(
    "act",
    [
        broken(), cut(), drop(), raw(b""), raw(b"<html>busy</html>"), raw(b"\xff\xfe"), raw(b"[]"), raw(b"null"), raw(b"3"),
        raw(b"{}"), raw(b'{"choices": []}'), raw(b'{"choices": [{}]}'), raw(b'{"choices": [{"message": null}]}'),
        raw(b'{"choices": [{"message": {"content": 3}}]}'), raw(b'{"choices": null}'), raw(b"[" * 100_000),
        raw(b'{"error": {"message": "upstream is down"}}'), raw(b'{"error": {"message": "busy", "code": 503}}'),
    ],
)  # fmt: skip
def test_broken_answers_may_be_asked_again(scripted_server: Start, act: Act) -> None:
    server = scripted_server(lambda asked: act if asked.attempt == 0 else "1")
    error, reply = ask_all(backend_for(server.url), PROMPT, PROMPT)
    assert isinstance(error, RetryableError) and reply.text == "1"


def test_an_error_in_a_200_keeps_its_meaning(scripted_server: Start) -> None:
    error = outcome(scripted_server, raw(b'{"error": {"message": "no", "code": 401}}'))
    assert isinstance(error, BackendError) and "refuses the API key" in str(error)


def test_a_server_that_hangs_times_out(scripted_server: Start) -> None:
    error = outcome(scripted_server, hang(), timeout_seconds=0.2)
    assert isinstance(error, RetryableError) and "no reply within 0.2 s" in str(error)


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.5"}, 0.5, 0.5),
        ({"retry-after": "-3"}, 0, 0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25, 0.25),
        ({"retry-after": formatdate(time.time() + 90_000, usegmt=True)}, 80_000, 90_001),
        ({"retry-after": formatdate(0, usegmt=True)}, 0, 0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30s"}, 90, 90),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02, 0.02),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(time.time() + 90_000)}, 80_000, 90_000),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(1000 * (time.time() + 90_000)))}, 80_000, 90_000),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], low: float, high: float) -> None:
    after = wait_asked(headers)
    assert after is not None and low <= after <= high


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"retry-after": "soon"}, {"retry-after": "nan"}, {"retry-after": "inf"}, {"retry-after": ""},
        {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "60"}, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1m.s"},
    ],
)  # fmt: skip
def test_waits_that_say_nothing(headers: dict[str, str]) -> None:
    assert wait_asked(headers) is None


def test_429_carries_its_wait_and_an_empty_account_is_final(scripted_server: Start) -> None:
    error = outcome(scripted_server, status(429, retry_after=2.5))
    assert isinstance(error, RetryableError) and error.after == 2.5
    error = outcome(scripted_server, status(429, "You exceeded your quota", error_code="insufficient_quota"))
    assert isinstance(error, BackendError) and "quota" in str(error)
    assert isinstance(outcome(scripted_server, status(402)), BackendError)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens; reduce max_completion_tokens.",
        "the request exceeds the available context size. try increasing the context size",
        "Prompt is too long: 5000 tokens",
    ],
)
def test_a_prompt_too_long_names_sizes_and_is_not_repeated(scripted_server: Start, message: str) -> None:
    server = scripted_server(lambda _: status(400, message))
    (error,) = ask_all(backend_for(server.url), WITH_SCHEMA)
    assert isinstance(error, BackendError) and "too long" in str(error) and message in str(error)
    assert f"about {TokenCounter(None).count_prompt(PROMPT)} tokens and up to 32 of the reply" in str(error)
    assert len(server.records) == 1


def test_a_filtered_prompt_is_an_empty_reply(scripted_server: Start) -> None:
    reply = outcome(scripted_server, status(400, "filtered", error_code="content_filter"))
    assert (reply.text, reply.tokens_out, reply.finish) == ("", 0, "content_filter")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "a\\nb", "code": 3}}', "a b"),
        (b'[{"error": {"message": "gemini", "code": 429}}]', "gemini"),
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": "fast"}', "fast"),
        (b'{"detail": [{"loc": ["body", "seed"], "msg": "extra", "input": "SECRET PROMPT"}]}', "seed: extra"),
        (b"<html><h1>Bad gateway</h1></html>", "Bad gateway"),
        (b"", ""),
        (b"null", ""),
        (b"\x1b[31mred\xff", "[31mred\ufffd"),
    ],
)
def test_error_bodies_of_many_servers_are_read(body: bytes, message: str) -> None:
    assert read_refusal(400, {}, body, Scrubber()).message == message


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/v1", "http://", "", "http://x:notaport/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    if url:
        with pytest.raises(ConfigError, match="base_url"):
            backend_for(url)
    else:
        assert backend_for(url).identity()["base_url"] == openai_api.OFFICIAL


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    scripted_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert outcome(scripted_server, "1").text == "1"


def test_rows_through_faults(scripted_server: Start) -> None:
    rates = {"429": 0.03, "500": 0.03, "broken": 0.03, "cut": 0.03, "drop": 0.02, "no_choices": 0.02, "hang": 0.004}
    server = scripted_server(faulty(3, rates, lambda body: body["messages"][-1]["content"].upper()))
    backend = backend_for(server.url, timeout_seconds=1.0)

    async def run() -> list[str]:
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> str:
            async with gate:
                while True:
                    try:
                        return (await backend.ask(Prompt("s", f"row {number}", 8))).text
                    except RetryableError:
                        continue

        texts = await asyncio.gather(*(one(number) for number in range(500)))
        await backend.close()
        return texts

    assert asyncio.run(run()) == [f"ROW {number}" for number in range(500)]
    assert sum(server.answers().values()) == 500 and set(server.answers().values()) == {1}
    assert set(server.kinds()) == {"ok", *rates}


def test_the_scripts_faults_repeat_and_end() -> None:
    script = faulty(1, {"500": 0.5, "429": 0.3}, lambda _: "x", most=3)
    asked = [Asked(0, attempt, f"u{n}", {}, None) for n in range(200) for attempt in range(5)]
    kinds = [script(a).kind for a in asked]  # type: ignore[union-attr]
    assert kinds == [script(a).kind for a in reversed(asked)][::-1]  # type: ignore[union-attr]
    early = [kind for a, kind in zip(asked, kinds, strict=True) if a.attempt < 3]
    assert 0.44 < early.count("500") / len(early) < 0.56 and 0.24 < early.count("429") / len(early) < 0.36
    assert {kind for a, kind in zip(asked, kinds, strict=True) if a.attempt >= 3} == {"ok"}
    other = faulty(2, {"500": 0.5, "429": 0.3}, lambda _: "x", most=3)
    assert kinds != [other(a).kind for a in asked]  # type: ignore[union-attr]


# --- the key ---


@pytest.fixture
def loud() -> Iterator[list[str]]:
    """Turn on every log there is and collect what is written, formatted."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record) + repr(record.args) + repr(record.msg))

    handler, root = Collect(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


def everything(value: BaseException) -> str:
    """Return all texts of an error: with its causes, as a traceback shows them, and its attributes."""
    texts = []
    error: BaseException | None = value
    while error is not None:
        texts += [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def test_the_key_shows_nowhere(
    scripted_server: Start, loud: list[str], capfd: pytest.CaptureFixture[str], said: list[str]
) -> None:
    def leak(asked: Asked) -> Act:
        key = str(asked.authorization).removeprefix("Bearer ")
        texts = [key, f"so {key} it is", key[:20] + "...", key.replace("-", "\\u002d")]
        acts = [echo_key(asked, code) for code in (400, 401, 403, 404, 409, 418, 422, 429, 500)]
        acts += [ok(texts[0], finish=key), raw(f'{{"error": "{key}"}}'.encode(), code=500), raw(key.encode(), code=400)]
        acts += [status(400, "x" * 290 + key), status(400, texts[2]), ok(texts[1]), raw(f"{key} is no JSON".encode())]
        acts += [
            status(404, f"model {key} not found"),
            raw(b'{"error": {"message": "' + texts[3].encode() + b'"}}', code=500),
        ]
        acts += [status(400, f"maximum context length {key}"), status(400, f"json_schema {key}"), cut(key * 9)]
        return acts[int(asked.user) % len(acts)]

    server = scripted_server(leak, models=[KEY, f"m-{KEY}"])
    backend = backend_for(server.url, structured="schema")
    found = ask_all(backend, *[Prompt("s", str(number), 9, SCHEMA) for number in range(21)])
    assert all(record.authorization == f"Bearer {KEY}" for record in server.records) and len(server.records) >= 21
    assert sum(isinstance(one, Reply) for one in found) == 2
    texts = [repr(one) if isinstance(one, Reply) else everything(one) for one in found]
    with pytest.raises(BackendError) as caught:
        _ = backend_for(server.url, model=None).model
    texts += [
        everything(caught.value),
        repr(backend),
        str(backend),
        json.dumps(backend.identity()),
        repr(vars(backend)),
    ]
    texts += [*loud, *said, *capfd.readouterr()]
    assert any(REMOVED in text for text in texts)
    assert any("httpcore" in line or "receive_response_headers" in line for line in loud)  # the logs were on
    for text in texts:
        assert "canary" not in text, text


def test_the_clients_own_debug_switch_does_not_leak(scripted_server: Start) -> None:
    server = scripted_server(lambda asked: echo_key(asked, 500))
    code = f"""
import asyncio, logging
logging.basicConfig(level=logging.DEBUG)
from distilrec.teachers.backends.base import Prompt
from distilrec.teachers.backends.openai_api import OpenAIBackend
backend = OpenAIBackend(model="m", base_url={server.url!r}, api_key_env={VARIABLE!r}, temperature=0, structured="off",
                        tokenizer=None, timeout_seconds=5)
asyncio.run(backend.ask(Prompt("", "u", 5)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENAI_LOG": "debug"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "RetryableError" in done.stderr and "DEBUG" in done.stderr
    assert server.records[0].authorization == f"Bearer {KEY}"
    assert "canary" not in done.stdout + done.stderr


def test_login_and_query_of_an_address_are_used_and_not_shown(scripted_server: Start, loud: list[str]) -> None:
    server = scripted_server(lambda asked: status(500, f"{asked.authorization} hunter2secret token-in-query-77"))
    url = server.url.replace("http://", "http://me:hunter2secret@") + "?code=token-in-query-77"
    backend = backend_for(url)
    (error,) = ask_all(backend, PROMPT)
    assert str(server.records[0].authorization).startswith("Basic ")
    hidden = ("hunter2secret", "token-in-query-77", "bWU6aHVudGVyMnNlY3JldA")
    text = everything(error) + repr(vars(backend)) + "".join(loud)
    assert isinstance(error, RetryableError) and backend.identity()["base_url"] == server.url
    assert not any(secret in text for secret in hidden)


def test_identity_holds_what_replies_depend_on() -> None:
    backend = backend_for("https://u:p@host.example/v1/?a=b", seed=3, temperature=0.5)
    assert backend.identity() == {
        "kind": "openai_api", "model": "scripted", "base_url": "https://host.example/v1", "temperature": 0.5,
        "structured": "auto", "seed": 3,
    }  # fmt: skip


def test_placeholders_are_no_secrets() -> None:
    assert Scrubber([Secret("none")]).clean("none of it") == "none of it"


@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40),
    around=st.text(max_size=20),
)
def test_a_key_never_survives_cleaning(key: str, around: str) -> None:
    scrubber = Scrubber([Secret(key)])
    for text in (f"{around}{key}{around}", json.dumps({"a": key}), f"{key}{key}"):
        assert key not in scrubber.clean(text).replace(REMOVED, "\0")
    assert key not in repr(Secret(key)) + repr(scrubber) or key in "Secret(***)Scrubber(***)"


# --- tokens ---


def test_the_estimate_by_hand() -> None:
    count = TokenCounter(None).count_text
    assert count("") == count("   ") == 0
    assert count("Alien") == 1
    assert count("recommender") == 2  # 11 letters
    assert count("1. Heat (1995)\n") == 1 + 1 + 1 + 1 + 2 + 1 + 1
    assert count("\n\n\n") == 1
    assert count("电影") == 2
    assert not TokenCounter(None).exact


def test_the_estimate_of_a_prompt_adds_a_frame_for_each_message() -> None:
    counter = TokenCounter(None)
    assert counter.count_prompt(Prompt("Alien", "Heat", 1)) == 1 + 4 + 1 + 4
    assert counter.count_prompt(Prompt("", "Heat", 1)) == 1 + 4


CHATML = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
LENGTHS = CHATML.replace(
    "{% for", "{{ messages[-1].content | length }} {% for", 1
)  # the words before depend on the user's text
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def save_tokenizer(folder: Path, template: str | None) -> str:
    """Save a tokenizer of single characters, so that every character of a template counts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(code): code - 31 for code in range(32, 127)} | {"[UNK]": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("template", [CHATML, TRIMMED, LENGTHS, NO_SYSTEM, None])
def test_counting_apart_equals_counting_whole(tmp_path: Path, template: str | None) -> None:
    from transformers import AutoTokenizer

    counter = TokenCounter(save_tokenizer(tmp_path, template))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert counter.exact == (template is not None)
    for user in ("first one", "x", " spaces around \n", "</s> inside", "a much longer text than before " * 9, "", "\n"):
        prompt = Prompt("shared words", user, 5)
        messages = prompt.messages()
        if template == NO_SYSTEM:
            messages = [{"role": "user", "content": f"shared words\n\n{user}"}]
        if template is None:
            texts, extra = [m["content"] for m in messages], 4 * len(messages)
        else:
            texts, extra = [tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)], 0
        assert counter.count_prompt(prompt) == extra + sum(
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
        )


def test_the_shared_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = TokenCounter(save_tokenizer(tmp_path, CHATML))
    counted: list[int] = []
    plain = TokenCounter.count_text
    monkeypatch.setattr(
        TokenCounter, "count_text", lambda self, text: (counted.append(len(text)), plain(self, text))[1]
    )
    for number in range(50):
        counter.count_prompt(Prompt("long " * 1000, f"user {number}", 5))
    assert sum(length > 4000 for length in counted) <= 2  # alone, and once with the first prompt as a check


def test_the_backend_counts_with_the_tokenizer(tmp_path: Path) -> None:
    backend = backend_for("http://127.0.0.1:9/v1", tokenizer=save_tokenizer(tmp_path, CHATML))
    # <s> "system " 5 characters and a space </s>, the same with "user " and 4, then <s> " assistant"
    assert backend.count_tokens(Prompt("Rank!", "Heat", 1)) == (1 + 7 + 5 + 1 + 1) + (1 + 5 + 4 + 1 + 1) + (1 + 10)
    assert backend.count_text("1, 2") == 4


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer folder"):
        TokenCounter(str(tmp_path / "missing"))
    with pytest.raises(InputError, match="no tokenizer can be read"):
        TokenCounter(str(tmp_path))
