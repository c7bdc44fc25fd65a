"""The order of half-steps, what each gets, and when rounds end."""

import pytest

from distilrec.training.rounds import alternate


def course_of(teachers: list[float], students: list[float], rounds: int = 10, start: float = 0.5):  # type: ignore[no-untyped-def]
    calls: list[tuple[str, int, str | None, str]] = []

    def teach(number: int, before: str | None, student: str) -> tuple[str, float]:
        calls.append(("teach", number, before, student))
        return f"t{number}", teachers[number - 1]

    def learn(number: int, teacher: str, before: str) -> tuple[str, float]:
        calls.append(("learn", number, teacher, before))
        return f"s{number}", students[number - 1]

    return alternate(rounds, ("s0", start), teach, learn), calls


def test_each_half_step_gets_what_the_one_before_it_made() -> None:
    course, calls = course_of([0.1, 0.2], [0.6, 0.7], rounds=2)
    assert calls == [
        ("teach", 1, None, "s0"), ("learn", 1, "t1", "s0"),
        ("teach", 2, "t1", "s1"), ("learn", 2, "t2", "s1"),
    ]  # fmt: skip
    assert [half.made for half in course.teachers] == ["t1", "t2"]
    assert [half.made for half in course.students] == ["s0", "s1", "s2"]
    assert (course.best_teacher.made, course.best_student.made) == ("t2", "s2")


@pytest.mark.parametrize(
    ("teachers", "students", "done"),
    [
        ([0.1, 0.2, 0.3], [0.6, 0.7, 0.8], 3),  # as many as wanted
        ([0.3, 0.2, 0.4], [0.6, 0.7, 0.8], 3),  # one side gains
        ([0.1, 0.2, 0.3], [0.4, 0.4, 0.4], 3),
        ([0.3, 0.2, 0.9], [0.6, 0.6, 0.9], 2),  # neither does; as high as before is no gain
        ([0.3, 0.3, 0.9], [0.6, 0.5, 0.9], 2),
    ],
)
def test_rounds_end_when_neither_side_gains(teachers: list[float], students: list[float], done: int) -> None:
    course, _ = course_of(teachers, students, rounds=3)
    assert len(course.teachers) == done
    assert len(course.students) == done + 1


def test_a_teacher_that_is_there_before_the_first_round_counts() -> None:
    calls: list[tuple[int, str | None]] = []

    def teach(number: int, before: str | None, _student: str) -> tuple[str, float]:
        calls.append((number, before))
        return f"t{number}", 0.1

    course = alternate(3, ("s0", 0.5), teach, lambda number, _teacher, _before: (f"s{number}", 0.4), ("t0", 0.2))
    assert calls == [(1, "t0")]  # neither side rose above its start
    assert [half.number for half in course.teachers] == [0, 1]
    assert (course.best_teacher.made, course.best_student.made, course.rounds) == ("t0", "s0", 1)


def test_the_student_may_begin_a_round() -> None:
    calls: list[tuple[str, int, str | None, str]] = []

    def teach(number: int, before: str | None, student: str) -> tuple[str, float]:
        calls.append(("teach", number, before, student))
        return f"t{number}", number

    def learn(number: int, teacher: str, before: str) -> tuple[str, float]:
        calls.append(("learn", number, teacher, before))
        return f"s{number}", number

    course = alternate(2, ("s0", 0.5), teach, learn, ("t0", 0.2), student_first=True)
    assert calls == [
        ("learn", 1, "t0", "s0"), ("teach", 1, "t0", "s1"),
        ("learn", 2, "t1", "s1"), ("teach", 2, "t1", "s2"),
    ]  # fmt: skip
    assert course.rounds == 2
    with pytest.raises(ValueError, match="no teacher yet"):
        alternate(2, ("s0", 0.5), teach, learn, student_first=True)


def test_the_best_round_of_each_side_is_kept_the_first_of_equals() -> None:
    course, _ = course_of([0.4, 0.3, 0.4], [0.2, 0.5, 0.4], rounds=3)
    assert (course.best_teacher.number, course.best_student.number) == (1, 0)
