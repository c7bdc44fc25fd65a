"""The only training loop: students and teachers, plain and distilled.

Selection is on validation alone. A killed training goes on from its checkpoint and ends, on one CPU thread, with the same
bits as an unbroken one: the order of batches is a function of seed and epoch, and weights, optimiser, random state and sums
are in the checkpoint.
"""

import math
import time
from collections.abc import Callable
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
from distilrec.training.average import Average
from distilrec.training.checkpoint import (
    load_checkpoint,
    load_moments,
    restore,
    save_checkpoint,
    save_moments,
    snapshot,
    trainable,
)
from distilrec.training.optim import RowAdamW, clip_norm, coalesce_rows
from distilrec.training.tasks import Task

_READ_EVERY = 32  # steps between two looks at the loss on a device that works on its own meanwhile


@dataclass(frozen=True, slots=True)
class Fit:
    """How a training went.

    Attributes:
        best_epoch: epoch (from 1) whose weights were kept; 0: those that training started from.
        best: its validation measure.
        history: per epoch, the mean of each loss part and the validation measures.
        seconds: time spent in training, over all resumed parts, validation included.
    """

    best_epoch: int
    best: float
    history: list[dict[str, Any]]
    seconds: float


OnValidation = Callable[[int, dict[str, float]], bool]


def fit(
    task: Task,
    settings: TrainSettings,
    folder: Path,
    *,
    label: str,
    identity: str,
    seed: int,
    on_validation: OnValidation | None = None,
    judge_start: bool = False,
    continued: Path | None = None,
    keep: Path | None = None,
) -> Fit:
    """Train until validation stops rising; the task's model ends with its best weights.

    Args:
        task: what to train.
        settings: how.
        folder: for the checkpoint, and `fit.json` at the end.
        label: for the progress bar.
        identity: hash of data and settings; a checkpoint of another identity is refused.
        seed: of dropout.
        on_validation: called with epoch and measures after each validation; False ends the training, as early stopping does.
        judge_start: validate the weights that training starts from, too, and keep them where no epoch is better.
        continued: what an earlier training left in `keep`: the optimiser's moments, with which this one goes on. Without them its
            first steps have the full rate in every direction, and undo part of what was learnt.
        keep: where to leave the moments as they are after the last epoch.

    Raises:
        TrainingError: the loss is not a number.
        FingerprintError: see `load_checkpoint`.
    """
    accelerator = Accelerator(mixed_precision=_precision(settings), cpu=not torch.cuda.is_available())
    on_cpu = accelerator.device.type == "cpu"
    torch.use_deterministic_algorithms(on_cpu, warn_only=True)  # sums in a fixed order, also over several threads
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # every buffer is written first
    torch.manual_seed(seed + accelerator.process_index)
    task.share = (accelerator.process_index, accelerator.num_processes)
    task.by_rows = task.by_rows and accelerator.num_processes == 1  # processes exchange whole gradients
    optimizer = RowAdamW(
        task.parameter_groups(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    if settings.compile:
        model: Any = task.model
        model.encode = torch.compile(model.encode, dynamic=True)
    prepared, optimizer = accelerator.prepare(task, optimizer)
    run = _Run(task, prepared, settings, optimizer, accelerator, folder / "checkpoint.safetensors", identity)
    run.on_validation = on_validation
    if continued is not None:
        run.state["total_steps"] = load_moments(continued, task, optimizer)
    run.resume()
    if judge_start and run.state["best"] == -math.inf:
        run.judge({"epoch": 0})
    task.train()
    steps, _ = task.epoch(1)
    with bar(label, settings.epochs * steps) as progress:
        progress.advance((run.state["epoch"] - 1) * steps + run.state["step"])
        while not run.finished():
            run.epoch(progress)
    restore(task, run.best)
    task.eval()
    result = Fit(run.state["best_epoch"], run.state["best"], run.state["history"], run.state["seconds"])
    if accelerator.is_main_process:
        if keep is not None:
            save_moments(keep, task, optimizer, run.state["total_steps"])
        write_json(folder / "fit.json", {name: getattr(result, name) for name in Fit.__slots__})
    accelerator.wait_for_everyone()
    return result


def _precision(settings: TrainSettings) -> str:
    """Return accelerate's word for it. On a CPU the layers stay in float32, whatever the catalogue is scored in."""
    capable = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if capable and settings.precision != "float32" else "no"


def load_fit(folder: Path) -> Fit:
    """Read back what `fit` wrote."""
    return Fit(**read_json(folder / "fit.json"))


class _Run:
    """One training as it stands; `state` is what the checkpoint keeps beside tensors."""

    on_validation: OnValidation | None = None

    def __init__(
        self,
        task: Task,
        prepared: Any,
        settings: TrainSettings,
        optimizer: Any,
        accelerator: Accelerator,
        path: Path,
        identity: str,
    ) -> None:
        self.task, self.prepared, self.settings = task, prepared, settings
        self.optimizer, self.accelerator, self.path = optimizer, accelerator, path
        self.weights = trainable(task)
        self.best = snapshot(task)
        self.average = Average(self.weights, settings.average) if settings.average > 0 else None
        self.state: dict[str, Any] = {
            "identity": identity, "epoch": 1, "step": 0, "total_steps": 0, "sums": {}, "history": [],
            "best": -math.inf, "best_epoch": 0, "seconds": 0.0, "epoch_seconds": 0.0,
        }  # fmt: skip
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._pending: list[dict[str, Tensor]] = []  # parts of the loss not yet read from the device
        self._read_every = 1 if accelerator.device.type == "cpu" else _READ_EVERY
        self._mark = self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        found = load_checkpoint(self.path, self.task, self.optimizer, ("best", "average"), self.state["identity"])
        if found is None:
            return
        tensors, self.state = found
        self.best = tensors["best"]
        if self.average is not None:
            self.average.load(tensors["average"])
        self.state["best"] = -math.inf if self.state["best"] is None else self.state["best"]
        if not self.accelerator.is_main_process:  # the random state in the checkpoint is the first process's
            torch.manual_seed(torch.initial_seed() + self.state["total_steps"] + self.accelerator.process_index)

    def finished(self) -> bool:
        """Whether all epochs are done or the last `patience` validations brought no gain, or the caller stopped it."""
        if self.state.get("stopped", False):
            return True
        best = self.state["best_epoch"]
        waited = sum("valid" in entry for entry in self.state["history"] if entry["epoch"] > best)
        return self.state["epoch"] > self.settings.epochs or (
            self.state["best"] > -math.inf and waited >= self.settings.patience
        )

    def epoch(self, progress: Any) -> None:
        """Train (the rest of) one epoch and validate."""
        state, started = self.state, time.monotonic()
        steps, batches_from = self.task.epoch(state["epoch"])
        for batch in batches_from(state["step"]):
            state["step"] += 1
            self._step(batch.to(self.accelerator.device), last=state["step"] == steps)
            progress.advance(note=self._note())
            if time.monotonic() - self._saved >= self.settings.checkpoint_seconds and not self._between():
                state["epoch_seconds"] += time.monotonic() - started
                self._save()
                started = time.monotonic()
        self._read()
        means = {name: value / steps for name, value in state["sums"].items()}
        seconds = state["epoch_seconds"] + time.monotonic() - started
        entry = {"epoch": state["epoch"], "loss": sum(means.values()), "parts": means, "seconds": seconds}
        if state["epoch"] % self.settings.validate_every == 0 or state["epoch"] == self.settings.epochs:
            self.judge(entry)
        state["history"].append(entry)
        state.update(epoch=state["epoch"] + 1, step=0, sums={}, epoch_seconds=0.0)
        self._save()
        if (
            self.on_validation is not None
            and "valid" in entry
            and not self.on_validation(entry["epoch"], entry["valid"])
        ):
            state["stopped"] = True
            self._save()

    def _between(self) -> bool:
        """Whether gradients of some batches wait for those of others."""
        return any(parameter.grad is not None for parameter in self.weights.values())

    def _step(self, batch: Any, *, last: bool) -> None:
        parts = self.prepared(batch)
        loss = torch.stack(list(parts.values())).sum()
        self.accelerator.backward(loss / self.settings.accumulate if self.settings.accumulate > 1 else loss)
        self._pending.append({name: value.detach() for name, value in parts.items()})
        if len(self._pending) >= self._read_every:
            self._read()
        if last or self.state["step"] % self.settings.accumulate == 0:
            self._update()

    def _update(self) -> None:
        """Move the weights by the gradients at hand, and their average after them."""
        state, settings = self.state, self.settings
        state["total_steps"] += 1
        warm = min(1.0, state["total_steps"] / max(settings.warmup_steps, 1))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * warm
        if settings.accumulate > 1 or self.accelerator.num_processes > 1:
            coalesce_rows(self.weights.values())
        if settings.clip_norm is not None:
            clip_norm(self.weights.values(), settings.clip_norm)
        rows = {
            name: weight.grad._indices()[0]
            for name, weight in self.weights.items()
            if weight.grad is not None and weight.grad.is_sparse
        }
        if self.average is not None:
            self.average.before_step(self.weights, rows)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.after_step(self.weights, rows, state["total_steps"])

    def _read(self) -> None:
        """Add what was trained since the last call to the sums, and see that it is a number."""
        for parts in self._pending:
            for name, value in parts.items():
                self.state["sums"][name] = self.state["sums"].get(name, 0.0) + value.item()
        self._pending.clear()
        if not math.isfinite(loss := sum(self.state["sums"].values())):
            raise TrainingError(
                f"the loss is {loss} in epoch {self.state['epoch']}.",
                remedy="Lower the learning rate or set clip_norm, and train again.",
            )

    def judge(self, entry: dict[str, Any]) -> None:
        """Validate and, if it is the best so far, keep the weights."""
        present = {}
        if self.average is not None:
            self.average.settle(self.weights)
            present = snapshot(self.task)
            restore(self.task, self.average.values)
        entry["valid"] = measures = self.task.validate()
        if self.settings.select_by not in measures:
            raise ConfigError(
                f"select_by {self.settings.select_by!r} is not measured ({', '.join(measures)}).",
                remedy="Choose one of them.",
            )
        if measures[self.settings.select_by] > self.state["best"]:
            self.state["best"], self.state["best_epoch"] = measures[self.settings.select_by], entry["epoch"]
            self.best = snapshot(self.task)
        restore(self.task, present)

    def _note(self) -> str:
        steps = max(self.state["step"], 1)
        best = f", best {self.settings.select_by} {self.state['best']:.4f}" if self.state["best"] > -math.inf else ""
        return f"epoch {self.state['epoch']}, loss {sum(self.state['sums'].values()) / steps:.3f}{best}"

    def _save(self) -> None:
        self._read()
        now = time.monotonic()
        self.state["seconds"] += now - self._mark
        self._mark = now
        if self.accelerator.is_main_process:
            best = None if self.state["best"] == -math.inf else self.state["best"]
            kept = {"best": self.best, "average": self.average.tensors() if self.average is not None else {}}
            save_checkpoint(self.path, self.task, self.optimizer, kept, {**self.state, "best": best})
        self._saved = time.monotonic()
