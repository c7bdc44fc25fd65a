"""Where text comes from: a model in this process or a server that speaks the OpenAI protocol."""

from typing import Any

from distilrec.data.sources import fetch_llm
from distilrec.errors import ConfigError
from distilrec.teachers.backends.base import Backend


def open_backend(settings: Any, timeout_seconds: float) -> Backend:
    """Open the backend that a ranker's settings name.

    Args:
        settings: `RankerSettings`.
        timeout_seconds: for one request to a server.

    Raises:
        ConfigError: a setting that the backend has no use for.
    """
    if settings.backend == "api":
        from distilrec.teachers.backends.openai_api import OpenAIBackend

        tokenizer = None if settings.tokenizer is None else str(fetch_llm(settings.tokenizer))
        return OpenAIBackend(
            model=settings.model,
            base_url=settings.base_url,
            api_key_env=settings.api_key_env,
            temperature=settings.temperature,
            structured=settings.structured,
            tokenizer=tokenizer,
            timeout_seconds=timeout_seconds,
        )
    if settings.backend == "transformers":
        if settings.temperature > 0:
            raise ConfigError(
                "the backend transformers writes the likeliest reply; it does not sample.",
                where="teacher.temperature",
                remedy="Set it to 0, or serve the model and use backend api.",
            )
        from distilrec.teachers.backends.transformers_local import TransformersBackend

        return TransformersBackend(settings.model or "smollm2-135m-instruct")
    from distilrec.teachers.backends.vllm_local import VllmBackend

    if settings.model is None:
        raise ConfigError("the backend vllm needs a model.", where="teacher.model", remedy="Give a folder or hub name.")
    return VllmBackend(settings.model, temperature=settings.temperature, structured=settings.structured != "off")
