"""Downloads against a scripted server on this machine: cuts, resumption, wrong content, refusals; and the official route."""

import dataclasses
import gzip
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data import sources
from distilrec.data.sources import catalogue, download
from distilrec.data.sources.entries import Checksum, RemoteFile
from distilrec.errors import ChecksumError, DiskFullError, FetchError

BODY = bytes(range(256)) * 1500  # 384,000 bytes


@dataclass
class Page:
    """What the server does with one path.

    `cuts`: for each request in turn, after how many body bytes to drop the connection; later requests come whole.
    """

    body: bytes = BODY
    etag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)


class Server:
    """A web server that follows a script and remembers what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        page = self.pages.get(request.path)
        if page is None or page.statuses:
            request.send_error(page.statuses.pop(0) if page else 404)
            return
        body, start = page.body, 0
        if wanted and page.ranges and request.headers.get("If-Range", page.etag) == page.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body) - start))
        if page.etag:
            request.send_header("ETag", page.etag)
        request.end_headers()
        if request.command == "HEAD":
            return
        stop = page.cuts.pop(0) if page.cuts else None
        request.wfile.write(body[start:] if stop is None else body[start : start + stop])
        request.wfile.flush()
        request.close_connection = True


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running.pages.clear()
    running.asked.clear()
    return running


def sha(body: bytes) -> Checksum:
    return Checksum("sha256", hashlib.sha256(body).hexdigest())


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_download_leaves_only_the_file(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page()
    download.download(server.address("/a.bin"), tmp_path / "a.bin", sha(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert only(tmp_path) == ["a.bin"]


def test_md5_is_understood(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page()
    check = Checksum("md5", hashlib.md5(BODY).hexdigest())
    download.download(server.address("/a.bin"), tmp_path / "a.bin", check)
    assert (tmp_path / "a.bin").read_bytes() == BODY


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(0, 200_000),
    cuts=st.lists(st.integers(1, 90_000), max_size=5),
    ranges=st.booleans(),
    etag=st.sampled_from(['"one"', "", 'W/"weak"']),
)
def test_a_download_cut_anywhere_equals_an_unbroken_one(
    running: Server, tmp_path_factory: pytest.TempPathFactory, size: int, cuts: list[int], ranges: bool, etag: str
) -> None:
    body = BODY[:size]
    running.pages["/p.bin"] = Page(body, etag, list(cuts) if ranges else cuts[:2], ranges)
    target = tmp_path_factory.mktemp("cut") / "p.bin"
    download.download(running.address("/p.bin"), target, sha(body), pause=0)
    assert target.read_bytes() == body
    assert only(target.parent) == ["p.bin"]


def test_a_later_call_goes_on_where_the_first_was_cut(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page(cuts=[100_000, 0, 0, 0, 0])
    target = tmp_path / "a.bin"
    with pytest.raises(FetchError, match="cut after 100000 of 384000 bytes") as told:
        download.download(server.address("/a.bin"), target, sha(BODY), pause=0)
    assert "goes on where it ended" in told.value.line()
    assert only(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    server.pages["/a.bin"].cuts.clear()
    server.asked.clear()
    download.download(server.address("/a.bin"), target, sha(BODY), pause=0)
    assert server.asked == [("/a.bin", "bytes=100000-")]
    assert target.read_bytes() == BODY


def test_a_file_that_changed_in_between_is_begun_anew(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page(cuts=[100_000, 0, 0, 0, 0])
    with pytest.raises(FetchError):
        download.download(server.address("/a.bin"), tmp_path / "a.bin", pause=0)
    new = BODY[::-1]
    server.pages["/a.bin"] = Page(new, etag='"two"')
    download.download(server.address("/a.bin"), tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == new


def test_a_changed_file_without_validator_is_noticed_by_its_size(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page(etag="", cuts=[100_000, 0, 0, 0, 0])
    with pytest.raises(FetchError):
        download.download(server.address("/a.bin"), tmp_path / "a.bin", pause=0)
    new = BODY[::-1] + b"more"
    server.pages["/a.bin"] = Page(new, etag="")
    download.download(server.address("/a.bin"), tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == new


def test_a_partial_file_from_elsewhere_is_not_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"junk")
    (tmp_path / "a.bin.part.json").write_text('{"addr')
    server.pages["/a.bin"] = Page()
    download.download(server.address("/a.bin"), tmp_path / "a.bin", sha(BODY), pause=0)
    assert server.asked == [("/a.bin", None)]


def test_a_partial_file_longer_than_the_whole_is_begun_anew(server: Server, tmp_path: Path) -> None:
    address = server.address("/a.bin")
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"address": address, "validator": '"one"', "total": 9}))
    server.pages["/a.bin"] = Page()
    download.download(address, tmp_path / "a.bin", sha(BODY), pause=0)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_wrong_content_is_a_checksum_error_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page(b"other")
    with pytest.raises(ChecksumError, match="expected") as told:
        download.download(server.address("/a.bin"), tmp_path / "a.bin", sha(BODY))
    assert "\n" not in told.value.line()
    assert only(tmp_path) == []


@pytest.mark.parametrize("name", ["a.zip", "a.json.gz"])
def test_a_login_page_in_place_of_an_archive_is_refused_even_without_checksum(
    server: Server, tmp_path: Path, name: str
) -> None:
    server.pages[f"/{name}"] = Page(b"<html>please log in</html>")
    with pytest.raises(ChecksumError, match=r"is not a (zip|gzip) file"):
        download.download(server.address(f"/{name}"), tmp_path / name)
    assert only(tmp_path) == []


def test_not_found_is_told_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="404"):
        download.download(server.address("/none"), tmp_path / "a.bin")
    assert len(server.asked) == 1
    assert only(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page(statuses=[503, 429])
    download.download(server.address("/a.bin"), tmp_path / "a.bin", sha(BODY), pause=0)
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_is_given_up(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = Page(statuses=[503] * 20)
    with pytest.raises(FetchError, match="503"):
        download.download(server.address("/a.bin"), tmp_path / "a.bin", pause=0)
    assert len(server.asked) == 4


def test_too_little_room_is_told_before_a_byte_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, size: int) -> None:
        raise DiskFullError(f"{size} needed")

    monkeypatch.setattr(download, "need_space", full)
    server.pages["/a.bin"] = Page()
    with pytest.raises(DiskFullError, match="384000 needed"):
        download.download(server.address("/a.bin"), tmp_path / "a.bin")
    assert only(tmp_path) == []


def test_the_next_address_is_taken_where_one_fails(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pages["/good"] = Page()
    file = RemoteFile(
        "a.bin", ("http://127.0.0.1:9/a.bin", server.address("/none"), server.address("/good")), sha(BODY)
    )
    assert download.download_first(file, tmp_path / "a.bin", pause=0) == server.address("/good")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "cannot be fetched" in lines[0]
    assert "404" in lines[1]


def test_wrong_content_is_told_before_an_unreachable_address(server: Server, tmp_path: Path) -> None:
    server.pages["/bad"] = Page(b"other")
    file = RemoteFile("a.bin", (server.address("/bad"), "http://127.0.0.1:9/a.bin"), sha(BODY))
    with pytest.raises(ChecksumError):
        download.download_first(file, tmp_path / "a.bin", pause=0)


def test_a_silent_server_counts_as_unreachable_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        assert not download.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.2)


def test_any_answer_counts_as_reachable(server: Server) -> None:
    assert download.reachable(server.address("/none"))


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"ml-1m/{name}.dat", content.encode("latin-1"))
    return buffer.getvalue()


def local(monkeypatch: pytest.MonkeyPatch, server: Server, body: bytes, checksum: Checksum | None) -> None:
    """Point ml-1m at our server."""
    server.pages["/ml-1m.zip"] = Page(body)
    file = RemoteFile("ml-1m.zip", (server.address("/ml-1m.zip"),), checksum)
    changed = dataclasses.replace(catalogue.ML_1M, files=(file,))
    monkeypatch.setitem(catalogue.SOURCES, "ml-1m", changed)


def test_fetch_takes_the_official_files(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = zipped(ratings="1::2::5::978300760\n", movies="2::Jumanji (1995)::Adventure\n")
    local(monkeypatch, server, body, sha(body))
    got = sources.fetch("ml-1m", cache=tmp_path)
    assert got.source == "official"
    assert got.interactions.read_text().splitlines()[1] == "1\t2\t5\t978300760"
    assert got.items is not None
    assert only(got.folder) == ["fetched.json", "ml-1m.inter", "ml-1m.item"]
    record = json.loads((got.folder / "fetched.json").read_text())
    assert record["downloads"]["ml-1m.zip"] == {"address": server.address("/ml-1m.zip"), "sha256": sha(body).value}
    assert sources.fetch("ml-1m", cache=tmp_path, offline=True) == got
    assert len(server.asked) == 1


def test_a_zip_that_does_not_unpack_is_removed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch, server, b"PK and then nonsense", None)
    with pytest.raises(ChecksumError, match="damaged"):
        sources.fetch("ml-1m", cache=tmp_path)
    assert only(tmp_path / "datasets" / "ml-1m" / "raw") == []


def test_a_whole_file_of_an_interrupted_fetch_is_not_downloaded_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = {"reviewerID": "A", "asin": "B", "overall": 5, "unixReviewTime": 1}
    bodies = {"r.json.gz": gzip.compress(json.dumps(review).encode()), "m.json.gz": gzip.compress(b"{'asin': 'B'}")}
    files = tuple(RemoteFile(name, (server.address(f"/{name}"),)) for name in bodies)
    beauty = catalogue.SOURCES["amazon-2014/Beauty"]
    monkeypatch.setitem(catalogue.SOURCES, beauty.name, dataclasses.replace(beauty, files=files))
    server.pages["/r.json.gz"] = Page(bodies["r.json.gz"])
    with pytest.raises(FetchError, match="404"):
        sources.fetch(beauty.name, cache=tmp_path)
    server.pages["/m.json.gz"] = Page(bodies["m.json.gz"])
    server.asked.clear()
    got = sources.fetch(beauty.name, cache=tmp_path)
    assert server.asked == [("/m.json.gz", None)]
    assert got.folder == tmp_path / "datasets" / "amazon-2014-Beauty"
    assert got.interactions.read_text().splitlines()[1] == "A\tB\t5\t1"
    assert only(got.folder) == ["amazon-2014-Beauty.inter", "amazon-2014-Beauty.item", "fetched.json"]
