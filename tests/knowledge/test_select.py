"""Policies against linear programmes and the paper's formulas; draws against their probabilities."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from distilrec.data.dataset import Dataset, training_examples
from distilrec.errors import ConfigError
from distilrec.knowledge.select import NAMES, POLICIES, GainSettings, difficulties, select
from distilrec.knowledge.select.policies import alkdrec, log_gains, maxmin, rad_bc
from distilrec.students import STUDENTS
from distilrec.students.base import build_student

Floats = npt.NDArray[np.float64]


def gains(n: int, given: GainSettings) -> Floats:
    """Return what each of n examples is worth if its answer is effective, similar, incorrect, [n, 3]."""
    g = np.array([1 / rank**given.mu for rank in range(1, n + 1)])
    return np.stack([g, given.similar_gain * g, -given.incorrect_loss * g], axis=1)


def worst(p: Floats, given: GainSettings) -> float:
    """Return the least gain under p, by a linear programme over who is of which kind."""
    n = len(p)
    cost = (p[:, None] * gains(n, given)).ravel()
    each, kinds = np.kron(np.eye(n), np.ones(3)), np.tile(np.eye(3), n)
    right = np.concatenate([np.ones(n), given.counts(n)])
    return float(linprog(cost, A_eq=np.vstack([each, kinds]), b_eq=right, bounds=(0, 1), method="highs").fun)


def best(n: int, given: GainSettings) -> float:
    """Return the best worst case of any p, by one linear programme: the dual of `worst`, joined to p."""
    worth = gains(n, given)
    cost = np.concatenate([np.zeros(n), -np.ones(n), -np.array(given.counts(n), dtype=float)])
    rows = []
    for s, kind in itertools.product(range(n), range(3)):
        row = np.zeros(2 * n + 3)
        row[s], row[n + s], row[2 * n + kind] = -worth[s, kind], 1, 1
        rows.append(row)
    total = np.concatenate([np.ones(n), np.zeros(n + 3)])[None]
    bounds = [(0, None)] * n + [(None, None)] * (n + 3)
    return -float(linprog(cost, rows, np.zeros(len(rows)), total, [1], bounds=bounds, method="highs").fun)


games = st.builds(
    lambda shares, **others: GainSettings(effective=shares[0], similar=shares[1], incorrect=shares[2], **others),
    shares=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)).filter(any),
    mu=st.sampled_from([0.0, 0.3, 1.0, 2.0, 3.0]),
    similar_gain=st.floats(0.05, 0.95),
    incorrect_loss=st.floats(0.05, 2.0),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), games)
def test_maxmin_is_the_optimum(n: int, given: GainSettings) -> None:
    policy, wanted = maxmin(n, given), best(n, given)
    p = np.exp(policy.log_p)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert policy.guaranteed == pytest.approx(wanted, abs=1e-9)
    assert worst(p, given) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), games)
def test_the_published_gain_is_the_true_minimum_under_the_published_policy(n: int, given: GainSettings) -> None:
    policy = alkdrec(n, given)
    assert policy.guaranteed is not None
    if policy.guaranteed > 0:
        assert worst(np.exp(policy.log_p), given) == pytest.approx(policy.guaranteed, abs=1e-9)
    assert (maxmin(n, given).guaranteed or 0) >= policy.guaranteed - 1e-12 or policy.guaranteed <= 0


@pytest.mark.parametrize(("counts", "published", "optimum"), [((5, 3, 2), 0.0920, 0.1), ((1, 5, 4), 0.02258, 0.02727)])
def test_the_counter_example(counts: tuple[int, int, int], published: float, optimum: float) -> None:
    given = GainSettings(effective=counts[0], similar=counts[1], incorrect=counts[2], mu=1)
    assert given.counts(10) == counts
    assert alkdrec(10, given).guaranteed == pytest.approx(published, abs=5e-5)
    assert maxmin(10, given).guaranteed == pytest.approx(optimum, abs=5e-6)


def published(n: int, given: GainSettings) -> tuple[Floats, int, Floats]:
    """Return p*, k* and Gamma from the formulas as printed, one k after the other."""
    k_ef, k_si, k_in = given.counts(n)
    worth = gains(n, given)
    effective, similar, incorrect = worth[:, 0], worth[:, 1], -worth[:, 2]
    gamma, h = np.empty(n), np.empty(n)
    for k in range(1, n + 1):
        total_h = total_g = 0.0
        for s in range(k):
            better = similar[s] if s < k_si + k_in else effective[s]
            total_h += 1 / (better + incorrect[s])
            total_g += better / (better + incorrect[s])
        gamma[k - 1], h[k - 1] = (k_ef + k_si - n + total_g) / total_h, total_h
    best_k = int(np.argmax(gamma)) + 1
    p = np.zeros(n)
    for s in range(best_k):
        better = similar[s] if s < k_si + k_in else effective[s]
        p[s] = 1 / (h[best_k - 1] * (better + incorrect[s]))
    return p, best_k, gamma


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), games)
def test_the_published_formulas(n: int, given: GainSettings) -> None:
    p, k, gamma = published(n, given)
    policy = alkdrec(n, given)
    assert policy.guaranteed == pytest.approx(gamma.max(), rel=1e-11, abs=1e-13)
    if np.sum(gamma > gamma.max() - 1e-9) == 1:  # no ties
        assert policy.cut == k
        np.testing.assert_allclose(np.exp(policy.log_p), p, rtol=1e-12, atol=1e-14)


def test_the_paper_s_own_setting() -> None:
    given = GainSettings()
    assert given.counts(7393) == (739, 3696, 2958)
    assert (given.mu, given.similar_gain, given.incorrect_loss) == (10, 0.5, 0.5)
    p, k, gamma = published(500, given)
    policy = alkdrec(500, given)
    assert policy.cut == k
    assert policy.guaranteed == pytest.approx(gamma.max(), rel=1e-11)
    np.testing.assert_allclose(np.exp(policy.log_p), p, rtol=1e-10, atol=1e-300)


def test_rad_bc_by_hand() -> None:
    # g = 1, 1/2, 1/3, 1/4: H = 2/3, 2, 4, 20/3; G = 2/3 k; four times (0.6 - 1) = -1.6: Gamma = -1.4, -.133, .1, .16.
    policy = rad_bc(4, GainSettings(mu=1))
    assert policy.cut == 4
    assert policy.guaranteed == pytest.approx((8 / 3 - 1.6) * 3 / 20)
    np.testing.assert_allclose(np.exp(policy.log_p), [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("mu", [10.0, 100.0])
@pytest.mark.parametrize("name", list(POLICIES))
def test_a_million_examples_without_overflow(name: str, mu: float) -> None:
    with np.errstate(over="raise", invalid="raise"):
        policy = POLICIES[name](1_000_000, GainSettings(mu=mu))
    assert np.exp(policy.log_p).sum() == pytest.approx(1, rel=1e-9)
    assert 1 <= policy.cut <= 1_000_000
    if policy.log_guaranteed is not None:
        assert policy.log_guaranteed < 0


def test_gains_fall_with_the_rank() -> None:
    np.testing.assert_allclose(np.exp(log_gains(4, 2)), [1, 1 / 4, 1 / 9, 1 / 16])


EXAMPLES = np.array([40, 10, 30, 20, 50])
HARD = np.array([0.1, 0.5, 0.3, 0.5, 0.2])  # hardest first: 10, 20, 30, 50, 40


def test_hardest_and_easiest() -> None:
    assert select(EXAMPLES, HARD, "hardest", 3).examples.tolist() == [10, 20, 30]
    assert select(EXAMPLES, HARD, "easiest", 2).examples.tolist() == [40, 50]
    assert select(EXAMPLES, HARD, "hardest", 99).examples.tolist() == [10, 20, 30, 50, 40]
    assert select(EXAMPLES, HARD, "hardest", 2, among=np.array([30, 40, 50])).examples.tolist() == [30, 50]


@pytest.mark.parametrize("name", NAMES)
def test_more_later_keeps_what_was_drawn_before(name: str) -> None:
    generator = np.random.default_rng(0)
    examples, hard = generator.permutation(3000)[:1000], generator.normal(size=1000)
    first = select(examples, hard, name, 500, seed=7)
    more = select(examples, hard, name, 800, seed=7)
    assert np.array_equal(more.examples[:500], first.examples)
    assert len(set(more.examples.tolist())) == 800
    assert set(more.examples.tolist()) <= set(examples.tolist())
    assert np.array_equal(select(examples, hard, name, 500, seed=7).examples, first.examples)
    if name not in ("hardest", "easiest"):
        assert not np.array_equal(select(examples, hard, name, 500, seed=8).examples, first.examples)
    assert first.account["selected"] == 500
    some = select(examples, hard, name, 100, seed=7, among=examples[::2])
    assert np.array_equal(some.examples, more.examples[np.isin(more.examples, examples[::2])][:100])


def test_draws_follow_the_probabilities() -> None:
    """First of all draws: p. First two of them, without replacement: p_i p_j / (1 - p_i)."""
    given = GainSettings(effective=2, similar=2, incorrect=1, mu=1)
    draws = [tuple(select(EXAMPLES, HARD, "maxmin", 2, seed=seed, settings=given).examples) for seed in range(4000)]
    p = dict(zip(EXAMPLES.tolist(), np.exp(select(EXAMPLES, HARD, "maxmin", 1, settings=given).log_p), strict=True))
    for one, other in itertools.permutations(EXAMPLES.tolist(), 2):
        wanted = 4000 * p[one] * p[other] / (1 - p[one])
        found = sum(pair == (one, other) for pair in draws)
        assert abs(found - wanted) < 5 * math.sqrt(wanted) + 1


def test_what_the_policy_never_draws_comes_last_the_hardest_first() -> None:
    given = GainSettings(effective=0, similar=0, incorrect=1, mu=1)  # all on the last
    selection = select(EXAMPLES, HARD, "maxmin", 5, settings=given)
    assert selection.account["cut"] == 1
    assert selection.examples.tolist() == [40, 10, 20, 30, 50]


def test_no_such_policy() -> None:
    with pytest.raises(ConfigError, match=r"no policy is called 'best'.*alkdrec"):
        select(EXAMPLES, HARD, "best", 1)
    with pytest.raises(ValueError, match="above 0"):
        GainSettings(effective=0, similar=0, incorrect=0)


@pytest.mark.parametrize("name", ["sasrec", "fpmc", "stamp", "attmix"])
def test_difficulty_by_the_equation(name: str, tiny_dataset: Dataset) -> None:
    torch.manual_seed(0)
    model = build_student(name, {"hidden_size": 8, "max_length": 5}, tiny_dataset.n_items, STUDENTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    examples = training_examples(tiny_dataset)[::3]
    found = difficulties(model, tiny_dataset, examples, batch_tokens=64)
    table = model.item_vectors().detach()
    for example, hard in zip(examples.tolist(), found, strict=True):
        start = int(tiny_dataset.offsets[tiny_dataset.rows_of(np.array([example]))[0]])
        session = torch.from_numpy(np.asarray(tiny_dataset.items)[max(start, example - 5) : example].astype(np.int64))
        with torch.no_grad():
            state = model.encode_last(session[None], torch.tensor([len(session)]), table)[0]
        wanted = -sum(torch.sigmoid(state @ table[item]).item() for item in session) / len(session)
        assert hard == pytest.approx(wanted, abs=1e-6)
    assert len(set(found.round(6))) > 3
