"""A language model small enough to run in a test: two layers of random weights, and a tokenizer of whole words."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distilrec.teachers.e4srec import INSTRUCTION

WORDS = [
    "[PAD]",
    "[UNK]",
    *dict.fromkeys(INSTRUCTION.split()),
    "Title",
    "Title:",
    "Genre",
    *(f"i{item:02d}" for item in range(20)),
]


def build_llm(folder: Path, *, width: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """Save a random Llama and its tokenizer, as `transformers` would."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,  # large enough that attention is not flat
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal language model of width 32 with two layers."""
    return build_llm(tmp_path_factory.mktemp("llm") / "tiny")
