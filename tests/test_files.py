"""Files written whole or not at all, locks, and a disk that is full."""

import errno
import os
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distilrec.errors import DiskFullError, InputError, LockedError
from distilrec.files import (
    disk_error,
    existing_parent,
    hash_json,
    locked,
    need_space,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
    write_with,
)


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one é\n")
    write_text(path, "two")
    assert path.read_bytes() == b"two"
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert only(path.parent) == ["b.txt"]


@pytest.mark.parametrize("stop", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failed_writer_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path, stop: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(part: Path) -> None:
        part.write_text("half of the n")
        assert path.read_text() == "old"
        raise stop

    with pytest.raises(type(stop)):
        write_with(path, write)
    assert path.read_text() == "old"
    assert only(tmp_path) == ["a.txt"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_with(tmp_path / "a.txt", lambda part: None)
    assert only(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_writing(tmp_path: Path, code: int) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(DiskFullError) as caught:
        write_with(path, write)
    assert caught.value.where == str(path)
    assert "no space left on the disk" in caught.value.line()
    assert "Free some room" in caught.value.remedy
    assert path.read_text() == "old"
    assert only(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_found_full_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskFullError):
        write_json(path, {"new": 1})
    assert read_json(path) == {"old": 1}
    assert only(tmp_path) == ["a.json"]


def test_a_full_disk_in_the_words_of_writers_in_rust(tmp_path: Path) -> None:
    for error in (
        pl.exceptions.ComputeError("No space left on device (os error 28)"),
        RuntimeError("I/O: StorageFull"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ):
        assert isinstance(disk_error(error, tmp_path / "no" / "such"), DiskFullError)
    other = ValueError("something else")
    assert disk_error(other, tmp_path) is other
    assert disk_error(missing := FileNotFoundError(errno.ENOENT, "x"), tmp_path) is missing


def test_a_real_full_device() -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as caught:
        device.write_bytes(b"x")
    assert isinstance(disk_error(caught.value, device), DiskFullError)


def test_need_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10 << 20, 7 << 20, 3 << 20))
    need_space(tmp_path / "new", 3 << 20)
    with pytest.raises(
        DiskFullError, match=r"4 MiB are needed and 3 MiB are free\. Free some room or choose another folder"
    ):
        need_space(tmp_path / "new" / "deeper", 4 << 20)


def test_existing_parent(tmp_path: Path) -> None:
    assert existing_parent(tmp_path) == tmp_path
    assert existing_parent(tmp_path / "a" / "b") == tmp_path.resolve()


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert list(read_json(tmp_path / "a.json")) == ["b", "a"]
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_that_is_none_is_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert only(tmp_path) == []
    with pytest.raises(InputError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    for broken in (b'{"a": 1', b"\xff", b""):
        (tmp_path / "a.json").write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.json: not valid JSON .* Delete it and run again\."):
            read_json(tmp_path / "a.json")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "b").write_bytes(b"x" * (2 << 20))
    (tmp_path / "c").write_bytes(b"x" * ((2 << 20) - 1) + b"y")
    assert sha256_file(tmp_path / "b") != sha256_file(tmp_path / "c")
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    assert (
        len({hash_json(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None}, [1], [1, 2])}) == 7
    )


def run_python(program: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


TAKE = """
import sys
from pathlib import Path
from distilrec.errors import LockedError
from distilrec.files import locked
try:
    with locked(Path(sys.argv[1]), "this run"):
        print("taken")
except LockedError as error:
    print(error.line())
"""


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with locked(lock, "this run"):
        line = run_python(TAKE, lock).stdout.strip()
        assert (
            line
            == f"{lock.parent}: this run is in use by another process (pid {os.getpid()}). Wait for it, or stop it."
        )
        assert lock.read_text() == str(os.getpid())
    assert run_python(TAKE, lock).stdout.strip() == "taken"


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    program = TAKE.replace('print("taken")', "import os; os.kill(os.getpid(), 9)")
    assert run_python(program, tmp_path / ".lock").returncode == -9
    with locked(tmp_path / ".lock", "this run"):
        pass


def test_a_failed_body_gives_the_lock_back_and_a_refusal_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / ".lock", "this run"):
        with pytest.raises(LockedError), locked(tmp_path / ".lock", "this run"):
            pass
        raise RuntimeError
    with locked(tmp_path / ".lock", "this run"):
        pass


def test_a_link_is_written_through_and_a_device_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "words")
    assert os.read(reader, 99) == b"words"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
