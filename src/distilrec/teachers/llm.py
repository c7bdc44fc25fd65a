"""Load a causal language model from a folder, as deep as asked, and read item text with it."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distilrec.errors import ConfigError, InputError
from distilrec.progress import bar

_WEIGHTS = (".safetensors", ".gguf", ".bin")
_END = 1 << 20


def best_precision(wish: str = "auto") -> torch.dtype:
    """Return the number format to run a language model in: bfloat16 where the processor multiplies it in hardware, else float32.

    A CPU without such instructions is slower in bfloat16 than in float32; one with them is faster (see `results/annotation.json`).
    """
    if wish != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wish]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


def best_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_llm(folder: Path, layers: int | None = None, precision: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load the decoder (without its output head), frozen, and its tokenizer. See `load_causal`."""
    from transformers import AutoModel

    return _load(AutoModel, folder, layers, precision)


def load_causal(folder: Path, layers: int | None = None, precision: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load a causal language model with its output head, frozen, and its tokenizer.

    Args:
        folder: a model saved by transformers.
        layers: keep only the first so many layers; None keeps all.
        precision: of the weights.

    Raises:
        InputError: the folder holds no language model that can be read.
        ConfigError: more layers are asked for than the model has.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, folder, layers, precision)


def _load(kind: Any, folder: Path, layers: int | None, precision: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder)
        depth = config.num_hidden_layers
        check_layers(layers, depth, folder)
        config.num_hidden_layers = layers or depth
        # On a CPU torch's fused attention in bfloat16 is slower than the plain one, at the lengths of histories.
        plain = precision == torch.bfloat16 and not torch.cuda.is_available()
        attention = "eager" if plain else "sdpa"
        model = kind.from_pretrained(folder, config=config, dtype=precision, attn_implementation=attention)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"no language model can be read here ({text}).", where=str(folder), remedy="Check the folder."
        ) from None
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.eval(), tokenizer


def check_layers(layers: int | None, depth: int, folder: Path, where: str = "teacher") -> None:
    """Refuse more layers than a model has; `where` are the settings that ask for them.

    Raises:
        ConfigError: there are only `depth`.
    """
    if layers is not None and layers > depth:
        raise ConfigError(
            f"{where}.layers is {layers} and the model has {depth}.", where=str(folder), remedy="Lower it."
        )


def llm_identity(folder: Path) -> str:
    """Return a hash that tells one language model's folder from another: its configuration, and of each file of weights the
    name, the size, and both ends (the first holds the tensors' names and places). Reading 100 GB whole would take minutes.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS or path.name == "config.json"):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read(_END))
    return digest.hexdigest()


@torch.inference_mode()
def text_vectors(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_tokens: int = 48,
    batch_tokens: int = 2048,
    pooling: Literal["last", "mean"] = "last",
    quiet: bool = False,
) -> Tensor:
    """Return one vector per text, [N, D] float32.

    Texts of like length share a batch; padding stands on the right, and is masked for models that read both ways.

    Args:
        model: a decoder without its output head, or an encoder.
        tokenizer: its tokenizer.
        texts: what to read; the part beyond `max_tokens` is not read.
        max_tokens: see `texts`.
        batch_tokens: tokens read at a time.
        pooling: the last hidden state of the last token, or the mean over all tokens.
        quiet: show no progress.
    """
    encoded = tokenizer([text or " " for text in texts], truncation=True, max_length=max_tokens)["input_ids"]
    encoded = [ids or [0] for ids in encoded]  # some tokenizers make no token of a blank text
    lengths = [len(ids) for ids in encoded]
    order = sorted(range(len(texts)), key=lambda row: -lengths[row])
    vectors = torch.empty(len(texts), model.config.hidden_size)
    first = 0
    with bar("read item text", len(texts)) if not quiet else nullcontext() as progress:
        while first < len(order):
            rows = order[first : first + max(1, batch_tokens // lengths[order[first]])]
            first += len(rows)
            tokens = torch.zeros(len(rows), lengths[rows[0]], dtype=torch.int64)
            for place, row in enumerate(rows):
                tokens[place, : lengths[row]] = torch.tensor(encoded[row])
            ends = torch.tensor([lengths[row] for row in rows])
            padded = bool((ends < tokens.shape[1]).any())
            mask = (torch.arange(tokens.shape[1]) < ends[:, None]).long().to(model.device) if padded else None
            read = model(input_ids=tokens.to(model.device), attention_mask=mask, use_cache=False)
            hidden = read.last_hidden_state.float().cpu()
            if pooling == "last":
                vectors[rows] = hidden[torch.arange(len(rows)), ends - 1]
            else:
                inside = torch.arange(hidden.shape[1]) < ends[:, None]
                vectors[rows] = (hidden * inside[..., None]).sum(dim=1) / ends[:, None]
            if progress is not None:
                progress.advance(len(rows))
    return vectors
