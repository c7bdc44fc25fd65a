"""A stage's time is that of all its parts, those that were killed included."""

import os
from pathlib import Path

import pytest

from distilrec.errors import InputError
from distilrec.files import read_json, write_json
from distilrec.pipeline import stage as stages
from distilrec.pipeline.stage import stage


class Clock:
    """Time as the test sets it: `monotonic` counts from somewhere else than `time`, as it does."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - 999_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stages, "time", made)
    return made


def test_killed_parts_count_up_to_the_last_file_they_wrote(tmp_path: Path, clock: Clock) -> None:
    def part(writes_after: float, lasts: float, *, killed: bool) -> None:
        def work(folder: Path, _key: str) -> None:
            clock.now += writes_after
            (folder / "parts").mkdir(exist_ok=True)
            left = folder / "parts" / f"{clock.now}"
            left.touch()
            os.utime(folder / "clock.json", (clock.now - writes_after,) * 2)
            os.utime(left, (clock.now, clock.now))
            clock.now += lasts - writes_after
            if killed:
                raise KeyboardInterrupt

        found.append(stage(tmp_path, "work", {}, work).seconds)

    found: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        part(100, 130, killed=True)
    clock.now += 5000  # nobody worked meanwhile
    with pytest.raises(KeyboardInterrupt):
        part(10, 11, killed=True)
    part(1, 7, killed=False)
    assert found == [117.0]
    (folder,) = tmp_path.glob("work-*")
    assert read_json(folder / "stage.json")["seconds"] == 117.0
    assert not (folder / "clock.json").exists()


def test_a_part_that_wrote_nothing_counts_nothing(tmp_path: Path, clock: Clock) -> None:
    def killed(folder: Path, _key: str) -> None:
        os.utime(folder / "clock.json", (clock.now, clock.now))
        clock.now += 50
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, "work", {}, killed)
    assert stage(tmp_path, "work", {}, lambda folder, key: None).seconds == 0.0


def test_a_done_stage_with_a_damaged_file_is_refused_and_says_which(tmp_path: Path) -> None:
    def work(folder: Path, _key: str) -> None:
        (folder / "in").mkdir(exist_ok=True)
        for name in ("a.npy", "in/b.parquet", "checkpoint.safetensors"):
            (folder / name).write_bytes(b"12345")
        write_json(folder / "fit.json", {"epochs": 1})
        (folder / ".a.npy.17.part").touch()  # of a part that was killed

    folder = stage(tmp_path, "work", {}, work).folder
    assert not (folder / ".a.npy.17.part").exists()
    (folder / "another.npy").touch()
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    assert stage(tmp_path, "work", {}, work).cached
    for content, words in (
        (b"1234", "4 bytes of what were 5"),
        (b"", "0 bytes of what were 5"),
        (None, "the file is gone"),
    ):
        (folder / "in/b.parquet").unlink()
        if content is not None:
            (folder / "in/b.parquet").write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            stage(tmp_path, "work", {}, work)
        assert str(folder / "in" / "b.parquet") in caught.value.line()
        (folder / "in/b.parquet").touch()
    (folder / "fit.json").unlink()
    (folder / "in/b.parquet").write_bytes(b"12345")
    with pytest.raises(InputError, match="the file is gone"):
        stage(tmp_path, "work", {}, work)
    (folder / "stage.json").unlink()
    assert not stage(tmp_path, "work", {}, work).cached  # the remedy that the line names
    assert stage(tmp_path, "work", {}, work).cached


def test_a_stage_of_before_sizes_were_kept_is_taken(tmp_path: Path) -> None:
    folder = stage(tmp_path, "work", {}, lambda folder, _key: (folder / "a.npy").write_bytes(b"1") and None).folder
    mark = read_json(folder / "stage.json")
    assert mark.pop("bytes") == {"a.npy": 1}
    write_json(folder / "stage.json", mark)
    (folder / "a.npy").unlink()
    assert stage(tmp_path, "work", {}, lambda *_: None).cached


def test_the_account_of_a_store_may_grow(tmp_path: Path) -> None:
    def work(folder: Path, _key: str) -> None:
        (folder / "shard-0.parquet").write_bytes(b"1")
        write_json(folder / "account.json", {"rows": 1})

    folder = stage(tmp_path, "knowledge", {}, work).folder
    write_json(folder / "account.json", {"rows": 2, "more": 3})
    (folder / "shard-1.parquet").write_bytes(b"1")
    assert stage(tmp_path, "knowledge", {}, work).cached
    (folder / "shard-0.parquet").unlink()
    with pytest.raises(InputError, match="the file is gone"):
        stage(tmp_path, "knowledge", {}, work)
