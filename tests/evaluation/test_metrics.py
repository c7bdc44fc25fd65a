"""Metrics against hand-computed values and against the independent library ranx; lists against plain loops."""

import math

import numpy as np
import pytest

from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import (
    bootstrap_intervals,
    evaluate_ranks,
    gain,
    list_metrics,
    metric_names,
    resampled_means,
)

CUTOFFS = [1, 5, 10, 20]


def test_hand_computed() -> None:
    ranks = np.array([1, 2, 3, 7, 11])
    assert gain("hr@3", ranks).tolist() == [1, 1, 1, 0, 0]
    assert gain("ndcg@3", ranks).tolist() == pytest.approx([1, 1 / math.log2(3), 0.5, 0, 0])
    assert gain("mrr@10", ranks).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 7, 0])
    measured = evaluate_ranks(ranks, [3])
    assert measured == {
        "hr@3": pytest.approx(0.6),
        "ndcg@3": pytest.approx((1.5 + 1 / math.log2(3)) / 5),
        "mrr@3": pytest.approx((1 + 1 / 2 + 1 / 3) / 5),
        "recall@3": pytest.approx(0.6),
        "map@3": pytest.approx((1 + 1 / 2 + 1 / 3) / 5),
    }


@pytest.mark.parametrize(
    "name", ["hr", "hr@", "hr@0", "hr@-1", "hr@x", "precision@10", "HR@10", "hr@\u00b2", "@10", ""]
)
def test_unknown_metric(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown metric"):
        gain(name, np.array([1]))


def test_names() -> None:
    kinds = ("hr", "ndcg", "mrr", "recall", "map")
    assert metric_names([5, 10]) == [f"{kind}@{k}" for kind in kinds for k in (5, 10)]
    assert list(evaluate_ranks(np.array([1]), [5, 10])) == metric_names([5, 10])


def test_equal_to_ranx_where_scores_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "NUMBA_DISABLE_JIT", "1"
    )  # compiling takes half a minute, running as plain Python no time at all
    import ranx

    generator = np.random.default_rng(3)
    users, items = 150, 60
    scores = generator.integers(0, 12, (users, items)).astype(float)  # about five items share each score
    targets = generator.integers(0, items, users)
    scores[np.arange(users), targets] += generator.integers(0, 8, users)  # some targets come first, most do not
    own = scores[np.arange(users), targets]
    ranks = (scores >= own[:, None]).sum(axis=1)  # the target counts itself: 1 + others at least as good
    lowered = scores.copy()
    lowered[np.arange(users), targets] -= 0.5  # behind what it tied with, before what it beat
    qrels = ranx.Qrels({str(user): {str(target): 1} for user, target in enumerate(targets)})
    run = ranx.Run(
        {str(user): {str(item): score for item, score in enumerate(row)} for user, row in enumerate(lowered)}
    )
    theirs = ranx.evaluate(
        qrels, run, [f"{kind}@{k}" for kind in ("hit_rate", "ndcg", "mrr", "recall", "map") for k in CUTOFFS]
    )
    ours = evaluate_ranks(ranks, CUTOFFS)
    assert len(ours) == len(theirs) == 20
    assert 0 < ours["hr@1"] < ours["hr@20"] < 1
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name.replace("hr@", "hit_rate@")], abs=1e-9), name


def some_ranks(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 40, n)


def test_interval_holds_the_mean() -> None:
    ranks = some_ranks(200)
    intervals = bootstrap_intervals(ranks, CUTOFFS, resamples=400, seed=1)
    means = evaluate_ranks(ranks, CUTOFFS)
    assert list(intervals) == list(means)
    for name, (low, high) in intervals.items():
        assert low < means[name] < high, name


def test_interval_depends_on_the_seed_alone() -> None:
    ranks = some_ranks(100)
    first = bootstrap_intervals(ranks, [10], resamples=200, seed=5)
    assert bootstrap_intervals(ranks, [10], resamples=200, seed=5) == first
    assert bootstrap_intervals(ranks, [10], resamples=200, seed=6) != first


def test_interval_does_not_depend_on_the_memory_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = some_ranks(50)
    whole = bootstrap_intervals(ranks, [10], resamples=101, seed=5)
    monkeypatch.setattr("distilrec.evaluation.metrics._CELLS", 50 * 7)
    pieces = bootstrap_intervals(ranks, [10], resamples=101, seed=5)
    for name, interval in whole.items():
        assert pieces[name] == pytest.approx(interval, abs=1e-12)


def test_interval_is_that_of_users_drawn_one_by_one() -> None:
    ranks, generator = some_ranks(120), np.random.default_rng(9)
    draws = ranks[generator.integers(0, len(ranks), (20_000, len(ranks)))]
    for name, (low, high) in bootstrap_intervals(ranks, [10], resamples=20_000, seed=1).items():
        means = gain(name, draws).mean(axis=1)
        expected = np.quantile(means, [0.025, 0.975])
        assert [low, high] == pytest.approx(
            expected, abs=1.01 / 120 if name in ("hr@10", "recall@10") else 0.1 * means.std()
        ), name


def test_interval_does_not_depend_on_the_order_of_users() -> None:
    ranks = some_ranks(100)
    assert bootstrap_intervals(ranks, [10], resamples=90, seed=5) == bootstrap_intervals(
        ranks[::-1].copy(), [10], resamples=90, seed=5
    )


def test_the_same_draws_for_all_metrics() -> None:
    values = np.array([[0.0, 0.0], [1.0, 2.0]])
    means = resampled_means(values, np.array([3, 4]), resamples=50, seed=0)
    assert means.shape == (50, 2)
    assert means[:, 1] == pytest.approx(2 * means[:, 0])
    assert set(np.round(means[:, 0] * 7).astype(int)) <= set(range(8))


def test_interval_shrinks_with_the_root_of_n() -> None:
    def width(n: int) -> float:
        low, high = bootstrap_intervals(some_ranks(n), [10], resamples=1000, seed=2)["ndcg@10"]
        return high - low

    assert width(100) / width(1600) == pytest.approx(4, rel=0.25)


def test_a_higher_level_is_wider() -> None:
    ranks = some_ranks(100)
    narrow = bootstrap_intervals(ranks, [10], resamples=500, seed=2, level=0.5)["hr@10"]
    wide = bootstrap_intervals(ranks, [10], resamples=500, seed=2, level=0.99)["hr@10"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_all_alike_leaves_no_interval() -> None:
    assert bootstrap_intervals(np.ones(9, dtype=np.int64), [1], resamples=50, seed=0)["hr@1"] == pytest.approx([1, 1])


def test_coverage_of_known_truth() -> None:
    # hr@1 is a Bernoulli draw with p = 0.3; 95 % intervals should hold 0.3 about 95 times in 100. With 400 trials the
    # standard error of the coverage is 1.1 points.
    generator = np.random.default_rng(11)
    trials, inside = 400, 0
    for trial in range(trials):
        ranks = np.where(generator.random(200) < 0.3, 1, 2)
        low, high = bootstrap_intervals(ranks, [1], resamples=300, seed=trial)["hr@1"]
        inside += low <= 0.3 <= high
    assert 0.91 <= inside / trials <= 0.98


def test_lists_hand_computed() -> None:
    top = np.array([[0, 1], [0, 2], [0, 1]])
    popularity = np.array([9, 5, 5, 0])
    measured = list_metrics(top, popularity, [1, 2])
    # percentiles: the best-seller beats 3 of 4 and ties with itself: 3.5 / 4; the two alike beat one: (1 + 3) / 8
    assert measured == {
        "coverage@1": pytest.approx(1 / 4),
        "coverage@2": pytest.approx(3 / 4),
        "popularity@1": pytest.approx(3.5 / 4),
        "popularity@2": pytest.approx((3 * 3.5 / 4 + 3 * 0.5) / 6),
        "gini@1": pytest.approx(3 / 4),  # all on one of four
        "gini@2": pytest.approx(2 * (1 * 0 + 2 * 1 + 3 * 2 + 4 * 3) / (4 * 6) - 5 / 4),
    }


def test_lists_against_plain_loops() -> None:
    generator = np.random.default_rng(2)
    n_items, k = 30, 7
    popularity = generator.integers(0, 6, n_items)
    top = np.stack([generator.permutation(n_items)[:12] for _ in range(25)])
    top[:, 0] = 3
    measured = list_metrics(top, popularity, [k])
    listed = [int(item) for row in top for item in row[:k]]
    counts = [listed.count(item) for item in range(n_items)]

    def percentile(item: int) -> float:
        less = sum(other < popularity[item] for other in popularity)
        return (less + 0.5 * sum(other == popularity[item] for other in popularity)) / n_items

    mean_gap = sum(abs(a - b) for a in counts for b in counts) / n_items**2  # Gini by its other definition
    assert measured[f"coverage@{k}"] == pytest.approx(len(set(listed)) / n_items)
    assert measured[f"popularity@{k}"] == pytest.approx(sum(map(percentile, listed)) / len(listed))
    assert measured[f"gini@{k}"] == pytest.approx(mean_gap / (2 * sum(counts) / n_items))


def test_even_lists_are_in_the_middle() -> None:
    popularity = np.random.default_rng(0).integers(0, 4, 12)
    measured = list_metrics(np.arange(12).reshape(3, 4), popularity, [4])
    assert list(measured.values()) == pytest.approx([1, 0.5, 0], abs=1e-12)


def test_a_list_shorter_than_the_cutoff_is_taken_whole() -> None:
    top, popularity = np.array([[0, 1], [1, 0]]), np.array([1, 2])
    assert list_metrics(top, popularity, [20])["coverage@20"] == 1
