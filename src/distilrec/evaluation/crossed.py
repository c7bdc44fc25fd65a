"""Is one way of training better than another, for other users and other seeds than those at hand?

`significance` asks about other users, with the trained models given. Here seeds count too. A side's gain of user u with seed s is
taken as
    x_us = m + a_u + b_s + e_us
with users, seeds and their interplay drawn at random; users are the same on both sides, seeds are not. Of the difference D of the
means
    V = Var_u(mean_s x_other - mean_s x_base) / n  +  max(0, sum over both sides of (B - E / n) / S),
where B = Var_s(mean_u x) and E is the mean square of what is left of x_us after its user's and its seed's mean; the first term holds
E already. D / sqrt(V) is held against Student's t. Its degrees of freedom are Satterthwaite's, of the mean squares that V is made of:
V^2 / sum of (share^2 / its degrees), where B has S - 1 on each side: a variance of three seeds is hardly known.

Where many trainings of one kind are at hand, B and E can be taken from all of them (`SeedSpread`), as in an analysis of variance: how
far seeds lie apart is taken to be the same for all, and is known with that many more degrees of freedom. A side with one seed can
then be judged, too. A percentile bootstrap that draws three seeds out of three finds two thirds of their variance.

In simulations (tests, and benchmarks/compare_null.py) intervals of two to five seeds hold the truth in 95 to 99 of 100 cases; over
users alone in 59 to 97, by how far seeds lie apart. Whole tables of 30 tests, adjusted after Holm, cry wolf in at most 5 of 100 with a
common spread; without it, at two seeds that lie far apart, more often.

Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 1946; crossed random effects and
why no bootstrap is exact for them: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distilrec.evaluation.metrics import Floats, gain
from distilrec.evaluation.significance import Side


@dataclass(frozen=True, slots=True)
class Crossed:
    """A difference between two sides over users and seeds.

    Attributes:
        difference: mean of the other side minus that of the baseline.
        interval: of the difference.
        p: two-sided.
        user_error: standard error that the choice of users makes.
        seed_error: the same for seeds; None where no side has two of them, so that nothing is known of it and it counts as 0.
        degrees: of freedom.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    user_error: float
    seed_error: float | None
    degrees: float


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """How far seeds of one kind of training lie apart.

    Attributes:
        between: mean square between the means of seeds, B.
        interplay: what users' and seeds' interplay adds to it, E / n.
        degrees: of freedom of `between`.
    """

    between: float
    interplay: float
    degrees: int


def crossed(
    baseline: Side, other: Side, metric: str, *, level: float = 0.95, spread: SeedSpread | None = None
) -> Crossed:
    """Compare two sides over the same users in the same order, each with its own seeds.

    Args:
        baseline: what the other side is held against.
        other: the other side.
        metric: for example ndcg@10.
        level: of the interval.
        spread: of seeds, found over more trainings than these (`spread_of`); else each side's own.
    """
    return crossed_gains(gains_of(baseline, metric), gains_of(other, metric), level=level, spread=spread)


def gains_of(side: Side, metric: str) -> Floats:
    """Return the gains of a side, [S, n]."""
    return np.stack([gain(metric, ranks) for ranks in side.ranks])


def crossed_gains(baseline: Floats, other: Floats, *, level: float = 0.95, spread: SeedSpread | None = None) -> Crossed:
    """Compare gains [S, n] and [T, n]; see `crossed`."""
    if baseline.shape[1] != other.shape[1] or baseline.shape[1] < 2:
        raise ValueError(f"gains of the same two users at least are needed, got {baseline.shape} and {other.shape}")
    gaps = other.mean(axis=0) - baseline.mean(axis=0)  # [n]
    return _judged(gaps, [baseline, other], level, spread)


def interval_of(gains: Floats, *, level: float = 0.95, spread: SeedSpread | None = None) -> tuple[float, float]:
    """Return the interval of the mean of gains [S, n] over other users and other seeds."""
    return _judged(gains.mean(axis=0), [gains], level, spread).interval


def _judged(gaps: Floats, sides: Sequence[Floats], level: float, spread: SeedSpread | None) -> Crossed:
    from scipy import stats  # takes a second to load: only who compares pays for it

    n, difference = len(gaps), float(gaps.mean())
    of_users = float(gaps.var(ddof=1)) / n
    squares = _squares(sides, spread)
    seeds = None if squares is None else max(0.0, sum(square.between - square.interplay for square in squares))
    variance = of_users + (seeds or 0.0)
    seed_error = None if seeds is None else seeds**0.5
    if variance <= 0:
        p = 1.0 if difference == 0 else 0.0
        return Crossed(difference, (difference, difference), p, 0.0, seed_error, float(n - 1))
    uncertain = of_users**2 / (n - 1) + sum(square.between**2 / square.degrees for square in squares or ())
    degrees, error = variance**2 / uncertain, variance**0.5
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, degrees))
    return Crossed(difference, (difference - half, difference + half), p, of_users**0.5, seed_error, degrees)


def _squares(sides: Sequence[Floats], spread: SeedSpread | None) -> list[SeedSpread] | None:
    """Return the shares of V that seeds make, with their degrees; None if nothing is known of them."""
    if any(len(side) < 2 for side in sides):
        spread = spread or spread_of(sides)  # a side with one seed is taken to be like the other
        if spread is None:
            return None
    if spread is not None:
        share = sum(1 / len(side) for side in sides)
        return [SeedSpread(share * spread.between, share * spread.interplay, spread.degrees)]
    own = [_spread(side) for side in sides]
    return [
        SeedSpread(one.between / len(side), one.interplay / len(side), one.degrees)
        for one, side in zip(own, sides, strict=True)
    ]


def spread_of(trainings: Sequence[Floats]) -> SeedSpread | None:
    """Return how far seeds lie apart over several kinds of training, gains [S, n] each; None if none has two seeds.

    Mean squares are averaged by their degrees of freedom.
    """
    known = [_spread(gains) for gains in trainings if len(gains) > 1]
    degrees = sum(one.degrees for one in known)
    if degrees == 0:
        return None
    between, interplay = (
        sum(getattr(one, name) * one.degrees for one in known) / degrees for name in ("between", "interplay")
    )
    return SeedSpread(between, interplay, degrees)


def _spread(gains: Floats) -> SeedSpread:
    seeds, n = gains.shape
    by_seed = gains.mean(axis=1)
    rest = gains - gains.mean(axis=0) - by_seed[:, None] + gains.mean()
    interplay = float(np.square(rest).sum()) / ((seeds - 1) * (n - 1))
    return SeedSpread(float(by_seed.var(ddof=1)), interplay / n, seeds - 1)
