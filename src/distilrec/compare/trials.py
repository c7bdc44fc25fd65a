"""The values of a trial: drawn by seed, number of the trial and key alone, so that all methods of a student are offered the same."""

from typing import Any

import numpy as np

from distilrec.pipeline.space import Range


def draw(part: Range | list[Any], seed: int, number: int, key: str) -> Any:
    """Draw a value, the same for the same seed, trial and key."""
    generator = np.random.default_rng([seed, number, *key.encode()])
    if isinstance(part, list):
        return part[int(generator.integers(len(part)))]
    if part.log:
        low, high = np.log(part.low), np.log(part.high)
        return _within(part, float(f"{np.exp(generator.uniform(low, high)):.4g}"))
    if part.step is not None:
        steps = int((part.high - part.low) / part.step + 1e-9)
        value = part.low + part.step * int(generator.integers(steps + 1))
    else:
        return _within(part, float(f"{generator.uniform(part.low, part.high):.4g}"))
    value = float(f"{value:.12g}")  # 0.1 + 0.2 is to be 0.3
    whole = all(float(edge).is_integer() for edge in (part.low, part.high, part.step))
    return int(value) if whole else value


def _within(part: Range, value: float) -> float:
    return min(part.high, max(part.low, value))
