"""LoRA on a frozen language model: put on, saved in peft's format as safetensors, put back."""

import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distilrec.errors import TRAIN_AGAIN, FingerprintError, InputError
from distilrec.files import read_json, write_json, write_with
from distilrec.teachers.llm import llm_identity

_ADAPTER, _CARD = "adapter_model.safetensors", "teacher.json"
_FEED_FORWARD = {
    "gate_proj",
    "up_proj",
    "down_proj",
    "fc_in",
    "fc_out",
    "c_fc",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "fc1",
    "fc2",
}


def adapted(llm: Any, rank: int, alpha: float, dropout: float, checkpointing: bool = False) -> Any:
    """Put LoRA on the feed-forward projections of a frozen decoder.

    Args:
        llm: the decoder, without its output head.
        rank: of the adapters.
        alpha: their scale is alpha / rank.
        dropout: on their input.
        checkpointing: compute each layer again in the backward pass instead of keeping its inner results.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=lora_targets(llm))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers has newer names, which its 5.0 does not know
        if checkpointing:
            llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return get_peft_model(llm, config)


def lora_targets(llm: nn.Module) -> list[str] | str:
    """Return the feed-forward projections by name; all linear layers where a model names them otherwise."""
    there = {name.rpartition(".")[2] for name, _ in llm.named_modules()}
    return sorted(there & _FEED_FORWARD) or "all-linear"


def save_teacher(
    folder: Path, name: str, llm: Any, identity: str, settings: dict[str, Any], tensors: dict[str, Tensor], file: str
) -> None:
    """Save a teacher: its adapter (peft's format), its own tensors, and what it is.

    Args:
        folder: where to.
        name: of the kind of teacher.
        llm: the model with LoRA on it.
        identity: `llm_identity` of the language model below, which loading compares.
        settings: of the teacher.
        tensors: what else was trained or computed.
        file: the name of the file for them.
    """
    from peft import get_peft_model_state_dict

    adapter = {key: value.contiguous() for key, value in get_peft_model_state_dict(llm).items()}
    write_with(folder / _ADAPTER, lambda part: save_file(adapter, part))
    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in llm.peft_config["default"].to_dict().items()
    }
    write_json(folder / "adapter_config.json", json.loads(json.dumps(config, default=str)))
    own = {key: value.detach().contiguous() for key, value in tensors.items()}
    write_with(folder / file, lambda part: save_file(own, part))
    write_json(folder / _CARD, {"teacher": name, "llm": identity, "settings": settings})


def read_teacher(
    folder: Path, llm_folder: Path, file: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Read what `save_teacher` wrote: settings, adapter, the teacher's own tensors.

    Raises:
        FingerprintError: the teacher was trained on another language model.
        InputError: a file is missing or broken.
    """
    saved = read_json(folder / _CARD)
    if saved["llm"] != llm_identity(llm_folder):
        raise FingerprintError(
            "the teacher was trained on another language model.",
            where=str(folder),
            remedy="Name that one with teacher.llm, or train the teacher again.",
        )
    try:
        return saved["settings"], load_file(folder / _ADAPTER), load_file(folder / file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"not a saved teacher ({error}).",
            where=str(folder),
            remedy=TRAIN_AGAIN,
        ) from None


def put_back(llm: Any, adapter: dict[str, Tensor], folder: Path) -> None:
    """Put a saved adapter's weights into a model that LoRA of the same shape was put on.

    Raises:
        FingerprintError: they do not fit.
    """
    from peft import set_peft_model_state_dict

    try:
        set_peft_model_state_dict(llm, adapter)
    except RuntimeError as error:
        raise FingerprintError(
            f"the saved teacher does not fit its language model ({error}).", where=str(folder)
        ) from None
