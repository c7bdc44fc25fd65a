"""The cache: where fetched files lie, who may write there, and the record of what was fetched from where."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from distilrec.errors import ChecksumError, InputError, LockedError
from distilrec.files import locked, read_json, sha256_file, write_json
from distilrec.progress import say

RECORD: Final = "fetched.json"
_SECONDS_BETWEEN_TRIES = 0.2


def cache_root() -> Path:
    """Return the cache folder: DISTILREC_CACHE, else distilrec/ in XDG_CACHE_HOME, else ~/.cache/distilrec."""
    if own := os.environ.get("DISTILREC_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "distilrec"


@contextmanager
def cache_lock(folder: Path, what: str, *, patience: float = 1800.0) -> Iterator[None]:
    """Let one process at a time write `folder`; others wait, up to `patience` seconds.

    Raises:
        LockedError: the other process did not finish in time.
    """
    lock, deadline, told = folder.with_name(f".{folder.name}.lock"), time.monotonic() + patience, False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(lock, what))
                break
            except LockedError:
                if time.monotonic() >= deadline:
                    raise
                if not told:
                    say(f"waiting for another process that is fetching {what}")
                    told = True
                time.sleep(_SECONDS_BETWEEN_TRIES)
        yield


def write_record(folder: Path, content: dict[str, Any], names: list[str]) -> None:
    """Write `fetched.json` with `content` and, for each file in `names`, its size and SHA-256. Done last, it says `complete`."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names}
    write_json(folder / RECORD, content | {"files": files})


def read_record(folder: Path, *, verify: bool = False) -> dict[str, Any] | None:
    """Return the record of a complete folder, or None where it has to be fetched (again).

    Args:
        folder: the cached folder.
        verify: read every file and compare its SHA-256, not only its size.

    Raises:
        ChecksumError: `verify` found a changed file.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = read_json(path)
        sizes = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in record["files"].items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        say(f"{path} is broken; fetching again")
        return None
    for name, (size, digest) in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            say(f"{file} is missing or has another size than recorded; fetching again")
            return None
        if verify and sha256_file(file) != digest:
            raise ChecksumError(
                "the content is not the one that was fetched.",
                where=str(file),
                remedy=f"Delete {folder} and fetch again.",
            )
    return dict(record)
