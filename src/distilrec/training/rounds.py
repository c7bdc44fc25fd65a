"""Rounds: teacher and student train in turn, each from the other as it then is, until neither gains.

What a half-step does lies with the caller; here is only the order, when to stop, and which round of each side is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Half(Generic[Made]):
    """A half-step that is done: its round (0: before the first), what it made, and its best validation measure."""

    number: int
    made: Made
    measure: float


@dataclass(frozen=True, slots=True)
class Course(Generic[Made]):
    """All half-steps of both sides, in order."""

    teachers: list[Half[Made]]
    students: list[Half[Made]]

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return self.students[-1].number

    @property
    def best_teacher(self) -> Half[Made]:
        """The first of those with the highest measure."""
        return max(self.teachers, key=lambda half: (half.measure, -half.number))

    @property
    def best_student(self) -> Half[Made]:
        """The first of those with the highest measure."""
        return max(self.students, key=lambda half: (half.measure, -half.number))


def alternate(
    rounds: int,
    start: tuple[Made, float],
    teach: Callable[[int, Made | None, Made], tuple[Made, float]],
    learn: Callable[[int, Made, Made], tuple[Made, float]],
    teacher: tuple[Made, float] | None = None,
    *,
    student_first: bool = False,
) -> Course[Made]:
    """Train teacher and student in turn.

    Args:
        rounds: at most so many.
        start: the student before the first round, and its validation measure.
        teach: (round, teacher before or None, student) -> teacher, measure.
        learn: (round, teacher, student before) -> student, measure.
        teacher: the teacher before the first round, and its validation measure; else the first round trains it from its start.
        student_first: which half-step begins a round; the student's needs a teacher before the first.

    Returns:
        What was made. The rounds end with the first in which neither side rose above its best.
    """
    if student_first and teacher is None:
        raise ValueError("there is no teacher yet that the student could learn from first")
    course: Course[Made] = Course([] if teacher is None else [Half(0, *teacher)], [Half(0, *start)])
    for number in range(1, rounds + 1):
        before = max((half.measure for half in course.teachers), default=float("-inf"))
        best = course.best_student.measure
        if student_first:
            course.students.append(Half(number, *learn(number, course.teachers[-1].made, course.students[-1].made)))
        taught = course.teachers[-1].made if course.teachers else None
        course.teachers.append(Half(number, *teach(number, taught, course.students[-1].made)))
        if not student_first:
            course.students.append(Half(number, *learn(number, course.teachers[-1].made, course.students[-1].made)))
        if course.teachers[-1].measure <= before and course.students[-1].measure <= best:
            break
    return course
