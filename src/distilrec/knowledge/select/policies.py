"""Whom to ask: probabilities over training examples, from how hard they are.

Du et al., "Active Large Language Model-based Knowledge Distillation for Session-based Recommendation", AAAI 2025 (ALKDRec).
Examples are put in order of difficulty, the hardest first, and numbered 1..n. Asked about example s, an LLM may be effective, give
nothing new (similar), or be wrong, and the student gains
    g_ef = 1 / s^mu,    g_si = a g_ef,    or loses  g_in = b g_ef          (the paper: mu = 10, a = b = 1/2)
How many are of which kind is known (k_ef : k_si : k_in of n), which ones is not: probabilities p are chosen for the worst case,
    max over p of  min over who is of which kind of  sum_s p_s gain_s.

`alkdrec` is the published policy. With m = k_si + k_in and
    H_k = sum_(s <= k) 1 / (g_si + g_in) up to m, and 1 / (g_ef + g_in) beyond;   G_k = the same with g_si and g_ef above the lines
    Gamma(k) = (k_ef + k_si - n + G_k) / H_k,   k* = argmax Gamma,
    p_s = 1 / (H_k* (g_si + g_in)) up to m, 1 / (H_k* (g_ef + g_in)) up to k*, 0 beyond,
and Gamma(k*) is the gain it guarantees. It is not the best p, as the paper says: see `maxmin`.

`maxmin` is the optimum. The inner minimum is a transport problem; with multipliers A of k_ef and B of k_si (that of k_in is 0) its
dual is
    k_ef A + k_si B + sum_s min(p_s g_ef - A, p_s g_si - B, -p_s g_in),
to be maximised over A, B and p together. It scales with (A, B, p), so with A = 1, tau = B / A, y_s = p_s g_ef and w_s = 1 / g_ef it is
    (k_ef + k_si tau + sum_s min(y_s - 1, a y_s - tau, -b y_s)) / sum_s w_s y_s.
Each term rises with slope 1 to y = (1 - tau) / (1 - a), with slope a to tau / (a + b), and falls behind it, and w_s grows with s: so
the first k_1 examples stand at the first corner, the first k_2 of them at the second. For given k_1 and k_2 the quotient is one of two
linear functions of tau, hence monotone, and the best tau is an end of [(a + b) / (1 + b), 1]. At either end the two corners are one,
and what is left is one number, k:
    p_s = w_s / W_k for s <= k, W_k = w_1 + .. + w_k, and the guaranteed gain is the larger of
    (k_ef + k_si - n + k a / (a + b)) (a + b) / W_k     and     ((k_ef + k_si (a + b) / (1 + b) - n) (1 + b) + k) / W_k.
Where neither is above -b g_n, all mass goes to example n, which costs least to be wrong about. Without wrong ones (k_in = 0) the
multiplier of k_in is free, the terms become min(y_s - 1, a y_s), and k is the best of ((k_ef - n) (1 - a) + k) / W_k, or all goes to
example 1, which gives a g_1 at least.

All in logarithms: 1 / g of a million examples to the tenth power is 10^60, to the hundredth 10^600.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from distilrec.settings import Settings

Floats = npt.NDArray[np.float64]


class GainSettings(Settings):
    """What is assumed of the LLM: shares of its answers that are effective, similar and incorrect, and what each is worth.

    `mu`: how fast gains fall with the rank. `similar_gain`: a, `incorrect_loss`: b, both beside an effective answer's gain.
    """

    effective: float = Field(1.0, ge=0)
    similar: float = Field(5.0, ge=0)
    incorrect: float = Field(4.0, ge=0)
    mu: float = Field(10.0, ge=0)
    similar_gain: float = Field(0.5, gt=0, lt=1)
    incorrect_loss: float = Field(0.5, gt=0)

    @model_validator(mode="after")
    def _some_share(self) -> "GainSettings":
        if self.effective + self.similar + self.incorrect <= 0:
            raise ValueError("at least one of effective, similar and incorrect must be above 0")
        return self

    def counts(self, n: int) -> tuple[int, int, int]:
        """Return k_ef, k_si and k_in of n examples, whole numbers that add up to n."""
        total = self.effective + self.similar + self.incorrect
        first = round(n * self.effective / total)
        second = min(round(n * self.similar / total), n - first)
        if self.incorrect == 0:
            second = n - first
        return first, second, n - first - second


@dataclass(frozen=True, slots=True)
class Policy:
    """Probabilities over examples in order of difficulty.

    Attributes:
        log_p: [n] log-probabilities, the hardest first; -inf where an example is never drawn.
        cut: k*, how many may be drawn.
        guaranteed: the gain that is guaranteed, in units of the hardest example's; None where a policy guarantees nothing.
        log_guaranteed: its logarithm, which is there where the gain itself is too small for a number; -inf where it is not above 0.
    """

    log_p: Floats
    cut: int
    guaranteed: float | None = None
    log_guaranteed: float | None = None


def log_gains(n: int, mu: float) -> Floats:
    """Return log g_ef of n examples, [n]."""
    return -mu * np.log(np.arange(1, n + 1, dtype=np.float64))


def alkdrec(n: int, settings: GainSettings) -> Policy:
    """Return the published policy over n examples."""
    effective, similar, _ = settings.counts(n)
    a, b = settings.similar_gain, settings.incorrect_loss
    early = np.arange(n) < n - effective
    log_weight = -log_gains(n, settings.mu) - np.log(np.where(early, a + b, 1 + b))
    log_h = np.logaddexp.accumulate(log_weight)
    above = effective + similar - n + np.cumsum(np.where(early, a / (a + b), 1 / (1 + b)))
    return _cut(log_weight, log_h, above)


def maxmin(n: int, settings: GainSettings) -> Policy:
    """Return the policy with the best worst case over n examples."""
    effective, similar, incorrect = settings.counts(n)
    a, b, k = settings.similar_gain, settings.incorrect_loss, np.arange(1, n + 1, dtype=np.float64)
    log_weight = -log_gains(n, settings.mu)
    log_w = np.logaddexp.accumulate(log_weight)
    if incorrect == 0:
        above = (effective - n) * (1 - a) + k
        found = _cut(log_weight, log_w, above)
        return found if similar == 0 or _log(found) >= np.log(a) else _alone(n, 0, a)
    above = np.maximum(
        (effective + similar - n) * (a + b) + k * a, (effective - n) * (1 + b) + similar * (a + b) + k
    )  # fmt: skip
    found = _cut(log_weight, log_w, above)
    if found.log_guaranteed == -np.inf and -b * np.exp(-log_weight[-1]) > (found.guaranteed or 0.0):
        return _alone(n, n - 1, -b * float(np.exp(-log_weight[-1])))
    return found


def rad_bc(n: int, settings: GainSettings, correct: float = 0.6) -> Policy:
    """Return the policy of Baykal et al. (RAD, ICLR 2023) as ALKDRec compares with it: a share of answers is correct, the rest is not.

    p_s = 1 / (H_k* (g + l)), l = g / 2, up to k*;   Gamma(k) = (G_k + n (correct - 1)) / H_k.
    """
    loss = 0.5
    log_weight = -log_gains(n, settings.mu) - np.log(1 + loss)
    above: Floats = np.arange(1, n + 1) / (1 + loss) + n * (correct - 1)
    return _cut(log_weight, np.asarray(np.logaddexp.accumulate(log_weight)), above)


def uniform(n: int, _settings: GainSettings) -> Policy:
    """Return the policy that draws all alike."""
    return Policy(np.full(n, -np.log(n)), n)


def _log(policy: Policy) -> float:
    return -np.inf if policy.log_guaranteed is None else policy.log_guaranteed


def _alone(n: int, place: int, gain: float) -> Policy:
    log_p = np.full(n, -np.inf)
    log_p[place] = 0.0
    return Policy(log_p, 1, gain, float(np.log(gain)) if gain > 0 else -np.inf)


def _cut(log_weight: Floats, log_total: Floats, above: Floats) -> Policy:
    """Return p ~ weight up to the k with the largest above_k / total_k, the least of equals."""
    with np.errstate(divide="ignore"):
        size = np.log(np.abs(above)) - log_total
    positive = above > 0
    if positive.any():
        k = int(np.argmax(np.where(positive, size, -np.inf)))
    elif (above == 0).any():
        k = int(np.argmax(above == 0))
    else:
        k = int(np.argmin(size))
    log_p = np.where(np.arange(len(log_weight)) <= k, log_weight - log_total[k], -np.inf)
    guaranteed = float(np.sign(above[k]) * np.exp(size[k]))
    return Policy(log_p, k + 1, guaranteed, float(size[k]) if positive.any() else -np.inf)


POLICIES: dict[str, Callable[[int, GainSettings], Policy]] = {
    "alkdrec": alkdrec, "maxmin": maxmin, "rad_bc": rad_bc, "random": uniform,
}  # fmt: skip
