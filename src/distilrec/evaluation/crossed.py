"""Is one way of training better than another, for other users and other seeds than those at hand?

`significance` asks about other users, with the trained models given. Here seeds count too. A side's gain of user u with seed s is
taken as
    x_us = m + a_u + b_s + e_us
with users, seeds and their interplay drawn at random; users are the same on both sides, seeds are not. Of the difference D of the
means
    V = Var_u(mean_s x_other - mean_s x_base) / n  +  sum over both sides of max(0, Var_s(mean_u x) - Var(e) / n) / S,
where Var(e) is the mean square of what is left of x_us after its user's and its seed's mean; the first term holds e already. Then
D / sqrt(V) is held against Student's t with Satterthwaite's degrees of freedom, V^2 / sum of (term^2 / its degrees of freedom), since
a variance of three seeds is hardly known. A percentile bootstrap that draws three seeds out of three finds two thirds of their
variance. In simulations (tests) the intervals hold the truth in 93 to 97 of 100 cases for two to five seeds; over users alone they
held it in 75 to 96.

Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 1946; crossed random effects and
why no bootstrap is exact for them: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
"""

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
        seed_error: the same for seeds; None where a side has one seed only, so that nothing is known of it and it counts as 0.
        degrees: of freedom.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    user_error: float
    seed_error: float | None
    degrees: float


def crossed(baseline: Side, other: Side, metric: str, *, level: float = 0.95) -> Crossed:
    """Compare two sides over the same users in the same order, each with its own seeds."""
    return crossed_gains(gains_of(baseline, metric), gains_of(other, metric), level=level)


def gains_of(side: Side, metric: str) -> Floats:
    """Return the gains of a side, [S, n]."""
    return np.stack([gain(metric, ranks) for ranks in side.ranks])


def crossed_gains(baseline: Floats, other: Floats, *, level: float = 0.95) -> Crossed:
    """Compare gains [S, n] and [T, n]; see `crossed`."""
    if baseline.shape[1] != other.shape[1] or baseline.shape[1] < 2:
        raise ValueError(f"gains of the same two users at least are needed, got {baseline.shape} and {other.shape}")
    gaps = other.mean(axis=0) - baseline.mean(axis=0)  # [n]
    n, difference = len(gaps), float(gaps.mean())
    terms = [(float(gaps.var(ddof=1)) / n, n - 1)]
    known = True
    for side in (baseline, other):
        if len(side) < 2:
            known = False
        else:
            terms.append((seed_variance(side) / len(side), len(side) - 1))
    from scipy import stats  # takes a second to load: only who compares pays for it

    variance = sum(value for value, _ in terms)
    if variance <= 0:
        p = 1.0 if difference == 0 else 0.0
        return Crossed(difference, (difference, difference), p, 0.0, 0.0 if known else None, float(n - 1))
    degrees = variance**2 / sum(value**2 / free for value, free in terms)
    error = variance**0.5
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, degrees))
    seeds = sum(value for value, _ in terms[1:]) ** 0.5 if known else None
    return Crossed(difference, (difference - half, difference + half), p, terms[0][0] ** 0.5, seeds, degrees)


def seed_variance(gains: Floats) -> float:
    """Return the variance between seeds of gains [S, n], without what users as such and their interplay with seeds add to it."""
    seeds, n = gains.shape
    by_seed = gains.mean(axis=1)
    rest = gains - gains.mean(axis=0) - by_seed[:, None] + gains.mean()
    interplay = float(np.square(rest).sum()) / ((seeds - 1) * (n - 1))
    return max(0.0, float(by_seed.var(ddof=1)) - interplay / n)


def interval_of(gains: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of gains [S, n] over other users and other seeds."""
    return crossed_gains(np.zeros((1, gains.shape[1])), gains, level=level).interval
