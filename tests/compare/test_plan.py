"""The plan: what may start when, what a failure takes with it, which trial is chosen, what is left when time is up."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from fixtures_compare import tiny

from distilrec.compare.matrix import Combination, Matrix
from distilrec.compare.plan import Plan
from distilrec.compare.settings import CompareSettings
from distilrec.compare.work import Job, as_job
from distilrec.settings import checked

Content = dict[str, Any]
TEACHER = "toy/big"


@pytest.fixture
def content(toy_data: dict[str, Any]) -> Content:
    """One student, two trials of each method on seed 1, then seed 2."""
    content = tiny(toy_data)
    content["students"].pop("fpmc")
    return content


def plan_of(content: Content) -> Plan:
    return Plan(Matrix(checked(CompareSettings, content, where="test")))


def one(method: str) -> Combination:
    return Combination("toy", "sasrec", method, None if method == "plain" else "big")


def label(method: str, seed: int, trial: int | None = None) -> str:
    return f"{one(method).label} (seed {seed}{f', trial {trial}' if trial else ''})"


def drain(plan: Plan, answer: Callable[[Job], float | str]) -> list[Job]:
    """Do jobs one after the other: a number is the validation of a training, a text the reason why a job failed."""
    jobs = []
    while (job := plan.next()) is not None:
        jobs.append(job)
        said = answer(job)
        if isinstance(said, str):
            plan.fail(job, said)
        else:
            plan.done(job, {"valid": said, "label": job.label})
    return jobs


def always(_job: Job) -> float:
    return 0.5


def test_teachers_then_trials_on_the_first_seed_then_seed_by_seed(content: Content) -> None:
    content["seeds"] = [1, 2, 3]
    plan = plan_of(content)
    assert plan.total == plan.left == 1 + 4 * 2 + 4 * 2
    jobs = drain(plan, always)
    assert [job.label for job in jobs] == [
        TEACHER,
        *(label(method, 1, trial) for method in ("plain", "soft_labels", "alkdrec", "llmd4rec") for trial in (1, 2)),
        *(label(method, seed) for seed in (2, 3) for method in ("plain", "soft_labels", "alkdrec", "llmd4rec")),
    ]
    assert plan.left == 0
    assert not plan.outcome.failed
    assert not plan.outcome.skipped
    assert set(plan.outcome.trained) == {
        (combination, seed) for combination in map(one, content["methods"]) for seed in (1, 2, 3)
    }


def test_what_waits_for_what(content: Content) -> None:
    plan = plan_of(content)
    started = []
    while (job := plan.next()) is not None:
        started.append(job)
    # Beside the teacher: plain students, and rounds, in which student and teacher train together and nothing is stored.
    assert [job.label for job in started] == [
        TEACHER, label("plain", 1, 1), label("plain", 1, 2), label("llmd4rec", 1, 1), label("llmd4rec", 1, 2),
    ]  # fmt: skip
    teacher, first, second, *_ = started
    plan.done(teacher, {})
    asked = [plan.next(), plan.next()]
    assert [job.label for job in asked if job] == [label("soft_labels", 1, 1), label("soft_labels", 1, 2)]
    assert plan.next() is None
    plan.done(first, {"valid": 0.5})
    assert plan.next() is None  # neither seed 2 nor alkdrec: which plain student is best is open
    plan.done(second, {"valid": 0.4})
    tuned = [plan.next(), plan.next(), plan.next()]
    assert [job.label for job in tuned if job] == [label("alkdrec", 1, 1), label("alkdrec", 1, 2), label("plain", 2)]
    for job in tuned[:2]:
        assert job is not None
        plan.done(job, {"valid": 0.5})
    assert plan.next() is None  # alkdrec of seed 2 waits for the plain student of seed 2
    assert tuned[2] is not None
    plan.done(tuned[2], {"valid": 0.5})
    later = plan.next()
    assert later is not None
    assert later.label == label("alkdrec", 2)


def test_no_stored_teacher_where_all_train_in_rounds(content: Content) -> None:
    content["methods"] = {"plain": None, "llmd4rec": content["methods"]["llmd4rec"]}
    assert all(job.kind == "training" for job in drain(plan_of(content), always))


def test_validation_decides_and_the_first_of_equals_wins(content: Content) -> None:
    content["tune"]["trials"] = 3
    content["methods"].pop("llmd4rec")
    valid = {
        label("plain", 1, 1): 0.3, label("plain", 1, 2): 0.6, label("plain", 1, 3): 0.5,
        label("soft_labels", 1, 1): 0.4, label("soft_labels", 1, 2): 0.7, label("soft_labels", 1, 3): 0.7,
        label("alkdrec", 1, 1): 0.9, label("alkdrec", 1, 2): 0.2, label("alkdrec", 1, 3): 0.9,
    }  # fmt: skip
    plan = plan_of(content)
    jobs = {job.label: job for job in drain(plan, lambda job: valid.get(job.label, 0.1))}
    drawn = plan.matrix.trials_of(one("plain"))
    assert drawn[0] == {}
    assert jobs[label("plain", 2)].values == drawn[1]
    assert jobs[label("soft_labels", 2)].values == drawn[1]
    assert jobs[label("alkdrec", 2)].values == {}
    for name in (label("alkdrec", 1, 1), label("alkdrec", 1, 3), label("alkdrec", 2)):
        assert jobs[name].plain == drawn[1]
    assert jobs[label("alkdrec", 1, 3)].values == drawn[2]
    assert jobs[label("soft_labels", 2)].plain == {}
    chosen = {
        combination.method: found["label"] for (combination, seed), found in plan.outcome.trained.items() if seed == 1
    }
    assert chosen == {
        "plain": label("plain", 1, 2), "soft_labels": label("soft_labels", 1, 2), "alkdrec": label("alkdrec", 1, 1),
    }  # fmt: skip
    assert [trial["valid"] for trial in plan.outcome.trials[one("plain")]] == [0.3, 0.6, 0.5]
    assert [trial["values"] for trial in plan.outcome.trials[one("plain")]] == drawn


def test_the_order_of_answers_does_not_matter_to_the_choice(content: Content) -> None:
    content["methods"] = {"plain": None}
    plan = plan_of(content)
    first, second = plan.next(), plan.next()
    assert first is not None
    assert second is not None
    plan.done(second, {"valid": 0.5})
    assert not plan.outcome.trained
    plan.done(first, {"valid": 0.5})
    later = plan.next()
    assert later is not None
    assert later.values == first.values == {}


def test_a_teacher_that_fails_takes_its_students_with_it_and_no_others(content: Content) -> None:
    content["teachers"]["small"] = content["teachers"]["big"]
    content["methods"].pop("alkdrec")
    plan = plan_of(content)
    drain(plan, lambda job: "no such file." if job.label == TEACHER else 0.5)
    assert plan.outcome.failed == {TEACHER: "no such file."}
    assert plan.outcome.skipped == [label("soft_labels", 1, 1), label("soft_labels", 1, 2), label("soft_labels", 2)]
    assert {(combination.method, combination.teacher) for combination, _ in plan.outcome.trained} == {
        ("plain", None), ("soft_labels", "small"), ("llmd4rec", "big"), ("llmd4rec", "small"),
    }  # fmt: skip
    assert plan.left == 0


def test_one_failed_trial_leaves_the_others(content: Content) -> None:
    plan = plan_of(content)
    jobs = drain(plan, lambda job: "diverged." if job.label == label("plain", 1, 1) else 0.5)
    drawn = plan.matrix.trials_of(one("plain"))[1]
    assert plan.outcome.failed == {label("plain", 1, 1): "diverged."}
    assert not plan.outcome.skipped
    assert next(job for job in jobs if job.label == label("plain", 2)).values == drawn
    assert next(job for job in jobs if job.label == label("alkdrec", 2)).plain == drawn


def test_a_failed_trial_that_answers_last_settles_the_choice(content: Content) -> None:
    plan = plan_of(content)
    jobs = drain(plan, lambda job: "diverged." if job.label == label("plain", 1, 2) else 0.5)
    assert next(job for job in jobs if job.label == label("plain", 2)).values == {}
    assert (one("alkdrec"), 2) in plan.outcome.trained


def test_without_any_plain_student_what_tunes_one_is_skipped(content: Content) -> None:
    plan = plan_of(content)
    drain(plan, lambda job: "diverged." if "plain" in job.label else 0.5)
    assert sorted(plan.outcome.failed) == [label("plain", 1, 1), label("plain", 1, 2)]
    assert plan.outcome.skipped == [
        label("alkdrec", 1, 1), label("alkdrec", 1, 2), label("plain", 2), label("alkdrec", 2),
    ]  # fmt: skip
    assert {combination.method for combination, _ in plan.outcome.trained} == {"soft_labels", "llmd4rec"}
    assert plan.left == 0


def test_a_plain_student_that_fails_on_one_seed_takes_what_tunes_it_on_that_seed(content: Content) -> None:
    content["seeds"] = [1, 2, 3]
    plan = plan_of(content)
    drain(plan, lambda job: "diverged." if job.label == label("plain", 2) else 0.5)
    assert plan.outcome.skipped == [label("alkdrec", 2)]
    assert {seed for combination, seed in plan.outcome.trained if combination == one("alkdrec")} == {1, 3}
    assert {seed for combination, seed in plan.outcome.trained if combination == one("soft_labels")} == {1, 2, 3}


def test_giving_up_keeps_what_is_there(content: Content) -> None:
    content["methods"].pop("llmd4rec")
    plan = plan_of(content)
    teacher, first, second = (plan.next() for _ in range(3))
    assert teacher is not None
    assert first is not None
    assert second is not None
    plan.done(teacher, {"valid": 0.1})
    plan.done(first, {"valid": 0.5, "label": "kept"})
    plan.give_up([second])
    assert plan.next() is None
    assert plan.left == 0
    assert plan.outcome.trained == {(one("plain"), 1): {"valid": 0.5, "label": "kept"}}
    assert plan.outcome.skipped == [
        label("plain", 1, 2), label("soft_labels", 1, 1), label("soft_labels", 1, 2), label("alkdrec", 1, 1),
        label("alkdrec", 1, 2), label("plain", 2), label("soft_labels", 2), label("alkdrec", 2),
    ]  # fmt: skip
    assert [job.label for job in plan.timings()] == ["toy/sasrec/plain (time)"]


def test_times_are_taken_of_one_seed_and_of_teachers_that_rank(content: Content) -> None:
    plan = plan_of(content)
    while (job := plan.next()) is not None:
        ranks = {"folder": "somewhere"} if job.kind == "teacher" else {}
        plan.done(job, {"valid": 1.0 if job.number == 1 else 0.5, **ranks})
    jobs = plan.timings()
    assert [job.label for job in jobs] == [
        "toy/big (time)", "toy/sasrec/plain (time)", "toy/sasrec/soft_labels/big (time)",
        "toy/sasrec/alkdrec/big (time)", "toy/sasrec/llmd4rec/big (time)",
    ]  # fmt: skip
    assert {job.kind for job in jobs} == {"timing"}
    assert {job.seed for job in jobs} == {1}
    drawn = plan.matrix.trials_of(one("plain"))[1]
    assert [job.values for job in jobs] == [{}, drawn, drawn, drawn, drawn]  # of the models that are shown
    assert jobs[3].plain == drawn
    silent = plan_of(content)
    drain(silent, always)
    assert "toy/big (time)" not in [job.label for job in silent.timings()]


def test_a_single_trial_has_no_number(content: Content) -> None:
    content.pop("tune")
    content["methods"] = {"plain": None}
    plan = plan_of(content)
    jobs = drain(plan, always)
    assert [job.label for job in jobs] == [label("plain", 1), label("plain", 2)]
    failing = plan_of(content)
    drain(failing, lambda job: "diverged." if job.seed == 1 else 0.5)
    assert failing.outcome.failed == {label("plain", 1): "diverged."}
    assert failing.outcome.skipped == [label("plain", 2)]


def test_a_job_goes_to_a_worker_and_arrives_as_it_was() -> None:
    values = {"train.learning_rate": 0.1}
    for job in (
        Job("teacher", "toy", "big"),
        Job("training", "toy", "big", one("alkdrec"), 3, values, {"student.dropout": 0.2}, 1),
        Job("timing", "toy", None, one("plain"), 1),
    ):
        assert as_job(json.loads(json.dumps(asdict(job)))) == job
