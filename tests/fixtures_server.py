"""A scripted server with OpenAI's API on loopback: a script says what happens to each request, faults included.

    with ScriptedServer(lambda asked: ok("1, 2, 3")) as server:
        ...  # base_url=server.url
    assert all(record.answered for record in server.records)

`faulty` makes a script of random faults that repeats exactly: what happens depends on the seed, the user's message and how
often that message has been asked. The server counts an answer as given when its last byte has been handed to the system.
"""

import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest

FAULTS = (
    "429", "500", "503", "hang", "broken", "cut", "drop", "empty", "null", "no_choices", "no_usage", "bad_usage", "truncated",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A request, as a script sees it. `attempt` counts earlier requests with the same user message; `number` all earlier ones."""

    number: int
    attempt: int
    user: str
    body: dict[str, Any]
    authorization: str | None


@dataclass(frozen=True)
class Act:
    """What happens to a request: wait, then send `body`, or only its first `sent` bytes, or nothing (None), and hang up."""

    kind: str
    status: int = 200
    body: bytes | None = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    sent: int | None = None


@dataclass
class Record:
    """A request, as a test sees it. `answered`: a whole reply (status 200, with choices) was sent."""

    time: float
    user: str
    attempt: int
    body: dict[str, Any]
    authorization: str | None
    kind: str = ""
    in_flight: int = 0
    answered: bool = False


Script = Callable[[Asked], Act | str]
_LEFT_OUT: Any = object()


def ok(
    text: str | None, *, usage: Any = _LEFT_OUT, finish: str | None = "stop", wait: float = 0.0, kind: str = "ok"
) -> Act:
    """Answer. Usage is that of the server's own count, or what is given; None leaves it out."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    content = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
    if usage is not None:
        content["usage"] = "COUNT" if usage is _LEFT_OUT else usage
    return Act(kind, 200, json.dumps(content).encode(), wait=wait)


def status(
    code: int,
    message: str = "scripted",
    *,
    error_code: str | None = None,
    param: str | None = None,
    retry_after: float | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Act:
    """Answer with an error of OpenAI's form."""
    error = {"message": message, "type": "scripted_error", "param": param, "code": error_code}
    extra = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Act(str(code), code, json.dumps({"error": error}).encode(), {**extra, **(headers or {})})


def raw(body: bytes, *, code: int = 200, headers: Mapping[str, str] | None = None, kind: str = "raw") -> Act:
    """Answer with these bytes."""
    return Act(kind, code, body, headers or {})


def hang(seconds: float = 60.0) -> Act:
    """Say nothing for so long (or until the server closes), then hang up."""
    return Act("hang", body=None, wait=seconds)


def drop() -> Act:
    """Hang up at once."""
    return Act("drop", body=None)


def broken() -> Act:
    """Answer with half of a JSON document, as if it were all."""
    return Act("broken", body=b'{"choices": [{"message": {"content": "1, 2')


def cut(text: str = "1, 2, 3, 4, 5") -> Act:
    """Promise a whole answer, send half of it and hang up."""
    whole = ok(text, usage=None)
    assert whole.body is not None
    return Act("cut", body=whole.body, sent=len(whole.body) // 2)


def echo_key(asked: Asked, code: int = 401) -> Act:
    """Answer with an error that repeats the Authorization header, in the body and in a header."""
    said = f"Incorrect API key provided: {asked.authorization}"
    return status(code, said, error_code="invalid_api_key", headers={"x-request-id": str(asked.authorization)})


def faulty(seed: int, rates: Mapping[str, float], answer: Callable[[dict[str, Any]], str], *, most: int = 5) -> Script:
    """Return a script that answers with `answer(body)`, but for faults at these rates.

    Args:
        seed: of the faults.
        rates: share of requests for each fault (names in `FAULTS`), at most 1 together. `truncated` sends half of the answer and
            says so; `empty`, `null`, `truncated`, `no_usage` and `bad_usage` are whole answers otherwise.
        answer: the true answer, from the body of the request.
        most: requests for one message that may go wrong; later ones are answered.
    """
    assert set(rates) <= set(FAULTS), set(rates) - set(FAULTS)
    assert sum(rates.values()) <= 1

    def script(asked: Asked) -> Act:
        key = f"{seed}\0{asked.attempt}\0{asked.user}".encode()
        drawn = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
        for kind, rate in rates.items():
            if drawn < rate and asked.attempt < most:
                return _fault(kind, answer(asked.body))
            drawn -= rate
        return ok(answer(asked.body))

    return script


def _fault(kind: str, text: str) -> Act:
    acts: dict[str, Callable[[], Act]] = {
        "429": lambda: status(429, "slow down", retry_after=0.01),
        "500": lambda: status(500),
        "503": lambda: status(503),
        "hang": hang,
        "broken": broken,
        "cut": lambda: cut(text),
        "drop": drop,
        "empty": lambda: ok("", kind=kind),
        "null": lambda: ok(None, kind=kind),
        "no_choices": lambda: raw(b'{"choices": []}', kind=kind),
        "no_usage": lambda: ok(text, usage=None, kind=kind),
        "bad_usage": lambda: ok(text, usage={"prompt_tokens": -3, "completion_tokens": "many"}, kind=kind),
        "truncated": lambda: ok(text[: len(text) // 2], finish="length", kind=kind),
    }
    return acts[kind]()


class ScriptedServer:
    """The server; a context manager. Its address for clients is `url`.

    Args:
        script: called for each chat completion, from many threads; a string it returns is an `ok`.
        models: names that GET /v1/models lists.
        count: tokens of a text, for the usage that is reported; words by default.
        port: 0 for any that is free.

    `max_in_flight` is the most requests that were being worked on at once; one that hangs counts until the server hangs up, also
    where the client has given up on it before.
    """

    def __init__(
        self,
        script: Script,
        *,
        models: Sequence[str] = ("scripted",),
        count: Callable[[str], int] = lambda text: len(text.split()),
        port: int = 0,
    ) -> None:
        self.script, self.models, self.count = script, tuple(models), count
        self.records: list[Record] = []
        self.max_in_flight = 0
        self._in_flight = 0
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answers(self) -> Counter[str]:
        """Return how many whole answers each user message got."""
        with self._lock:
            return Counter(record.user for record in self.records if record.answered)

    def kinds(self) -> Counter[str]:
        """Return how often each kind of thing happened."""
        with self._lock:
            return Counter(record.kind for record in self.records)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def arrive(self, body: dict[str, Any], authorization: str | None) -> tuple[Record, Asked]:
        messages = body.get("messages", [])
        user = next((m["content"] for m in reversed(messages) if m.get("role") == "user"), "")
        with self._lock:
            attempt = self._attempts[user]
            self._attempts[user] += 1
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            record = Record(time.monotonic(), user, attempt, body, authorization, in_flight=self._in_flight)
            self.records.append(record)
            return record, Asked(len(self.records) - 1, attempt, user, body, authorization)

    def leave(self, record: Record, *, answered: bool) -> None:
        with self._lock:
            self._in_flight -= 1
            record.answered = answered

    def pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def filled(self, act: Act, body: dict[str, Any]) -> bytes:
        """Return the act's body with the usage counted, where it is to be."""
        assert act.body is not None
        if b'"COUNT"' not in act.body:
            return act.body
        content = json.loads(act.body)
        before = sum(self.count(str(message["content"])) for message in body["messages"])
        after = self.count(content["choices"][0]["message"]["content"] or "")
        content["usage"] = {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}
        return json.dumps(content).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024
    owner: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away in the middle are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/v1/models":
            self._send(404, b'{"error": {"message": "no such page"}}')
            return
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.server.owner.models]
        self._send(200, json.dumps({"object": "list", "data": data}).encode())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.partition("?")[0] != "/v1/chat/completions":
            self._send(404, b'{"error": {"message": "no such page"}}')
            return
        owner, body = self.server.owner, json.loads(content)
        record, asked = owner.arrive(body, self.headers["Authorization"])
        whole, act = b"", drop()
        try:
            said = owner.script(asked)
            act = ok(said) if isinstance(said, str) else said
            record.kind = act.kind
            if act.wait:
                owner.pause(act.wait)
            whole = b"" if act.body is None else owner.filled(act, body)
        finally:
            # Before the bytes go out: a client that has its answer must find it in the records, and may ask again at once.
            owner.leave(record, answered=act.status == 200 and act.sent is None and _is_reply(whole))
        try:
            if act.body is None:
                self._hang_up()
            else:
                self._send(act.status, whole, act.headers, act.sent)
        except OSError:  # the client went away
            record.answered = False
            self.close_connection = True

    def _send(self, code: int, body: bytes, headers: Mapping[str, str] | None = None, sent: int | None = None) -> None:
        lines = [f"HTTP/1.1 {code} Scripted", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body[:sent])
        if sent is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _is_reply(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["choices"][0]["message"])
    except (ValueError, LookupError, TypeError):
        return False


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., ScriptedServer]]:
    """Return `start(script, **settings)`, which starts a `ScriptedServer`; all of them end with the test."""
    running: list[ScriptedServer] = []

    def start(script: Script, **settings: Any) -> ScriptedServer:
        running.append(ScriptedServer(script, **settings).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()
