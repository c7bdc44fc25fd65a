"""Differences over users and seeds: by hand, and by simulation: how often an interval holds the truth."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from distilrec.evaluation.crossed import SeedSpread, crossed, crossed_gains, interval_of, spread_of
from distilrec.evaluation.significance import Side, holm

Floats = npt.NDArray[np.float64]


def test_by_hand() -> None:
    base = np.array([[1.0, 3.0], [4.0, 4.0]])
    other = np.array([[3.0, 5.0], [2.0, 1.0]])
    # Gaps of the users' means: 2.5 - 2.5 and 3 - 3.5: mean -1/4, variance 1/8, over two users 1/16.
    # Base: seed means 2 and 4, variance 2; rest: x - user mean - seed mean + 3 = -.5, .5, .5, -.5: 1 in all, 1 / 1 over users .5.
    # Other: seed means 4 and 1.5, variance 3.125; rest -.75, .75, .75, -.75: 2.25 in all, over users 1.125.
    spread = spread_of([base, other])
    assert spread is not None
    assert (spread.between, spread.interplay, spread.degrees) == pytest.approx((5.125 / 2, 1.625 / 2, 2))
    found = crossed_gains(base, other)
    assert found.difference == pytest.approx(-0.25)
    assert found.user_error == pytest.approx(0.25)
    assert found.seed_error == pytest.approx((1.5 / 2 + 2 / 2) ** 0.5)
    variance = 1 / 16 + 1.5 / 2 + 2 / 2
    assert found.degrees == pytest.approx(variance**2 / ((1 / 16) ** 2 + (2 / 2) ** 2 + (3.125 / 2) ** 2))
    half = stats.t.ppf(0.975, found.degrees) * variance**0.5
    assert found.interval == pytest.approx((-0.25 - half, -0.25 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(0.25 / variance**0.5, found.degrees))


def test_a_common_spread_by_hand() -> None:
    base, other = np.array([[1.0, 3.0], [4.0, 4.0]]), np.array([[3.0, 5.0]])
    # Gaps 0.5 and 1.5: mean 1, variance 1/2, over two users 1/4. Two seeds on one side, one on the other: 1/2 + 1.
    found = crossed_gains(base, other, spread=SeedSpread(between=0.3, interplay=0.1, degrees=6))
    variance = 0.25 + 1.5 * (0.3 - 0.1)
    assert found.difference == 1
    assert found.seed_error == pytest.approx((1.5 * 0.2) ** 0.5)
    assert found.degrees == pytest.approx(variance**2 / (0.25**2 + (1.5 * 0.3) ** 2 / 6))
    # A side with one seed is taken to be like the other: base alone has B = 2, E / n = 1/2 with one degree.
    alone = crossed_gains(base, other)
    assert alone.seed_error == pytest.approx((1.5 * 1.5) ** 0.5)
    assert crossed_gains(base[:1], other).seed_error is None
    assert spread_of([other]) is None


def test_seeds_that_lie_closer_than_chance_count_as_nothing() -> None:
    base = np.array([[1.0, 3.0], [3.0, 1.0]])  # seed means alike, rest large
    found = crossed_gains(base, base + 1)
    assert found.seed_error == 0
    assert found.user_error == 0
    assert found.p == 0


def test_one_seed_is_a_paired_t_test_and_says_so() -> None:
    generator = np.random.default_rng(0)
    base, other = generator.random((1, 50)), generator.random((1, 50))
    found = crossed_gains(base, other)
    wanted = stats.ttest_rel(other[0], base[0])
    assert found.seed_error is None
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval()))


def test_swapped_sides_turn_the_sign_around() -> None:
    generator = np.random.default_rng(1)
    base, other = generator.random((3, 40)), generator.random((4, 40))
    one, two = crossed_gains(base, other), crossed_gains(other, base)
    assert one.difference == pytest.approx(-two.difference)
    assert one.p == pytest.approx(two.p)
    assert one.interval == pytest.approx((-two.interval[1], -two.interval[0]))


def test_ranks_become_gains() -> None:
    base, other = (
        Side("a", [np.array([1, 20, 3]), np.array([1, 2, 30])]),
        Side("b", [np.array([1, 1, 1]), np.array([1, 1, 1])]),
    )
    found = crossed(base, other, "hr@10")
    assert found.difference == pytest.approx(1 / 3)
    assert crossed(base, base, "hr@10").p == 1


def test_where_nothing_varies() -> None:
    same = np.full((2, 5), 0.25)
    assert crossed_gains(same, same).p == 1
    assert crossed_gains(same, same + 0.5).p == 0
    with pytest.raises(ValueError, match="same two users"):
        crossed_gains(np.zeros((2, 5)), np.zeros((2, 4)))


def side(generator: np.random.Generator, users: Floats, seeds: int, spread: float) -> Floats:
    """Draw gains as they are: mostly nothing, some users easier than others, seeds that are better or worse for all, [S, n]."""
    quality = np.clip(users + generator.normal(0, spread, seeds)[:, None], 0, 1)
    common = generator.random(len(users)) < users * 0.3
    hit = (generator.random((seeds, len(users))) < quality * 0.7) | common
    return np.where(hit, generator.choice([1, 0.63, 0.5, 0.43, 0.39], size=hit.shape), 0.0)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.01), (3, 0.03), (5, 0.01), (2, 0.01)])
def test_intervals_hold_the_truth_and_a_true_null_is_seldom_refused(seeds: int, spread: float) -> None:
    """400 pairs of sides that are alike: 95 % must hold zero, give or take what 400 draws may miss by and what is approximate."""
    generator, held, refused, over_users = np.random.default_rng(7), 0, 0, 0
    for _ in range(400):
        users = generator.beta(0.3, 2.5, 600)
        base, other = side(generator, users, seeds, spread), side(generator, users, seeds, spread)
        found = crossed_gains(base, other)
        held += found.interval[0] <= 0 <= found.interval[1]
        refused += found.p < 0.05
        over_users += stats.ttest_1samp(other.mean(axis=0) - base.mean(axis=0), 0).pvalue < 0.05
    assert held == 400 - refused
    assert 0.93 <= held / 400 <= 1.0
    if spread >= 0.03:
        assert over_users / 400 > 0.12  # what a test over users alone would call significant


def test_tables_of_many_tests_seldom_cry_wolf_with_a_common_spread() -> None:
    """300 tables of 5 methods against one plain student, two seeds that lie far apart: adjusted, at most 5 % hold any verdict."""
    generator, cried, alone = np.random.default_rng(11), 0, 0
    for _ in range(300):
        users = generator.beta(0.3, 2.5, 400)
        plain, *others = (side(generator, users, 2, 0.03) for _ in range(6))
        spread = spread_of([plain, *others])
        cried += min(holm([crossed_gains(plain, other, spread=spread).p for other in others])) < 0.05
        alone += min(holm([crossed_gains(plain, other).p for other in others])) < 0.05
    assert cried / 300 <= 0.08  # 5 % and what 300 tables may miss by
    assert cried < alone


def test_the_mean_of_one_side() -> None:
    generator, held = np.random.default_rng(3), 0
    truth = 0.3 / 2.8  # of the users' beta distribution
    for _ in range(400):
        quality = generator.beta(0.3, 2.5, 500) + generator.normal(0, 0.01, 3)[:, None]
        low, high = interval_of(quality + generator.normal(0, 0.2, quality.shape))
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.99
