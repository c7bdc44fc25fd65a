"""A stage's time is that of all its parts, those that were killed included."""

import os
from pathlib import Path

import pytest

from distilrec.files import read_json
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
