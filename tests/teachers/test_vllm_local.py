"""The vLLM backend against a stand-in for vLLM that notes how it is called."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distilrec.errors import ConfigError, InputError
from distilrec.teachers.backends import open_backend
from distilrec.teachers.backends.base import Batched, Prompt, Reply
from distilrec.teachers.backends.vllm_local import VllmBackend
from distilrec.teachers.ranker import RankerSettings

SCHEMA = {"type": "array", "items": {"type": "integer"}}


@dataclass
class SamplingParams:
    """Takes what vLLM's own takes, of what we use."""

    temperature: float
    max_tokens: int
    seed: int
    structured_outputs: Any = None


@dataclass
class StructuredOutputsParams:
    """Takes what vLLM's own takes, of what we use."""

    json: Any


class Tokenizer:
    """One token a word."""

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        assert add_generation_prompt
        assert not tokenize
        return " ".join(f"<{message['role']}> {message['content']}" for message in messages) + " <assistant>"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return list(range(len(text.split())))


@dataclass
class LLM:
    """Replies with the last message, cut at the most tokens."""

    model: str
    enable_prefix_caching: bool
    seed: int
    calls: list[Any] = field(default_factory=list)

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def chat(self, messages: list[Any], sampling: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.calls.append((messages, sampling))
        return [self._reply(one, how) for one, how in zip(messages, sampling, strict=True)]

    def _reply(self, messages: list[dict[str, str]], how: SamplingParams) -> Any:
        words = messages[-1]["content"].split()
        cut = len(words) > how.max_tokens
        words = words[: how.max_tokens]
        reason = "length" if cut else ("stop" if words else None)
        output = SimpleNamespace(text=" ".join(words), token_ids=range(len(words)), finish_reason=reason)
        return SimpleNamespace(prompt_token_ids=range(10 + len(messages)), outputs=[output])


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    sampling.StructuredOutputsParams = StructuredOutputsParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    return module


def backend(**settings: Any) -> VllmBackend:
    return VllmBackend("/models/some-model", **{"temperature": 0.0, "structured": True, **settings})


PROMPTS = [Prompt("Rank.", "3 1 2", 5, SCHEMA), Prompt("", "a b c d e f", 4), Prompt("Rank.", "", 7)]


def test_replies_in_order_with_their_tokens() -> None:
    assert backend().complete(PROMPTS) == [
        Reply("3 1 2", 12, 3, "stop"),
        Reply("a b c d", 11, 4, "length"),
        Reply("", 12, 0, "stop"),
    ]


def test_all_prompts_go_in_one_call_with_their_own_settings() -> None:
    asked = backend(temperature=0.7, seed=9)
    asked.complete(PROMPTS)
    ((messages, sampling),) = asked._llm.calls
    assert messages == [prompt.messages() for prompt in PROMPTS]
    assert messages[1] == [{"role": "user", "content": "a b c d e f"}]
    assert sampling == [
        SamplingParams(0.7, 5, 9, StructuredOutputsParams(SCHEMA)),
        SamplingParams(0.7, 4, 9),
        SamplingParams(0.7, 7, 9),
    ]


def test_schemas_are_not_enforced_where_that_is_off() -> None:
    asked = backend(structured=False)
    asked.complete(PROMPTS)
    assert [one.structured_outputs for one in asked._llm.calls[0][1]] == [None] * 3


def test_common_beginnings_are_shared() -> None:
    assert backend()._llm == LLM("/models/some-model", enable_prefix_caching=True, seed=0)


def test_nothing_asked() -> None:
    asked = backend()
    assert asked.complete([]) == []
    assert asked._llm.calls == []


def test_tokens_are_counted() -> None:
    assert backend().count_tokens(PROMPTS[0]) == 7  # <system> Rank. <user> 3 1 2 <assistant>
    assert backend().count_text("3 1 2") == 4  # and its end


def test_who_it_is() -> None:
    asked = backend(temperature=0.5, seed=3)
    assert asked.identity() == {
        "kind": "vllm",
        "model": "some-model",
        "temperature": 0.5,
        "structured": True,
        "seed": 3,
    }
    assert asked.model == "/models/some-model"
    assert isinstance(asked, Batched)
    assert backend(temperature=0.5).identity() != backend(structured=False).identity() != backend().identity()


@pytest.mark.parametrize(("structured", "enforced"), [("auto", True), ("schema", True), ("off", False)])
def test_opened_by_name(structured: str, enforced: bool) -> None:
    settings = RankerSettings.model_validate({"backend": "vllm", "model": "m", "structured": structured})
    opened = open_backend(settings, 1.0)
    assert isinstance(opened, VllmBackend)
    assert opened.identity()["structured"] is enforced
    with pytest.raises(ConfigError, match="needs a model"):
        open_backend(settings.model_copy(update={"model": None}), 1.0)


def test_vllm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"vLLM is not installed.*distilrec\[vllm\]"):
        backend()
