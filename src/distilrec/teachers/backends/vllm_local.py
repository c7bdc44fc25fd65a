"""A language model in this process, by vLLM (extra `vllm`): on a GPU the fastest way to ask a large one about many examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distilrec.errors import InputError
from distilrec.teachers.backends.base import Prompt, Reply


class VllmBackend:
    """A `Batched` backend; vLLM shares common beginnings itself and holds replies to a JSON schema.

    Args:
        model: a folder or hub name.
        temperature: of sampling.
        structured: whether prompts' JSON schemas are enforced.
        seed: of sampling.

    Raises:
        InputError: vLLM is not installed.
    """

    def __init__(self, model: str, *, temperature: float, structured: bool, seed: int = 0) -> None:
        try:
            import vllm
        except ImportError:
            raise InputError(
                "vLLM is not installed.",
                remedy='Run `pip install "distilrec[vllm]"` on a machine it supports, or use backend transformers or api.',
            ) from None
        self._vllm, self._name = vllm, model
        self._temperature, self._structured, self._seed = temperature, structured, seed
        self._llm = vllm.LLM(model=model, enable_prefix_caching=True, seed=seed)
        self._tokenizer = self._llm.get_tokenizer()

    @property
    def model(self) -> str:
        """See `Batched.model`."""
        return self._name

    def identity(self) -> dict[str, Any]:
        """See `Served.identity`."""
        return {
            "kind": "vllm",
            "model": Path(self._name).name,
            "temperature": self._temperature,
            "structured": self._structured,
            "seed": self._seed,
        }

    def count_tokens(self, prompt: Prompt) -> int:
        """See `Served.count_tokens`: exact."""
        found = self._tokenizer.apply_chat_template(prompt.messages(), add_generation_prompt=True, tokenize=False)
        return len(self._tokenizer.encode(found, add_special_tokens=False))

    def count_text(self, text: str) -> int:
        """See `Served.count_text`."""
        return len(self._tokenizer.encode(text, add_special_tokens=False)) + 1

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See `Batched.complete`."""
        if not prompts:
            return []
        answers = self._llm.chat(
            [prompt.messages() for prompt in prompts], [self._sampling(prompt) for prompt in prompts], use_tqdm=False
        )
        return [
            Reply(
                answer.outputs[0].text,
                len(answer.prompt_token_ids),
                len(answer.outputs[0].token_ids),
                answer.outputs[0].finish_reason or "stop",
            )
            for answer in answers
        ]

    def _sampling(self, prompt: Prompt) -> Any:
        options: dict[str, Any] = {}
        if self._structured and prompt.schema is not None:
            from vllm.sampling_params import StructuredOutputsParams

            options["structured_outputs"] = StructuredOutputsParams(json=prompt.schema)
        return self._vllm.SamplingParams(
            temperature=self._temperature, max_tokens=prompt.max_tokens, seed=self._seed, **options
        )
