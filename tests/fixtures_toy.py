"""A toy log whose rule is known, and what a command left behind; shared by tests of several folders."""

from dataclasses import dataclass
from pathlib import Path

N_ITEMS, N_USERS = 12, 24


def toy_files(folder: Path) -> tuple[Path, Path]:
    """Write 24 users with 9 items each out of 12, after item x comes (x + 5) mod 12; return log and titles."""
    log, titles = folder / "log.csv", folder / "titles.csv"
    rows = [
        f"u{user:02d},i{(user + 5 * n) % N_ITEMS:02d},{100 * n + user}" for n in range(9) for user in range(N_USERS)
    ]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    titles.write_text("item_id,title\n" + "".join(f"i{item:02d},Title i{item:02d}\n" for item in range(N_ITEMS)))
    return log, titles


@dataclass(frozen=True)
class Done:
    """What a command left behind: exit code, standard error, and what lies below the folder of runs."""

    code: int
    err: str
    runs: Path
    out: str = ""

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]

    @property
    def manifests(self) -> list[Path]:
        return sorted(self.runs.rglob("manifest.json"))

    @property
    def root(self) -> Path:
        return self.runs / "tiny"
