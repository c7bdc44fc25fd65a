"""Ranks kept for a report: every figure of the first 20 places is the same as of the ranks themselves."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distilrec.evaluation.metrics import gain
from kept import computed, keep, kept


@given(st.lists(st.integers(1, 12_101), min_size=1, max_size=200))
def test_metrics_down_to_place_20_are_those_of_the_ranks(tmp_path_factory, found: list[int]) -> None:
    path = tmp_path_factory.mktemp("kept") / "one.npz"
    ranks = np.array(found)
    keep(path, {"a": 1}, {"test": ranks}, {"valid": 0.1})
    stored = kept(path, {"a": 1})
    assert stored is not None
    for metric in ("hr@1", "hr@20", "ndcg@10", "ndcg@20", "mrr@20"):
        np.testing.assert_array_equal(gain(metric, stored[0]["test"]), gain(metric, ranks))
    assert stored[1] == {"valid": 0.1}


def test_ranks_of_other_settings_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    assert kept(path, {"a": 1}) is None
    keep(path, {"a": 1}, {"test": np.array([1, 300])}, {})
    assert kept(path, {"a": 2}) is None


def test_the_same_ranks_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        keep(tmp_path / name, {}, {"test": np.array([3, 1])}, {})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_computed_ranks_are_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "ranks.npy"
    assert computed(path, lambda: np.array([5, 300])).tolist() == [5, 300]
    assert computed(path, lambda: np.array([1])).tolist() == [5, 300]
