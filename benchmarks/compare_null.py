"""Do the statistics of `distilrec compare` keep their word? Whole comparisons, simulated where the truth is known.

    python benchmarks/compare_null.py       # null_false_positive_rate and coverage of results/compare_ml100k.json

A user's rank under one training is ceil(exp(m + a_u + b_s + e_us)): users a ~ N(0, 1.5) are the same for all, seeds b ~ N(0, s) and
what is left e ~ N(0, 1) are drawn anew for each training. So P(rank <= r) = Phi((log r - m) / sqrt(1.5^2 + s^2 + 1)), and the true
mean of a metric is a finite sum. 943 users, 3 seeds, 3 students with 5 methods each, ndcg@10 and hr@10: the size of MovieLens-100K.

    null       no method differs from plain: share of single comparisons called significant, and share of whole reports with any
    coverage   methods differ by m: share of intervals (of differences, and of means) that hold the truth
    alike      two sides of one kind, 2, 3 and 5 seeds, s from 0 to twice the above: share of intervals that hold zero, over users and
               seeds, and beside them of those over users alone
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from distilrec.compare.figures import verdicts
from distilrec.evaluation.crossed import crossed, gains_of, interval_of, spread_of
from distilrec.evaluation.metrics import gain
from distilrec.evaluation.significance import NOT_SIGNIFICANT, Side
from distilrec.files import read_json, write_json
from distilrec.progress import bar, say

USERS, SEEDS, STUDENTS, METHODS = 943, 3, 3, 5
METRICS = ("ndcg@10", "hr@10")
SPREAD_USERS, SPREAD_SEEDS, SPREAD_REST = 1.5, 0.06, 1.0
LEVEL = 0.95
ALIKE = [(seeds, spread) for seeds in (2, 3, 5) for spread in (0.0, 0.06, 0.12)]


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/compare_ml100k.json"))
    arguments = parser.parse_args()
    found = simulated(arguments.comparisons, np.random.default_rng(0))
    content = read_json(arguments.out) if arguments.out.exists() else {}
    write_json(arguments.out, content | found)
    for key, value in found["simulation"].items():
        say(f"{key}: {value}")


def simulated(count: int, generator: np.random.Generator) -> dict[str, Any]:
    """Return what came of so many whole comparisons of each kind."""
    single, whole, tests = 0, 0, 0
    with bar("null", count) as progress:
        for _ in range(count):
            p_values, differences = [], []
            for base, others in one_comparison(generator, [3.9] * METHODS):
                spreads = {metric: spread_of([gains_of(one, metric) for one in (base, *others)]) for metric in METRICS}
                for other in others:
                    for metric in METRICS:
                        gap = crossed(base, other, metric, level=LEVEL, spread=spreads[metric])
                        p_values.append(gap.p)
                        differences.append(gap.difference)
            _, said = verdicts(p_values, differences, LEVEL)
            single += sum(p < 1 - LEVEL for p in p_values)
            tests += len(p_values)
            whole += any(verdict != NOT_SIGNIFICANT for verdict in said)
            progress.advance()
    inside, intervals, means, of_means = 0, 0, 0, 0
    levels = [3.9, 3.85, 3.8, 3.7, 4.0]
    with bar("coverage", count) as progress:
        for _ in range(count):
            for base, others in one_comparison(generator, levels):
                spreads = {metric: spread_of([gains_of(one, metric) for one in (base, *others)]) for metric in METRICS}
                for other, level in zip(others, levels, strict=True):
                    for metric in METRICS:
                        low, high = crossed(base, other, metric, level=LEVEL, spread=spreads[metric]).interval
                        inside += low <= truth(metric, level) - truth(metric, 3.9) <= high
                        intervals += 1
                        low, high = interval_of(gains_of(other, metric), level=LEVEL, spread=spreads[metric])
                        means += low <= truth(metric, level) <= high
                        of_means += 1
            progress.advance()
    return {
        "null_false_positive_rate": round(single / tests, 4),
        "coverage": round(inside / intervals, 4),
        "simulation": {
            "command": "python benchmarks/compare_null.py",
            "comparisons": count,
            "single tests below 0.05 under the null": round(single / tests, 4),
            "reports with any verdict under the null (Holm)": round(whole / count, 4),
            "coverage of differences": round(inside / intervals, 4),
            "coverage of means": round(means / of_means, 4),
            "alike": [alike(seeds, spread, count, generator) for seeds, spread in ALIKE],
            "users": USERS, "seeds": SEEDS, "rows": STUDENTS * METHODS, "metrics": list(METRICS),
        },
    }  # fmt: skip


def one_comparison(generator: np.random.Generator, levels: list[float]) -> list[tuple[Side, list[Side]]]:
    """Return, for each student, the plain one and one side a method with the given m."""
    users = generator.normal(0, SPREAD_USERS, USERS)
    found = []
    for number in range(STUDENTS):
        base = side(generator, users, 3.9, f"plain {number}")
        found.append((base, [side(generator, users, level, f"method {i}") for i, level in enumerate(levels)]))
    return found


def alike(seeds: int, spread: float, count: int, generator: np.random.Generator) -> dict[str, float]:
    """Return how often intervals between two sides that are alike hold zero, by their own seeds and over users alone."""
    held, over_users, quantile = 0, 0, float(student.ppf((1 + LEVEL) / 2, USERS - 1))
    for _ in range(count):
        users = generator.normal(0, SPREAD_USERS, USERS)
        base, other = (side(generator, users, 3.9, name, seeds, spread) for name in ("one", "other"))
        found = crossed(base, other, "ndcg@10", level=LEVEL)
        held += found.interval[0] <= 0 <= found.interval[1]
        over_users += abs(found.difference) <= quantile * found.user_error
    return {"seeds": seeds, "spread": spread, "held": held / count, "held_over_users_alone": over_users / count}


def side(
    generator: np.random.Generator,
    users: npt.NDArray[np.float64],
    level: float,
    name: str,
    seeds: int = SEEDS,
    spread: float = SPREAD_SEEDS,
) -> Side:
    """Train a model with every seed, in play."""
    ranks = []
    for _ in range(seeds):
        latent = level + users + generator.normal(0, spread) + generator.normal(0, SPREAD_REST, USERS)
        ranks.append(np.ceil(np.exp(latent)).astype(np.int64))
    return Side(name, ranks)


def truth(metric: str, level: float) -> float:
    """Return the mean of a metric over all users and seeds there could be."""
    spread = (SPREAD_USERS**2 + SPREAD_SEEDS**2 + SPREAD_REST**2) ** 0.5
    ranks = np.arange(1, 11)
    upto = norm.cdf((np.log(ranks) - level) / spread)
    chance = np.diff(np.concatenate([[0.0], upto]))
    return float((chance * gain(metric, ranks)).sum())


if __name__ == "__main__":
    sys.exit(main())
