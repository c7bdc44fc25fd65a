"""Is a model better than another, or were the users lucky? Paired tests of the metric user by user.

d_u = gain of the other model for user u - gain of the baseline, each averaged over the seeds of its side first.

    difference    mean of d, with its percentile interval from users drawn with replacement
    bootstrap p   2 (1 + min(#{draws with mean <= 0}, #{draws with mean >= 0})) / (resamples + 1), at most 1: two-sided, and
                  below 1 - level just where the interval leaves out zero (Efron and Tibshirani, An Introduction to the
                  Bootstrap, 1993, chapters 13 and 16: an interval turned around is a test)
    Wilcoxon p    signed ranks of d, two-sided (Wilcoxon 1945). Users with d = 0 are ranked and their ranks left out (Pratt,
                  Remarks on Zeros and Ties in the Wilcoxon Signed Rank Procedures, JASA 1959); p = 1 if all are zero
    Holm p        the bootstrap p-values of the whole family, (m - i + 1) p_(i) made monotone (Holm, A Simple Sequentially
                  Rejective Multiple Test Procedure, 1979)
    effect size   Cohen's d_z = mean(d) / sd(d): how many standard deviations of a single user's difference

The verdict rests on the Holm-adjusted bootstrap p alone: it asks about the mean, which is what is published. Wilcoxon asks
whether d lies symmetrically about zero and stands beside it as a second opinion; no other adjusted p is offered to choose from.
The tests are over users, with the trained models given: they do not say that another seed would do as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import Floats, Ints, gain, resampled_means

NOT_SIGNIFICANT = "not significant"
_NOUGHT = 1e-12  # means of gains that cancel leave a rounding error of this kind


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared: a name and the ranks of one model, trained once or with several seeds; [n] each, same examples."""

    name: str
    ranks: Sequence[Ints]

    def gains(self, metric: str) -> Floats:
        """Return each example's gain, averaged over the seeds, [n]."""
        return np.mean([gain(metric, one) for one in self.ranks], axis=0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One side against the baseline in one metric.

    Attributes:
        other: name of the side.
        metric: for example ndcg@10.
        baseline_mean: of the baseline.
        other_mean: of the other side.
        difference: other_mean - baseline_mean.
        interval: of the difference.
        bootstrap_p: two-sided, unadjusted.
        wilcoxon_p: two-sided, unadjusted.
        effect_size: Cohen's d_z; None where every user differs alike, and not by zero.
        users_better: users with a higher gain on the other side.
        users_worse: users with a lower one.
        holm_p: bootstrap_p adjusted for all comparisons made together.
        verdict: better, worse or not significant, by holm_p.
    """

    other: str
    metric: str
    baseline_mean: float
    other_mean: float
    difference: float
    interval: tuple[float, float]
    bootstrap_p: float
    wilcoxon_p: float
    effect_size: float | None
    users_better: int
    users_worse: int
    holm_p: float
    verdict: str


def compare(
    baseline: Side,
    others: Sequence[Side],
    metrics: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Comparison]:
    """Compare every other side with the baseline in every metric; all these comparisons are one family for Holm.

    Args:
        baseline: ranks that the others are held against.
        others: sides over the same examples in the same order.
        metrics: for example hr@10 and ndcg@10.
        resamples: draws of the bootstrap; no p-value is smaller than 2 / (resamples + 1).
        seed: of the draws. Swapping two sides turns the signs around and leaves every p-value as it is.
        level: coverage of the intervals; 1 - level is the level of the tests.

    Raises:
        ConfigError: an unknown metric, or too few resamples for any of these comparisons to come out significant.
    """
    family, alpha = len(others) * len(metrics), round(1 - level, 12)
    if family * 2 / (resamples + 1) >= alpha:
        raise ConfigError(
            f"with {resamples} resamples none of {family} comparisons can be significant.",
            remedy=f"Use at least {int(round(2 * family / alpha, 6))} resamples.",
        )
    found = [_compared(baseline, other, metric, resamples, seed, level) for other in others for metric in metrics]
    adjusted = holm([one.bootstrap_p for one in found])
    return [
        replace(one, holm_p=p, verdict=_verdict(one.difference, p, alpha))
        for one, p in zip(found, adjusted, strict=True)
    ]


def _compared(baseline: Side, other: Side, metric: str, resamples: int, seed: int, level: float) -> Comparison:
    before, after = baseline.gains(metric), other.gains(metric)
    gaps = after - before + 0.0  # + 0.0: no negative zeros
    values, first, counts = np.unique(gaps, return_index=True, return_counts=True)
    order = np.argsort(first)  # as they come, not by size: swapped sides then draw the same users
    means = resampled_means(values[order, None], counts[order], resamples=resamples, seed=seed)[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Comparison(
        other=other.name,
        metric=metric,
        baseline_mean=float(before.mean()),
        other_mean=float(after.mean()),
        difference=float(gaps.mean()),
        interval=(float(low), float(high)),
        bootstrap_p=_two_sided(means),
        wilcoxon_p=wilcoxon(gaps),
        effect_size=effect_size(gaps),
        users_better=int((gaps > 0).sum()),
        users_worse=int((gaps < 0).sum()),
        holm_p=1.0,  # known once all comparisons are
        verdict=NOT_SIGNIFICANT,
    )


def _two_sided(means: Floats) -> float:
    beyond = min(int((means <= _NOUGHT).sum()), int((means >= -_NOUGHT).sum()))
    return min(1.0, 2 * (1 + beyond) / (len(means) + 1))


def wilcoxon(gaps: Floats) -> float:
    """Return the two-sided p-value of the signed-rank test of differences, [n]; 1 where all of them are zero."""
    if not gaps.any():
        return 1.0
    from scipy import stats  # takes a second to load: only who compares pays for it

    return float(stats.wilcoxon(gaps, zero_method="pratt").pvalue)


def effect_size(gaps: Floats) -> float | None:
    """Return Cohen's d_z of differences, [n]: 0 where all are zero, None where all are alike but not zero."""
    if not gaps.any():
        return 0.0
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    return float(gaps.mean()) / spread if spread > _NOUGHT else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false finding among them stays below the level."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(p) for p in adjusted]


def _verdict(difference: float, p: float, alpha: float) -> str:
    if p >= alpha:
        return NOT_SIGNIFICANT
    return "better" if difference > 0 else "worse"
