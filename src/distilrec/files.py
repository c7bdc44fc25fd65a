"""Files written whole or not at all: a reader, or a run that was killed, never sees half of one."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distilrec.errors import DiskFullError, InputError, LockedError

_BLOCK = 1 << 20


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place (fsync, then rename).

    Raises:
        DiskFullError: the disk or quota is full; `path` keeps its old content and nothing is left beside it.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():  # a device or a pipe: nothing may take its place
        write(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        raise disk_error(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""
    write_with(path, lambda part: part.write_bytes(content))


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys in the order given, NaN refused (it is not JSON)."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path)) from None
    except ValueError as error:
        raise InputError(f"not valid JSON ({error}).", where=str(path), remedy="Delete it and run again.") from error


def disk_error(error: Exception, path: Path) -> Exception:
    """Turn `no space left` into a `DiskFullError`; give any other error back as it came.

    Writers in Rust (Parquet, safetensors) and SQLite raise their own errors with the system's words in them.
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(words in str(error) for words in ("os error 28", "No space left", "StorageFull", "disk is full")):
        free = shutil.disk_usage(existing_parent(path)).free / 2**20
        return DiskFullError(
            f"no space left on the disk ({free:.0f} MiB free).", where=str(path), remedy="Free some room and run again."
        )
    return error


def need_space(path: Path, size: int) -> None:
    """Check that `size` bytes fit beside `path` before starting to write them.

    Raises:
        DiskFullError: they do not.
    """
    free = shutil.disk_usage(existing_parent(path)).free
    if free < size:
        raise DiskFullError(
            f"{size / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free.",
            where=str(path),
            remedy="Free some room or choose another folder, then run again.",
        )


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    return next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    """Return the hex SHA-256 of `content` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the body runs; the lock ends with the process, however it ends.

    Raises:
        LockedError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise LockedError(
                f"{what} is in use by another process (pid {owner}).",
                where=str(path.parent),
                remedy="Wait for it, or stop it.",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
