"""Taking a user's own items out of a teacher's rankings: by hand, against a loop, and that nothing held out is looked at."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from distilrec.data.dataset import Dataset, training_examples
from distilrec.knowledge.store import NOTHING, Knowledge


def knowledge(dataset: Dataset, k: int = 7, seed: int = 0) -> Knowledge:
    """Random rankings of random lengths for two of three training examples."""
    generator = np.random.default_rng(seed)
    examples = training_examples(dataset)[generator.random(len(training_examples(dataset))) < 0.67]
    items = np.stack([generator.permutation(dataset.n_items)[:k] for _ in examples]).astype(np.int64)
    scores = -np.sort(generator.exponential(size=items.shape), axis=1).astype(np.float32)
    ended = np.arange(k) >= generator.integers(1, k + 1, size=(len(examples), 1))
    return Knowledge({}, examples, np.where(ended, 0, items), np.where(ended, NOTHING, scores).astype("f4"), None)


def test_by_hand(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset([["a", "b", "c", "d", "e", "f"]])  # 0..5; train a b c d, validation e, test f
    said = Knowledge({}, np.array([2]), np.array([[2, 0, 5, 3, 1, 4]]), -np.arange(6, dtype="f4")[None], None)
    of_history = said.without(dataset, "history")  # before example 2 stand items 0 and 1
    assert of_history.items.tolist() == [[2, 5, 3, 4, 0, 0]]
    assert of_history.scores.tolist() == [[0, -2, -3, -5, NOTHING, NOTHING]]
    of_training = said.without(dataset, "training")  # items 0 to 3; what is held out stays
    assert of_training.items.tolist() == [[5, 4, 0, 0, 0, 0]]
    assert of_training.scores.tolist() == [[-2, -5, NOTHING, NOTHING, NOTHING, NOTHING]]


@pytest.mark.parametrize("which", ["history", "training"])
@pytest.mark.parametrize("seed", range(3))
def test_against_a_loop(tiny_dataset: Dataset, which: Literal["history", "training"], seed: int) -> None:
    said = knowledge(tiny_dataset, seed=seed)
    found = said.without(tiny_dataset, which)
    place, dropped = 0, 0
    for example, items, scores in zip(said.examples, said.items, said.scores, strict=True):
        row = tiny_dataset.rows_of(np.array([example]))[0]
        start = tiny_dataset.offsets[row]
        end = example if which == "history" else start + tiny_dataset.split.train_end[row]
        own = set(tiny_dataset.items[start:end].tolist())
        kept = [(i, s) for i, s in zip(items.tolist(), scores.tolist(), strict=True) if s > NOTHING and i not in own]
        dropped += int((scores > NOTHING).sum()) - len(kept)
        if kept:
            assert found.examples[place] == example
            there = found.scores[place] > NOTHING
            assert list(zip(found.items[place][there], found.scores[place][there], strict=True)) == kept
            assert not there[len(kept) :].any()
            place += 1
    assert place == len(found.examples)
    assert dropped > 0
    assert said.items.shape[1] == found.items.shape[1]


def test_the_store_itself_is_left_as_it_is(tiny_dataset: Dataset) -> None:
    said = knowledge(tiny_dataset)
    items, scores = said.items.copy(), said.scores.copy()
    said.without(tiny_dataset, "training")
    assert np.array_equal(said.items, items)
    assert np.array_equal(said.scores, scores)


def test_a_validation_example_may_be_asked_about(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset([["a", "b", "c", "d", "e"]])
    said = Knowledge({}, np.array([3]), np.array([[4, 3, 0]]), np.array([[3, 2, 1]], dtype="f4"), None)
    assert said.without(dataset, "training").items.tolist() == [
        [4, 3, 0]
    ]  # the training part ends before d: only 0 goes
    assert said.without(dataset, "training").scores.tolist() == [[3, 2, NOTHING]]
