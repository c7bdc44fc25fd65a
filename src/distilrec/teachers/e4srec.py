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

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.data.sources import fetch_llm
from distilrec.errors import FingerprintError
from distilrec.settings import Settings
from distilrec.teachers.adapter import adapted, put_back, read_teacher, save_teacher
from distilrec.teachers.base import Asked, Materials, Trained, rank_by_states
from distilrec.teachers.decode import Prefix
from distilrec.teachers.llm import best_device, best_precision, llm_identity, load_llm, text_vectors

_HEADS = "heads.safetensors"
INSTRUCTION = "A user chose these items, oldest first. Predict the next one:"


class E4SRecSettings(Settings):
    """Settings of E4SRec. `llm` is the default model's name, a folder, or a hub name; `layers` null means all.

    `trained`: folder of a teacher that is trained already, for example one that came out of another run's rounds; taken as it is.
    """

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
    gradient_checkpointing: bool = False
    trained: Path | None = Field(None, exclude=True)  # what is in the folder counts, not where it lies


class E4SRec(nn.Module):
    """LLM recommender over injected ID embeddings.

    Args:
        settings: see `E4SRecSettings`.
        llm: the decoder, from `load_llm`.
        tokenizer: its tokenizer.
        id_embeddings: [N, d] of a trained conventional recommender; frozen.
    """

    name: ClassVar[str] = "e4srec"
    Settings = E4SRecSettings
    asked: ClassVar[Asked] = "positions"
    tokens_per_item: ClassVar[int] = 1
    trained: ClassVar[Trained] = "catalogue"
    gives: ClassVar[frozenset[str]] = frozenset({"rankings", "scores", "item_vectors", "logits"})
    vectors_by: ClassVar[str] = "mean over the tokens of an item's text"
    id_embeddings: Tensor
    prompt: Tensor

    def __init__(self, settings: E4SRecSettings, llm: Any, tokenizer: Any, id_embeddings: Tensor) -> None:
        super().__init__()
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
        self.llm = adapted(
            llm, settings.lora_rank, settings.lora_alpha, settings.lora_dropout, settings.gradient_checkpointing
        )
        self._shared: Prefix | None = None
        self.input_dropout = nn.Dropout(settings.input_dropout)
        self.output_dropout = nn.Dropout(settings.output_dropout)

    @property
    def max_length(self) -> int:
        """Most history items read."""
        return self.settings.max_length

    def inject(self, id_embeddings: Tensor) -> None:
        """Read other ID embeddings, [N, d], from now on: those of the conventional recommender as it now is."""
        rms = id_embeddings.square().mean().sqrt().clamp_min(1e-12)
        self.id_embeddings.copy_((id_embeddings / rms).detach())

    def item_vectors(self) -> Tensor:
        """Return the prediction layer, [N, D]."""
        return self.output

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """See `CausalTeacher.encode`."""
        items = self.project(self.input_dropout(self.id_embeddings[histories]))  # [B, L, D]
        if torch.is_inference_mode_enabled() and not self.training:
            return self._encode_behind_prefix(items)
        inputs = torch.cat([self.prompt.expand(len(items), -1, -1), items], dim=1)
        with torch.autocast(inputs.device.type, self.precision, enabled=self.precision != torch.float32):
            hidden = self.llm(inputs_embeds=inputs, use_cache=False).last_hidden_state
        states: Tensor = self.output_dropout(hidden[:, self.prompt.shape[1] :].float())
        return states

    def _encode_behind_prefix(self, items: Tensor) -> Tensor:
        """Encode items behind the instruction, whose keys and values are computed once for all batches."""
        with torch.autocast(items.device.type, self.precision, enabled=self.precision != torch.float32):
            if self._shared is None:
                self._shared = Prefix(self.llm, embedded=self.prompt)
            cache = self._shared.cache(len(items))
            hidden = self.llm(inputs_embeds=items, past_key_values=cache, use_cache=True).last_hidden_state
        states: Tensor = hidden.float()
        return states

    def train(self, mode: bool = True) -> "E4SRec":
        """Switch between training and use; what was computed from the weights is forgotten."""
        self._shared = None
        return super().train(mode)

    @torch.inference_mode()
    def rank(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """See `PositionTeacher.rank`; a score is a log-probability."""
        return rank_by_states(self, batch, k)

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
        heads = {
            "project.weight": self.project.weight,
            "project.bias": self.project.bias,
            "output": self.output,
            "id_embeddings": self.id_embeddings,
        }
        save_teacher(folder, self.name, self.llm, llm, self.settings.model_dump(), heads, _HEADS)

    @classmethod
    def create(cls, settings: E4SRecSettings, materials: Materials) -> "E4SRec":
        """Build an untrained teacher on the ID embeddings of the run's plain student."""
        llm, tokenizer = load_llm(fetch_llm(settings.llm), settings.layers, best_precision(settings.precision))
        torch.manual_seed(materials.seed)
        return cls(settings, llm, tokenizer, materials.id_embeddings().detach())

    @classmethod
    def reach(cls, settings: E4SRecSettings) -> int:
        """Return how many history items a teacher of these settings reads."""
        return settings.max_length

    @classmethod
    def inputs(cls, settings: E4SRecSettings, materials: Materials) -> dict[str, Any]:
        """Return what a trained teacher depends on, but for data, seed and training."""
        return {
            "student": materials.student_key(),
            "llm": llm_identity(fetch_llm(settings.llm)),
            "precision": str(best_precision(settings.precision)),
        }

    @classmethod
    def restore(cls, folder: Path, settings: E4SRecSettings, materials: Materials) -> "E4SRec":
        """See `load_e4srec`."""
        return load_e4srec(folder, fetch_llm(settings.llm))

    @classmethod
    def reopen(cls, folder: Path, settings: E4SRecSettings, materials: Materials) -> "E4SRec":
        """Load a trained teacher to train it on."""
        return load_e4srec(folder, fetch_llm(settings.llm), fold=False)

    @classmethod
    def knowledge_vectors(cls, folder: Path, settings: E4SRecSettings, materials: Materials) -> Tensor | None:
        """Return vectors of the items' text, read by the whole language model, [N, D].

        The mean over tokens says more than the last token's state: on Beauty, of an item's ten nearest neighbours three times as
        many were the next item bought.
        """
        llm, tokenizer = load_llm(fetch_llm(settings.llm), precision=best_precision(settings.precision))
        return text_vectors(llm.to(best_device()), tokenizer, materials.dataset.texts, pooling="mean")


def load_e4srec(folder: Path, llm_folder: Path, *, fold: bool = True) -> E4SRec:
    """Load a saved teacher onto its language model: folded and ready to rank, or as it was, to be trained on.

    Raises:
        FingerprintError: the teacher was trained on another language model.
        InputError: a file is missing or broken.
    """
    saved, adapter, heads = read_teacher(folder, llm_folder, _HEADS)
    settings = E4SRecSettings.model_validate(saved)
    llm, tokenizer = load_llm(llm_folder, settings.layers, best_precision(settings.precision))
    teacher = E4SRec(settings, llm, tokenizer, heads["id_embeddings"])
    put_back(teacher.llm, adapter, folder)
    try:
        teacher.id_embeddings.copy_(heads["id_embeddings"])
        with torch.no_grad():
            teacher.project.weight.copy_(heads["project.weight"])
            teacher.project.bias.copy_(heads["project.bias"])
            teacher.output.copy_(heads["output"])
    except RuntimeError as error:
        raise FingerprintError(
            f"the saved teacher does not fit its language model ({error}).", where=str(folder)
        ) from None
    teacher = teacher.to(best_device())
    return teacher.fold() if fold else teacher
