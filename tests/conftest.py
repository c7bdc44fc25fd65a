"""Small prepared data sets, built from CSV files through the same door a user's data come in by."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: tiny models are faster on one thread

import signal

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # so it is where the tests are a background job, and in all they start
    signal.signal(signal.SIGINT, signal.default_int_handler)

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from distilrec.config import DataSettings
from distilrec.data.dataset import Dataset
from distilrec.data.prepare import prepare

hypothesis.settings.register_profile("light", deadline=None, max_examples=60)
hypothesis.settings.load_profile("light")

MakeDataset = Callable[..., Dataset]
KEEP_ALL = {"k_core_user": 1, "k_core_item": 1, "min_history": 2, "duplicates": "none"}
TINY_ITEMS, TINY_USERS = 20, 30


def write_log(path: Path, sequences: Sequence[Sequence[str]]) -> Path:
    """Write one history per user (u000, u001, ...) as CSV; the users take turns, so histories overlap in time.

    The n-th item of user u is at second 1,000,000 + 100 n + u: all times differ as long as there are at most 100 users.
    """
    rows = [
        (1_000_000 + 100 * n + user, f"u{user:03d}", item)
        for user, items in enumerate(sequences)
        for n, item in enumerate(items)
    ]
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows([user, item, time] for time, user, item in sorted(rows))
    return path


def write_titles(path: Path, items: Sequence[str]) -> Path:
    """Write an item file: the title of item X is `Title X`, its genre `Genre`."""
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["item_id", "title", "genre"])
        writer.writerows([item, f"Title {item}", "Genre"] for item in items)
    return path


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> MakeDataset:
    """Return `make(sequences, *, seed=42, **settings)`, which prepares one history of item ids per user.

    `settings` are fields of `DataSettings` (filters, split, sessions ...). Without `filters` nothing is dropped. Internal ids
    follow the sorted original ids; times differ and rise along each history (see `write_log`).
    """

    def make(sequences: Sequence[Sequence[str]], *, seed: int = 42, **settings: Any) -> Dataset:
        folder = tmp_path_factory.mktemp("data")
        log = write_log(folder / "log.csv", sequences)
        titles = write_titles(folder / "titles.csv", sorted({item for items in sequences for item in items}))
        checked = DataSettings.model_validate({"interactions": log, "items": titles, "filters": KEEP_ALL, **settings})
        return prepare(log, titles, checked, folder / "prepared", seed=seed, say=lambda _line: None)

    return make


@pytest.fixture(scope="session")
def tiny_dataset(make_dataset: MakeDataset) -> Dataset:
    """30 histories of 5 to 30 items over 20 items, leave-one-out; the item after x is always (x + 1) mod 20.

    Item `i07` has internal id 7 and title `Title i07`.
    """
    sequences = [
        [f"i{(7 * user + n) % TINY_ITEMS:02d}" for n in range(5 + (11 * user) % 26)] for user in range(TINY_USERS)
    ]
    return make_dataset(sequences)
