"""ALKDRec's teacher: a language model that ranks the candidates of a conventional recommender, with hints from a summary of it.

Du et al., "Active Large Language Model-based Knowledge Distillation for Session-based Recommendation", AAAI 2025. Once for a
data set the LLM is shown cases (history -> the recommender's top items) and writes down the logic behind them, as hints. Then, for
each example, it is shown hints, history and the recommender's top C, and names the likeliest `wanted`, best first.

Deviations: candidates are called 1..C, not by their catalogue ids, which is cheaper and the same for every data set. The
authors put the true next item among the candidates when the recommender missed it; here that is a setting, off, and refused
for held-out examples. The wording of the prompts is ours.

A `Ranker` makes questions and reads replies; it asks nobody itself.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.errors import ConfigError, InputError
from distilrec.settings import Choice, Settings
from distilrec.teachers import prompts
from distilrec.teachers.backends.base import Prompt, Reply
from distilrec.teachers.base import Asked, Materials, Trained
from distilrec.teachers.parsing import Parsed, parse_ranking

_CHUNK = 1024

TopItems = Callable[[Ints, int], Ints]


class RankerSettings(Settings):
    """Settings of the ranker.

    `backend`: who answers; `model`, `base_url`, `temperature` belong to it. `api_key_env`: the NAME of the environment variable
    that holds the key. `tokenizer`: folder or hub name of the tokenizer that counts tokens, where the backend has none.
    `structured`: whether replies are held to a JSON schema (`auto`: where the server can). `recommender`: the conventional
    teacher that gives candidates, with its settings; null means the run's plain student. `candidates`, `wanted`: shown to the
    LLM, asked back. `history`: most recent titles shown. `hints`: ask for a summary first, of `cases` cases with `case_top` items,
    in at most `hint_tokens` tokens. `max_title`: characters. `inject_target`: put the true next item of a training example in
    the last candidate's place where the recommender missed it. `shuffle`: candidates in an order drawn by the seed, not by rank.
    """

    backend: Literal["api", "transformers", "vllm"] = "api"
    model: str | None = None
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    tokenizer: str | None = None
    temperature: float = Field(0.0, ge=0)
    structured: Literal["auto", "schema", "off"] = "auto"
    recommender: Choice | None = Choice.model_validate({"name": "sasrec", "hidden_size": 100})
    candidates: int = Field(50, ge=1)
    wanted: int = Field(25, ge=1)
    history: int = Field(20, ge=1)
    hints: bool = True
    hint_tokens: int = Field(400, ge=16)
    cases: int = Field(5, ge=1)
    case_top: int = Field(20, ge=1)
    max_title: int = Field(prompts.MAX_TITLE, ge=8)
    inject_target: bool = False
    shuffle: bool = False

    # Neither complaint repeats the value: it may be a secret.
    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # no small letters: most keys have some
            raise ValueError("give the name (capitals) of the environment variable that holds the key, not the key")
        return value

    @field_validator("base_url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError(
                "an address with a user or password in it is not taken; put the key in an environment variable"
            )
        return value

    @model_validator(mode="after")
    def _enough_candidates(self) -> "RankerSettings":
        if self.wanted > self.candidates:
            raise ValueError(f"wanted ({self.wanted}) is more than candidates ({self.candidates})")
        return self


@dataclass(frozen=True, slots=True)
class Question:
    """One request about one example.

    Attributes:
        example: example id.
        prompt: what to ask.
        candidates: internal item ids; the prompt calls them 1..C in this order.
    """

    example: int
    prompt: Prompt
    candidates: tuple[int, ...]


class Questions:
    """The questions about some examples, made as they are walked through. Can be walked through again."""

    def __init__(self, chunk: Callable[[Ints], list[Question]], examples: Ints) -> None:
        self._chunk, self._examples = chunk, examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: int) -> Question:
        return self._chunk(self._examples[[place]])[0]

    def __iter__(self) -> Iterator[Question]:
        for first in range(0, len(self._examples), _CHUNK):
            yield from self._chunk(self._examples[first : first + _CHUNK])


class Ranker:
    """Makes the questions of the ranker, and reads the replies.

    Args:
        settings: see `RankerSettings`.
        dataset: histories and titles.
        top_items: (examples [n], k) -> [n, k] internal item ids, best first, that the conventional recommender ranks highest
            after the history before each example's target.
        seed: of the cases and of shuffling.
    """

    name: ClassVar[str] = "ranker"
    Settings = RankerSettings
    asked: ClassVar[Asked] = "prompts"
    trained: ClassVar[Trained] = "student"
    gives: ClassVar[frozenset[str]] = frozenset({"rankings"})

    def __init__(self, settings: RankerSettings, dataset: Dataset, top_items: TopItems, seed: int) -> None:
        self.settings = settings
        self._dataset, self._top_items, self._seed = dataset, top_items, seed

    @classmethod
    def recorded_settings(cls, settings: RankerSettings) -> dict[str, Any]:
        """Return what the replies depend on of the settings and the prompts, as JSON, nothing secret among it."""
        kept = settings.model_dump(mode="json", exclude={"api_key_env", "tokenizer", "base_url"})
        return {**kept, "prompt_version": prompts.VERSION, "prompt_sha256": prompts.templates_hash()}

    @classmethod
    def knowledge_vectors(cls, folder: Any, settings: RankerSettings, materials: Materials) -> None:
        """Return nothing: a ranker has no item vectors. `annotate.vectors` reads some from item text."""
        return

    def summary_question(self) -> Prompt:
        """Return the prompt whose reply are the hints; its cases are training examples of different histories.

        Raises:
            InputError: no history has two items to train on.
        """
        data = self._dataset
        rows = np.flatnonzero(data.split.train_end >= 2)
        if len(rows) == 0:
            raise InputError("no history has a training example to show.", remedy="Give more data or set hints=false.")
        rng = np.random.default_rng(self._seed)
        rows = rng.choice(rows, size=min(self.settings.cases, len(rows)), replace=False)
        examples = data.offsets[rows] + data.split.train_end[rows] - 1
        top = self._ranked(examples, self.settings.case_top)
        cases = [
            (self._history(int(row), int(example)), [data.titles[item] for item in items])
            for row, example, items in zip(rows, examples, top.tolist(), strict=True)
        ]
        return prompts.summary_prompt(cases, self.settings.hint_tokens, max_title=self.settings.max_title)

    def questions(self, examples: Ints, hints: str) -> Questions:
        """Return the questions about `examples` [n], in this order; `hints` may be "".

        Raises:
            ConfigError: `inject_target` is set and some of the examples are held out.
            InputError: an example has no history, or does not exist.
        """
        examples = np.asarray(examples, dtype=np.int64)
        self._check(examples)
        return Questions(lambda chunk: self._questions(chunk, hints), examples)

    def read(self, question: Question, reply: Reply) -> Parsed:
        """Read the reply to a question."""
        titles = [
            prompts.clean_title(self._dataset.titles[item], self.settings.max_title) for item in question.candidates
        ]
        return parse_ranking(reply.text, question.candidates, self.settings.wanted, finish=reply.finish, titles=titles)

    def ideal_reply(self, question: Question) -> str:
        """Return a reply as asked for, for estimates of length."""
        return prompts.ideal_reply(self.settings.wanted, len(question.candidates))

    def _questions(self, examples: Ints, hints: str) -> list[Question]:
        rows, titles = self._dataset.rows_of(examples), self._dataset.titles
        candidates = self._candidates(examples)
        questions = []
        for row, example, items in zip(rows.tolist(), examples.tolist(), candidates.tolist(), strict=True):
            prompt = prompts.ranking_prompt(
                hints,
                self._history(row, example),
                [titles[item] for item in items],
                self.settings.wanted,
                max_title=self.settings.max_title,
            )
            if self.settings.structured == "off":
                prompt = replace(prompt, schema=None)
            questions.append(Question(example, prompt, tuple(items)))
        return questions

    def _candidates(self, examples: Ints) -> Ints:
        top = self._ranked(examples, self.settings.candidates)
        if self.settings.inject_target:
            targets = self._dataset.items[examples]
            missed = ~(top == targets[:, None]).any(axis=1)
            top[missed, -1] = targets[missed]
        if self.settings.shuffle:
            for place, example in enumerate(examples.tolist()):
                # Drawn by example, so that chunks and resuming change nothing.
                top[place] = np.random.default_rng([self._seed, example]).permutation(top[place])
        return top

    def _ranked(self, examples: Ints, k: int) -> Ints:
        k = min(k, self._dataset.n_items)
        top = np.array(self._top_items(examples, k), dtype=np.int64)  # a copy: it may be changed
        if top.shape != (len(examples), k):
            raise ValueError(f"top_items gave {top.shape}, expected {(len(examples), k)}")
        return top

    def _history(self, row: int, example: int) -> list[str]:
        first = max(int(self._dataset.offsets[row]), example - self.settings.history)
        return [self._dataset.titles[item] for item in self._dataset.items[first:example].tolist()]

    def _check(self, examples: Ints) -> None:
        data = self._dataset
        outside = (examples < 0) | (examples >= len(data.items))
        rows = data.rows_of(np.where(outside, 0, examples))
        place = examples - data.offsets[rows]
        wrong = outside | (place == 0)
        if wrong.any():
            raise InputError(
                f"{int(wrong.sum())} examples have no history to rank by (first: {examples[wrong][0]}).",
                remedy="Ask about targets with at least one item before them.",
            )
        held_out = place >= data.split.train_end[rows]
        if self.settings.inject_target and held_out.any():
            raise ConfigError(
                f"inject_target would show the LLM the answers of {int(held_out.sum())} held-out examples.",
                where="teacher.inject_target",
                remedy="Ask about training examples only, or set it to false.",
            )


def useful_hints(text: str) -> str:
    """Return hints, or nothing where they are a phrase said over and over: small models take it up and answer with nothing else.

    A text of 12 words or more repeats itself if fewer than half of its runs of three words are different.
    """
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return "" if len(words) >= 12 and len(set(runs)) < len(runs) / 2 else text
