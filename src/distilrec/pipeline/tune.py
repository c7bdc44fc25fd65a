"""Search the settings of the plain student: optuna proposes, the pipeline trains, validation alone decides.

Sampler: multivariate TPE (Falkner, Klein, Hutter, "BOHB", ICML 2018; Watanabe, "Tree-Structured Parzen Estimator", 2023), seeded
anew for every trial from `seed` and the number of trials drawn, so that a search that was killed draws what it would have drawn.
Pruner: the median of the finished trials at the same epoch, on the best validation so far. Trainings stop early here, so a
finished one counts with its best value at all later epochs, too; otherwise only slow starters would be left to compare with.
Successive halving and Hyperband share out epochs, which early stopping does already. No trial is given up within its first
`patience` validations.

What is where: the study in study.db (SQLite); each training in trial-KEY/, KEY the hash of all it depends on, with its
checkpoint while it runs and outcome.json once it is over, so that equal settings are never trained twice.
"""

import math
import sqlite3
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distilrec.errors import ConfigError, InputError
from distilrec.files import hash_json, write_json, write_text
from distilrec.pipeline.run import Pipeline
from distilrec.pipeline.space import Range, Space, distribution, given_values, need_optuna, with_values
from distilrec.pipeline.trial import FINISHED, Attempt, OutOfTimeError, inputs, line
from distilrec.progress import say

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

_FRUITLESS = 20  # suggestions in a row that are known or refused: nothing new is left


def tune(
    pipeline: Pipeline, space: Space, *, trials: int, minutes: float | None = None, prune: bool = True
) -> dict[str, Any]:
    """Search until `trials` settings in all have been tried; a search that was broken off goes on.

    Args:
        pipeline: of the configuration as given, which is the first trial.
        space: what is searched.
        trials: finished trials wanted in total, those of earlier calls and those given up included.
        minutes: stop after the validation or trial in flight once so many are over.
        prune: give up trials that lag behind.

    Returns:
        What trials.json holds: `select_by`, `given`, `best` and all `trials`.

    Raises:
        ConfigError: optuna is missing, or the configuration's value for a key does not fit its range.
        InputError: the study of earlier calls is damaged.
    """
    search = _Search(pipeline, space, minutes, prune)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Fixed parameter|.*experimental"
        )  # a given value off the grid of steps
        search.run(trials)
    return search.summary()


class _Search:
    def __init__(self, pipeline: Pipeline, space: Space, minutes: float | None, prune: bool) -> None:
        self.optuna = need_optuna()
        self.pipeline, self.config, self.folder = pipeline, pipeline.config, pipeline.root / "tune"
        self.metric = self.config.train.select_by
        self.given = given_values(space, self.config, pipeline.student_settings)
        self.distributions = {key: distribution(key, part, self.given[key]) for key, part in space.items()}
        self.minutes = minutes
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        parts = {key: part.model_dump() if isinstance(part, Range) else part for key, part in space.items()}
        training = self.config.train
        pruner = self.optuna.pruners.MedianPruner(
            n_startup_trials=5, n_warmup_steps=training.patience * training.validate_every, n_min_trials=3
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        database = self.folder / "study.db"
        _check(database)
        self.study = self.optuna.create_study(
            storage=f"sqlite:///{database}",
            study_name=f"tune-{hash_json({'inputs': inputs(pipeline), 'space': parts})[:10]}",
            direction="maximize",
            pruner=pruner if prune else self.optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    def run(self, trials: int) -> None:
        """Try settings until there are `trials` finished ones, or time or space is used up; say how it went."""
        self._take_up()
        fruitless = 0
        try:
            while len(self._finished()) < trials and fruitless < _FRUITLESS:
                if time.monotonic() >= self.deadline:
                    raise OutOfTimeError
                fruitless = 0 if self._next() in FINISHED else fruitless + 1
        except OutOfTimeError:
            say(f"{self.minutes:g} minutes are over; the same command goes on where it was.")
        if fruitless == _FRUITLESS:
            say(f"The last {_FRUITLESS} suggestions were known or refused: there is little left in this space.")
        self._write()
        self._say_best()

    def summary(self) -> dict[str, Any]:
        """Return what trials.json holds."""
        outcomes = [trial.user_attrs["outcome"] for trial in self._trials() if "outcome" in trial.user_attrs]
        outcomes = [outcome for outcome in outcomes if outcome["state"] != "repeated"]
        complete = [outcome for outcome in outcomes if outcome["state"] == "complete"]
        return {
            "study": self.study.study_name,
            "select_by": self.metric,
            "given": next((outcome for outcome in outcomes if outcome["given"]), None),
            "best": max(complete, key=lambda outcome: outcome["value"], default=None),
            "trials": outcomes,
        }

    def _trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def _finished(self) -> "list[FrozenTrial]":
        states = self.optuna.trial.TrialState
        return [trial for trial in self._trials() if trial.state in (states.COMPLETE, states.PRUNED)]

    def _take_up(self) -> None:
        """Settle or put back in the queue what a dead process left; see that the configuration as given is tried."""
        states = self.optuna.trial.TrialState
        for trial in self._trials():
            if trial.state != states.RUNNING:
                continue
            if "outcome" in trial.user_attrs:
                self._tell(trial.number, trial.user_attrs["outcome"])
                continue
            if trial.params.keys() == self.distributions.keys():
                marks = {"given": trial.user_attrs.get("given", False), "continues": trial.number}
                self.study.enqueue_trial(trial.params, user_attrs=marks)
            self.study.tell(trial.number, state=states.FAIL)
        if not any(trial.user_attrs.get("given") and trial.state != states.FAIL for trial in self._trials()):
            self.study.enqueue_trial(self.given, user_attrs={"given": True})

    def _next(self) -> str:
        """Do one trial and return how it ended."""
        states = self.optuna.trial.TrialState
        left = [trial for trial in self._trials() if trial.state == states.FAIL and "outcome" not in trial.user_attrs]
        drawn = len(self._trials()) - len(left) - sum(trial.state == states.WAITING for trial in self._trials())
        seed = int(hash_json([self.config.seed, drawn])[:8], 16)
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, multivariate=True)
        trial = self.study.ask(self.distributions)
        given = bool(trial.user_attrs.get("given"))
        values = self.given if given else {key: _tidy(value) for key, value in trial.params.items()}
        number = len(self._finished()) + 1
        outcome = {"number": number, "given": given, "params": values, **self._outcome(trial, values, number)}
        best = self.summary()["best"]
        trial.set_user_attr("outcome", outcome)
        self._tell(trial.number, outcome)
        self._write()
        say(line(outcome, self.metric, best["value"] if best else None))
        return str(outcome["state"])

    def _outcome(self, trial: "Trial", values: dict[str, Any], number: int) -> dict[str, Any]:
        try:
            run = Pipeline(with_values(self.config, values, refit=False), self.pipeline.root)
        except ConfigError as error:
            return {"state": "refused", "reason": error.line(), "value": None}
        run.data = self.pipeline.data
        key = hash_json(inputs(run))
        for other in self._finished():
            if other.user_attrs["outcome"]["key"] == key:
                return {"state": "repeated", "value": other.user_attrs["outcome"]["value"], "key": key}
        begun = trial.user_attrs.get("continues")
        reports = dict(self._trials()[begun].intermediate_values) if begun is not None else {}
        return Attempt(trial, run, self.folder, self.study.study_name, number, self.deadline, reports).outcome()

    def _tell(self, number: int, outcome: dict[str, Any]) -> None:
        states = self.optuna.trial.TrialState
        if outcome["state"] == "complete":
            self.study.tell(number, outcome["value"])
        else:  # repeated ones count as failed, so that the sampler weighs no setting twice
            self.study.tell(number, state=states.PRUNED if outcome["state"] in FINISHED else states.FAIL)

    def _write(self) -> None:
        summary = self.summary()
        write_json(self.folder / "trials.json", summary)
        if summary["best"]:
            best = with_values(self.config, {} if summary["best"]["given"] else summary["best"]["params"])
            head = f"# Found by distilrec tune: {self.metric} {summary['best']['value']:.4f} on validation.\n"
            text = yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_text(self.folder / "best.yaml", head + text)

    def _say_best(self) -> None:
        summary = self.summary()
        best, given, outcomes = summary["best"], summary["given"], summary["trials"]
        if best is None:
            say("No trial is finished yet.")
            return
        complete, over = (sum(outcome["state"] in group for outcome in outcomes) for group in (("complete",), FINISHED))
        gain = ""
        if given and given["value"]:
            gain = f", {100 * (best['value'] / given['value'] - 1):+.1f}% over the configuration as given ({given['value']:.4f})"
        say(
            f"tune: best validation {self.metric} {best['value']:.4f}{gain}; "
            f"{complete} trials complete, {over - complete} given up.\n{self.folder / 'best.yaml'}"
        )


def _tidy(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _check(database: Path) -> None:
    """Refuse a study that is damaged."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database)) as opened:
            found = str(opened.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise InputError(
            f"the study cannot be read ({' '.join(found.split())[:200]}).",
            where=str(database),
            remedy="Delete it and run again: trainings that are done are not done again.",
        )
