"""A language model in this process, by transformers: many prompts at once, the beginning that they share read once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from distilrec.data.sources import fetch_llm
from distilrec.errors import InputError
from distilrec.teachers.backends.base import BackendError, Prompt, Reply
from distilrec.teachers.decode import Decoder, Prefix
from distilrec.teachers.llm import best_device, best_precision, llm_identity, load_causal

_WORTH_SHARING = 16  # tokens


class TransformersBackend:
    """A `Batched` backend. It writes the likeliest token each time; a JSON schema is asked for in words only.

    Args:
        model: the default model's name, a folder, or a hub name.
        precision: see `best_precision`.
    """

    def __init__(self, model: str, precision: Literal["auto", "float32", "bfloat16"] = "auto") -> None:
        self._name, self._folder, self._precision = model, fetch_llm(model), precision
        llm, self._tokenizer = load_causal(self._folder, precision=best_precision(precision))
        if self._tokenizer.chat_template is None:
            raise InputError(
                "this model has no chat template, so it cannot be given instructions.",
                where=str(self._folder),
                remedy="Choose one that was trained to follow instructions.",
            )
        self._most: int = getattr(llm.config, "max_position_embeddings", 1 << 30)
        self._head = llm.get_output_embeddings().weight.detach().to(best_device())
        self._body = llm.base_model.to(best_device())
        self._ends = _ends(llm, self._tokenizer)
        self._shared: tuple[list[int], Prefix] | None = None

    @property
    def model(self) -> str:
        """See `Batched.model`."""
        return self._name

    def identity(self) -> dict[str, Any]:
        """See `Served.identity`."""
        name = Path(self._name).name  # a folder's place is nobody's business
        return {
            "kind": "transformers",
            "model": name,
            "weights": llm_identity(self._folder),
            "precision": str(self._body.dtype),
        }

    def count_tokens(self, prompt: Prompt) -> int:
        """See `Served.count_tokens`: exact."""
        return len(self._tokens(prompt))

    def count_text(self, text: str) -> int:
        """See `Served.count_text`."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) + 1  # its end

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See `Batched.complete`.

        Raises:
            BackendError: a prompt and its reply are longer than the model reads.
        """
        if not prompts:
            return []
        texts = [self._tokens(prompt) for prompt in prompts]
        most = max(prompt.max_tokens for prompt in prompts)
        longest = max(map(len, texts))
        if longest + most > self._most:
            raise BackendError(
                f"a prompt of {longest:,} tokens and a reply of {most:,} are more than the {self._most:,} that {self._name} reads.",
                remedy="Lower teacher.candidates, teacher.history or teacher.wanted.",
            )
        prefix, length = self._prefix(texts)
        decoder = Decoder(self._body, self._head, prefix, ends=self._ends, beams=1, max_tokens=most)
        found = decoder([text[length:] for text in texts], [[len(text) - length] for text in texts])
        replies = []
        for prompt, text, ((one),) in zip(prompts, texts, found, strict=True):
            tokens, ended = one.tokens[: prompt.max_tokens], one.ended and len(one.tokens) < prompt.max_tokens
            written = self._tokenizer.decode(tokens, skip_special_tokens=True)
            replies.append(Reply(written, len(text), len(tokens) + ended, "stop" if ended else "length"))
        return replies

    def _tokens(self, prompt: Prompt) -> list[int]:
        found = self._tokenizer.apply_chat_template(prompt.messages(), add_generation_prompt=True, return_dict=True)
        tokens: list[int] = found["input_ids"]
        return tokens

    def _prefix(self, texts: list[list[int]]) -> tuple[Prefix, int]:
        """Return what all texts begin with, read once, and its length."""
        if self._shared is not None:
            known, prefix = self._shared
            if all(text[: len(known)] == known and len(text) > len(known) for text in texts):
                return prefix, len(known)
        length = min(_common(texts[0], text) for text in texts)
        length = min(length, min(map(len, texts)) - 1)  # something must be left to read
        if len(texts) == 1 or length < _WORTH_SHARING:
            return Prefix(self._body), 0
        self._shared = texts[0][:length], Prefix(self._body, texts[0][:length])
        return self._shared[1], length


def _common(a: list[int], b: list[int]) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ends(llm: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a reply."""
    found = llm.generation_config.eos_token_id
    ends = found if isinstance(found, list) else [found]
    return sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})
