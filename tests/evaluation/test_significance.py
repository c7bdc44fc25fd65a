"""Paired tests against hand-computed values, scipy, a sign-flip test, and worlds in which the truth is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import gain
from distilrec.evaluation.significance import NOT_SIGNIFICANT, Side, compare, effect_size, holm, wilcoxon

METRICS = ["hr@10", "ndcg@10"]


def some_ranks(n: int, seed: int, most: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most, n)


def side(*ranks: np.ndarray, name: str = "model") -> Side:
    return Side(name, ranks)


def test_holm_hand_computed() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 3x, 1x -> 0.06, 2x, 4x
    assert holm([0.5, 0.4, 0.001]) == pytest.approx([0.8, 0.8, 0.003])
    assert holm([0.9, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, own in zip(p_values, adjusted, strict=True):
        assert p <= own <= min(1, p * len(p_values))
    in_order = [own for _, own in sorted(zip(p_values, adjusted, strict=True))]
    assert all(one <= other for one, other in pairwise(in_order))


def test_wilcoxon_is_that_of_scipy_with_pratts_zeros() -> None:
    gaps = gain("ndcg@10", some_ranks(300, 1)) - gain("ndcg@10", some_ranks(300, 2, 30))
    assert (gaps == 0).sum() > 100
    assert wilcoxon(gaps) == stats.wilcoxon(gaps, zero_method="pratt").pvalue
    assert wilcoxon(gaps) != stats.wilcoxon(gaps, zero_method="wilcox").pvalue


def test_wilcoxon_by_hand() -> None:
    # Five differences of one sign and no ties: the chance of the most extreme ranks is 2 / 2^5.
    assert wilcoxon(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 32)


def test_nothing_differs() -> None:
    ranks = some_ranks(50, 3)
    for one in compare(side(ranks), [side(ranks.copy())], METRICS, resamples=500):
        assert (one.difference, one.interval, one.effect_size) == (0, (0, 0), 0)
        assert (one.bootstrap_p, one.wilcoxon_p, one.holm_p) == (1, 1, 1)
        assert (one.users_better, one.users_worse, one.verdict) == (0, 0, NOT_SIGNIFICANT)


def test_effect_size_by_hand() -> None:
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)  # mean 2, standard deviation 1
    assert effect_size(np.zeros(4)) == 0
    assert effect_size(np.full(4, 0.3)) is None
    assert effect_size(np.array([0.5])) is None


def test_figures_of_a_comparison() -> None:
    before, after = some_ranks(200, 1), some_ranks(200, 2, 25)
    found = compare(side(before), [side(after, name="new")], METRICS, resamples=2000)
    for one in found:
        gaps = gain(one.metric, after) - gain(one.metric, before)
        assert one.other == "new"
        assert one.difference == pytest.approx(gaps.mean())
        assert one.other_mean - one.baseline_mean == pytest.approx(one.difference)
        assert one.effect_size == pytest.approx(gaps.mean() / gaps.std(ddof=1))
        assert (one.users_better, one.users_worse) == ((gaps > 0).sum(), (gaps < 0).sum())
        half = 1.96 * gaps.std(ddof=1) / math.sqrt(200)
        assert one.interval == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.15 * half)
    assert [one.metric for one in found] == METRICS


def test_bootstrap_p_agrees_with_a_sign_flip_test() -> None:
    generator = np.random.default_rng(0)
    for seed in range(6):
        before, after = some_ranks(150, 10 + seed), some_ranks(150, 30 + seed, 34)
        (one,) = compare(side(before), [side(after)], ["ndcg@10"], resamples=8000)
        gaps = gain("ndcg@10", after) - gain("ndcg@10", before)
        flipped = (generator.choice([-1, 1], (8000, 150)) * gaps).mean(axis=1)
        assert one.bootstrap_p == pytest.approx((np.abs(flipped) >= abs(gaps.mean())).mean(), abs=0.04)


def test_p_is_below_the_level_just_where_the_interval_leaves_out_zero() -> None:
    seen = set()
    for seed in range(40):
        before, after = some_ranks(120, seed), some_ranks(120, seed + 100, 32)
        for one in compare(side(before), [side(after)], METRICS, resamples=4000):
            if abs(one.bootstrap_p - 0.05) < 0.004:
                continue  # a quantile between two draws may fall on either side
            outside = not one.interval[0] <= 0 <= one.interval[1]
            assert outside == (one.bootstrap_p < 0.05)
            seen.add(outside)
    assert seen == {True, False}


@pytest.mark.parametrize("most", [40, 30])
def test_swapped_sides_swap_signs_and_nothing_else(most: int) -> None:
    first, second = some_ranks(160, 5), some_ranks(160, 6, most)
    there = compare(side(first), [side(second)], METRICS, resamples=900, seed=3)
    back = compare(side(second), [side(first)], METRICS, resamples=900, seed=3)
    for one, other in zip(there, back, strict=True):
        assert other.difference == -one.difference
        assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
        assert (other.bootstrap_p, other.wilcoxon_p, other.holm_p) == (one.bootstrap_p, one.wilcoxon_p, one.holm_p)
        assert other.effect_size == pytest.approx(-one.effect_size)
        assert (other.users_better, other.users_worse) == (one.users_worse, one.users_better)


def test_same_seed_same_p_and_another_seed_another() -> None:
    sides = side(some_ranks(90, 1)), [side(some_ranks(90, 2, 33))]
    first = compare(*sides, METRICS, resamples=700, seed=1)
    assert compare(*sides, METRICS, resamples=700, seed=1) == first
    assert compare(*sides, METRICS, resamples=700, seed=2) != first


def test_a_metric_does_not_depend_on_the_company_it_is_in() -> None:
    sides = side(some_ranks(90, 1)), [side(some_ranks(90, 2, 33))]
    alone, together = (compare(*sides, metrics, resamples=700) for metrics in (["ndcg@10"], ["hr@5", "ndcg@10"]))
    assert (alone[0].bootstrap_p, alone[0].interval) == (together[1].bootstrap_p, together[1].interval)


def test_false_findings_are_as_many_as_the_level_allows() -> None:
    # Both sides are draws of one distribution. Of 400 tests at 5 % about 20 come out; the standard error is 1.1 points, and
    # the percentile bootstrap is known to be a little eager with few users.
    generator = np.random.default_rng(12)
    trials, found, by_wilcoxon = 400, 0, 0
    for trial in range(trials):
        before, after = generator.integers(1, 30, (2, 100))
        (one,) = compare(side(before), [side(after)], ["ndcg@10"], resamples=400, seed=trial)
        found += one.verdict != NOT_SIGNIFICANT
        by_wilcoxon += one.wilcoxon_p < 0.05
    assert 0.025 <= found / trials <= 0.08
    assert 0.025 <= by_wilcoxon / trials <= 0.08


def test_holm_keeps_a_family_to_the_level() -> None:
    # Five models that are all like the baseline: at least one false finding in about 5 % of the families, not in 20 %.
    generator = np.random.default_rng(5)
    trials, wrong, unadjusted = 150, 0, 0
    for trial in range(trials):
        baseline, *others = generator.integers(1, 30, (6, 100))
        found = compare(side(baseline), [side(one) for one in others], ["ndcg@10"], resamples=500, seed=trial)
        wrong += any(one.verdict != NOT_SIGNIFICANT for one in found)
        unadjusted += any(one.bootstrap_p < 0.05 for one in found)
    assert wrong / trials <= 0.1 < unadjusted / trials


def test_a_true_difference_is_found_and_has_a_direction() -> None:
    generator = np.random.default_rng(3)
    worse = generator.integers(1, 60, 600)
    better = np.maximum(1, worse - generator.integers(0, 12, 600))
    for one in compare(side(worse), [side(better)], METRICS, resamples=1000):
        assert (one.verdict, one.difference > 0) == ("better", True)
        assert one.wilcoxon_p < 0.001
    assert {one.verdict for one in compare(side(better), [side(worse)], METRICS, resamples=1000)} == {"worse"}


def test_seeds_are_averaged_user_by_user_first() -> None:
    before = [some_ranks(80, seed) for seed in range(3)]
    after = [some_ranks(80, seed, 30) for seed in range(3, 5)]
    (one,) = compare(side(*before), [side(*after)], ["hr@10"], resamples=600)
    gaps = np.mean([ranks <= 10 for ranks in after], axis=0) - np.mean([ranks <= 10 for ranks in before], axis=0)
    assert one.difference == pytest.approx(gaps.mean())
    assert one.effect_size == pytest.approx(gaps.mean() / gaps.std(ddof=1))
    assert one.wilcoxon_p == pytest.approx(stats.wilcoxon(gaps, zero_method="pratt").pvalue)


def test_holm_is_over_sides_and_metrics() -> None:
    sides = [side(some_ranks(200, seed, most), name=str(seed)) for seed, most in ((1, 30), (2, 34), (3, 40))]
    found = compare(side(some_ranks(200, 0)), sides, METRICS, resamples=2000)
    assert [(one.other, one.metric) for one in found] == [(name, metric) for name in "123" for metric in METRICS]
    assert [one.holm_p for one in found] == holm([one.bootstrap_p for one in found])
    assert len({one.holm_p for one in found}) > 2


def test_too_few_resamples_for_the_family() -> None:
    sides = [side(some_ranks(30, seed)) for seed in range(3)]
    with pytest.raises(
        ConfigError, match=r"with 200 resamples none of 6 comparisons .* at least 240 resamples"
    ) as caught:
        compare(side(some_ranks(30, 9)), sides, METRICS, resamples=200)
    assert caught.value.exit_code == 2
    compare(side(some_ranks(30, 9)), sides, METRICS, resamples=240)


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'hits@10'"):
        compare(side(some_ranks(9, 1)), [side(some_ranks(9, 2))], ["hits@10"])
