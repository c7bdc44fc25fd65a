"""Beam search over shared caches against transformers' own, one text at a time."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from distilrec.teachers.decode import Decoder, Prefix

VOCABULARY = 30


@pytest.fixture(scope="module")
def model(tiny_llm: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llm).eval()


def reference(model: Any, tokens: list[int], *, beams: int, most: int, end: int) -> list[int]:
    """Return what transformers generates behind `tokens`, without the end token."""
    out = model.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=most,
        length_penalty=0.0,
        eos_token_id=end,
        pad_token_id=end,
    )[0, len(tokens) :].tolist()
    return out[: out.index(end)] if end in out else out


def decoder(model: Any, prefix: list[int], *, beams: int, most: int, end: int) -> Decoder:
    head = model.get_output_embeddings().weight.detach()
    return Decoder(model.model, head, Prefix(model.model, prefix), ends=[end], beams=beams, max_tokens=most)


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("prefix", [[], [3, 4, 5, 6]], ids=["no prefix", "prefix"])
@pytest.mark.parametrize("end", [2, 7, 11])
def test_finds_what_generate_finds(model: Any, beams: int, prefix: list[int], end: int) -> None:
    generator = random.Random(beams * 100 + end)
    texts = [[generator.randrange(VOCABULARY) for _ in range(generator.randint(1, 12))] for _ in range(7)]
    places = [sorted(generator.sample(range(1, len(text) + 1), generator.randint(1, len(text)))) for text in texts]
    found = decoder(model, prefix, beams=beams, most=9, end=end)(texts, places)
    for text, some, continuations in zip(texts, places, found, strict=True):
        for place, continuation in zip(some, continuations, strict=True):
            want = reference(model, prefix + text[:place], beams=beams, most=9, end=end)
            assert continuation.tokens == want
            assert continuation.ended == (len(want) < 9)


def test_score_is_the_log_probability_of_the_text(model: Any) -> None:
    ((found,),) = decoder(model, [3, 4], beams=3, most=12, end=2)([[9, 8, 7]], [[3]])
    whole = [3, 4, 9, 8, 7, *found.tokens, *([2] if found.ended else [])]
    logits = torch.log_softmax(model(torch.tensor([whole])).logits[0], dim=1)
    chosen = sum(logits[place - 1, whole[place]].item() for place in range(5, len(whole)))
    assert found.score == pytest.approx(chosen, abs=1e-4)


def test_more_beams_never_find_a_worse_text(model: Any) -> None:
    texts, places = [[5, 6, 7, 8]], [[1, 2, 3, 4]]
    one, eight = (decoder(model, [], beams=beams, most=6, end=2)(texts, places)[0] for beams in (1, 8))
    assert all(b.score >= a.score - 1e-5 for a, b in zip(one, eight, strict=True))
    assert any(b.score > a.score + 1e-3 for a, b in zip(one, eight, strict=True))


def test_company_changes_nothing(model: Any) -> None:
    search = decoder(model, [3], beams=4, most=8, end=2)
    texts, places = [[5, 6, 7], [9], [12, 13, 14, 15, 16]], [[1, 3], [1], [2, 5]]
    together = search(texts, places)
    alone = [[search([text], [[place]])[0][0] for place in some] for text, some in zip(texts, places, strict=True)]
    assert [[c.tokens for c in some] for some in together] == [[c.tokens for c in some] for some in alone]
