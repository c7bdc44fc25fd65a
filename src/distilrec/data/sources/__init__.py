"""Public data sets and the default language model, fetched into the cache: official site first, a published wheel second.

`fetch("ml-100k")` gives atomic files (NAME.inter, NAME.item) and says where they came from; `fetch_llm` gives a folder
that transformers can load. A second call finds the cache and touches no network.
"""

import contextlib
import gzip
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilrec.data.sources.amazon import CATEGORIES
from distilrec.data.sources.cache import RECORD, cache_lock, cache_root, read_record, write_record
from distilrec.data.sources.catalogue import SOURCES, find
from distilrec.data.sources.convert import CONVERTERS
from distilrec.data.sources.download import download_first, from_wheel
from distilrec.data.sources.entries import Source
from distilrec.data.sources.llm import fetch_llm
from distilrec.data.sources.llms import LLMS
from distilrec.errors import ChecksumError, DistilrecError, FetchError
from distilrec.files import read_json, sha256_file, write_json
from distilrec.progress import say

__all__ = ["LLMS", "SOURCES", "Fetched", "Source", "cache_root", "describe", "fetch", "fetch_llm", "find", "names"]

_ADDRESSES = "addresses.json"  # in raw/: which files are whole and where they came from
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A data set in the cache.

    Attributes:
        name: as in the catalogue.
        folder: holds the files and `fetched.json`.
        interactions: NAME.inter.
        items: NAME.item, or None.
        licence: one sentence.
        source: `official`, or the wheel, such as `wheel recbole 1.2.1`.
    """

    name: str
    folder: Path
    interactions: Path
    items: Path | None
    licence: str
    source: str


def fetch(name: str, *, cache: Path | None = None, offline: bool = False, verify: bool = False) -> Fetched:
    """Return the data set `name`, from the cache or else from its sources.

    Args:
        name: see `names()`.
        cache: cache folder, by default `cache_root()`.
        offline: use no network.
        verify: compare the SHA-256 of cached files, not only their sizes.

    Raises:
        ConfigError: no such data set.
        FetchError: no source could be reached, or files that a person has to download are not there.
        ChecksumError: what came, or what lies in the cache, is not what it should be.
        DiskFullError, LockedError: no room; another process fetches the same set and does not finish.
    """
    source = find(name)
    folder = (cache or cache_root()) / "datasets" / source.stem
    if (record := read_record(folder, verify=verify)) is not None:
        return _fetched(source, folder, record)
    if offline and not source.manual:
        raise FetchError(f"{name} is not in the cache ({folder}).", remedy="Fetch it once with a network.")
    with cache_lock(folder, name):
        if (record := read_record(folder)) is None:
            started = time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).unlink(missing_ok=True)
            record = _fill(source, folder)
            _sweep(folder / "raw")
            say(f"fetched {name} from {record['source']} in {time.monotonic() - started:.0f} s: {folder}")
    return _fetched(source, folder, record)


def names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(SOURCES)


def describe(name: str | None = None) -> str:
    """Describe one data set in a few lines, or, without a name, the catalogue with one line a set or family.

    Raises:
        ConfigError: no such data set.
    """
    if name is None:
        lines = [f"{source.name:<28} {source.title}" for source in SOURCES.values() if "/" not in source.name]
        lines += [
            f"{family + '/CATEGORY':<28} {len(known)} categories: {', '.join(known)}"
            for family, known in CATEGORIES.items()
        ]
        return "\n".join(lines)
    source = find(name)
    lines = [f"{source.name}: {source.title}", f"page: {source.page}", f"licence: {source.licence}"]
    for file in source.files:
        check = f"{file.checksum.algorithm} {file.checksum.value}" if file.checksum else "no published checksum"
        lines += [f"file: {address} ({check})" for address in file.addresses[:1]]
    if source.wheel:
        lines.append(f"second source: {source.wheel}, unpacked only")
    if source.manual:
        lines.append(f"by hand: {source.manual}: {', '.join(file.name for file in source.files)}")
    return "\n".join(lines)


def _fill(source: Source, folder: Path) -> dict[str, Any]:
    if source.manual or source.wheel is None:
        return _official(source, folder)
    try:
        return _official(source, folder)
    except (FetchError, ChecksumError) as first:
        say(f"  {first.problem} Taking the {source.wheel} instead.")
        try:
            return _from_wheel(source, folder)
        except FetchError as second:
            raise FetchError(f"{first.problem} {second.problem}", remedy=second.remedy) from second


def _official(source: Source, folder: Path) -> dict[str, Any]:
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    paths = [raw / file.name for file in source.files]
    if source.manual:
        addresses = _found_by_hand(source, paths)
    else:
        say(f"fetching {source.name}: {source.title}. {source.licence}")
        addresses = _download(source, paths)
    downloads = {path.name: {"address": addresses[path.name], "sha256": sha256_file(path)} for path in paths}
    interactions, items = folder / f"{source.stem}.inter", folder / f"{source.stem}.item"
    try:
        CONVERTERS[source.converter](paths, interactions, items)
    except _DAMAGED as error:
        raise _damaged(source, paths, error) from error
    record = _record(source, folder, "official", downloads)
    if not source.manual:
        for path in (*paths, raw / _ADDRESSES):
            path.unlink()
    return record


def _download(source: Source, paths: list[Path]) -> dict[str, str]:
    """Download what an earlier, interrupted run has not; return where each file came from."""
    note = paths[0].with_name(_ADDRESSES)
    addresses: dict[str, str] = read_json(note) if note.exists() else {}
    for file, path in zip(source.files, paths, strict=True):
        if not (path.exists() and file.name in addresses):
            addresses[file.name] = download_first(file, path)
            write_json(note, addresses)
    return addresses


def _from_wheel(source: Source, folder: Path) -> dict[str, Any]:
    wheel = source.wheel
    assert wheel is not None  # noqa: S101 - for the type checker
    from_wheel(
        wheel.project, wheel.version, {one.path: folder / one.name for one in wheel.members}, sha256=wheel.sha256
    )
    for one in wheel.members:
        if sha256_file(folder / one.name) != one.sha256:
            (folder / one.name).unlink()
            raise ChecksumError(
                f"{one.path} of the {wheel} is another file than expected; removed.", remedy="Report this."
            )
    downloads = {one.name: {"address": f"{wheel}: {one.path}", "sha256": one.sha256} for one in wheel.members}
    return _record(source, folder, str(wheel), downloads)


def _record(source: Source, folder: Path, origin: str, downloads: dict[str, dict[str, str]]) -> dict[str, Any]:
    content = {
        "name": source.name,
        "source": origin,
        "page": source.page,
        "licence": source.licence,
        "downloads": downloads,
    }
    present = [name for name in (f"{source.stem}.inter", f"{source.stem}.item") if (folder / name).exists()]
    write_record(folder, content, present)
    return content | {"files": dict.fromkeys(present)}


def _fetched(source: Source, folder: Path, record: dict[str, Any]) -> Fetched:
    items = f"{source.stem}.item"
    return Fetched(
        name=source.name,
        folder=folder,
        interactions=folder / f"{source.stem}.inter",
        items=folder / items if items in record["files"] else None,
        licence=source.licence,
        source=str(record.get("source", "unknown")),
    )


def _found_by_hand(source: Source, paths: list[Path]) -> dict[str, str]:
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FetchError(
            f"{source.name}: {source.manual} ({source.page}).",
            remedy=f"Put {' and '.join(missing)} into {paths[0].parent} and run again.",
        )
    return {path.name: source.page for path in paths}


def _sweep(folder: Path) -> None:
    """Remove a folder if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _damaged(source: Source, paths: list[Path], error: Exception) -> DistilrecError:
    """Say that a raw file does not unpack or decode. Downloaded ones are removed, those put there by hand are not."""
    if not source.manual:
        for path in (*paths, paths[0].with_name(_ADDRESSES)):
            path.unlink(missing_ok=True)
    return ChecksumError(
        f"a raw file of {source.name} is damaged ({error}).",
        where=str(paths[0].parent),
        remedy="Put whole files there and run again." if source.manual else "It was removed; run again.",
    )
