"""The prepared data set: what comes back is what went in, and the fingerprint knows every part of it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distilrec.columns import ITEM, TEXT, TIME, TITLE, USER
from distilrec.data.dataset import Dataset, open_dataset, write_dataset
from distilrec.data.items import ItemTexts, read_items
from distilrec.data.split import Split
from distilrec.errors import FingerprintError, InputError

MakeDataset = Callable[..., Dataset]
HISTORIES = [["b", "a", "d", "b", "c"], ["c", "d", "a", "b"]]


def test_round_trip(make_dataset: MakeDataset) -> None:
    data = make_dataset(HISTORIES)
    again = open_dataset(data.folder)
    for one in (data, again):
        assert one.offsets.tolist() == [0, 5, 9]
        assert one.items.tolist() == [1, 0, 3, 1, 2, 2, 3, 0, 1]  # internal ids follow the sorted original ids
        assert one.items.dtype == np.int32
        assert one.times is not None
        assert one.times.tolist() == [1_000_000 + 100 * n for n in range(5)] + [1_000_001 + 100 * n for n in range(4)]
        assert one.split.train_end.tolist() == [3, 2]
        assert one.examples("valid").tolist() == [3, 7]
        assert one.examples("test").tolist() == [4, 8]
        assert (one.n_items, one.n_rows) == (4, 2)
        assert one.user_ids == ["u000", "u001"]
        assert one.item_ids == ["a", "b", "c", "d"]
        assert one.titles == ["Title a", "Title b", "Title c", "Title d"]
        assert one.texts[2] == "Title c, Genre"
        assert one.popularity.tolist() == [1, 1, 1, 2]  # the training part alone: b a d, c d
        assert one.rows_of(np.array([0, 4, 5, 8])).tolist() == [0, 0, 1, 1]
    assert again.fingerprint == data.fingerprint
    assert again.manifest == data.manifest


def test_arrays_are_memory_mapped_and_read_only(tiny_dataset: Dataset) -> None:
    again = open_dataset(tiny_dataset.folder)
    for array in (again.items, again.times, again.offsets):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_the_manifest_counts(tiny_dataset: Dataset) -> None:
    manifest = tiny_dataset.manifest
    lengths = np.diff(tiny_dataset.offsets)
    assert lengths.min() == 5
    assert lengths.max() == 30
    assert manifest["n_users"] == manifest["n_valid"] == manifest["n_test"] == 30
    assert manifest["n_items"] == 20
    assert manifest["n_interactions"] == lengths.sum() == len(tiny_dataset.items)
    assert manifest["n_train_targets"] == (lengths - 3).sum()
    assert (manifest["items_without_text"], manifest["item_rows_unused"]) == (0, 0)
    assert manifest["has_time"] is True
    assert manifest["columns"] == {"user_id": "user_id", "item_id": "item_id", "time": "timestamp"}
    assert any("leave-one-out" in note for note in manifest["notes"])


def test_the_known_answer(tiny_dataset: Dataset) -> None:
    first = np.zeros(len(tiny_dataset.items), dtype=bool)
    first[tiny_dataset.offsets[:-1]] = True
    follows = np.asarray(tiny_dataset.items[1:]) == (np.asarray(tiny_dataset.items[:-1]) + 1) % 20
    assert (follows | first[1:]).all()


def write(
    folder: Path,
    *,
    users: str = "uuuvvv",
    items: str = "abcbca",
    titles: str = "ABC",
    texts: str = "xyz",
    times: object = (1, 2, 3, 1, 2, 3),
    test: int = 2,
) -> Dataset:
    frame = pl.DataFrame({USER: list(users), ITEM: list(items), TIME: times}, schema_overrides={TIME: pl.Float64})

    def texts_of(ids: pl.Series) -> ItemTexts:
        return ItemTexts(pl.DataFrame({"index": range(3), ITEM: ids, TITLE: list(titles), TEXT: list(texts)}), {}, 0, 0)

    def split_of(_offsets: np.ndarray, _times: np.ndarray | None) -> Split:
        return Split(np.array([1, 1]), np.array([1, 4]), np.array([test, 5]), "")

    return write_dataset(folder, frame, texts_of, split_of, {"split": {}})


CHANGES = {
    "a user's name": {"users": "uuuwww"},
    "where a history ends": {"users": "uuvvvv"},
    "an item of a history": {"items": "acbbca"},
    "an item's id": {"items": "abdbda"},
    "a title": {"titles": "AbC"},
    "a text": {"texts": "xyy"},
    "title and text swapped": {"titles": "xyz", "texts": "ABC"},
    "a time": {"times": (1, 2, 4, 1, 2, 3)},
    "no times": {"times": [None] * 6},
    "the split": {"test": 3},
}


def test_the_fingerprint_changes_with_every_part_of_the_content(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain").fingerprint
    assert write(tmp_path / "again").fingerprint == plain
    changed = {name: write(tmp_path / name.replace(" ", "-"), **change).fingerprint for name, change in CHANGES.items()}  # type: ignore[arg-type]
    assert len({plain, *changed.values()}) == 1 + len(changed), changed


def test_a_folder_is_written_over_and_old_times_do_not_come_back(tmp_path: Path) -> None:
    assert write(tmp_path).times is not None
    assert write(tmp_path, times=[None] * 6).times is None
    assert open_dataset(tmp_path).times is None


def test_an_unfinished_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distilrec.data.dataset.write_json", killed)  # the last thing that is written
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, titles="XYZ")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"manifest\.json: no such file"):
        open_dataset(tmp_path)
    assert write(tmp_path).titles == ["A", "B", "C"]


def test_a_failure_before_the_arrays_leaves_no_manifest(tmp_path: Path) -> None:
    frame = pl.DataFrame({USER: ["u", "u"], ITEM: ["a", "b"], TIME: [1.0, 2.0]})

    def refused(_offsets: np.ndarray, _times: np.ndarray | None) -> Split:
        raise InputError("no.")

    from distilrec.config import ColumnSettings

    with pytest.raises(InputError):
        write_dataset(tmp_path, frame, lambda ids: read_items(None, ids, ColumnSettings()), refused, {})
    assert list(tmp_path.iterdir()) == []


def test_another_format_and_a_broken_manifest_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(FingerprintError, match=r"data set format 99, this version reads 1\. Prepare it again\."):
        open_dataset(tmp_path)
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(InputError, match="not valid JSON"):
        open_dataset(tmp_path)


def test_the_order_of_the_file_does_not_matter_where_there_is_a_clock(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data = make_dataset(HISTORIES)
    log = data.folder.parent / "log.csv"
    with log.open() as handle:
        header, *rows = csv.reader(handle)
    with (tmp_path / "log.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *reversed(rows)])
    from distilrec.config import DataSettings
    from distilrec.data.prepare import prepare

    settings = DataSettings.model_validate({"interactions": log, "filters": data.manifest["filters"]})
    said: list[str] = []
    again = prepare(
        tmp_path / "log.csv", data.folder.parent / "titles.csv", settings, tmp_path / "out", seed=1, say=said.append
    )
    assert again.fingerprint == data.fingerprint
    assert said[-1] == "  2 histories, 4 items, 9 interactions; 3 training, 2 validation, 2 test targets"
    assert [line.strip() for line in said[:-1]] == again.manifest["notes"]


def test_a_folder_with_signs_that_mean_something_to_a_shell(tmp_path: Path) -> None:
    data = write(tmp_path / "run [1] *")
    assert data.titles == ["A", "B", "C"]
    assert data.user_ids == ["u", "v"]


def test_with_validation_trains_on_all_but_the_test_targets(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([["a", "b", "c", "d", "e"], ["b", "c", "a"]])
    whole = dataset.with_validation()
    assert dataset.split.train_end.tolist() == [3, 1]
    assert whole.split.train_end.tolist() == [4, 2]
    assert whole.popularity.sum() == dataset.popularity.sum() + 2
    assert np.array_equal(whole.examples("test"), dataset.examples("test"))
    tested = set(whole.examples("test").tolist())
    starts = whole.offsets[:-1]
    trained = {int(s) + n for s, end in zip(starts, whole.split.train_end, strict=True) for n in range(int(end))}
    assert not tested & trained


def test_with_validation_of_sessions_trains_on_whole_ones(make_dataset: MakeDataset) -> None:
    sessions = [[f"i{(n + k) % 9}" for k in range(4)] for n in range(30)]
    dataset = make_dataset(sessions, split={"kind": "random_sessions"})
    whole = dataset.with_validation()
    valid = dataset.rows_of(dataset.examples("valid"))
    assert (dataset.split.train_end[valid] == 0).all()
    assert (whole.split.train_end[valid] == 4).all()
    test = dataset.rows_of(dataset.examples("test"))
    assert (whole.split.train_end[test] == 0).all()
