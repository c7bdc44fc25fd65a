"""BIGRec: a language model writes the title of the next item, and the text is grounded to the catalogue.

Bao et al., "A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems", arXiv 2308.08434; the teacher of
DLLM2Rec (Cui et al., RecSys 2024). LoRA on the feed-forward projections, instruction tuning on titles, beam search, then
    d_i  = || z(text) - z(title_i) ||_2,     z: last hidden state of the last token, under the language model without LoRA
    d'_i = ((d_i - min d) / (max d - min d)) / (1 + p_i)^gamma      if gamma > 0, p the share of training interactions
Items are ranked by distance; the score is minus the distance, so that higher means surer.

Deviations. The history is a list of titles, one a line, behind an instruction, and the next title is its next line; there is no
template around the reply. So the history of one example is the beginning of the next one's, every line is supervised in one
pass of training, and at inference one pass over a history serves all its examples (`teachers/decode.py`). The search has no length
penalty: a text counts by its probability. What a text is grounded with is kept, and a text that is a title of the catalogue has
that title's own vector.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.data.sources import fetch_llm
from distilrec.settings import Settings
from distilrec.teachers.adapter import adapted, put_back, read_teacher, save_teacher
from distilrec.teachers.base import Asked, Materials, Trained
from distilrec.teachers.decode import Decoder, Prefix
from distilrec.teachers.grounding import Grounding
from distilrec.teachers.llm import best_device, best_precision, llm_identity, load_causal, text_vectors
from distilrec.teachers.titles import TitleTokens

_TITLES = "titles.safetensors"
INSTRUCTION = "A user chose these items, one a line, oldest first. The list goes on with the item chosen next.\n"


class BigRecSettings(Settings):
    """Settings of BIGRec. `llm` is the default model's name, a folder, or a hub name; `layers` null means all.

    `max_length`: most items of a history. `max_title`: most tokens read of a title. `max_new`: most tokens written.
    `gamma`: how much popularity counts in grounding; 0 means not at all. `windows`: train on so many stretches of histories an
    epoch, drawn anew each time; null means all.
    """

    llm: str = "smollm2-135m-instruct"
    layers: int | None = Field(None, ge=1)
    max_length: int = Field(20, ge=1)
    max_title: int = Field(24, ge=1)
    max_new: int = Field(24, ge=2)
    beams: int = Field(4, ge=1)
    gamma: float = Field(0.0, ge=0)
    windows: int | None = Field(1024, ge=1)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    gradient_checkpointing: bool = False
    instruction: str = INSTRUCTION
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class BigRec(nn.Module):
    """LLM recommender that writes titles.

    Args:
        settings: see `BigRecSettings`.
        llm: a causal language model with its head, from `load_causal`.
        tokenizer: its tokenizer.
        dataset: titles, and how often each item was chosen in training.
        vectors: [N, D] of the titles under the model without LoRA, if they are known.
    """

    name: ClassVar[str] = "bigrec"
    Settings = BigRecSettings
    asked: ClassVar[Asked] = "positions"
    tokens_per_item: ClassVar[int] = 16  # of a title, and of what its beams write
    trained: ClassVar[Trained] = "text"
    gives: ClassVar[frozenset[str]] = frozenset({"rankings", "scores", "item_vectors"})
    head: Tensor

    def __init__(
        self, settings: BigRecSettings, llm: Any, tokenizer: Any, dataset: Dataset, vectors: Tensor | None = None
    ) -> None:
        super().__init__()
        self.settings, self.tokenizer, self.n_items = settings, tokenizer, dataset.n_items
        self.titles = TitleTokens(tokenizer, dataset.titles, settings.max_title)
        self.instruction: list[int] = tokenizer(settings.instruction)["input_ids"]
        head = llm.get_output_embeddings().weight.detach()  # tied or not: LoRA leaves it alone
        self.register_buffer("head", head, persistent=False)
        self.llm = adapted(
            llm.base_model,
            settings.lora_rank,
            settings.lora_alpha,
            settings.lora_dropout,
            settings.gradient_checkpointing,
        )
        self._vectors, self._dataset = vectors, dataset
        self._search: Decoder | None = None
        self._grounding: Grounding | None = None

    @property
    def max_length(self) -> int:
        """Most history items read."""
        return self.settings.max_length

    def train(self, mode: bool = True) -> "BigRec":
        """Switch between training and use; what was computed from the weights is forgotten."""
        self._search = None
        return super().train(mode)

    def states(self, tokens: Tensor) -> Tensor:
        """Read texts.

        Args:
            tokens: [B, T] int64, the instruction first, right-padded.

        Returns:
            [B, T, D] float32 states; times `head` they score the next token.
        """
        precision = self.head.dtype
        with torch.autocast(tokens.device.type, precision, enabled=precision != torch.float32):
            hidden: Tensor = self.llm(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden.float()

    def generate(self, histories: Tensor, lengths: Tensor, positions: Tensor) -> list[str]:
        """Write the title behind each position.

        Args:
            histories: [B, L] int64 item ids, right-padded.
            lengths: [B].
            positions: [T] into the flattened [B * L], ascending.

        Returns:
            T titles.
        """
        if self._search is None:
            self._search = Decoder(
                self.llm,
                self.head,
                Prefix(self.llm, self.instruction),
                ends=self.titles.ends,
                beams=self.settings.beams,
                max_tokens=self.settings.max_new,
            )
        columns = histories.shape[1]
        asked: list[list[int]] = [[] for _ in range(len(histories))]
        for position in positions.tolist():
            asked[position // columns].append(position % columns)
        rows = [row for row in range(len(histories)) if asked[row]]
        texts, places = [], []
        for row in rows:
            tokens, ends = self.titles.lines(histories[row, : asked[row][-1] + 1].tolist())
            texts.append(tokens)
            places.append([ends[column] for column in asked[row]])
        found = [one for some in self._search(texts, places) for one in some]
        written = self.tokenizer.batch_decode([one.tokens for one in found], skip_special_tokens=True)
        return [text.strip() for text in written]

    @torch.inference_mode()
    def distances(self, histories: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """Return the distance of the text written behind each position to every item, [T, N] float32."""
        return self.grounding.distances(self.generate(histories, lengths, positions))

    @torch.inference_mode()
    def rank(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """See `PositionTeacher.rank`; a score is minus the distance."""
        return self.grounding.nearest(self.generate(batch.histories, batch.lengths, batch.positions), k)

    @torch.inference_mode()
    def score(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """Score the catalogue after right-padded histories, [B, N]."""
        last = torch.arange(len(lengths)) * histories.shape[1] + lengths.cpu() - 1
        return -self.distances(histories, lengths, last)

    @property
    def grounding(self) -> Grounding:
        """What generated text is compared with; the titles are read when it is first needed."""
        if self._grounding is None:
            if self._vectors is None:
                self._vectors = self._read(self._dataset.titles)
            share = torch.from_numpy(self._dataset.popularity / max(1, self._dataset.popularity.sum())).float()
            self._grounding = Grounding(
                self._vectors, self._dataset.titles, self._read, popularity=share, gamma=self.settings.gamma
            )
        return self._grounding

    def _read(self, texts: Any) -> Tensor:
        with self.llm.disable_adapter():
            return text_vectors(self.llm, self.tokenizer, texts, quiet=True)

    def save(self, folder: Path, llm: str) -> None:
        """Save the adapter (peft's format) and the titles' vectors as safetensors.

        Args:
            folder: where to.
            llm: `llm_identity` of the language model, which loading compares.
        """
        vectors = {"item_vectors": self.grounding.vectors.cpu()}
        save_teacher(folder, self.name, self.llm, llm, self.settings.model_dump(), vectors, _TITLES)

    @classmethod
    def create(cls, settings: BigRecSettings, materials: Materials) -> "BigRec":
        """Build an untrained teacher."""
        llm, tokenizer = load_causal(fetch_llm(settings.llm), settings.layers, best_precision(settings.precision))
        torch.manual_seed(materials.seed)
        return cls(settings, llm, tokenizer, materials.dataset)

    @classmethod
    def reach(cls, settings: BigRecSettings) -> int:
        """Return how many history items a teacher of these settings reads."""
        return settings.max_length

    @classmethod
    def inputs(cls, settings: BigRecSettings, materials: Materials) -> dict[str, Any]:
        """Return what a trained teacher depends on, but for data, seed and training."""
        return {"llm": llm_identity(fetch_llm(settings.llm)), "precision": str(best_precision(settings.precision))}

    @classmethod
    def restore(cls, folder: Path, settings: BigRecSettings, materials: Materials) -> "BigRec":
        """Load what `save` wrote, ready to rank.

        Raises:
            FingerprintError: the teacher was trained on another language model.
            InputError: a file is missing or broken.
        """
        llm_folder = fetch_llm(settings.llm)
        saved, adapter, tensors = read_teacher(folder, llm_folder, _TITLES)
        kept = BigRecSettings.model_validate(saved)
        llm, tokenizer = load_causal(llm_folder, kept.layers, best_precision(kept.precision))
        teacher = cls(kept, llm, tokenizer, materials.dataset, tensors["item_vectors"])
        put_back(teacher.llm, adapter, folder)
        return teacher.to(best_device()).eval()

    @classmethod
    def knowledge_vectors(cls, folder: Path, settings: BigRecSettings, materials: Materials) -> Tensor | None:
        """Return the titles' vectors, [N, D]."""
        return load_file(folder / _TITLES)["item_vectors"]
