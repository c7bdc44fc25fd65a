"""Which jobs of a comparison there are, in which order, and which of them may start.

Teachers first, since most of the rest waits for them; then all trials on the first seed; then the other seeds, one seed of everything
before the next, so that a comparison that is broken off is a smaller one of the same kind. Times last, alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from distilrec.compare.matrix import Combination, Matrix, Values
from distilrec.compare.work import Job


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        trained: (combination, seed) -> what a training gave, of the settings chosen.
        teachers: (data set, teacher) -> what a teacher gave.
        trials: combination -> every trial with its values and validation.
        timings: job's label -> times.
        failed: label -> why, in one line.
        skipped: labels of what time was too short for, or what another failure left without its footing.
    """

    trained: dict[tuple[Combination, int], dict[str, Any]] = field(default_factory=dict)
    teachers: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    trials: dict[Combination, list[dict[str, Any]]] = field(default_factory=dict)
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Plan:
    """What is left to do, and what of it may start now."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.outcome = matrix, Outcome()
        self._chosen: dict[Combination, Values] = {}
        self._waiting: list[Job] = []
        stored = {
            (one.dataset, one.teacher) for one in matrix.combinations if one.teacher and not matrix.in_rounds(one)
        }
        self._teachers = [key for key in dict.fromkeys((one.dataset, one.teacher) for one in matrix.combinations)
                          if key in stored]  # fmt: skip
        self._waiting += [Job("teacher", dataset, teacher) for dataset, teacher in self._teachers if teacher]
        first = matrix.settings.seeds[0]
        for one in matrix.combinations:
            trials = matrix.trials_of(one)
            self.outcome.trials[one] = []
            self._waiting += [
                Job(
                    "training", one.dataset, one.teacher, one, first, values, number=number if len(trials) > 1 else None
                )
                for number, values in enumerate(trials)
            ]
        for seed in matrix.settings.seeds[1:]:
            self._waiting += [Job("training", one.dataset, one.teacher, one, seed) for one in matrix.combinations]
        self.total = len(self._waiting)

    def next(self) -> Job | None:
        """Take the first job that may start; None if none may now."""
        for job in list(self._waiting):
            if self._hopeless(job):
                self._waiting.remove(job)
                self.outcome.skipped.append(job.label)
                continue
            if self._ready(job):
                self._waiting.remove(job)
                return self._settled(job)
        return None

    @property
    def left(self) -> int:
        """How many jobs have not been taken."""
        return len(self._waiting)

    def done(self, job: Job, found: dict[str, Any]) -> None:
        """Take in what a job gave."""
        if job.kind == "teacher" and job.teacher is not None:
            self.outcome.teachers[job.dataset, job.teacher] = found
            return
        if job.combination is None:
            return
        if job.seed != self.matrix.settings.seeds[0]:
            self.outcome.trained[job.combination, job.seed] = found
            return
        trials = self.outcome.trials[job.combination]
        trials.append({"number": job.number or 0, "values": job.values, "valid": found["valid"], "found": found})
        self._choose(job.combination)

    def fail(self, job: Job, reason: str) -> None:
        """Take in that a job failed."""
        self.outcome.failed[job.label] = reason
        if job.kind == "training" and job.combination is not None and job.seed == self.matrix.settings.seeds[0]:
            self._choose(job.combination)

    def give_up(self, running: Iterable[Job]) -> None:
        """Take in that there is no time for the rest."""
        self.outcome.skipped += [job.label for job in (*running, *self._waiting)]
        self._waiting = []
        for one in self.matrix.combinations:
            self._choose(one, at_once=True)

    def _choose(self, one: Combination, *, at_once: bool = False) -> None:
        """Settle what a combination is trained with, once all its trials are over: the best on validation, the first of equals."""
        trials = self.outcome.trials[one]
        over = len(trials) + sum(self._label_of(one, number) in self.outcome.failed for number in self._numbers(one))
        if not trials or (not at_once and over < len(self._numbers(one))) or one in self._chosen:
            return
        best = max(trials, key=lambda trial: (trial["valid"], -trial["number"]))
        self._chosen[one] = best["values"]
        self.outcome.trained[one, self.matrix.settings.seeds[0]] = best["found"]

    def _numbers(self, one: Combination) -> list[int | None]:
        count = len(self.matrix.trials_of(one))
        return [None] if count == 1 else list(range(count))

    def _label_of(self, one: Combination, number: int | None) -> str:
        return Job("training", one.dataset, one.teacher, one, self.matrix.settings.seeds[0], number=number).label

    def _start_of(self, job: Job) -> Combination | None:
        """Return the plain student whose settings must be known first."""
        one = job.combination
        if one is None or not self.matrix.kind(one.method).fine_tunes:
            return None
        return self.matrix.plain_of(one)

    def _ready(self, job: Job) -> bool:
        one = job.combination
        if one is None:
            return True
        if one.teacher and not self.matrix.in_rounds(one) and (one.dataset, one.teacher) not in self.outcome.teachers:
            return False
        if (start := self._start_of(job)) is not None and (start, job.seed) not in self.outcome.trained:
            return False
        return job.seed == self.matrix.settings.seeds[0] or one in self._chosen

    def _hopeless(self, job: Job) -> bool:
        """Whether what a job waits for has failed."""
        one, lost = job.combination, {*self.outcome.failed, *self.outcome.skipped}
        if one is None:
            return False
        if one.teacher and Job("teacher", one.dataset, one.teacher).label in lost and not self.matrix.in_rounds(one):
            return True
        first = self.matrix.settings.seeds[0]
        if job.seed != first and one not in self._chosen and self._over(one):
            return True
        start = self._start_of(job)
        if start is None or (start, job.seed) in self.outcome.trained:
            return False
        return self._over(start) if job.seed == first else replace(job, combination=start, teacher=None).label in lost

    def _over(self, one: Combination) -> bool:
        """Whether every trial of a combination has failed."""
        return all(self._label_of(one, number) in {*self.outcome.failed, *self.outcome.skipped}
                   for number in self._numbers(one))  # fmt: skip

    def _settled(self, job: Job) -> Job:
        """Put in the values that are known by now."""
        if job.combination is None:
            return job
        start, first = self._start_of(job), self.matrix.settings.seeds[0]
        plain = self._chosen.get(start, {}) if start is not None else {}
        values = job.values if job.seed == first else self._chosen[job.combination]
        return replace(job, values=values, plain=plain)

    def timings(self) -> list[Job]:
        """Return a job for every model whose speed is shown: one a combination, one a teacher that ranks."""
        seed = self.matrix.settings.seeds[0]
        jobs = [
            self._settled(Job("timing", dataset, teacher, seed=seed))
            for (dataset, teacher), found in self.outcome.teachers.items()
            if "folder" in found
        ]
        for one in self.matrix.combinations:
            if (one, seed) in self.outcome.trained:
                jobs.append(self._settled(Job("timing", one.dataset, one.teacher, one, seed, self._chosen[one])))
        return jobs
