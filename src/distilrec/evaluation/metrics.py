"""Metrics of one relevant item per example, from its rank, with bootstrap intervals.

hr@k = [rank <= k];  ndcg@k = [rank <= k] / log2(rank + 1);  mrr@k = [rank <= k] / rank. Means are over examples.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distilrec.errors import ConfigError

Floats = npt.NDArray[np.float64]
_NAMES = ("hr", "ndcg", "mrr")
_CELLS = 1 << 24  # numbers held at a time while resampling


def gain(name: str, ranks: npt.NDArray[np.int64]) -> Floats:
    """Return the metric of each example, [n]. `name` is hr@k, ndcg@k or mrr@k."""
    kind, _, cutoff = name.partition("@")
    if kind not in _NAMES or not cutoff.isdigit() or int(cutoff) < 1:
        raise ConfigError(f"unknown metric {name!r}.", remedy="Use hr@k, ndcg@k or mrr@k.")
    ranks_f = ranks.astype(np.float64)
    value = {"hr": np.ones_like(ranks_f), "ndcg": 1 / np.log2(ranks_f + 1), "mrr": 1 / ranks_f}[kind]
    return np.where(ranks <= int(cutoff), value, 0.0)


def metric_names(cutoffs: Sequence[int]) -> list[str]:
    """Return every metric's name at every cutoff."""
    return [f"{kind}@{k}" for kind in _NAMES for k in cutoffs]


def evaluate_ranks(ranks: npt.NDArray[np.int64], cutoffs: Sequence[int]) -> dict[str, float]:
    """Return the mean of every metric at every cutoff."""
    return {name: float(gain(name, ranks).mean()) for name in metric_names(cutoffs)}


def bootstrap_intervals(
    ranks: npt.NDArray[np.int64], cutoffs: Sequence[int], *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, list[float]]:
    """Return percentile bootstrap intervals of the means: examples drawn with replacement, the same draws for all metrics.

    Args:
        ranks: [n] ranks of the targets.
        cutoffs: the k of each metric.
        resamples: number of draws.
        seed: of the draws.
        level: coverage aimed at.
    """
    names = metric_names(cutoffs)
    gains = np.stack([gain(name, ranks) for name in names], axis=1)  # [n, metrics]
    generator = np.random.default_rng(seed)
    n, means, done = len(ranks), np.empty((resamples, len(names))), 0
    while done < resamples:
        size = min(resamples - done, max(1, _CELLS // n))
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size)
        means[done : done + size] = counts @ gains / n
        done += size
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
