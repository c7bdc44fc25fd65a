"""One trial of `distilrec tune`: a training in its own folder, watched at every validation, and the line said about it."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilrec import __version__
from distilrec.errors import TrainingError
from distilrec.files import hash_json, read_json, write_json
from distilrec.methods import METHODS
from distilrec.pipeline.run import Pipeline

if TYPE_CHECKING:
    from optuna.trial import Trial

FINISHED = ("complete", "pruned", "diverged")


class OutOfTimeError(Exception):
    """The time given is over; the trial in flight stays resumable."""


def inputs(run: Pipeline) -> dict[str, Any]:
    """Return all that a trial's outcome depends on; its hash is the trial's identity."""
    return {
        "version": __version__,
        "seed": run.config.seed,
        "method": "plain",
        **run.student_inputs(run.config.train),
    }


@dataclass(frozen=True, slots=True)
class Attempt:
    """A trial about to be trained.

    Attributes:
        trial: optuna's side of it, which is told the best validation so far at every validation.
        run: the pipeline with the trial's settings.
        root: where trial folders lie.
        study: name of the study; a training that was given up in another study is not taken over.
        number: for the progress bar.
        deadline: in `time.monotonic` seconds; at the first validation behind it `OutOfTimeError` is raised.
        reports: what was reported before the process died that began this trial, by epoch.
    """

    trial: "Trial"
    run: Pipeline
    root: Path
    study: str
    number: int
    deadline: float = math.inf
    reports: dict[int, float] = field(default_factory=dict)

    def outcome(self) -> dict[str, Any]:
        """Train, or go on with what is there, or take what was found before, and return how it went.

        Returns:
            `state`, `value`, `best_epoch`, `epochs`, `seconds`, `reason`, `key`, `folder`, as far as they apply.
        """
        key = hash_json(inputs(self.run))
        folder = self.root / f"trial-{key[:10]}"
        kept = folder / "outcome.json"
        for epoch, value in sorted(self.reports.items()):
            self.trial.report(value, epoch)
        found = read_json(kept) if kept.exists() else None
        if found is None or (found["state"] == "pruned" and found["study"] != self.study):
            kept.unlink(missing_ok=True)
            found = self._train(folder, key)
            write_json(kept, {"study": self.study, **found})
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        self._report_rest(found)
        return {name: value for name, value in found.items() if name not in ("curve", "study")} | {
            "key": key,
            "folder": folder.name,
        }

    def _train(self, folder: Path, key: str) -> dict[str, Any]:
        run, trial, reports = self.run, self.trial, self.reports
        training = run.config.train

        def watch(epoch: int, measures: dict[str, float]) -> bool:
            if epoch not in reports:
                reports[epoch] = max([*reports.values(), measures[training.select_by]])
                trial.report(reports[epoch], epoch)
            if trial.should_prune():
                return False
            if time.monotonic() >= self.deadline:
                raise OutOfTimeError
            return True

        label = f"trial {self.number}"
        try:
            _, fit = run.fit_student(
                training, METHODS["plain"], None, folder, label=label, identity=key, on_validation=watch
            )
        except TrainingError as error:
            return {"state": "diverged", "value": None, "reason": error.line(), "curve": []}
        curve: list[tuple[int, float]] = []
        for entry in fit.history:
            if "valid" in entry:
                before = [value for _, value in curve[-1:]]
                curve.append((entry["epoch"], max([entry["valid"][training.select_by], *before])))
        return {
            "state": "pruned"
            if trial.should_prune()
            else "complete",  # asked again, since a resumed one may not be watched
            "value": fit.best,
            "best_epoch": fit.best_epoch,
            "epochs": len(fit.history),
            "seconds": round(fit.seconds, 3),
            "curve": curve,
        }

    def _report_rest(self, found: dict[str, Any]) -> None:
        """Report what is not reported yet, and for a finished training its best value at all the epochs it did not need."""
        training = self.run.config.train
        curve = [(int(epoch), float(value)) for epoch, value in found["curve"]]
        if found["state"] == "complete":
            step = training.validate_every
            rest = range(curve[-1][0] + step, training.epochs + 1, step)
            curve += [(epoch, found["value"]) for epoch in rest]
        for epoch, value in curve:
            if epoch not in self.reports:
                self.trial.report(value, epoch)


def line(outcome: dict[str, Any], metric: str, best: float | None) -> str:
    """Say in one line how a trial went; `best` is the best value before it."""
    params = ", ".join(f"{key.split('.', 1)[1]}={value}" for key, value in outcome["params"].items())
    head, state = f"trial {outcome['number']}: {params}", outcome["state"]
    if state in ("refused", "diverged"):
        return f"{head}: {state} ({outcome['reason']})"
    if state == "repeated":
        return f"{head}: known already"
    value, seconds = f"{metric} {outcome['value']:.4f}", f"{outcome['seconds']:.1f} s"
    if state == "pruned":
        return f"{head}: given up after epoch {outcome['epochs']}, {value} at best ({seconds})"
    mark = ", the best so far" if best is None or outcome["value"] > best else ""
    return f"{head}: {value} (epoch {outcome['best_epoch']} of {outcome['epochs']}, {seconds}){mark}"
