"""A journal: one JSON record a line, each with its checksum, on the disk before `add` returns.

A process killed in the middle of a line leaves a torn one, which reading skips; nothing before it is harmed.
"""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distilrec.files import disk_error


class Journal:
    """Records appended to one file. One process at a time may use it; the store's lock sees to that."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all whole records, oldest first."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [record for line in lines if (record := _checked(line)) is not None]

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records, and wait until the disk has them.

        Raises:
            DiskFullError: they do not fit.
        """
        content = b"".join(_line(record) for record in records)
        try:
            with self.path.open("ab") as file:
                # A torn line of a killed process has no end; what follows must not become part of it.
                file.write(content if _ends_clean(self.path) else b"\n" + content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error

    def clear(self) -> None:
        """Forget all records; what they said stands elsewhere by now."""
        self.path.unlink(missing_ok=True)


def _line(record: dict[str, Any]) -> bytes:
    content = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _checked(line: bytes) -> dict[str, Any] | None:
    mark, _, content = line.partition(b" ")
    if len(mark) != 8 or mark != b"%08x" % zlib.crc32(content):
        return None
    record: dict[str, Any] = json.loads(content)
    return record


def _ends_clean(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
