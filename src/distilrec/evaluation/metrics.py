"""Metrics of one relevant item per example, from its rank, with bootstrap intervals; and what top-k lists hold.

hr@k = recall@k = [rank <= k];  ndcg@k = [rank <= k] / log2(rank + 1);  mrr@k = map@k = [rank <= k] / rank. Means are over
examples. With one relevant item, recall (relevant items found / relevant items) is a hit and average precision is the
reciprocal rank, so `recall` and `map` are other names of the same numbers.

Of top-k lists over a catalogue of N items (c_i = number of lists that hold item i):
    coverage@k   = share of the catalogue with c_i > 0
    popularity@k = mean percentile of the listed items by training interactions, ties at mid-rank: 0.5 where lists are drawn
                   evenly from the catalogue, near 1 where they hold best-sellers alone
    gini@k       = 2 sum_r r c_(r) / (N sum c) - (N + 1) / N,  c_(1) <= ... <= c_(N): 0 if all items are listed equally often
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distilrec.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_SAME = {"recall": "hr", "map": "mrr"}  # one relevant item: the same number by another name
_NAMES = ("hr", "ndcg", "mrr", *_SAME)
_CELLS = 1 << 24  # numbers held at a time while resampling


def gain(name: str, ranks: Ints) -> Floats:
    """Return the metric of each example, [n]. `name` is hr@k, ndcg@k, mrr@k, recall@k or map@k."""
    kind, _, cutoff = name.partition("@")
    if kind not in _NAMES or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ConfigError(f"unknown metric {name!r}.", remedy="Use hr@k, ndcg@k, mrr@k, recall@k or map@k.")
    kind = _SAME.get(kind, kind)
    ranks_f = ranks.astype(np.float64)
    value = {"hr": np.ones_like(ranks_f), "ndcg": 1 / np.log2(ranks_f + 1), "mrr": 1 / ranks_f}[kind]
    return np.where(ranks <= int(cutoff), value, 0.0)


def metric_names(cutoffs: Sequence[int]) -> list[str]:
    """Return every metric's name at every cutoff."""
    return [f"{kind}@{k}" for kind in _NAMES for k in cutoffs]


def evaluate_ranks(ranks: Ints, cutoffs: Sequence[int]) -> dict[str, float]:
    """Return the mean of every metric at every cutoff."""
    means = {name: float(gain(name, ranks).mean()) for name in _distinct(cutoffs)}
    return {name: means[_source(name)] for name in metric_names(cutoffs)}


def bootstrap_intervals(
    ranks: Ints, cutoffs: Sequence[int], *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, list[float]]:
    """Return percentile bootstrap intervals of the means: examples drawn with replacement, the same draws for all metrics.

    Args:
        ranks: [n] ranks of the targets.
        cutoffs: the k of each metric.
        resamples: number of draws.
        seed: of the draws.
        level: coverage aimed at.
    """
    names = _distinct(cutoffs)
    kept, counts = np.unique(
        np.minimum(ranks, max(cutoffs) + 1), return_counts=True
    )  # beyond every cutoff all is alike
    gains = np.stack([gain(name, kept) for name in names], axis=1)  # [u, metrics]
    means = resampled_means(gains, counts, resamples=resamples, seed=seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    found = {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
    return {name: list(found[_source(name)]) for name in metric_names(cutoffs)}


def resampled_means(values: Floats, counts: Ints, *, resamples: int, seed: int) -> Floats:
    """Draw examples with replacement, as many as there are, and return the means of each draw, [resamples, m].

    Examples with equal values are drawn as one bin of a multinomial: the same distribution as drawing each by itself, and
    far fewer numbers, since ranks beyond the cutoff are all alike.

    Args:
        values: [u, m] distinct values, one column a metric.
        counts: [u] how many examples have them.
        resamples: number of draws.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    n, bins = int(counts.sum()), len(counts)
    means, done = np.empty((resamples, values.shape[1])), 0
    while done < resamples:
        size = min(resamples - done, max(1, _CELLS // bins))
        drawn = generator.multinomial(n, counts / n, size=size)  # [size, u]
        means[done : done + size] = drawn @ values / n
        done += size
    return means


def list_metrics(top: Ints, popularity: Ints, cutoffs: Sequence[int]) -> dict[str, float]:
    """Return coverage@k, popularity@k and gini@k of what is recommended.

    Args:
        top: [n, K] each example's best items, best first. A cutoff above K is measured on K.
        popularity: [N] training interactions of each item of the catalogue.
        cutoffs: the k of each metric.
    """
    n_items = len(popularity)
    ordered = np.sort(popularity)
    below, upto = (np.searchsorted(ordered, popularity, side=side) for side in ("left", "right"))
    percentile = (below + upto) / (2 * n_items)
    by_cutoff: dict[int, tuple[float, float, float]] = {}
    for k in cutoffs:
        listed = np.bincount(top[:, :k].ravel(), minlength=n_items)
        places = np.arange(1, n_items + 1)
        spread = 2 * (places * np.sort(listed)).sum() / (n_items * listed.sum()) - (n_items + 1) / n_items
        by_cutoff[k] = ((listed > 0).mean(), (listed * percentile).sum() / listed.sum(), spread)
    kinds = ("coverage", "popularity", "gini")
    return {f"{kind}@{k}": float(by_cutoff[k][i]) for i, kind in enumerate(kinds) for k in cutoffs}


def _distinct(cutoffs: Sequence[int]) -> list[str]:
    """Return the names of the metrics that are no other's number."""
    return [name for name in metric_names(cutoffs) if _source(name) == name]


def _source(name: str) -> str:
    kind, _, cutoff = name.partition("@")
    return f"{_SAME.get(kind, kind)}@{cutoff}"
