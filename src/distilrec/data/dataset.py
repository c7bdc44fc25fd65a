"""A prepared data set on disk: memory-mapped histories, their split, ids, item text and a manifest with a fingerprint."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from distilrec.columns import INDEX, ITEM, TEXT, TIME, TITLE, USER
from distilrec.data.items import ItemTexts
from distilrec.data.split import Ints, Split
from distilrec.errors import FingerprintError
from distilrec.files import need_space, read_json, write_json, write_with

FORMAT = 1
TextSource = Callable[[pl.Series], ItemTexts]
SplitSource = Callable[[Ints, "npt.NDArray[np.float64] | None"], Split]
_ARRAYS = ("offsets", "items", "times", "train_end", "valid", "test")


@dataclass(frozen=True)
class Dataset:
    """Histories of one data set, with ids mapped to 0..n-1.

    Attributes:
        folder: where it lies.
        manifest: counts, settings, notes and the fingerprint.
        offsets: [rows + 1] int64; history r is items[offsets[r]:offsets[r + 1]], oldest first.
        items: [interactions] int32 internal item ids, memory-mapped.
        times: [interactions] float64 seconds, memory-mapped, or None.
        split: training cut of each history and the held-out example ids.
    """

    folder: Path
    manifest: dict[str, Any]
    offsets: Ints
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.float64] | None
    split: Split

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return int(self.manifest["n_items"])

    @property
    def n_rows(self) -> int:
        """Number of histories (users or sessions)."""
        return len(self.offsets) - 1

    @property
    def fingerprint(self) -> str:
        """Hash of all content: ids, text, histories, split."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def item_table(self) -> pl.DataFrame:
        """INDEX, ITEM, TITLE, TEXT by internal id."""
        return pl.read_parquet(self.folder / "items.parquet", glob=False)

    @cached_property
    def user_ids(self) -> list[str]:
        """Original ids of the histories."""
        return pl.read_parquet(self.folder / "users.parquet", glob=False)[USER].to_list()

    @cached_property
    def item_ids(self) -> list[str]:
        """Original item ids by internal id."""
        return self.item_table[ITEM].to_list()

    @cached_property
    def titles(self) -> list[str]:
        """Titles by internal id."""
        return self.item_table[TITLE].to_list()

    @cached_property
    def texts(self) -> list[str]:
        """Text for a language model by internal id."""
        return self.item_table[TEXT].to_list()

    @cached_property
    def popularity(self) -> Ints:
        """[n_items] how often each item occurs in the training part."""
        lengths = np.diff(self.offsets)
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        return np.bincount(self.items[place < np.repeat(self.split.train_end, lengths)], minlength=self.n_items)

    def with_validation(self) -> "Dataset":
        """Return the data set with the validation targets, and what leads up to them, in its training part."""
        train_end = np.array(self.split.train_end)
        rows = self.rows_of(self.split.valid)
        np.maximum.at(train_end, rows, self.split.valid - self.offsets[rows] + 1)
        return replace(self, split=replace(self.split, train_end=train_end))

    def rows_of(self, examples: Ints) -> Ints:
        """Return the history that each example id belongs to."""
        return np.searchsorted(self.offsets, examples, side="right") - 1

    def examples(self, part: str) -> Ints:
        """Return the held-out example ids of `valid` or `test`."""
        return {"valid": self.split.valid, "test": self.split.test}[part]


def training_examples(dataset: Dataset, which: str = "all") -> Ints:
    """Return ids of training examples, ascending: `all`, or the `last` of each history."""
    starts, ends = dataset.offsets[:-1], dataset.offsets[:-1] + dataset.split.train_end
    has = dataset.split.train_end >= 2  # the first item of a history has nothing before it
    if which == "last":
        return (ends[has] - 1).astype(np.int64)
    counts = np.where(has, dataset.split.train_end - 1, 0)
    before = np.concatenate([[0], np.cumsum(counts)])
    return np.arange(before[-1]) - np.repeat(before[:-1], counts) + np.repeat(starts + 1, counts)


def history_items(dataset: Dataset, examples: Ints) -> tuple[Ints, Ints]:
    """Return all items of the histories before the targets of examples [t]: the place in `examples`, and the item, [M] each."""
    starts = np.asarray(dataset.offsets)[dataset.rows_of(examples)]
    counts = examples - starts
    row = np.repeat(np.arange(len(examples)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
    return row, np.asarray(dataset.items)[place].astype(np.int64)


def write_dataset(
    folder: Path, frame: pl.DataFrame, texts_of: TextSource, split_of: SplitSource, details: dict[str, Any]
) -> Dataset:
    """Map ids, lay histories out flat, split them, and write everything; the manifest comes last and makes it valid.

    Args:
        folder: target folder; an older data set there is replaced.
        frame: USER, ITEM, TIME in order (by user, then time).
        texts_of: item ids in internal order -> their text.
        split_of: offsets, times -> the split.
        details: what to keep in the manifest (source, settings, notes).
    """
    (folder / "manifest.json").unlink(missing_ok=True)
    need_space(folder, frame.height * 24 + (1 << 20))
    item_ids = frame[ITEM].unique().sort()
    users = frame.group_by(USER, maintain_order=True).len()
    codes = item_ids.rename(ITEM).to_frame().with_row_index(INDEX)
    items = (
        frame.select(ITEM).join(codes, on=ITEM, how="left", maintain_order="left")[INDEX].to_numpy().astype(np.int32)
    )
    offsets = np.concatenate([[0], np.cumsum(users["len"].to_numpy())]).astype(np.int64)
    has_time = frame[TIME].null_count() == 0
    times = frame[TIME].to_numpy().astype(np.float64) if has_time else None
    texts, parts = texts_of(item_ids), split_of(offsets, times)
    arrays: dict[str, npt.NDArray[Any]] = {
        "offsets": offsets, "items": items, "train_end": parts.train_end, "valid": parts.valid, "test": parts.test,
    }  # fmt: skip
    if times is not None:
        arrays["times"] = times
    for name, array in arrays.items():
        write_with(folder / f"{name}.npy", lambda part, array=array: _save_array(part, array))  # type: ignore[misc]
    write_with(folder / "items.parquet", texts.frame.write_parquet)
    write_with(folder / "users.parquet", users.select(USER).write_parquet)
    manifest = {
        "format": FORMAT,
        "n_users": users.height,
        "n_items": len(item_ids),
        "n_interactions": frame.height,
        "n_train_targets": int(np.maximum(parts.train_end - 1, 0).sum()),
        "n_valid": len(parts.valid),
        "n_test": len(parts.test),
        "has_time": has_time,
        "items_without_text": texts.without_text,
        "item_rows_unused": texts.unused,
        "fingerprint": _fingerprint(arrays, users[USER], texts),
        **details,
    }
    write_json(folder / "manifest.json", manifest)
    return open_dataset(folder)


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared data set; arrays are memory-mapped.

    Raises:
        InputError: there is none, or it was left unfinished.
        FingerprintError: it was written by another version of the format.
    """
    manifest = read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise FingerprintError(
            f"data set format {manifest.get('format')}, this version reads {FORMAT}.",
            where=str(folder),
            remedy="Prepare it again.",
        )
    loaded = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS if (folder / f"{name}.npy").exists()
    }
    times = loaded["times"] if manifest["has_time"] else None
    parts = Split(loaded["train_end"], loaded["valid"], loaded["test"], "")
    return Dataset(folder, manifest, loaded["offsets"], loaded["items"], times, parts)


def _save_array(path: Path, array: npt.NDArray[Any]) -> None:
    with path.open("wb") as handle:  # np.save(path) would add its own extension
        np.save(handle, array, allow_pickle=False)


def _fingerprint(arrays: dict[str, npt.NDArray[Any]], users: pl.Series, texts: ItemTexts) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}:{arrays[name].dtype}:{arrays[name].shape};".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    for column in (users, texts.frame[ITEM], texts.frame[TITLE], texts.frame[TEXT]):
        for value in column:
            digest.update(f"{len(value)}:{value};".encode())
    return digest.hexdigest()
