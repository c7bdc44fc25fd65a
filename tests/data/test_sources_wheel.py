"""Files out of wheels: a fake pip gives a tiny wheel, nothing touches the network."""

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

from distilrec.data.sources import download
from distilrec.errors import ChecksumError, FetchError

MEMBER = "tiny/data/a.inter"


def tiny_wheel(folder: Path, content: bytes = b"user_id:token\n1\n") -> tuple[Path, str]:
    """Write a wheel with one data file and one module; return it and its SHA-256."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, content)
        archive.writestr("tiny/__init__.py", "raise SystemExit('must not be run')")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[str]], str]:
    """Replace pip by one that copies the tiny wheel; return its calls and the wheel's SHA-256."""
    (tmp_path / "index").mkdir()
    wheel, digest = tiny_wheel(tmp_path / "index")
    calls: list[list[str]] = []

    def run_pip(arguments: list[str], label: str) -> None:
        calls.append(arguments)
        target = Path(arguments[arguments.index("--dest") + 1])
        (target / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(download, "run_pip", run_pip)
    return calls, digest


def test_only_the_named_member_is_unpacked(pip: tuple[list[list[str]], str], tmp_path: Path) -> None:
    calls, digest = pip
    target = tmp_path / "out" / "a.inter"
    download.from_wheel("tiny", "1.0", {MEMBER: target}, sha256=digest)
    assert target.read_bytes() == b"user_id:token\n1\n"
    assert [path.name for path in target.parent.iterdir()] == ["a.inter"]
    assert calls[0][-1] == "tiny==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(calls[0])


def test_another_wheel_is_not_used(pip: tuple[list[list[str]], str], tmp_path: Path) -> None:
    target = tmp_path / "out" / "a.inter"
    with pytest.raises(ChecksumError, match="tiny 1.0 has SHA-256"):
        download.from_wheel("tiny", "1.0", {MEMBER: target}, sha256="0" * 64)
    assert list(target.parent.iterdir()) == []


def test_a_missing_member_is_told(pip: tuple[list[list[str]], str], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"holds no tiny/none"):
        download.from_wheel("tiny", "1.0", {"tiny/none": tmp_path / "out" / "x"}, sha256=pip[1])


def test_without_pip_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"no pip\..*ensurepip"):
        download.run_pip(["download"], "tiny 1.0")


def test_a_failing_pip_is_quoted_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, stdout="", stderr="WARNING: slow\nERROR: No matching distribution\n"
        )

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(FetchError, match="tiny 1.0: ERROR: No matching distribution"):
        download.run_pip(["download"], "tiny 1.0")
    assert capfd.readouterr().out == ""


def test_a_real_pip_that_fails_prints_nothing_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip here")
    with pytest.raises(FetchError, match="pip could not fetch"):
        download.run_pip(["download", "--no-such-option"], "tiny 1.0")
    assert capfd.readouterr().out == ""
