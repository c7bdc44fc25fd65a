"""Item vectors from text: which text, how much of it, by which model."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, InputError
from distilrec.settings import checked
from distilrec.teachers.base import Materials
from distilrec.teachers.llm import llm_identity, load_llm, text_vectors
from distilrec.teachers.text import TextSettings, TextTeacher

TEXTS = [f"Title i{item:02d}" + " Genre" * (7 * item % 11) for item in range(20)]


def materials(dataset: Dataset) -> Materials:
    return Materials(dataset, 0, lambda: torch.empty(0), lambda: "")


def read(llm: Path, dataset: Dataset, **settings: Any) -> Tensor:
    options = TextSettings.model_validate({"llm": str(llm), "precision": "float32", **settings})
    vectors = TextTeacher.knowledge_vectors(None, options, materials(dataset))
    assert vectors is not None
    assert vectors.dtype == torch.float32
    assert len(vectors) == dataset.n_items
    assert not vectors.requires_grad
    return vectors


def states(llm: Path, text: str, layers: int | None = None) -> Tensor:
    """All states of one text alone, [tokens, D]."""
    model, tokenizer = load_llm(llm, layers)
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_last_state_or_the_mean_of_all(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    last, mean = (read(tiny_llm, tiny_dataset, pooling=pooling) for pooling in ("last", "mean"))
    for item in (0, 7, 19):
        alone = states(tiny_llm, tiny_dataset.texts[item])
        assert len(alone) > 2
        close(last[item], alone[-1])
        close(mean[item], alone.mean(dim=0))
    assert (last - mean).abs().max() > 0.1


def test_all_text_or_the_title(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    assert tiny_dataset.texts[7] != tiny_dataset.titles[7]
    whole, title = (read(tiny_llm, tiny_dataset, of=of) for of in ("text", "title"))
    close(whole[7], states(tiny_llm, tiny_dataset.texts[7]).mean(dim=0))
    close(title[7], states(tiny_llm, "Title i07").mean(dim=0))
    assert len(title.unique(dim=0)) == tiny_dataset.n_items


def test_so_many_tokens_and_layers(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    first = read(tiny_llm, tiny_dataset, max_tokens=1)
    close(first[3], states(tiny_llm, "Title").mean(dim=0))
    shallow = read(tiny_llm, tiny_dataset, layers=1, of="title")
    close(shallow[3], states(tiny_llm, "Title i03", layers=1).mean(dim=0))
    assert (shallow - read(tiny_llm, tiny_dataset, of="title")).abs().max() > 0.1


@pytest.mark.parametrize("batch_tokens", [1, 17, 2048])
def test_the_mean_of_each_text_alone_whoever_shares_the_batch(batch_tokens: int, tiny_llm: Path) -> None:
    model, tokenizer = load_llm(tiny_llm)
    vectors = text_vectors(model, tokenizer, TEXTS, batch_tokens=batch_tokens, pooling="mean", quiet=True)
    close(vectors, torch.stack([states(tiny_llm, text).mean(dim=0) for text in TEXTS]))


def test_a_model_that_reads_both_ways_sees_no_padding(tmp_path: Path, tiny_llm: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_llm(tmp_path)
    together = text_vectors(model, tokenizer, TEXTS, pooling="mean", quiet=True)
    alone = [text_vectors(model, tokenizer, [text], pooling="mean", quiet=True)[0] for text in TEXTS]
    close(together, torch.stack(alone))
    assert len(together.unique(dim=0)) > len(TEXTS) // 2


def test_what_the_vectors_depend_on(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    options = TextSettings(llm=str(tiny_llm), precision="float32")
    inputs = TextTeacher.inputs(options, materials(tiny_dataset))
    assert inputs == {"llm": llm_identity(tiny_llm), "precision": "torch.float32"}
    other = options.model_copy(update={"sentence_transformer": "some-model"})
    assert TextTeacher.inputs(other, materials(tiny_dataset)) == {}


def test_a_sentence_transformers_model(tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Made of the same language model with its own pooling, it gives what that gives with ours."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    for pooling in ("mean", "lasttoken"):
        parts = modules.Transformer(str(tiny_llm)), modules.Pooling(32, pooling_mode=pooling)
        folder = str(tmp_path / pooling)
        library.SentenceTransformer(modules=list(parts), device="cpu").save(folder)
        vectors = read(tiny_llm, tiny_dataset, sentence_transformer=folder)
        ours = read(tiny_llm, tiny_dataset, pooling="mean" if pooling == "mean" else "last")
        close(vectors, ours)
        cut = read(tiny_llm, tiny_dataset, sentence_transformer=folder, max_tokens=1)
        close(cut, read(tiny_llm, tiny_dataset, max_tokens=1))


def test_sentence_transformers_is_not_installed(
    tiny_llm: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"not installed.*distilrec\[sentence\]"):
        read(tiny_llm, tiny_dataset, sentence_transformer="some-model")
    read(tiny_llm, tiny_dataset)  # nobody else needs it


def test_no_such_sentence_transformers_model(
    tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no sentence-transformers model can be read here"):
        read(tiny_llm, tiny_dataset, sentence_transformer=str(tmp_path))


def test_no_such_language_model(tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        read(tmp_path, tiny_dataset)
    with pytest.raises(ConfigError, match="layers is 3 and the model has 2"):
        read(tiny_llm, tiny_dataset, layers=3)


@pytest.mark.parametrize(
    "settings", [{"pooling": "max"}, {"max_tokens": 0}, {"layers": 0}, {"of": "genre"}, {"lm": "x"}]
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(TextSettings, settings, where="teacher")
