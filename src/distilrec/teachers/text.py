"""Item vectors read from item text, and nothing else: by any language model, encoder or sentence-transformers model."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distilrec.data.sources import fetch_llm
from distilrec.errors import InputError
from distilrec.settings import Settings
from distilrec.teachers.base import Asked, Materials, Trained
from distilrec.teachers.llm import best_device, best_precision, llm_identity, load_llm, text_vectors


class TextSettings(Settings):
    """Settings of the text teacher.

    `llm`: the default model's name, a folder, or a hub name; `all-minilm-l6-v2` is a small encoder made for whole sentences, whose
    vectors of short titles say more than those of a small decoder. `sentence_transformer`: a folder or name of such a model instead.
    `layers`: read with the first so many only. `pooling`: the last token's state, or the mean over all tokens (`llm` only; a
    sentence transformer has its own). `max_tokens`: most tokens read of a text. `of`: all text of an item, or its title.
    """

    llm: str = "smollm2-135m-instruct"
    sentence_transformer: str | None = None
    layers: int | None = Field(None, ge=1)
    pooling: Literal["last", "mean"] = "mean"
    max_tokens: int = Field(48, ge=1)
    of: Literal["text", "title"] = "text"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class TextTeacher:
    """Reads item text."""

    name: ClassVar[str] = "text"
    Settings = TextSettings
    asked: ClassVar[Asked] = "nothing"
    trained: ClassVar[Trained] = "nothing"
    gives: ClassVar[frozenset[str]] = frozenset({"item_vectors"})

    @classmethod
    def inputs(cls, settings: TextSettings, materials: Materials) -> dict[str, Any]:
        """Return what the vectors depend on, but for data and settings."""
        if settings.sentence_transformer is not None:
            return {}
        return {"llm": llm_identity(fetch_llm(settings.llm)), "precision": str(best_precision(settings.precision))}

    @classmethod
    def knowledge_vectors(cls, folder: Path | None, settings: TextSettings, materials: Materials) -> Tensor | None:
        """Return one vector per item, [N, D] float32."""
        dataset = materials.dataset
        texts = dataset.texts if settings.of == "text" else dataset.titles
        if settings.sentence_transformer is not None:
            return _sentence_vectors(settings.sentence_transformer, texts, settings.max_tokens)
        precision = best_precision(settings.precision)
        llm, tokenizer = load_llm(fetch_llm(settings.llm), settings.layers, precision)
        device = best_device()
        return text_vectors(llm.to(device), tokenizer, texts, max_tokens=settings.max_tokens, pooling=settings.pooling)


def _sentence_vectors(name: str, texts: list[str], max_tokens: int) -> Tensor:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            "sentence-transformers is not installed.", remedy='Run `pip install "distilrec[sentence]"`.'
        ) from None
    try:
        model = SentenceTransformer(name, device=str(best_device()))
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"no sentence-transformers model can be read here ({text}).",
            where=name,
            remedy="Give the folder of one, or a name that is in the hub's cache.",
        ) from None
    model.max_seq_length = min(model.max_seq_length or max_tokens, max_tokens)
    vectors: Tensor = model.encode(texts, batch_size=64, convert_to_tensor=True, show_progress_bar=False)
    return vectors.float().cpu()
