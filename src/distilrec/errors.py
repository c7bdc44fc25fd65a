"""Typed errors. Each says what came, what was expected and what to do; the command line prints exactly that one line.

Exit codes: 2 for wrong input or settings (`InputError` and its children), 130 for an interruption, 1 for a fault of ours.
"""

TRAIN_AGAIN = "Train it again; in a run, delete its folder first."  # what to do about damaged weights


class DistilrecError(Exception):
    """Base of every error that distilrec raises on purpose.

    Args:
        problem: what came and what was expected, one sentence.
        remedy: what the reader can do about it.
        where: file, line or column the problem lies in, if there is one.
    """

    exit_code = 2

    def __init__(self, problem: str, *, remedy: str = "", where: str = "") -> None:
        self.problem, self.remedy, self.where = problem, remedy, where
        super().__init__(self.line())

    def line(self) -> str:
        """Return the one line a user sees: `where: problem Remedy`."""
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        return " ".join(f"{text} {self.remedy}".split())


class InputError(DistilrecError):
    """Data that cannot be read as what it should be."""


class ConfigError(DistilrecError):
    """A setting that is unknown, missing or out of range."""


class ChecksumError(DistilrecError):
    """A file whose content is not the one that was published."""


class FetchError(DistilrecError):
    """No source of a data set or model could be reached."""


class DiskFullError(DistilrecError):
    """Not enough room for what is about to be written."""


class LockedError(DistilrecError):
    """A run or store that another process is writing."""


class FingerprintError(DistilrecError):
    """Knowledge, model or checkpoint that belongs to other data or other settings."""


class TrainingError(DistilrecError):
    """Training that cannot go on, for example because the loss is not a number."""
