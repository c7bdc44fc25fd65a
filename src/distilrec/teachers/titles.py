"""Item titles as tokens: a history is a list of titles, one a line."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from distilrec.errors import InputError


class TitleTokens:
    """Tokens of each title and of the line's end.

    A title's tokens do not depend on what stands around it: it is read alone, and the line's end is put behind it.

    Args:
        tokenizer: of the language model.
        titles: by item id.
        most: at most so many tokens of a title are kept.

    Raises:
        InputError: the tokenizer has nothing that could end a line.
    """

    def __init__(self, tokenizer: Any, titles: Sequence[str], most: int) -> None:
        ends = tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        last = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
        if not ends and last is None:
            raise InputError(
                "the tokenizer knows neither a line break nor an end of text.", remedy="Choose another LLM."
            )
        self.end: int = ends[0] if ends else last
        self.ends = sorted({self.end} | ({last} if last is not None else set()))  # either ends what a model writes
        clean = [" ".join(title.split()) or "-" for title in titles]
        read = tokenizer(clean, add_special_tokens=False)["input_ids"]
        self.titles: list[list[int]] = [[*tokens[:most], self.end] for tokens in read]

    def lines(self, items: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the tokens of a history's lines, and for each line how many tokens there are up to its end."""
        lines = [self.titles[item] for item in items]
        ends, total = [], 0
        for line in lines:
            total += len(line)
            ends.append(total)
        return list(chain.from_iterable(lines)), ends
