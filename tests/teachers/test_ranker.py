"""The ranker's questions and what it reads, on histories whose next item is known."""

import json
from typing import Any

import numpy as np
import pytest

from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.errors import ConfigError, InputError
from distilrec.settings import checked
from distilrec.teachers.backends.base import Reply
from distilrec.teachers.parsing import Parsed
from distilrec.teachers.ranker import Ranker, RankerSettings, useful_hints

SMALL: dict[str, Any] = {"candidates": 6, "wanted": 3, "history": 4, "cases": 3, "case_top": 2}


class Recommender:
    """Ranks x + skip, x + skip + 1, .. (mod 20) after an item x; in `tiny_dataset` the next one is x + 1."""

    def __init__(self, dataset: Dataset, skip: int = 1) -> None:
        self.dataset, self.skip = dataset, skip
        self.calls: list[int] = []

    def __call__(self, examples: Ints, k: int) -> Ints:
        self.calls.append(len(examples))
        last = self.dataset.items[examples - 1].astype(np.int64)
        return (last[:, None] + self.skip + np.arange(k)) % self.dataset.n_items


def ranker(dataset: Dataset, skip: int = 1, seed: int = 0, **settings: Any) -> Ranker:
    return Ranker(RankerSettings(**SMALL | settings), dataset, Recommender(dataset, skip), seed)


def training(dataset: Dataset) -> Ints:
    ids = np.arange(len(dataset.items))
    rows = dataset.rows_of(ids)
    place = ids - dataset.offsets[rows]
    return ids[(place > 0) & (place < dataset.split.train_end[rows])]


def test_a_question(tiny_dataset: Dataset) -> None:
    example = int(tiny_dataset.offsets[3]) + 6  # history of row 3: i01, i02, .. (7 * 3 mod 20 = 1)
    (question,) = ranker(tiny_dataset).questions(np.array([example]), "Count up.")
    assert question.example == example
    assert question.candidates == (7, 8, 9, 10, 11, 12)
    assert question.prompt.user.split("\n\n")[:2] == [
        "History, oldest first:\n- Title i03\n- Title i04\n- Title i05\n- Title i06",
        "Candidates:\n1. Title i07\n2. Title i08\n3. Title i09\n4. Title i10\n5. Title i11\n6. Title i12",
    ]
    assert question.prompt.system.endswith("Count up.")
    assert question.prompt.schema is not None


def test_a_history_ends_where_another_begins(tiny_dataset: Dataset) -> None:
    first = int(tiny_dataset.offsets[3])
    (question,) = ranker(tiny_dataset).questions(np.array([first + 1]), "")
    assert question.prompt.user.startswith("History, oldest first:\n- Title i01\n\nCandidates:")


def test_the_target_is_never_in_the_history_shown(tiny_dataset: Dataset) -> None:
    examples = training(tiny_dataset)
    for question in ranker(tiny_dataset, skip=2, candidates=5, history=10).questions(examples, ""):
        target = tiny_dataset.items[question.example]
        assert f"Title i{target:02d}" not in question.prompt.user


def test_questions_are_made_in_chunks_in_order_and_anew(tiny_dataset: Dataset) -> None:
    asked = ranker(tiny_dataset)
    examples = np.tile(training(tiny_dataset), 5)[:2500][::-1]
    questions = asked.questions(examples, "")
    assert len(questions) == len(examples)
    recommender = asked._top_items
    assert isinstance(recommender, Recommender)
    assert recommender.calls == []
    assert questions[3].example == examples[3]
    recommender.calls.clear()
    assert next(iter(questions)).example == examples[0]
    assert recommender.calls == [1024]
    once = list(questions)
    assert [question.example for question in once] == examples.tolist()
    assert list(questions) == once
    assert max(recommender.calls) == 1024


def test_replies_are_read_as_internal_ids(tiny_dataset: Dataset) -> None:
    asked = ranker(tiny_dataset)
    (question,) = asked.questions(np.array([int(tiny_dataset.offsets[3]) + 6]), "")
    assert asked.read(question, Reply('{"ranking": [2, 1, 6]}', 0, 0)) == Parsed([8, 7, 12], {})
    assert asked.read(question, Reply('{"ranking": [2, 1', 0, 0, finish="length")) == Parsed(
        [8], {"truncated": 1, "missing": 2}
    )
    assert asked.read(question, Reply("Title i09\nTitle i07", 0, 0)) == Parsed(
        [9, 7], {"not_json": 1, "titles": 2, "missing": 1}
    )
    assert asked.read(question, Reply(asked.ideal_reply(question), 0, 0)) == Parsed([7, 9, 11], {})


def test_a_catalogue_smaller_than_the_candidates(tiny_dataset: Dataset) -> None:
    asked = ranker(tiny_dataset, candidates=50, wanted=25)
    (question,) = asked.questions(training(tiny_dataset)[:1], "")
    assert sorted(question.candidates) == list(range(20))
    assert asked.read(question, Reply(json.dumps({"ranking": list(range(1, 21))}), 0, 0)).repairs == {}


def test_the_target_is_put_in_only_where_it_was_missed(tiny_dataset: Dataset) -> None:
    examples = training(tiny_dataset)[:50]
    hit = ranker(tiny_dataset, skip=1)
    assert [q.candidates for q in ranker(tiny_dataset, skip=1, inject_target=True).questions(examples, "")] == [
        q.candidates for q in hit.questions(examples, "")
    ]
    missed = list(ranker(tiny_dataset, skip=2).questions(examples, ""))
    for plain, told in zip(
        missed, ranker(tiny_dataset, skip=2, inject_target=True).questions(examples, ""), strict=True
    ):
        target = int(tiny_dataset.items[plain.example])
        assert target not in plain.candidates
        assert told.candidates == (*plain.candidates[:-1], target)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_the_target_of_a_held_out_example_is_refused(tiny_dataset: Dataset, part: str) -> None:
    mixed = np.concatenate([training(tiny_dataset)[:5], tiny_dataset.examples(part)[:2]])
    with pytest.raises(ConfigError, match="2 held-out examples"):
        ranker(tiny_dataset, inject_target=True).questions(mixed, "")
    assert len(list(ranker(tiny_dataset).questions(mixed, ""))) == 7


@pytest.mark.parametrize("example", [-1, 0, 10**6])
def test_an_example_without_history_is_refused(tiny_dataset: Dataset, example: int) -> None:
    with pytest.raises(InputError, match=f"1 examples have no history to rank by .first: {example}"):
        ranker(tiny_dataset).questions(np.array([int(tiny_dataset.offsets[0]) + 1, example]), "")


def test_shuffling_is_the_same_for_an_example_however_it_is_asked(tiny_dataset: Dataset) -> None:
    examples = training(tiny_dataset)[:40]
    plain = {q.example: q.candidates for q in ranker(tiny_dataset).questions(examples, "")}
    first = {q.example: q.candidates for q in ranker(tiny_dataset, shuffle=True).questions(examples, "")}
    again = {q.example: q.candidates for q in ranker(tiny_dataset, shuffle=True).questions(examples[::-3], "")}
    other = {q.example: q.candidates for q in ranker(tiny_dataset, seed=1, shuffle=True).questions(examples, "")}
    assert {example: sorted(items) for example, items in first.items()} == {
        example: sorted(items) for example, items in plain.items()
    }
    assert first != plain
    assert first != other
    assert again.items() <= first.items()
    assert len({tuple(np.argsort(items)) for items in first.values()}) > 20  # not one order for all


def test_the_summary_shows_training_examples_only(tiny_dataset: Dataset) -> None:
    class Noting(Recommender):
        def __call__(self, examples: Ints, k: int) -> Ints:
            self.seen = examples
            return super().__call__(examples, k)

    noting = Noting(tiny_dataset)
    settings = RankerSettings(**SMALL | {"cases": 30})
    prompt = Ranker(settings, tiny_dataset, noting, 0).summary_question()
    assert set(noting.seen) <= set(training(tiny_dataset))
    assert len(set(tiny_dataset.rows_of(noting.seen))) == 30
    assert prompt.user.count("Case ") == 30
    assert prompt.max_tokens == 400


def test_the_summary_is_drawn_by_the_seed(tiny_dataset: Dataset) -> None:
    one = ranker(tiny_dataset).summary_question()
    assert one == ranker(tiny_dataset).summary_question()
    assert one != ranker(tiny_dataset, seed=1).summary_question()
    case = one.user.split("\n\n")[0].splitlines()
    assert len(case) == 2 + 3 + 1 + 2 or len(case) == 2 + 4 + 1 + 2  # at most 4 titles, then the recommender's 2 best
    last = int(case[case.index("Ranking, best first:") - 1][-2:])
    assert case[-2:] == [f"1. Title i{(last + 1) % 20:02d}", f"2. Title i{(last + 2) % 20:02d}"]


def test_no_schema_where_it_is_off(tiny_dataset: Dataset) -> None:
    (question,) = ranker(tiny_dataset, structured="off").questions(training(tiny_dataset)[:1], "")
    assert question.prompt.schema is None


def test_a_recommender_that_gives_too_little_is_a_fault_of_ours(tiny_dataset: Dataset) -> None:
    asked = Ranker(RankerSettings(**SMALL), tiny_dataset, lambda examples, k: np.zeros((len(examples), k - 1), int), 0)
    with pytest.raises(ValueError, match=r"gave \(1, 5\), expected \(1, 6\)"):
        list(asked.questions(training(tiny_dataset)[:1], ""))


def test_what_is_recorded_is_what_counts_and_no_secret() -> None:
    settings = RankerSettings(
        base_url="https://llm.example/v1?key=canary", api_key_env="CANARY_KEY", inject_target=True, candidates=60
    )
    recorded = Ranker.recorded_settings(settings)
    assert "canary" not in json.dumps(recorded).lower()
    assert recorded["candidates"] == 60
    assert recorded["inject_target"] is True
    assert recorded["recommender"] == {"name": "sasrec", "hidden_size": 100}
    assert recorded["prompt_version"] == 1
    assert len(recorded["prompt_sha256"]) == 64
    moved = settings.model_copy(update={"base_url": "http://127.0.0.1:8000/v1", "api_key_env": "OTHER"})
    assert Ranker.recorded_settings(moved) == recorded
    assert Ranker.recorded_settings(settings.model_copy(update={"wanted": 10})) != recorded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_env": "sk-canary123"}, "name .capitals. of the environment variable"),
        ({"api_key_env": "hf_canary123"}, "name .capitals. of the environment variable"),
        ({"base_url": "https://me:canary@llm.example"}, "user or password"),
        ({"wanted": 51}, r"wanted \(51\) is more than candidates \(50\)"),
        ({"wanted": 0}, "greater than or equal to 1"),
        ({"canddates": 3}, "Did you mean 'candidates'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        checked(RankerSettings, settings, where="teacher")
    assert "canary" not in str(caught.value)


def test_the_run_s_own_student_as_recommender() -> None:
    assert RankerSettings(recommender=None).recommender is None
    assert RankerSettings.model_validate({"recommender": "gru4rec"}).recommender.name == "gru4rec"


@pytest.mark.parametrize("times", [6, 25])
def test_hints_that_repeat_one_phrase_are_none(times: int) -> None:
    assert useful_hints("The " + "best first, " * times) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Count up, count up.",  # too short to tell
        "Users who watched a trilogy go on with its next part. Users who watched comedies go on with comedies of the same decade.",
        "1. Sequels follow. 2. Sequels of sequels follow those. 3. Then directors count, then decades, then stars, then nothing.",
    ],
)
def test_hints_that_say_something_are_kept(text: str) -> None:
    assert useful_hints(text) == text
