"""Progress for people: a bar on a terminal, a line now and then where there is none (logs, CI)."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160)
_SECONDS_BETWEEN_LINES = 10.0


def first_process() -> bool:
    """Whether this is the only process, or the first of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print one line for the user, on standard error, without markup; the first of several processes speaks for all."""
    if first_process():
        console.print(message, markup=False)


class Bar:
    """Counts work done. `total` may be unknown (None)."""

    def __init__(self, label: str, total: int | None, progress: Progress | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._progress = progress
        self._task = progress.add_task(label, total=total, note="") if progress else None
        self._started = self._said = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done; `note` stands behind the bar (loss, rate, cost)."""
        self.done += steps
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=steps, note=note)
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f"/{self.total}" if self.total is not None else ""
            rate = self.done / max(self._said - self._started, 1e-9)
            left = (
                f", {max(self.total - self.done, 0) / rate:.0f} s left" if self.total is not None and rate > 0 else ""
            )
            say(f"  {self.label}: {self.done}{of}{left} {note}".rstrip())


@contextmanager
def bar(label: str, total: int | None = None) -> Iterator[Bar]:
    """Show progress of one piece of work.

    Args:
        label: what is being done.
        total: number of steps, or None where it is not known beforehand.
    """
    if not (console.is_terminal and sys.stderr.isatty() and first_process()):
        yield Bar(label, total, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(label, total, progress)
