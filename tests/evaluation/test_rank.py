"""Full ranking against a plain Python loop."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.evaluation.rank import target_ranks, time_ranking, top_items


@dataclass
class FakeScorer:
    """Scores the catalogue by the last item and the number of items read: small integers, many ties."""

    scores: Tensor  # [items, items]: row = last item of the history
    max_length: int = 50
    by_length: float = 1.0

    def item_vectors(self) -> Tensor:
        n = len(self.scores)
        return torch.cat([torch.eye(n), (torch.arange(n) % 3 == 0).float()[:, None] * self.by_length], dim=1)

    def encode_last(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        last = histories[torch.arange(len(lengths)), lengths - 1]
        return torch.cat([self.scores[last], (lengths % 4).float()[:, None]], dim=1)

    def score(self, history: list[int]) -> list[float]:
        read = history[-self.max_length :]
        row = self.scores[read[-1]].tolist()
        return [value + (item % 3 == 0) * self.by_length * (len(read) % 4) for item, value in enumerate(row)]


@pytest.fixture(scope="module")
def scorer(tiny_dataset: Dataset) -> FakeScorer:
    generator = torch.Generator().manual_seed(4)
    return FakeScorer(torch.randint(0, 5, (tiny_dataset.n_items, tiny_dataset.n_items), generator=generator).float())


def history_of(dataset: Dataset, example: int) -> list[int]:
    start = max(int(offset) for offset in dataset.offsets if offset <= example)
    return [int(item) for item in dataset.items[start:example]]


def naive_ranks(scorer: FakeScorer, dataset: Dataset, filter_seen: bool) -> list[int]:
    ranks = []
    for example in dataset.examples("test"):
        history, target = history_of(dataset, int(example)), int(dataset.items[example])
        scores = scorer.score(history)
        others = [item for item in range(dataset.n_items) if item != target and not (filter_seen and item in history)]
        ranks.append(1 + sum(scores[item] >= scores[target] for item in others))
    return ranks


@pytest.mark.parametrize("filter_seen", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 37, 16_384])
@pytest.mark.parametrize("scores_held", [1, 45, 1 << 22])
def test_ranks_equal_a_plain_loop(
    scorer: FakeScorer,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    filter_seen: bool,
    batch_tokens: int,
    scores_held: int,
) -> None:
    monkeypatch.setattr("distilrec.evaluation.rank._SCORES", scores_held)
    expected = naive_ranks(scorer, tiny_dataset, filter_seen)
    examples = tiny_dataset.examples("test")
    ranks = target_ranks(scorer, tiny_dataset, examples, batch_tokens=batch_tokens, filter_seen=filter_seen)
    assert ranks.tolist() == expected
    assert len(set(expected)) > 5  # ties and places differ, or the test says little


def test_filtering_can_only_raise_a_target(scorer: FakeScorer, tiny_dataset: Dataset) -> None:
    examples = tiny_dataset.examples("test")
    kept = target_ranks(scorer, tiny_dataset, examples)
    filtered = target_ranks(scorer, tiny_dataset, examples, filter_seen=True)
    assert (filtered <= kept).all()
    assert (filtered < kept).any()


def test_a_model_reads_no_further_than_its_reach(tiny_dataset: Dataset, scorer: FakeScorer) -> None:
    short = FakeScorer(scorer.scores, max_length=3)
    examples = tiny_dataset.examples("test")
    ranks = target_ranks(short, tiny_dataset, examples, filter_seen=True)
    assert ranks.tolist() == naive_ranks(short, tiny_dataset, filter_seen=True)  # but all of the history is filtered
    assert ranks.tolist() != naive_ranks(scorer, tiny_dataset, filter_seen=True)


def test_some_examples_alone_get_the_same_ranks(scorer: FakeScorer, tiny_dataset: Dataset) -> None:
    examples = np.asarray(tiny_dataset.examples("test"))
    every = target_ranks(scorer, tiny_dataset, examples)
    order = np.random.default_rng(0).permutation(len(examples))[:9]
    assert target_ranks(scorer, tiny_dataset, examples[order]).tolist() == every[order].tolist()


def test_one_score_for_all_puts_the_target_last(tiny_dataset: Dataset) -> None:
    flat = FakeScorer(torch.zeros(tiny_dataset.n_items, tiny_dataset.n_items), by_length=0.0)
    assert set(target_ranks(flat, tiny_dataset, tiny_dataset.examples("test"))) == {tiny_dataset.n_items}


def test_a_perfect_model_ranks_first(tiny_dataset: Dataset) -> None:
    best = FakeScorer(torch.eye(tiny_dataset.n_items).roll(1, dims=1), by_length=0.0)
    for part in ("valid", "test"):
        assert set(target_ranks(best, tiny_dataset, tiny_dataset.examples(part))) == {1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_target_without_a_finite_score_is_an_error(tiny_dataset: Dataset, value: float) -> None:
    broken = FakeScorer(torch.full((tiny_dataset.n_items, tiny_dataset.n_items), value))
    with pytest.raises(TrainingError, match="not numbers"):
        target_ranks(broken, tiny_dataset, tiny_dataset.examples("test"))


class HalfBroken(FakeScorer):
    """The vector of one item is not a number."""

    def item_vectors(self) -> Tensor:
        table = super().item_vectors()
        table[0] = torch.nan
        return table


def test_an_item_without_a_score_counts_against_the_model(tiny_dataset: Dataset) -> None:
    # State . vector is NaN for item 0 alone; the perfect model's target comes second wherever it is another item.
    broken = HalfBroken(torch.eye(tiny_dataset.n_items).roll(1, dims=1), by_length=0.0)
    examples = np.asarray(tiny_dataset.examples("test"))
    others = examples[np.asarray(tiny_dataset.items)[examples] != 0]
    assert set(target_ranks(broken, tiny_dataset, others)) == {2}


def test_top_items_are_the_best_in_order(tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    distinct = torch.stack(
        [torch.randperm(tiny_dataset.n_items, generator=generator) for _ in range(tiny_dataset.n_items)]
    )
    scorer = FakeScorer(distinct.float(), by_length=0.0)
    examples = np.asarray(tiny_dataset.examples("test"))
    expected = [
        sorted(range(tiny_dataset.n_items), key=lambda item: -scores[item])[:4]
        for scores in (scorer.score(history_of(tiny_dataset, int(example))) for example in examples)
    ]
    assert top_items(scorer, tiny_dataset, examples, 4).tolist() == expected
    monkeypatch.setattr("distilrec.evaluation.rank._SCORES", 45)
    assert top_items(scorer, tiny_dataset, examples, 4, batch_tokens=37).tolist() == expected


def test_no_more_top_items_than_there_are(scorer: FakeScorer, tiny_dataset: Dataset) -> None:
    best = top_items(scorer, tiny_dataset, np.asarray(tiny_dataset.examples("test"))[:2], 1000)
    assert [sorted(row) for row in best.tolist()] == [list(range(tiny_dataset.n_items))] * 2


def test_timing_gives_positive_numbers(scorer: FakeScorer, tiny_dataset: Dataset) -> None:
    examples = np.asarray(tiny_dataset.examples("test"))
    timing = time_ranking(scorer, tiny_dataset, examples, users=7, batch_tokens=64, repeats=1, single=2)
    assert timing.ms_per_user > 0
    assert timing.latency_ms > 0
