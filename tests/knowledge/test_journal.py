"""The journal: what was added is read back, whatever happened to the end of the file or in the middle of it."""

import errno
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.errors import DiskFullError
from distilrec.knowledge.journal import Journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=6)
SOME: list[dict[str, Any]] = [
    {"example": 7, "reply": "1. Alien\n \u2028 \U0001f47d"},
    {"example": 8, "reply": ""},
    {"example": 9, "reply": "é", "tokens": [3, 4]},
]


@given(first=RECORDS, second=RECORDS)
def test_what_is_added_is_read_back_in_order(tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    assert journal.read() == []
    journal.add(first)
    assert journal.read() == first
    Journal(journal.path).add(second)
    assert journal.read() == first + second


def test_a_line_by_hand(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add([{"a": "ü\n", "b": 1}])
    content = b'{"a":"\\u00fc\\n","b":1}'
    assert journal.path.read_bytes() == f"{zlib.crc32(content):08x} ".encode() + content + b"\n"


def test_torn_anywhere_all_before_it_is_there_and_what_follows_too(tmp_path: Path) -> None:
    whole = Journal(tmp_path / "whole.jsonl")
    whole.add(SOME)
    content = whole.path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == len(SOME)
    for cut in range(len(content)):
        journal = Journal(tmp_path / f"cut{cut}.jsonl")
        journal.path.write_bytes(content[:cut])
        # A line that lacks nothing but its end is whole.
        kept = SOME[: sum(end - 1 <= cut for end in ends)]
        assert journal.read() == kept, cut
        journal.add([{"next": cut}])
        assert journal.read() == [*kept, {"next": cut}], cut


@given(place=st.integers(0), change=st.integers(1, 255))
def test_a_byte_that_changed_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    journal.add(SOME)
    content = bytearray(journal.path.read_bytes())
    content[place % len(content)] ^= change
    journal.path.write_bytes(content)
    found = journal.read()
    assert all(record in SOME for record in found)
    at_an_end = place % len(content) == len(content) - 1
    assert len(SOME) - 2 <= len(found) <= len(SOME) - (not at_an_end)


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_bytes(b"\n\nhello\n00000000 {}\n" + b"\xff\xfe\n" + b'{"a": 1}\n')
    assert journal.read() == []
    journal.add(SOME[:1])
    assert journal.read() == SOME[:1]


def test_the_disk_has_it_before_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, seen = Journal(tmp_path / "journal.jsonl"), []

    def fsync(_file: int) -> None:
        seen.append(journal.path.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    journal.add(SOME[:2])
    journal.add(SOME[2:])
    assert [line.count(b"\n") for line in seen] == [2, 3]
    assert seen[-1] == journal.path.read_bytes()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add(SOME[:1])
    with monkeypatch.context() as patch:

        def full(_file: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match=r"no space left on the disk"):
            journal.add(SOME[1:])
    assert journal.read()[:1] == SOME[:1]


def test_what_is_no_json_is_refused_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.add([{"a": 1}, {"usd": float("nan")}])
    assert journal.read() == []


def test_cleared(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.clear()
    journal.add(SOME)
    journal.clear()
    assert journal.read() == []
    assert not journal.path.exists()
    journal.add(SOME[:1])
    assert [json.dumps(record) for record in journal.read()] == [json.dumps(SOME[0])]
