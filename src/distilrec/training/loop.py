"""The only training loop: students and teachers, plain and distilled.

Selection is on validation alone. A killed training goes on from its checkpoint and ends, on one CPU thread, with the same
bits as an unbroken one: the order of batches is a function of seed and epoch, and weights, optimiser, random state and sums
are in the checkpoint.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distilrec.config import TrainSettings
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import read_json, write_json
from distilrec.progress import bar
from distilrec.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot, trainable
from distilrec.training.tasks import Task


@dataclass(frozen=True, slots=True)
class Fit:
    """How a training went.

    Attributes:
        best_epoch: epoch (from 1) whose weights were kept.
        best: its validation measure.
        history: per epoch, the mean of each loss part and the validation measures.
        seconds: time spent in training, over all resumed parts, validation included.
    """

    best_epoch: int
    best: float
    history: list[dict[str, Any]]
    seconds: float


def fit(task: Task, settings: TrainSettings, folder: Path, *, label: str, identity: str, seed: int) -> Fit:
    """Train until validation stops rising; the task's model ends with its best weights.

    Args:
        task: what to train.
        settings: how.
        folder: for the checkpoint, and `fit.json` at the end.
        label: for the progress bar.
        identity: hash of data and settings; a checkpoint of another identity is refused.
        seed: of dropout.

    Raises:
        TrainingError: the loss is not a number.
        FingerprintError: see `load_checkpoint`.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)  # sums in a fixed order, also over several threads
    accelerator = Accelerator()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        task.parameter_groups(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    task, optimizer = accelerator.prepare(task, optimizer)
    run = _Run(task, settings, optimizer, accelerator, folder / "checkpoint.safetensors", identity)
    run.resume()
    task.train()
    steps, _ = task.epoch(1)
    with bar(label, settings.epochs * steps) as progress:
        progress.advance((run.state["epoch"] - 1) * steps + run.state["step"])
        while not run.finished():
            run.epoch(progress)
    restore(task, run.weights["best"])
    task.eval()
    result = Fit(run.state["best_epoch"], run.state["best"], run.state["history"], run.state["seconds"])
    write_json(folder / "fit.json", {name: getattr(result, name) for name in Fit.__slots__})
    return result


def load_fit(folder: Path) -> Fit:
    """Read back what `fit` wrote."""
    return Fit(**read_json(folder / "fit.json"))


class _Run:
    """One training as it stands; `state` is what the checkpoint keeps beside tensors."""

    def __init__(
        self, task: Task, settings: TrainSettings, optimizer: Any, accelerator: Accelerator, path: Path, identity: str
    ) -> None:
        self.task, self.settings, self.optimizer, self.accelerator, self.path = (
            task,
            settings,
            optimizer,
            accelerator,
            path,
        )
        self.weights = {"best": snapshot(task), "average": snapshot(task) if settings.average > 0 else {}}
        self.state: dict[str, Any] = {
            "identity": identity, "epoch": 1, "step": 0, "total_steps": 0, "sums": {}, "history": [],
            "best": -math.inf, "best_epoch": 0, "seconds": 0.0,
        }  # fmt: skip
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._mark = self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        found = load_checkpoint(self.path, self.task, self.optimizer, tuple(self.weights), self.state["identity"])
        if found is not None:
            self.weights, self.state = found
            self.state["best"] = -math.inf if self.state["best"] is None else self.state["best"]

    def finished(self) -> bool:
        """Whether all epochs are done or the last `patience` validations brought no gain."""
        best = self.state["best_epoch"]
        waited = sum("valid" in entry for entry in self.state["history"] if entry["epoch"] > best)
        return self.state["epoch"] > self.settings.epochs or (best > 0 and waited >= self.settings.patience)

    def epoch(self, progress: Any) -> None:
        """Train (the rest of) one epoch and validate."""
        state = self.state
        steps, batches_from = self.task.epoch(state["epoch"])
        for batch in batches_from(state["step"]):
            self._step(batch.to(self.accelerator.device))
            state["step"] += 1
            progress.advance(note=self._note())
            if time.monotonic() - self._saved >= self.settings.checkpoint_seconds:
                self._save()
        means = {name: value / steps for name, value in state["sums"].items()}
        entry = {"epoch": state["epoch"], "loss": sum(means.values()), "parts": means}
        if state["epoch"] % self.settings.validate_every == 0 or state["epoch"] == self.settings.epochs:
            measures = self._validate()
            if self.settings.select_by not in measures:
                raise ConfigError(
                    f"select_by {self.settings.select_by!r} is not measured ({', '.join(measures)}).",
                    remedy="Choose one of them.",
                )
            entry["valid"] = measures
            if measures[self.settings.select_by] > state["best"]:
                state["best"], state["best_epoch"] = measures[self.settings.select_by], state["epoch"]
                self.weights["best"] = self._candidate()
        state["history"].append(entry)
        state.update(epoch=state["epoch"] + 1, step=0, sums={})
        self._save()

    def _step(self, batch: Any) -> None:
        state = self.state
        state["total_steps"] += 1
        warm = min(1.0, state["total_steps"] / max(self.settings.warmup_steps, 1))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * warm
        parts = self.task(batch)
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {state['epoch']}.",
                remedy="Lower the learning rate or set clip_norm, and train again.",
            )
        self.accelerator.backward(loss)
        if self.settings.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.task.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.weights["average"]:
            self._average()
        for name, value in parts.items():
            state["sums"][name] = state["sums"].get(name, 0.0) + value.item()

    def _average(self) -> None:
        """Move the averaged weights towards the present ones; faster in the first steps, while there is little to average."""
        steps = self.state["total_steps"]
        decay = min(self.settings.average, (1 + steps) / (10 + steps))
        averaged, present = self.weights["average"], trainable(self.task)
        with torch.no_grad():
            torch._foreach_lerp_([averaged[name] for name in present], list(present.values()), 1 - decay)

    def _candidate(self) -> dict[str, Tensor]:
        """Return a copy of the weights that validation judges."""
        return {name: value.clone() for name, value in self.weights["average"].items()} or snapshot(self.task)

    def _validate(self) -> dict[str, float]:
        present = snapshot(self.task) if self.weights["average"] else {}
        restore(self.task, self.weights["average"])
        measures = self.task.validate()
        restore(self.task, present)
        return measures

    def _note(self) -> str:
        steps = max(self.state["step"], 1)
        best = f", best {self.settings.select_by} {self.state['best']:.4f}" if self.state["best_epoch"] else ""
        return f"epoch {self.state['epoch']}, loss {sum(self.state['sums'].values()) / steps:.3f}{best}"

    def _save(self) -> None:
        now = time.monotonic()
        self.state["seconds"] += now - self._mark
        self._mark = now
        best = None if self.state["best"] == -math.inf else self.state["best"]
        save_checkpoint(self.path, self.task, self.optimizer, self.weights, {**self.state, "best": best})
        self._saved = time.monotonic()
