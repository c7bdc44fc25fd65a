"""Groups cover every example once; their figures are those of their members."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.evaluation.groups import by_history, by_popularity, group_rows, main_cutoff, measure
from distilrec.evaluation.metrics import bootstrap_intervals, evaluate_ranks

DRAWS = {"resamples": 60, "seed": 4}


def test_history_hand_computed() -> None:
    lengths = np.array([5, 5, 6, 6, 7, 9, 9, 30])
    groups = by_history(lengths)
    assert [(group.label, int(group.members.sum())) for group in groups] == [("5", 2), ("6", 2), ("7-9", 3), ("30", 1)]
    assert [(group.low, group.high) for group in groups] == [(5, 5), (6, 6), (7, 9), (30, 30)]


def test_history_cuts_that_are_equal_are_merged() -> None:
    lengths = np.array([4] * 70 + [5] * 10 + [6, 7, 8, 9, 10] * 4)
    assert [group.label for group in by_history(lengths)] == ["4", "5", "6-10"]
    assert [group.label for group in by_history(np.full(9, 3))] == ["3"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 6))
def test_history_buckets_share_out_the_examples(lengths: list[int], parts: int) -> None:
    groups = by_history(np.array(lengths), parts)
    members = np.stack([group.members for group in groups])
    assert (members.sum(axis=0) == 1).all()  # each example in one bucket
    assert members.any(axis=1).all()  # no bucket empty
    assert len(groups) <= parts
    assert all(one.high < other.low for one, other in pairwise(groups))  # shortest first


def test_popularity_hand_computed() -> None:
    # Warm items: 40, 9, 8, 8, 3, 2, 2, 1, 1, 1. Two of ten may be head: 40 and 9. The others hold 26 interactions: from the
    # least popular on 1, 2, 3, 5, 7, 10, 18: half is reached with an 8, and both eights go to the less popular side.
    popularity = np.array([0, 40, 9, 8, 8, 3, 2, 2, 1, 1, 1, 0])
    targets = np.arange(12)
    groups = {group.label: group for group in by_popularity(popularity, targets)}
    assert list(groups) == ["cold", "tail", "head"]
    assert targets[groups["cold"].members].tolist() == [0, 11]
    assert popularity[groups["head"].members].tolist() == [40, 9]
    assert (groups["tail"].low, groups["tail"].high) == (1, 8)


def test_popularity_with_a_mid() -> None:
    popularity = np.array([20, 18, 7, 6, 5, 4, 3, 2, 2, 1])  # the rest: 30, from below 1, 3, 5, 8, 12, 17
    groups = {group.label: (group.low, group.high) for group in by_popularity(popularity, np.arange(10))}
    assert groups == {"tail": (1, 5), "mid": (6, 7), "head": (18, 20)}


def test_popularity_groups_without_targets_are_left_out() -> None:
    popularity = np.array([20, 18, 7, 6, 5, 4, 3, 2, 2, 1])
    assert [group.label for group in by_popularity(popularity, np.array([2, 2, 0]))] == ["mid", "head"]
    assert [group.label for group in by_popularity(np.zeros(4, dtype=np.int64), np.array([1, 2]))] == ["cold"]
    assert [group.label for group in by_popularity(np.full(8, 3), np.arange(8))] == ["tail"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.data())
def test_popularity_groups_share_out_the_examples(counts: list[int], data: st.DataObject) -> None:
    popularity = np.array(counts)
    targets = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=40)))
    groups = by_popularity(popularity, targets)
    members = np.stack([group.members for group in groups])
    assert (members.sum(axis=0) == 1).all()
    assert members.any(axis=1).all()
    own = popularity[targets]
    for group in groups:
        assert (group.low, group.high) == (own[group.members].min(), own[group.members].max())
        assert (group.high == 0) == (group.label == "cold")
    warm = (popularity > 0).sum()
    head = [group for group in by_popularity(popularity, np.arange(len(counts))) if group.label == "head"]
    assert sum(int(group.members.sum()) for group in head) <= 0.2 * warm


@pytest.mark.parametrize(
    ("cutoffs", "main"), [([1, 5, 10, 20], 10), ([5, 20], 5), ([20, 50], 20), ([12, 8], 8), ([1], 1)]
)
def test_main_cutoff(cutoffs: list[int], main: int) -> None:
    assert main_cutoff(cutoffs) == main


def test_rows_are_the_figures_of_their_members() -> None:
    generator = np.random.default_rng(1)
    lengths, ranks = generator.integers(3, 40, 90), generator.integers(1, 30, 90)
    groups = by_history(lengths)
    rows = group_rows(groups, ranks, [5, 20], **DRAWS)
    assert sum(row["n"] for row in rows) == 90
    for group, row in zip(groups, rows, strict=True):
        own = ranks[group.members]
        assert row["label"] == group.label
        assert row["range"] == [group.low, group.high]
        assert row["metrics"] == {name: evaluate_ranks(own, [5])[name] for name in ("hr@5", "ndcg@5")}
        assert row["ci95"]["hr@5"] == bootstrap_intervals(own, [5], **DRAWS)["hr@5"]


def test_measure_of_some_and_of_none() -> None:
    ranks = np.array([1, 30, 2, 30])
    found = measure(ranks, [10], np.array([True, False, True, False]), **DRAWS)
    assert (found["n"], found["metrics"]["hr@10"], found["ci95"]["hr@10"]) == (2, 1.0, [1.0, 1.0])
    assert measure(ranks, [10], np.zeros(4, dtype=bool), **DRAWS) == {"n": 0, "metrics": {}, "ci95": {}}
