"""The backend in process: what it replies is what transformers generates, one prompt at a time."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilrec.errors import ConfigError, InputError
from distilrec.teachers.backends import open_backend
from distilrec.teachers.backends.base import BackendError, Batched, Prompt, Reply, Served
from distilrec.teachers.backends.transformers_local import TransformersBackend
from distilrec.teachers.decode import Prefix
from distilrec.teachers.llm import llm_identity
from distilrec.teachers.ranker import RankerSettings

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} Title: {% endfor %}"
    "{% if add_generation_prompt %}Predict the{% endif %}"
)
SYSTEM = (
    "A user chose these items, oldest first. Predict the next one: Title i03 Title i04 Title i05 Title i06 Title i07"
)


@pytest.fixture(scope="module")
def chat_llm(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    shutil.copytree(tiny_llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backend(chat_llm: Path) -> TransformersBackend:
    return TransformersBackend(str(chat_llm), "float32")


def prompts(count: int = 9, most: int = 8, system: str = SYSTEM) -> list[Prompt]:
    users = [" ".join(f"i{(5 * number + place) % 20:02d}" for place in range(1 + number)) for number in range(count)]
    return [Prompt(system, user, most + number % 3) for number, user in enumerate(users)]


def slowly(folder: Path, prompt: Prompt) -> Reply:
    """Return what transformers itself makes of one prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer.apply_chat_template(
        prompt.messages(), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = encoded["input_ids"]
    written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=prompt.max_tokens,
        pad_token_id=0,
    )[0, tokens.shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    ended = written[-1] == end
    text = tokenizer.decode(written[:-1] if ended else written, skip_special_tokens=True)
    return Reply(text, tokens.shape[1], len(written), "stop" if ended else "length")


def test_replies_are_those_of_transformers(backend: TransformersBackend, chat_llm: Path) -> None:
    asked = prompts()
    assert backend.complete(asked) == [slowly(chat_llm, prompt) for prompt in asked]


def test_with_nothing_in_common_and_alone(backend: TransformersBackend, chat_llm: Path) -> None:
    """A system text that is short, none, or not the one of an earlier call; and lists that share nothing at all."""
    for asked in (
        prompts(3, system="Predict"),
        prompts(4, system=""),
        prompts(1),
        prompts(3),
        prompts(2, system="Genre"),
    ):
        assert backend.complete(asked) == [slowly(chat_llm, prompt) for prompt in asked]
    mixed = [*prompts(2), *prompts(2, system="Genre")]
    assert backend.complete(mixed) == [slowly(chat_llm, prompt) for prompt in mixed]


def test_equal_prompts_get_equal_replies(backend: TransformersBackend) -> None:
    one = prompts(4)[3]
    assert len(set(backend.complete([one] * 5))) == 1


def test_what_ends_and_what_is_cut_off(chat_llm: Path, tmp_path: Path) -> None:
    """Whatever token ends a reply, it counts, and is not part of the text."""
    text = TransformersBackend(str(chat_llm), "float32").complete([Prompt(SYSTEM, "i03 i04", 6)])[0].text.split()
    assert len(text) == 6
    end = next(word for word in text[1:] if word != text[0])
    before = text.index(end)
    folder = tmp_path / "ending"
    shutil.copytree(chat_llm, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(end), 1]
    model.generation_config.save_pretrained(folder)
    ending = TransformersBackend(str(folder), "float32")
    said = ending.complete([Prompt(SYSTEM, "i03 i04", most) for most in (6, before + 1, before, 1)])
    whole = " ".join(text[:before])
    assert [reply.text for reply in said[:3]] == [whole] * 3
    assert [(reply.tokens_out, reply.finish) for reply in said[:3]] == [
        (before + 1, "stop"),
        (before + 1, "stop"),
        (before, "length"),
    ]
    assert (said[3].text, said[3].tokens_out, said[3].finish) == (text[0], 1, "length" if before else "stop")


def test_what_prompts_share_is_read_once(chat_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counting(Prefix):
        def __init__(self, body: Any, tokens: Any = (), embedded: Any = None) -> None:
            read.append(len(tokens))
            super().__init__(body, tokens, embedded)

    monkeypatch.setattr("distilrec.teachers.backends.transformers_local.Prefix", Counting)
    backend = TransformersBackend(str(chat_llm), "float32")
    for _ in range(3):
        backend.complete(prompts(4))
    assert len(read) == 1
    assert read[0] > len(SYSTEM.split())


def test_tokens_are_counted_as_they_are_read(backend: TransformersBackend) -> None:
    asked = prompts(4)
    assert [backend.count_tokens(prompt) for prompt in asked] == [reply.tokens_in for reply in backend.complete(asked)]
    assert backend.count_tokens(Prompt("", "i01 i02", 5)) == 6  # user i01 i02 Title: Predict the
    assert backend.count_text("Title i03") == 3  # and its end


def test_who_it_is(backend: TransformersBackend, chat_llm: Path) -> None:
    identity = backend.identity()
    assert identity == {
        "kind": "transformers",
        "model": "tiny-chat",
        "weights": llm_identity(chat_llm),
        "precision": "torch.float32",
    }
    assert str(chat_llm.parent) not in str(identity)  # where it lies is nobody's business
    assert backend.model == str(chat_llm)
    assert isinstance(backend, Batched)
    assert not isinstance(backend, Served)


def test_nothing_asked(backend: TransformersBackend) -> None:
    assert backend.complete([]) == []


def test_longer_than_the_model_reads(backend: TransformersBackend) -> None:
    long = Prompt(SYSTEM, "i01 " * 60, 60)
    with pytest.raises(BackendError, match=r"tokens and a reply of 60 are more than the 128 that .* reads.*Lower"):
        backend.complete([*prompts(2), long])


def test_a_model_that_cannot_be_instructed(tiny_llm: Path) -> None:
    with pytest.raises(InputError, match="no chat template"):
        TransformersBackend(str(tiny_llm))


def test_opened_by_name(chat_llm: Path) -> None:
    settings = RankerSettings(backend="transformers", model=str(chat_llm))
    assert isinstance(open_backend(settings, 1.0), TransformersBackend)
    with pytest.raises(ConfigError, match=r"does not sample"):
        open_backend(settings.model_copy(update={"temperature": 0.5}), 1.0)
