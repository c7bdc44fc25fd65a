"""The same figures for parts of the test examples: by the length of the history, by how popular the target is.

History: the items before the target, all of them, not only those a model reads. Buckets are cut at quantiles of that length,
so they hold about equally many examples; equal cuts are merged, and no bucket is empty. Labels are the lengths within.

Target popularity: the target's number of interactions in the training part.
    cold  none: no training can have seen the item
    head  the 20 % of the other items with most interactions (Pareto's cut, usual for the long tail)
    mid, tail  the rest, cut where it is halved by interactions: the tail is many items that are rarely asked for
Items of equal popularity are never parted; where they lie on a cut, all of them go to the less popular side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distilrec.evaluation.metrics import Ints, bootstrap_intervals, evaluate_ranks

_PARTS = 4
_HEAD = 0.2
_MAIN = 10


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the examples.

    Attributes:
        label: what is shown: `5-6` for a history, `cold`, `tail`, `mid` or `head` for a target.
        members: [n] bool, which examples belong to it; at least one does.
        low: least of what the groups are formed by (items before the target, or training interactions) within the group.
        high: most of it.
    """

    label: str
    members: npt.NDArray[np.bool_]
    low: int
    high: int


def by_history(lengths: Ints, parts: int = _PARTS) -> list[Group]:
    """Group examples by the number of items before their target, [n], into at most `parts` buckets, shortest first."""
    cuts = np.quantile(lengths, np.arange(1, parts) / parts, method="inverted_cdf")  # are lengths that occur
    bucket = np.searchsorted(np.unique(cuts), lengths)  # a length on a cut belongs below it
    groups = []
    for one in np.unique(bucket):
        members = bucket == one
        low, high = int(lengths[members].min()), int(lengths[members].max())
        groups.append(Group(f"{low}" if low == high else f"{low}-{high}", members, low, high))
    return groups


def by_popularity(popularity: Ints, targets: Ints) -> list[Group]:
    """Group examples by the popularity of their target: cold, tail, mid, head, those of them that occur.

    Args:
        popularity: [N] training interactions of each item.
        targets: [n] target of each example.
    """
    head_above, mid_above = _thresholds(popularity)
    own = popularity[targets]
    members = {
        "cold": own == 0,
        "tail": (own > 0) & (own <= mid_above),
        "mid": (own > mid_above) & (own <= head_above),
        "head": (own > 0) & (own > head_above),
    }
    return [
        Group(label, some, int(own[some].min()), int(own[some].max())) for label, some in members.items() if some.any()
    ]


def _thresholds(popularity: Ints) -> tuple[int, int]:
    """Return the popularity above which items are head, and above which they are mid."""
    warm = np.sort(popularity[popularity > 0])[::-1]
    if len(warm) == 0:
        return 0, 0
    head_above = int(warm[int(_HEAD * len(warm))])  # the most popular item that is too many for the head
    rest = warm[warm <= head_above][::-1]  # least popular first
    half = np.searchsorted(np.cumsum(rest), rest.sum() / 2)
    return head_above, int(rest[half])


def main_cutoff(cutoffs: Sequence[int]) -> int:
    """Return 10, or the cutoff nearest to it (the smaller of two)."""
    return min(sorted(cutoffs), key=lambda k: abs(k - _MAIN))


def measure(
    ranks: Ints, cutoffs: Sequence[int], members: npt.NDArray[np.bool_], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return `n`, `metrics` and `ci95` of some of the examples; without any example the last two are empty."""
    own = ranks[members]
    if len(own) == 0:
        return {"n": 0, "metrics": {}, "ci95": {}}
    return {
        "n": len(own),
        "metrics": evaluate_ranks(own, cutoffs),
        "ci95": bootstrap_intervals(own, cutoffs, resamples=resamples, seed=seed),
    }


def group_rows(
    groups: Sequence[Group], ranks: Ints, cutoffs: Sequence[int], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return a row a group: `label`, `range`, `n`, and `metrics` and `ci95` of hr and ndcg at the main cutoff.

    Args:
        groups: of the examples.
        ranks: [n] ranks of the targets.
        cutoffs: those measured; 10 or the nearest to it is shown.
        resamples: draws of each interval.
        seed: of the draws.
    """
    cutoff = main_cutoff(cutoffs)
    rows = []
    for group in groups:
        found = measure(ranks, [cutoff], group.members, resamples=resamples, seed=seed)
        shown = {
            part: {name: found[part][name] for name in (f"hr@{cutoff}", f"ndcg@{cutoff}")}
            for part in ("metrics", "ci95")
        }
        rows.append({"label": group.label, "range": [group.low, group.high], "n": found["n"], **shown})
    return rows
