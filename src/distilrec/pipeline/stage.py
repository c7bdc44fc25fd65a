"""Stages: a piece of work in a folder of its own, named by the hash of what goes into it, marked when it is done."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distilrec import __version__
from distilrec.errors import InputError
from distilrec.files import hash_json, read_json, write_json
from distilrec.progress import first_process, say

_MARK = "stage.json"
_CLOCK = "clock.json"  # while the work is under way
_POLL_SECONDS = 0.2
_TEMPORARY = ("checkpoint.safetensors", _CLOCK)
_PASSING = ("checkpoint.safetensors", "moments.safetensors")  # a later stage may take them away
_LASTING = (".npy", ".parquet", ".safetensors", ".html", ".json")  # files that nobody changes once they are written
_GROWING = ("knowledge", "vectors")  # but here the JSON is an account


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage.

    Attributes:
        name: data, student, teacher, knowledge, vectors, distilled or evaluate, perhaps with what sets it apart from
            others of its kind (`-refit`, `-round-N`, `-without-N`).
        key: hash of its inputs and settings.
        folder: what it wrote.
        seconds: how long the work took; of a part that was killed, up to the last file that it wrote.
        cached: whether it was found done.
        peak_rss_mb: largest resident memory of the process that did it, until then.
    """

    name: str
    key: str
    folder: Path
    seconds: float
    cached: bool
    peak_rss_mb: float


def stage(
    root: Path, name: str, inputs: dict[str, Any], work: Callable[[Path, str], None], *, together: bool = False
) -> Stage:
    """Do `work` in its folder under `root`, unless it was done before with the same inputs.

    Of several processes (torchrun) the first does it and the others wait, unless they work `together`, as in training.

    Args:
        root: the run's folder.
        name: of the stage.
        inputs: all that the result depends on: settings, keys of earlier stages, hashes of files.
        work: called with the folder and the key. If it is killed, the next call finds what it left there.
    """
    key = _key(name, inputs)
    folder = stage_folder(root, name, inputs)
    mark = folder / _MARK
    if not first_process():
        if together and not mark.exists():
            folder.mkdir(parents=True, exist_ok=True)
            work(folder, key)
        while not mark.exists():
            time.sleep(_POLL_SECONDS)
    if mark.exists():
        found = read_json(mark)
        _check(folder, found.get("bytes", {}))
        say(f"{name}: done before ({found['seconds']:.1f} s), kept in {folder}")
        return Stage(name, key, folder, found["seconds"], True, found["peak_rss_mb"])
    say(f"{name}: {'going on' if folder.exists() else 'starting'} in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _killed_seconds(folder)
    write_json(folder / _CLOCK, {"earlier": earlier, "started": time.time()})
    started = time.monotonic()
    work(folder, key)
    done = Stage(name, key, folder, earlier + time.monotonic() - started, False, peak_rss_mb())
    write_json(mark, {**asdict(done), "folder": folder.name, "inputs": inputs, "bytes": _lasting(folder, name)})
    for temporary in _TEMPORARY:
        (folder / temporary).unlink(missing_ok=True)
    say(f"{name}: done in {done.seconds:.1f} s")
    return done


def stage_folder(root: Path, name: str, inputs: dict[str, Any]) -> Path:
    """Return the folder of a stage with these inputs."""
    return root / f"{name}-{_key(name, inputs)[:10]}"


def _lasting(folder: Path, name: str) -> dict[str, int]:
    """Return the size of each file of a stage that is to stay as it is, by its path in the folder. What kills left half goes."""
    for left in folder.rglob(".*.part"):
        left.unlink(missing_ok=True)
    kinds = set(_LASTING) - ({".json"} if name.startswith(_GROWING) else set())
    files = (path for path in folder.rglob("*") if path.suffix in kinds and path.name not in (*_PASSING, _CLOCK, _MARK))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}


def _check(folder: Path, sizes: dict[str, int]) -> None:
    """Refuse a stage with a file that is not there any more, or not whole.

    Errors:
        InputError: says which.
    """
    for name, size in sizes.items():
        path = folder / name
        there = path.stat().st_size if path.exists() else None
        if there == size:
            continue
        raise InputError(
            "the file is gone." if there is None else f"{there:,} bytes of what were {size:,}.",
            remedy=f"Bring it back from a copy, or do its part again: delete it and {folder / _MARK}, or all of {folder}.",
            where=str(path),
        )


def _killed_seconds(folder: Path) -> float:
    """Return how long earlier parts of the work in a folder took that were killed, each up to the last file that it wrote."""
    clock = folder / _CLOCK
    if not clock.exists():
        return 0.0
    found = read_json(clock)
    last = max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
    return float(found["earlier"]) + max(0.0, last - float(found["started"]))


def _key(name: str, inputs: dict[str, Any]) -> str:
    return hash_json({"stage": name, "version": __version__, **inputs})


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
