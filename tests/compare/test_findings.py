"""Which rows no other beats, and the advice in words, in each case that can come up."""

from collections.abc import Sequence
from typing import Any

import pytest
from fixtures_compare import side_of

from distilrec.compare.figures import Measured
from distilrec.compare.findings import Advice, advise, mark_front, name_of

Row = dict[str, Any]
METRIC = "hr@1"
USERS = 40


def row(
    student: str | None = "a",
    method: str | None = "plain",
    teacher: str | None = None,
    mean: float = 0.5,
    *,
    verdict: str | None = None,
    p: float = 0.5,
    difference: float = 0.0,
    **changes: Any,
) -> Row:
    """Return a row of the report; with a verdict it was tested."""
    tested: Row = {}
    if verdict is not None:
        edges = [difference - 0.02, difference + 0.02]
        tested = {"difference": difference, "difference_ci95": edges, "p_value": p, "verdict": verdict}
    return {
        "dataset": "toy", "student": student, "method": method, "teacher": teacher, "metrics": {METRIC: mean},
        "ci95": {METRIC: [mean - 0.1, mean + 0.1]}, "ms_per_user": 0.25, "latency_ms": 1.5, "parameters": 12345,
        "usd": 0.0, "teacher_seconds": 0.0, "train_seconds": 120.0, "seeds": [1, 2, 3],
        **{key: {METRIC: value} for key, value in tested.items()}, **changes,
    }  # fmt: skip


def side(student: str | None, method: str | None, teacher: str | None, hits: int, seeds: int = 3) -> Measured:
    """Return ranks of 40 users of whom the first `hits` are hit, with every seed."""
    return side_of(student, method, teacher, [[1] * hits + [9] * (USERS - hits)] * seeds)


def advice(rows: Sequence[Row], some: Sequence[Measured]) -> Advice:
    found = advise("toy", list(rows), some, METRIC)
    assert found is not None
    return found


def front(rows: Sequence[Row]) -> list[bool]:
    mark_front(rows, METRIC)
    return [one["on_front"] for one in rows]


def test_names() -> None:
    assert name_of(row("a", "plain", None)) == "a + plain"
    assert name_of(row("a", "rd", "big")) == "a + rd (big)"
    assert name_of(row(None, None, "big")) == "big (teacher)"


def test_the_front_by_hand() -> None:
    """Better and dearer, or worse and cheaper, stay; what is beaten in one thing and equalled in all others goes."""
    fast = row("a", "plain", None, 0.4, ms_per_user=1.0, parameters=10)
    good = row("b", "plain", None, 0.6, ms_per_user=3.0, parameters=30)
    beaten = row("c", "plain", None, 0.4, ms_per_user=1.0, parameters=11)  # as fast, more parameters
    slower = row("d", "plain", None, 0.6, ms_per_user=3.5, parameters=30)
    small = row("e", "plain", None, 0.1, ms_per_user=9.0, parameters=1)
    assert front([fast, good, beaten, slower, small]) == [True, True, False, False, True]


@pytest.mark.parametrize("cost", ["ms_per_user", "parameters", "usd", "teacher_seconds"])
def test_every_cost_counts_for_the_front(cost: str) -> None:
    cheap, dear = row("a", **{cost: 1.0}), row("b", **{cost: 2.0})
    assert front([cheap, dear]) == [True, False]
    better = row("b", mean=0.6, **{cost: 2.0})
    assert front([cheap, better]) == [True, True]
    unknown = row("b", **{cost: None})
    assert front([unknown, dear]) == [False, True]  # what is not known counts as the worst
    assert front([unknown, row("c", **{cost: None})]) == [True, True]


def test_the_front_is_of_one_data_set_and_equals_share_it() -> None:
    best = row("a", mean=0.9)
    assert front([best, row("b", mean=0.1, dataset="other")]) == [True, True]
    assert front([row("a"), row("b")]) == [True, True]
    assert front([row(None, None, "big", 0.9), row("a")]) == [True, False]  # a teacher that ranks can beat a student


def test_the_champion_is_plain() -> None:
    rows = [row("a", "plain", None, 0.5), row("a", "rd", "big", 0.25, verdict="worse", p=0.01, difference=-0.25)]
    found = advice(rows, [side("a", "plain", None, 20), side("a", "rd", "big", 10)])
    assert (found.dataset, found.student, found.method, found.teacher) == ("toy", "a", "plain", None)
    assert found.words == (
        "Take a + plain: hr@1 0.5000 (95 % interval 0.4000 to 0.6000). No other row has a higher mean.",
        "It needs no teacher: nothing that was distilled is surely better than it.",
        "A user takes 0.250 ms when many are ranked together and 1.50 ms alone, on the machine that made this report; "
        "the model has 12,345 parameters.",
        "It took 2 minutes to make and 0.00 US dollars for the teacher's answers.",
        "The intervals are over 3 seeds and all test users.",
    )


def test_the_champion_is_distilled_and_surely_better() -> None:
    """30 hits against 20 of 40: the mean of 10 ones among 40, t = 0.25 / sqrt(0.25 * 0.75 / 39) = 3.6, p 0.0009."""
    best = row(
        "a",
        "rd",
        "big",
        0.75,
        verdict="better",
        p=0.0123,
        difference=0.25,
        usd=1.5,
        teacher_seconds=600.0,
        transfer=0.4,
    )
    found = advice([best, row()], [side("a", "plain", None, 20), side("a", "rd", "big", 30)])
    assert (found.student, found.method, found.teacher) == ("a", "rd", "big")
    assert found.words == (
        "Take a + rd (big): hr@1 0.7500 (95 % interval 0.6500 to 0.8500). No other row has a higher mean.",
        "Over the plain a that is +0.2500 (+50.0 %), 95 % interval +0.2300 to +0.2700: better. "
        "It keeps 40 % of what its teacher is ahead.",
        "A user takes 0.250 ms when many are ranked together and 1.50 ms alone, on the machine that made this report; "
        "the model has 12,345 parameters.",
        "It took 12 minutes to make and 1.50 US dollars for the teacher's answers.",
        "How sure: p 0.0123 after Holm, over 3 seeds and all test users.",
    )
    best["p_value"][METRIC] = 0.00009
    best["transfer"] = None
    found = advice([best, row()], [side("a", "plain", None, 20), side("a", "rd", "big", 30)])
    assert found.words[-1] == "How sure: p below 0.0001 after Holm, over 3 seeds and all test users."
    assert "ahead" not in found.words[1]


def test_the_champion_is_not_surely_better_so_plain_is_advised() -> None:
    """One hit more of 40: t is 1 where a single user differs; p of Student's t at 39 degrees is 0.32."""
    best = row("a", "rd", "big", 0.525, verdict="not significant", p=0.64, difference=0.025)
    found = advice([best, row()], [side("a", "plain", None, 20), side("a", "rd", "big", 21)])
    assert (found.student, found.method, found.teacher) == ("a", "plain", None)
    assert found.words[0] == (
        "Take a + plain: hr@1 0.5000 (95 % interval 0.4000 to 0.6000). a + rd (big) has the highest mean, 0.5250, but "
        "its lead of 0.0250 could be luck (p 0.32)."
    )
    assert found.words[1] == "It needs no teacher: nothing that was distilled is surely better than it."
    assert found.words[-1] == "The intervals are over 3 seeds and all test users."


def test_the_plain_student_of_another_kind_may_be_advised() -> None:
    rows = [
        row("b", "rd", "big", 0.525, verdict="better", p=0.01, difference=0.4),
        row("a", "rd", "big", 0.5, verdict="better", p=0.01, difference=0.3),
        row("a", "plain", None, 0.5),
        row("b", "plain", None, 0.125),
    ]
    some = [
        side("b", "rd", "big", 21),
        side("a", "rd", "big", 20),
        side("a", "plain", None, 20),
        side("b", "plain", None, 5),
    ]
    found = advice(rows, some)
    assert (found.student, found.method) == ("a", "plain")
    assert found.words[1] == "With this student a + rd (big) would be better, at the price of a teacher."


def test_of_several_that_are_near_the_cheapest_is_taken() -> None:
    """Without a plain student near: first no dollars, an unknown sum last of all, then the fastest."""

    def near(method: str, usd: float | None, ms: float | None, hits: int) -> tuple[Row, Measured]:
        made = row("a", method, "big", hits / USERS, verdict="better", difference=0.2, p=0.01, usd=usd, ms_per_user=ms)
        return made, side("a", method, "big", hits)

    def taken(*pairs: tuple[Row, Measured]) -> str:
        plain = row("a", "plain", None, 0.1), side("a", "plain", None, 4)
        both = [*pairs, plain]
        return advice([one for one, _ in both], [other for _, other in both]).method

    best = near("best", None, 0.1, 30)
    assert taken(best, near("paid", 2.0, 0.5, 29)) == "paid"
    assert taken(best, near("paid", 2.0, 0.5, 29), near("less", 1.0, 0.9, 29)) == "less"
    assert taken(best, near("slow", 0.0, 0.9, 29), near("fast", 0.0, 0.5, 29), near("untimed", 0.0, None, 29)) == "fast"
    assert taken(best, near("far", 0.0, 0.1, 12)) == "best"


def test_an_unknown_cost_is_said() -> None:
    best = row("a", "rd", "big", 0.75, verdict="better", p=0.01, difference=0.25, usd=None)
    found = advice([best, row()], [side("a", "plain", None, 20), side("a", "rd", "big", 30)])
    assert found.words[3] == "It took 2 minutes to make and an unknown sum for the teacher's answers."


def test_a_model_that_was_not_timed_has_no_speed_in_words() -> None:
    rows = [row(ms_per_user=None, latency_ms=None)]
    found = advice(rows, [side("a", "plain", None, 20)])
    assert not any("A user takes" in sentence for sentence in found.words)


def test_one_seed_is_said_to_be_too_few() -> None:
    best = row("a", "rd", "big", 0.75, verdict="better", p=0.01, difference=0.25, seeds=[7])
    some = [side("a", "plain", None, 20, seeds=1), side("a", "rd", "big", 30, seeds=1)]
    found = advice([best, row(seeds=[7])], some)
    assert found.method == "rd"
    assert found.words[-1] == (
        "One seed only: another seed may turn this around. Run at least three before you rely on it."
    )


def test_what_holm_does_not_confirm_is_to_be_treated_as_equal() -> None:
    """Taken, since no plain student comes near it, yet not significant in the family."""
    best = row("a", "rd", "big", 0.75, verdict="not significant", p=0.08, difference=0.25)
    found = advice([best, row()], [side("a", "plain", None, 20), side("a", "rd", "big", 30)])
    assert found.method == "rd"
    assert found.words[1].endswith(": not significant.")
    assert found.words[-1] == (
        "How sure: not significant over 3 seeds and all test users (p 0.08 after Holm). Treat it as equal to plain."
    )


def test_seeds_that_lie_apart_make_a_lead_unsure() -> None:
    """The same means as above, 30 hits against 20, but of seeds with 10 and 30, and 20 and 40 hits."""
    best = row("a", "rd", "big", 0.75, verdict="not significant", p=0.5, difference=0.25)
    some = [
        side_of("a", method, teacher, [[1] * hits + [9] * (USERS - hits) for hits in by_seed])
        for method, teacher, by_seed in (("plain", None, (10, 30)), ("rd", "big", (20, 40)))
    ]
    assert advice([best, row()], some).method == "plain"


def test_how_far_seeds_lie_apart_is_taken_from_all_methods_of_the_student() -> None:
    """30 hits against 20 with every seed, as above; but another method of this student has 0, 20 and 40 hits."""
    best = row("a", "rd", "big", 0.75, verdict="not significant", p=0.5, difference=0.25)
    wild = row("a", "wild", "big", 0.5, verdict="not significant", p=1.0)
    some = [side("a", "plain", None, 20), side("a", "rd", "big", 30)]
    assert advice([best, row()], some).method == "rd"
    gains = [[1] * hits + [9] * (USERS - hits) for hits in (0, 20, 40)]
    assert advice([best, row(), wild], [*some, side_of("a", "wild", "big", gains)]).method == "plain"


def test_a_teacher_is_not_advised_and_other_data_sets_do_not_count() -> None:
    rows = [row(None, None, "big", 0.9), row(), row("a", "rd", "big", 0.99, dataset="other")]
    found = advice(rows, [side(None, None, "big", 36), side("a", "plain", None, 20)])
    assert (found.student, found.method) == ("a", "plain")
    assert advise("third", rows, [], METRIC) is None
    assert advise("toy", rows[:1], [side(None, None, "big", 36)], METRIC) is None


def test_a_plain_student_without_any_hit_gives_no_percentage() -> None:
    best = row("a", "rd", "big", 0.75, verdict="better", p=0.01, difference=0.75)
    found = advice([best, row(mean=0.0)], [side("a", "plain", None, 0), side("a", "rd", "big", 30)])
    assert found.words[1] == "Over the plain a that is +0.7500, 95 % interval +0.7300 to +0.7700: better."


def test_without_a_plain_student_nothing_is_said_to_need_no_teacher() -> None:
    """The plain student failed: what was distilled stands alone, untested."""
    found = advice([row("a", "rd", "big", 0.75)], [side("a", "rd", "big", 30)])
    assert found.method == "rd"
    assert not any("needs no teacher" in sentence for sentence in found.words)
    assert found.words[1] == "The plain student beside it was not measured, so nothing is known of its gain."


def test_a_tie_is_no_lead() -> None:
    rows = [row("a", "rd", "big", 0.5, verdict="not significant", p=1.0), row()]
    found = advice(rows, [side("a", "rd", "big", 20), side("a", "plain", None, 20)])
    assert found.method == "plain"
    assert found.words[0].endswith(" No other row has a higher mean.")
