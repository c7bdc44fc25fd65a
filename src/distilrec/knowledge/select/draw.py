"""Draw examples by a policy, without replacement, so that asking for more later keeps those that were drawn before.

Each example gets a key, its log-probability plus a Gumbel number that the seed gives it; in falling order of keys the examples are a
draw without replacement (Efraimidis and Spirakis, 2006, in logarithms). The budget only says how many of this order are taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distilrec.data.split import Ints
from distilrec.errors import ConfigError
from distilrec.knowledge.select.policies import POLICIES, Floats, GainSettings, Policy

_SORTED = ("hardest", "easiest")  # policies without chance
NAMES = (*POLICIES, *_SORTED)


@dataclass(frozen=True, slots=True)
class Selection:
    """Examples worth asking about.

    Attributes:
        policy: name of the policy.
        examples: [b] ids, in the order in which they were drawn.
        log_p: [n] log-probability of each example that could be drawn, in the order in which they were given.
        account: number of examples, how many the policy may draw (`cut`, k*), the gain it guarantees, settings and seed.
    """

    policy: str
    examples: Ints
    log_p: Floats
    account: Mapping[str, Any]


def select(
    examples: Ints,
    difficulty: npt.NDArray[np.floating[Any]],
    policy: str,
    budget: int,
    *,
    seed: int = 0,
    settings: GainSettings | None = None,
    among: Ints | None = None,
) -> Selection:
    """Choose up to `budget` of the examples.

    Args:
        examples: [n] ids, each once.
        difficulty: [n], higher is harder; of equals the first given counts as harder.
        policy: one of `NAMES`.
        budget: how many to take. Where the policy gives fewer a chance, the hardest of the others follow.
        seed: of the draw. The same seed and examples give the same order, whatever the budget.
        settings: what is assumed of the answers.
        among: take only these, as where others cannot be asked; the policy still sees all.

    Raises:
        ConfigError: no such policy.
    """
    settings = settings or GainSettings()
    if policy not in NAMES:
        raise ConfigError(f"no policy is called {policy!r}.", remedy=f"Choose one of {', '.join(NAMES)}.")
    if len(examples) != len(difficulty):
        raise ValueError(f"{len(examples)} examples and {len(difficulty)} difficulties")
    n = len(examples)
    hardest_first = np.argsort(-np.asarray(difficulty, dtype=np.float64), kind="stable")
    place = np.empty(n, dtype=np.int64)  # of each example among the hardest
    place[hardest_first] = np.arange(n)
    if policy in _SORTED:
        order = hardest_first if policy == "hardest" else hardest_first[::-1]
        made = Policy(np.zeros(n), n)
        log_p = np.full(n, -np.log(max(n, 1)))
    else:
        made = POLICIES[policy](n, settings) if n else Policy(np.empty(0), 0)
        log_p = made.log_p[place]
        keys = log_p + np.random.default_rng(seed).gumbel(size=n)
        order = np.lexsort((place, -keys))
    chosen = examples[order]
    if among is not None:
        chosen = chosen[np.isin(chosen, among)]
    account = {
        "policy": policy, "examples": n, "budget": budget, "selected": min(budget, len(chosen)), "cut": made.cut,
        "guaranteed_gain": made.guaranteed, "seed": seed, "settings": settings.model_dump(),
    }  # fmt: skip
    return Selection(policy, chosen[:budget].astype(np.int64), log_p, account)
