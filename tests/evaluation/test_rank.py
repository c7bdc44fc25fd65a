"""Full ranking against a plain Python loop."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.data.batching import held_out_windows, make_batch
from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.evaluation.rank import rank_and_top, target_ranks, time_ranking, top_items
from distilrec.students import STUDENTS
from distilrec.students.base import build_student


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


@pytest.mark.parametrize("filter_seen", [False, True])
def test_ranks_and_best_items_from_one_scoring(scorer: FakeScorer, tiny_dataset: Dataset, filter_seen: bool) -> None:
    examples = tiny_dataset.examples("test")
    ranks, best = rank_and_top(scorer, tiny_dataset, examples, 5, filter_seen=filter_seen)
    assert np.array_equal(ranks, target_ranks(scorer, tiny_dataset, examples, filter_seen=filter_seen))
    for place, example in enumerate(examples):
        history = history_of(tiny_dataset, int(example))
        scores = scorer.score(history)
        seen = set(history) if filter_seen else set()
        expected = sorted((scores[item] for item in range(tiny_dataset.n_items) if item not in seen), reverse=True)[:5]
        found = best[place][: len(expected)].tolist()  # who has seen all but a few gets the rest in any order
        assert [scores[item] for item in found] == expected
        assert not seen & set(found)


def test_a_wide_catalogue_with_columns_to_spare(make_dataset: Callable[..., Dataset]) -> None:
    """5,000 items are no multiple of the block: what fills it up is never recommended, nor counted."""
    dataset = make_dataset([[f"{(7 * u + n) % 5000:04d}" for n in range(200)] for u in range(25)])
    torch.manual_seed(0)
    student = build_student("sasrec", {"hidden_size": 8, "heads": 1}, dataset.n_items, STUDENTS).eval()
    examples = dataset.examples("test")
    with torch.no_grad():
        student.item_table.weight.sub_(5)  # all scores lie far from 0, the score of a vector of zeros
    ranks, best = rank_and_top(student, dataset, examples, 20)
    assert best.max() < dataset.n_items
    windows = held_out_windows(dataset, examples, student.max_length)
    batch = make_batch(dataset, windows, np.arange(len(examples)))
    with torch.inference_mode():
        table = student.item_vectors()
        scores = student.encode_last(batch.histories, batch.lengths, table) @ table.T
    own = scores.gather(1, batch.targets[:, None])
    assert ranks.tolist() == (scores >= own).sum(dim=1).tolist()
    assert np.array_equal(np.sort(best), np.sort(scores.topk(20, dim=1).indices.numpy()))


def test_a_model_may_score_in_its_own_way(tiny_dataset: Dataset) -> None:
    class Direct:
        n_items, max_length = tiny_dataset.n_items, 3

        def score(self, histories: Tensor, lengths: Tensor) -> Tensor:
            last = histories[torch.arange(len(lengths)), lengths - 1]
            return -((torch.arange(self.n_items) - last[:, None] - 1) % self.n_items).float()

    examples = tiny_dataset.examples("test")
    assert target_ranks(Direct(), tiny_dataset, examples).tolist() == [1] * len(examples)
    best = top_items(Direct(), tiny_dataset, examples, 2)
    assert np.array_equal(best[:, 0], tiny_dataset.items[examples])
