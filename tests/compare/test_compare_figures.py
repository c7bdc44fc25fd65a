"""Figures of a comparison by hand: tests over users and seeds, Holm, what came over from a teacher, groups, times."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_compare import matrix_of, outcome_of, side_of
from scipy import stats

from distilrec.compare.figures import Measured, learnt, measured, overlap, rows_of, verdicts
from distilrec.compare.matrix import Combination, Matrix
from distilrec.compare.plan import Outcome
from distilrec.compare.work import cutoff_of
from distilrec.data.dataset import Dataset

Row = dict[str, Any]
HIT, MISS = 1, 9  # ranks: a gain of 1 or 0 in hr@1
PLAIN = [[HIT, MISS, MISS, MISS], [HIT, HIT, MISS, MISS]]
SOFT = [[HIT, HIT, HIT, MISS], [HIT, HIT, HIT, HIT]]


@pytest.fixture(scope="session")
def four_users(make_dataset: Callable[..., Dataset]) -> Dataset:
    """Test targets g, c, a, b behind 3, 3, 5 and 7 items; training counts a 4, b 3, c e f 2, d 1, g 0."""
    return make_dataset(["abeg", "abdc", "acefba", "abcdefcb"])


def rows(some: list[Measured], dataset: Dataset, outcome: Outcome | None = None, **changes: Any) -> list[Row]:
    return rows_of(matrix_of(**changes), some, outcome or Outcome(), {"toy": dataset})


def test_a_difference_over_users_and_seeds_by_hand(four_users: Dataset) -> None:
    """Gains of users, averaged over seeds: plain 1, 1/2, 0, 0; other 1, 1, 1, 1/2: differences 0, 1/2, 1, 1/2.

    Users: variance 1/6, of the mean 1/24. Seeds: means 1/4, 1/2 and 3/4, 1: variance 1/32 on both sides (B). What is
    left after the means of users and seeds: +-1/8 six times and +-3/8 twice, squares 3/8 in all, over (2 - 1)(4 - 1)
    degrees 1/8, over four users 1/32 (E / n). So seeds add (1/2 + 1/2)(1/32 - 1/32) = 0: V = 1/24, D = 1/2, and the
    degrees of freedom are V^2 / ((1/24)^2 / 3 + (1/32)^2 / 2) = 96/59.
    """
    best, plain = rows([side_of("a", "plain", None, PLAIN), side_of("a", "soft_labels", "big", SOFT)], four_users)
    assert (best["method"], plain["method"]) == ("soft_labels", "plain")
    assert best["metrics"]["hr@1"] == 0.875
    assert plain["metrics"]["hr@1"] == 0.375
    assert best["by_seed"] == {"hr@1": [0.75, 1.0]}
    assert plain["by_seed"] == {"hr@1": [0.25, 0.5]}
    error = (1 / 24) ** 0.5
    assert best["difference"] == {"hr@1": pytest.approx(0.5)}
    assert best["p_value"] == {"hr@1": pytest.approx(2 * stats.t.sf(0.5 / error, 96 / 59))}
    half = stats.t.ppf(0.975, 96 / 59) * error
    assert best["difference_ci95"] == {"hr@1": pytest.approx([0.5 - half, 0.5 + half])}
    assert best["verdict"] == {"hr@1": "not significant"}
    assert best["effect_size"] == {"hr@1": pytest.approx(0.5 / (1 / 6) ** 0.5)}
    assert "difference" not in plain
    assert "verdict" not in plain


def test_how_far_seeds_lie_apart_is_taken_from_all_methods_of_the_student(four_users: Dataset) -> None:
    """A third method misses all with one seed and hits all with the other: B 1/2, nothing left over.

    Pooled over three degrees: B (1/32 + 1/32 + 1/2) / 3 = 3/16, E / n (1/32 + 1/32 + 0) / 3 = 1/48. For the pair above
    seeds now add 3/16 - 1/48 = 1/6: V = 5/24, degrees (5/24)^2 / (((1/24)^2 + (3/16)^2) / 3) = 60/17.
    """
    changes = {
        "methods": {"plain": None, "soft_labels": None, "wild": {"name": "soft_labels"}},
        "students": {"a": {"name": "sasrec"}, "b": {"name": "fpmc"}},
    }
    some = [
        side_of("a", "plain", None, PLAIN),
        side_of("a", "soft_labels", "big", SOFT),
        side_of("a", "wild", "big", [[MISS] * 4, [HIT] * 4]),
        side_of(
            "b", "plain", None, [[HIT, MISS, MISS, HIT], [MISS, HIT, HIT, HIT]]
        ),  # another student is another matter
    ]
    found = {(row["student"], row["method"]): row for row in rows(some, four_users, **changes)}
    soft = found["a", "soft_labels"]
    own = 2 * stats.t.sf(0.5 / (5 / 24) ** 0.5, 60 / 17)
    assert soft["p_value"]["hr@1"] == pytest.approx(2 * own)  # Holm: the smaller one of two
    half = stats.t.ppf(0.975, 60 / 17) * (5 / 24) ** 0.5
    assert soft["difference_ci95"]["hr@1"] == pytest.approx([0.5 - half, 0.5 + half])
    assert sum(len(row.get("p_value", {})) for row in found.values()) == 2


def test_the_interval_of_a_mean(four_users: Dataset) -> None:
    """Means of users 1, 1, 1, 1/2: variance 1/16, of the mean 1/64; one seed in two places: seeds say nothing."""
    (row,) = rows([side_of("a", "plain", None, [[HIT, HIT, HIT, 2]] * 2)], four_users, metrics=["mrr@2"])
    assert row["metrics"]["mrr@2"] == 0.875
    half = stats.t.ppf(0.975, 3) / 8
    assert row["ci95"]["mrr@2"] == [pytest.approx(0.875 - half), 1.0]  # a metric is not above 1


def test_holm_by_hand() -> None:
    adjusted, said = verdicts([0.04, 0.01, 0.012, 0.3], [0.1, 0.2, -0.3, 0.4], 0.95)
    assert adjusted == pytest.approx([0.08, 0.04, 0.04, 0.3])  # 2 x, 4 x, 3 x made to rise, 1 x
    assert said == ["not significant", "better", "worse", "not significant"]
    assert verdicts([0.04, 0.01, 0.012, 0.3], [0.1, 0.2, -0.3, 0.4], 0.9)[1] == [
        "better",
        "better",
        "worse",
        "not significant",
    ]
    assert verdicts([0.04, 0.01], [0.1, 0.2], 0.99)[1] == ["not significant"] * 2
    assert verdicts([], [], 0.95) == ([], [])


def test_a_p_value_at_the_level_is_not_below_it() -> None:
    assert verdicts([0.05], [0.1], 0.95)[1] == ["not significant"]


def test_the_family_is_all_that_was_distilled_times_the_metrics(four_users: Dataset) -> None:
    """Two students, two metrics: four tests. Those of b find no difference, p 1; those of a count four times."""
    changes = {"students": {"a": {"name": "sasrec"}, "b": {"name": "fpmc"}}, "metrics": ["hr@1", "mrr@5"]}
    same = [[HIT, MISS, HIT, MISS]] * 2
    some = [
        side_of("a", "plain", None, PLAIN), side_of("a", "soft_labels", "big", SOFT),
        side_of("b", "plain", None, same), side_of("b", "soft_labels", "big", same),
        side_of(None, None, "big", [[HIT] * 4]),
    ]  # fmt: skip
    found = {(row["student"], row["method"]): row for row in rows(some, four_users, **changes)}
    unadjusted = 2 * stats.t.sf(0.5 * 24**0.5, 96 / 59)
    # Ranks 9 count nothing in mrr@5 either: both metrics are the same numbers here.
    assert found["a", "soft_labels"]["p_value"] == {
        "hr@1": pytest.approx(4 * unadjusted),
        "mrr@5": pytest.approx(4 * unadjusted),
    }
    assert found["b", "soft_labels"]["p_value"] == {"hr@1": 1.0, "mrr@5": 1.0}
    assert "p_value" not in found[None, None]


def test_verdicts_of_rows(four_users: Dataset) -> None:
    """Ranks of everybody 4, 2 and 8 with every seed: gains 1/4, 1/2 and 1/8, nothing varies, p is 0."""
    some = [
        side_of("a", "down", "big", [[8] * 4] * 2),
        side_of("a", "plain", None, [[4] * 4] * 2),
        side_of("a", "up", "big", [[2] * 4] * 2),
    ]
    methods = {"plain": None, "up": {"name": "soft_labels"}, "down": {"name": "soft_labels"}}
    found = rows(some, four_users, methods=methods, metrics=["mrr@10"])
    assert [row["method"] for row in found] == ["up", "plain", "down"]  # best first
    assert [row.get("verdict", {}).get("mrr@10") for row in found] == ["better", None, "worse"]
    assert [row.get("difference", {}).get("mrr@10") for row in found] == [0.25, None, -0.125]
    assert found[0]["effect_size"] == {"mrr@10": None}  # no spread between users


def test_best_lists_in_common() -> None:
    teacher = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    one = np.array([[4, 3, 2, 1], [5, 9, 10, 11]])  # 4 and 1 of 4
    two = np.array([[9, 9, 9, 9], [8, 1, 2, 7]])  # 0 and 2 of 4
    assert overlap([teacher], teacher) == 1
    assert overlap([one], teacher) == 5 / 8
    assert overlap([one, two], teacher) == 7 / 16


def test_what_came_over_from_a_teacher() -> None:
    """Twelve users: plain hits 2, the distilled student 5, the teacher 12: (5 - 2) / (12 - 2) of its lead."""
    lists = np.arange(12)[:, None]
    plain = side_of("a", "plain", None, [[HIT] * 2 + [MISS] * 10] * 2, tops=[lists + 50, lists])
    soft = side_of("a", "soft_labels", "big", [[HIT] * 5 + [MISS] * 7] * 2, tops=[lists, lists])
    teacher = side_of(None, None, "big", [[HIT] * 12], tops=[lists])
    assert learnt(plain, soft, teacher, "hr@1", 100) == {
        "transfer": pytest.approx(0.3), "overlap": {"plain": 0.5, "distilled": 1.0},
    }  # fmt: skip
    weak = side_of(None, None, "big", [[HIT] * 3 + [MISS] * 9], tops=[lists])
    assert learnt(plain, soft, weak, "hr@1", 100)["transfer"] is None  # 3 hits against 2 may be luck
    assert learnt(plain, soft, teacher, "hr@1", 1)["overlap"] == {"plain": None, "distilled": None}  # all items
    worse = side_of(None, None, "big", [[MISS] * 12], tops=[lists])
    below = side_of("a", "plain", None, [[HIT] * 12] * 2, tops=[lists, lists])
    assert learnt(below, soft, worse, "hr@1", 100)["transfer"] is None  # surely below: no lead to keep


def test_a_row_learns_from_its_own_teacher(four_users: Dataset) -> None:
    teachers = {"big": {"name": "conventional"}, "small": {"name": "conventional"}}
    tops = [[[1], [2], [3], [4]]]
    some = [
        side_of("a", "plain", None, [[MISS] * 4], tops=[[[1], [2], [0], [0]]]),
        side_of("a", "soft_labels", "big", [[HIT] * 4], tops=tops),
        side_of("a", "soft_labels", "small", [[HIT] * 4], tops=tops),
        side_of(None, None, "big", [[HIT] * 4], tops=tops),
    ]
    found = {(row["method"], row["teacher"]): row for row in rows(some, four_users, teachers=teachers)}
    assert found["soft_labels", "big"]["overlap"] == {"plain": 0.5, "distilled": 1.0}
    assert found["soft_labels", "big"]["transfer"] == 1.0
    assert "overlap" not in found["soft_labels", "small"]  # this one only speaks, it does not rank
    assert "overlap" not in found["plain", None]


def test_groups_of_test_examples(four_users: Dataset) -> None:
    """Two seeds: hits of users 1 to 4 are 1 0 1 0 and 1 1 0 0."""
    (row,) = rows([side_of("a", "plain", None, [[HIT, MISS, HIT, MISS], [HIT, HIT, MISS, MISS]])], four_users)
    assert cutoff_of(["hr@1"]) == 1
    history = row["groups"]["history"]
    assert [(group["label"], group["range"], group["n"]) for group in history] == [
        ("3", [3, 3], 2), ("5", [5, 5], 1), ("7", [7, 7], 1),
    ]  # fmt: skip
    assert [group["metrics"]["hr@1"] for group in history] == [0.75, 0.5, 0.0]
    assert history[1]["ci95"] == {"hr@1": None, "ndcg@1": None}  # one example
    # Gains 1 0 and 1 1. Users: means 1, 1/2, variance 1/8, of the mean 1/16. Seeds: means 1/2, 1, variance 1/8 (B);
    # left over +-1/4 four times, squares 1/4, over one degree and two users 1/8 (E / n). So seeds add nothing:
    # degrees (1/16)^2 / ((1/16)^2 / 1 + (1/16)^2 / 1) = 1/2, with B / S = 1/16.
    half = stats.t.ppf(0.975, 0.5) / 4
    assert history[0]["ci95"]["hr@1"] == pytest.approx([max(0, 0.75 - half), min(1, 0.75 + half)])
    popularity = row["groups"]["target_popularity"]
    assert [(group["label"], group["range"], group["n"]) for group in popularity] == [
        ("cold", [0, 0], 1), ("tail", [2, 2], 1), ("mid", [3, 3], 1), ("head", [4, 4], 1),
    ]  # fmt: skip
    assert [group["metrics"]["hr@1"] for group in popularity] == [1.0, 0.5, 0.0, 0.5]


def test_models_alike_are_given_the_median_of_their_times(four_users: Dataset) -> None:
    methods = {
        "plain": None,
        "soft_labels": None,
        "more": {"name": "soft_labels"},
        "wide": {"name": "soft_labels"},
        "late": {"name": "soft_labels"},
    }
    hits = [[HIT, HIT, MISS, MISS]]
    some = [
        side_of("a", "plain", None, hits, timing={"ms_per_user": 1.0, "latency_ms": 30.0}),
        side_of("a", "soft_labels", "big", hits, timing={"ms_per_user": 2.0, "latency_ms": 10.0}),
        side_of("a", "more", "big", hits, timing={"ms_per_user": 9.0, "latency_ms": 20.0}),
        side_of("a", "wide", "big", hits, timing={"ms_per_user": 7.0, "latency_ms": 70.0}, parameters=200),
        side_of("a", "late", "big", hits),
        side_of(None, None, "big", hits, timing={"ms_per_user": 50.0, "latency_ms": 60.0}),
    ]
    found = {row["method"]: (row["ms_per_user"], row["latency_ms"]) for row in rows(some, four_users, methods=methods)}
    assert found == {
        "plain": (2.0, 20.0), "soft_labels": (2.0, 20.0), "more": (2.0, 20.0), "wide": (7.0, 70.0),
        "late": (None, None),        None: (50.0, 60.0),
    }  # fmt: skip


def test_costs(four_users: Dataset) -> None:
    outcome = Outcome(teachers={("toy", "big"): {"usd": 8.0, "seconds": 100.0, "knowledge_seconds": 20.0, "rows": 400}})
    some = [
        side_of("a", "plain", None, PLAIN, seconds=30.0),
        side_of("a", "soft_labels", "big", SOFT, asked=400),
        side_of("a", "some", "big", SOFT, asked=50),
    ]
    methods = {"plain": None, "soft_labels": None, "some": {"name": "alkdrec"}}
    found = {row["method"]: row for row in rows(some, four_users, outcome, methods=methods)}
    keys = ("train_seconds", "teacher_seconds", "usd", "asked")
    assert [found["plain"][key] for key in keys] == [30.0, 0.0, 0.0, None]
    assert [found["soft_labels"][key] for key in keys] == [60.0, 120.0, 8.0, 400]
    assert [found["some"][key] for key in keys] == [60.0, 120.0, 1.0, 50]  # an eighth of the answers
    outcome.teachers["toy", "big"]["usd"] = None
    found = {row["method"]: row for row in rows(some, four_users, outcome, methods=methods)}
    assert found["some"]["usd"] is None
    assert found["plain"]["usd"] == 0.0


def test_rounds_pay_for_their_own_teacher_and_not_for_a_stored_one(four_users: Dataset) -> None:
    outcome = Outcome(teachers={("toy", "big"): {"usd": 8.0, "seconds": 100.0, "knowledge_seconds": 20.0, "rows": 4}})
    some = [
        side_of("a", "plain", None, PLAIN),
        side_of("a", "soft_labels", "big", SOFT),
        side_of("a", "llmd4rec", "big", SOFT, seconds=90.0, teacher_seconds=7.0),
    ]
    methods = {"plain": None, "soft_labels": None, "llmd4rec": None}
    found = {row["method"]: row for row in rows(some, four_users, outcome, methods=methods)}
    keys = ("train_seconds", "teacher_seconds", "usd")
    assert [found["llmd4rec"][key] for key in keys] == [90.0, 7.0, 0.0]
    assert [found["soft_labels"][key] for key in keys] == [60.0, 120.0, 8.0]


def test_what_jobs_left_is_read_in_the_order_of_the_matrix(four_users: Dataset, tmp_path: Path) -> None:
    matrix: Matrix = matrix_of()
    sides = {("a", "soft_labels", "big"): SOFT, (None, None, "big"): [[HIT, 2, 3, 4]], ("a", "plain", None): PLAIN}
    outcome = outcome_of(matrix, four_users, tmp_path, sides)
    plain, soft = Combination("toy", "a", "plain", None), Combination("toy", "a", "soft_labels", "big")
    outcome.trials[soft] = [
        {"number": 1, "values": {"train.learning_rate": 0.2}, "valid": 0.5, "found": {}},
        {"number": 2, "values": {"train.learning_rate": 0.3}, "valid": 0.5, "found": {}},
        {"number": 0, "values": {}, "valid": 0.4, "found": {}},
    ]
    del outcome.trained[plain, 1]
    found = measured(matrix, outcome)
    assert [one.key for one in found] == [
        ("toy", "a", "plain", None), ("toy", "a", "soft_labels", "big"), ("toy", None, None, "big"),
    ]  # fmt: skip
    assert [one.seeds for one in found] == [(2,), (1, 2), (1,)]
    assert [[ranks.tolist() for ranks in one.side.ranks] for one in found] == [PLAIN[1:], SOFT, [[HIT, 2, 3, 4]]]
    assert [one.values for one in found] == [{}, {"train.learning_rate": 0.2}, {}]
    assert [one.trials for one in found] == [1, 3, 0]
    assert [one.timing["ms_per_user"] for one in found] == [3.0, 1.0, 2.0]
