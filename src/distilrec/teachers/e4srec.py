"""E4SRec: a language model as an encoder of item sequences, with a prediction layer over the catalogue.

Li et al., "E4SRec: An Elegant Effective Efficient Extensible Solution of LLMs for Sequential Recommendation", arXiv
2312.02443; as the LLM side of LLMD4Rec (Wu et al., arXiv 2505.18120). For an instruction with token embeddings t_1..t_P and
history items with ID embeddings e_1..e_L of a conventional recommender:
    input  = [t_1, .., t_P, A e_1 + b, .., A e_L + b];   h = LLM(input);   logits_j = W_out h_{P + j}
LoRA on the LLM's feed-forward projections; A, b and W_out are trained; all else, e included, is frozen.

Deviations: there are no response tokens behind the items, so that every position predicts its next item and a whole history
is supervised in one pass (with response tokens each position would need its own pass); `layers` keeps only the first layers of
the LLM, below its own final norm; ID embeddings are scaled to the size of the LLM's token embeddings before A; W_out starts
from the ID embeddings, laid out by A (W_out = E A^T at the start), so that like items start alike.
"""

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distilrec.config import Settings
from distilrec.errors import FingerprintError, InputError
from distilrec.files import read_json, write_json, write_with
from distilrec.teachers.llm import best_precision, llm_identity, load_llm

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
INSTRUCTION = "A user chose these items, oldest first. Predict the next one:"


class E4SRecSettings(Settings):
    """Settings of E4SRec. `llm` is the default model's name, a folder, or a hub name; `layers` null means all."""

    llm: str = "smollm2-135m-instruct"
    layers: int | None = Field(None, ge=1)
    max_length: int = Field(50, ge=1)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    input_dropout: float = Field(0.2, ge=0, lt=1)
    output_dropout: float = Field(0.2, ge=0, lt=1)
    head_rate_scale: float = Field(1.0, gt=0)
    instruction: str = INSTRUCTION
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class E4SRec(nn.Module):
    """LLM recommender over injected ID embeddings.

    Args:
        settings: see `E4SRecSettings`.
        llm: the decoder, from `load_llm`.
        tokenizer: its tokenizer.
        id_embeddings: [N, d] of a trained conventional recommender; frozen.
    """

    name = "e4srec"
    Settings = E4SRecSettings
    id_embeddings: Tensor
    prompt: Tensor

    def __init__(self, settings: E4SRecSettings, llm: Any, tokenizer: Any, id_embeddings: Tensor) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model

        self.settings = settings
        self.precision: torch.dtype = llm.dtype  # of the frozen weights and of what is multiplied with them
        width = llm.config.hidden_size
        words = llm.get_input_embeddings().weight.float()
        prompt = words[tokenizer(settings.instruction, return_tensors="pt")["input_ids"]]  # [1, P, D]
        self.register_buffer("prompt", prompt.detach().clone(), persistent=False)
        rms = id_embeddings.square().mean().sqrt().clamp_min(1e-12)
        self.register_buffer("id_embeddings", (id_embeddings / rms).detach().clone(), persistent=False)
        self.project = nn.Linear(id_embeddings.shape[1], width)
        nn.init.normal_(self.project.weight, std=words.std().item() * id_embeddings.shape[1] ** -0.5)
        nn.init.zeros_(self.project.bias)
        self.output = nn.Parameter(torch.empty(len(id_embeddings), width))
        with torch.no_grad():
            start = self.id_embeddings @ self.project.weight.T
            self.output.copy_(start / start.std() * 0.02)
        llm.set_input_embeddings(
            nn.Embedding(1, width, dtype=llm.dtype)
        )  # words are read no more: only the prompt's are kept
        llm.get_input_embeddings().requires_grad_(False)
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=lora_targets(llm),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is on its way out
            self.llm = get_peft_model(llm, config)
        self.input_dropout = nn.Dropout(settings.input_dropout)
        self.output_dropout = nn.Dropout(settings.output_dropout)

    @property
    def max_length(self) -> int:
        """Most history items read."""
        return self.settings.max_length

    def item_vectors(self) -> Tensor:
        """Return the prediction layer, [N, D]."""
        return self.output

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `CausalTeacher.encode`."""
        items = self.project(self.input_dropout(self.id_embeddings[histories]))  # [B, L, D]
        inputs = torch.cat([self.prompt.expand(len(items), -1, -1), items], dim=1)
        with torch.autocast(inputs.device.type, self.precision, enabled=self.precision != torch.float32):
            hidden = self.llm(inputs_embeds=inputs, use_cache=False).last_hidden_state
        states: Tensor = self.output_dropout(hidden[:, self.prompt.shape[1] :].float())
        return states

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `CausalTeacher.encode_last`."""
        states = self.encode(histories, lengths, table)
        return states[torch.arange(len(lengths), device=states.device), lengths - 1]

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Return LoRA's parameters at `rate`, projection and prediction layer at `rate * head_rate_scale`."""
        lora = [parameter for parameter in self.llm.parameters() if parameter.requires_grad]
        return [
            {"params": lora, "lr": rate},
            {"params": [*self.project.parameters(), self.output], "lr": rate * self.settings.head_rate_scale},
        ]

    def fold(self) -> "E4SRec":
        """Merge LoRA into the weights for ranking; the teacher can be trained no more. Returns itself.

        In bfloat16 the adapter stays apart: small changes would be lost in rounding.
        """
        if self.precision == torch.float32:
            self.llm = self.llm.merge_and_unload()
        return self.eval()

    def save(self, folder: Path, llm: str) -> None:
        """Save adapter (peft's format), projection, ID embeddings and prediction layer as safetensors.

        Args:
            folder: where to.
            llm: `llm_identity` of the language model, which loading compares.
        """
        from peft import get_peft_model_state_dict

        adapter = {name: value.contiguous() for name, value in get_peft_model_state_dict(self.llm).items()}
        write_with(folder / "adapter_model.safetensors", lambda part: save_file(adapter, part))
        config = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in self.llm.peft_config["default"].to_dict().items()
        }
        write_json(folder / "adapter_config.json", json.loads(json.dumps(config, default=str)))
        heads = {
            "project.weight": self.project.weight.detach(),
            "project.bias": self.project.bias.detach(),
            "output": self.output.detach(),
            "id_embeddings": self.id_embeddings,
        }
        write_with(folder / "heads.safetensors", lambda part: save_file(heads, part))
        write_json(folder / "teacher.json", {"teacher": self.name, "llm": llm, "settings": self.settings.model_dump()})


def lora_targets(llm: nn.Module) -> list[str] | str:
    """Return the feed-forward projections by name; all linear layers where a model names them otherwise."""
    there = {name.rpartition(".")[2] for name, _ in llm.named_modules()}
    return sorted(there & _FEED_FORWARD) or "all-linear"


def load_e4srec(folder: Path, llm_folder: Path) -> E4SRec:
    """Load a saved teacher onto its language model, folded and ready to rank.

    Raises:
        FingerprintError: the teacher was trained on another language model.
        InputError: a file is missing or broken.
    """
    from peft import set_peft_model_state_dict

    saved = read_json(folder / "teacher.json")
    if saved["llm"] != llm_identity(llm_folder):
        raise FingerprintError(
            "the teacher was trained on another language model.",
            where=str(folder),
            remedy="Name that one with teacher.llm, or train the teacher again.",
        )
    settings = E4SRecSettings.model_validate(saved["settings"])
    try:
        heads, adapter = load_file(folder / "heads.safetensors"), load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"not a saved teacher ({error}).", where=str(folder), remedy="Train it again.") from None
    llm, tokenizer = load_llm(llm_folder, settings.layers, best_precision(settings.precision))
    teacher = E4SRec(settings, llm, tokenizer, heads["id_embeddings"])
    try:
        set_peft_model_state_dict(teacher.llm, adapter)
        teacher.id_embeddings.copy_(heads["id_embeddings"])
        with torch.no_grad():
            teacher.project.weight.copy_(heads["project.weight"])
            teacher.project.bias.copy_(heads["project.bias"])
            teacher.output.copy_(heads["output"])
    except RuntimeError as error:
        raise FingerprintError(
            f"the saved teacher does not fit its language model ({error}).", where=str(folder)
        ) from None
    return teacher.fold()
