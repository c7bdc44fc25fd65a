"""Titles as tokens: each alone, each with the line's end behind it."""

from pathlib import Path
from typing import Any

import pytest

from distilrec.errors import InputError
from distilrec.teachers.llm import load_llm
from distilrec.teachers.titles import TitleTokens


class Letters:
    """A tokenizer of single characters: their code points."""

    def __init__(self, *, breaks: bool = True, eos: int | None = 1, pad: int | None = None) -> None:
        self.breaks, self.eos_token_id, self.pad_token_id = breaks, eos, pad

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, Any]:
        assert not add_special_tokens  # a beginning-of-text token in the middle would mislead
        texts = [text] if isinstance(text, str) else text
        kept = [[ord(letter) for letter in one if self.breaks or letter != "\n"] for one in texts]
        return {"input_ids": kept[0] if isinstance(text, str) else kept}


END = ord("\n")


def test_by_hand() -> None:
    titles = TitleTokens(Letters(), ["ab", "c", "abcdef"], most=4)
    assert titles.titles == [[97, 98, END], [99, END], [97, 98, 99, 100, END]]
    assert titles.end == END
    assert titles.ends == [1, END]  # the end of text ends a title, too
    assert titles.lines([1, 0, 1]) == ([99, END, 97, 98, END, 99, END], [2, 5, 7])
    assert titles.lines([]) == ([], [])


def test_the_lines_of_a_history_begin_those_of_a_longer_one() -> None:
    titles = TitleTokens(Letters(), ["ab", "c", "d e"], most=9)
    history = [2, 0, 1, 1, 2]
    tokens, ends = titles.lines(history)
    for place in range(len(history)):
        assert titles.lines(history[: place + 1]) == (tokens[: ends[place]], ends[: place + 1])


def test_titles_are_one_line_and_never_empty() -> None:
    titles = TitleTokens(Letters(), ["a\nb", "  a \t b ", "", " \n"], most=9)
    assert titles.titles[0] == titles.titles[1] == [97, 32, 98, END]
    assert titles.titles[2] == titles.titles[3] == [ord("-"), END]
    assert all(END not in tokens[:-1] for tokens in titles.titles)


def test_where_line_breaks_are_no_tokens_the_end_of_text_ends_a_line() -> None:
    assert TitleTokens(Letters(breaks=False), ["a"], most=9).titles == [[97, 1]]
    padded = TitleTokens(Letters(breaks=False, eos=None, pad=0), ["a"], most=9)
    assert (padded.titles, padded.ends) == ([[97, 0]], [0])


def test_without_an_end_of_text_a_line_break_ends() -> None:
    assert TitleTokens(Letters(eos=None), ["a"], most=9).ends == [END]


def test_a_tokenizer_that_cannot_end_a_line() -> None:
    with pytest.raises(InputError, match="neither a line break nor an end of text"):
        TitleTokens(Letters(breaks=False, eos=None), ["a"], most=9)


def test_a_real_tokenizer(tiny_llm: Path) -> None:
    _, tokenizer = load_llm(tiny_llm)
    titles = TitleTokens(tokenizer, ["Title i03", "Title i04 nonsense"], most=24)
    assert [tokenizer.convert_ids_to_tokens(tokens) for tokens in titles.titles] == [
        ["Title", "i03", "[PAD]"],
        ["Title", "i04", "[UNK]", "[PAD]"],
    ]
