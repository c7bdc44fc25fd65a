"""DLLM2Rec's files: what is written is read back bit for bit, by us and by numpy; what does not fit the data set is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.data.dataset import Dataset, training_examples
from distilrec.errors import InputError
from distilrec.teachers.dllm2rec_files import read_dllm2rec, write_dllm2rec
from distilrec.teachers.recorded import RecordedSettings, read_recorded

MakeDataset = Callable[..., Dataset]
HISTORIES = ["abcde", "bcde", "cde", "dabcea"]  # training examples: 1 2 | 6 | none | 13 14 15; see test_recorded.py
EXAMPLES = [1, 2, 6, 13, 14, 15]
RANKINGS = "0 1\n2 3\n4 0\n1 2\n3 4\n0 2\n"
DISTANCES = "0.5 1\n0 0\n-1 2.5\n1e-3 1e3\n1 1\n3 4\n"
# As large as they come, as small as they come, and anything between: all float32 but infinities and NaN.
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def dataset(make_dataset: MakeDataset) -> Dataset:
    return make_dataset([list(items) for items in HISTORIES])


def folder_of(folder: Path, rankings: str | None = None, distances: str | None = None, vectors: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    if rankings is not None:
        (folder / "myrank_train.txt").write_text(rankings)
    if distances is not None:
        (folder / "confidence_train.txt").write_text(distances)
    if vectors is not None:
        torch.save(vectors, folder / "all_embeddings.pt")
    return folder


def test_training_examples_by_hand(dataset: Dataset) -> None:
    assert training_examples(dataset).tolist() == EXAMPLES


def test_reading_by_hand(dataset: Dataset, tmp_path: Path) -> None:
    vectors = torch.arange(10.0).reshape(5, 2)
    files = read_dllm2rec(folder_of(tmp_path, RANKINGS, DISTANCES, vectors.half()), dataset)
    assert files.items is not None
    assert files.scores is not None
    assert files.item_vectors is not None
    assert files.examples.tolist() == EXAMPLES
    assert files.items.tolist() == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 2]]
    wanted = np.array([[-0.5, -1], [0, 0], [1, -2.5], [-1e-3, -1e3], [-1, -1], [-3, -4]], dtype=np.float32)
    assert (files.scores == wanted).all()
    assert files.scores.dtype == np.float32
    assert not np.signbit(files.scores[1]).any()
    assert torch.equal(files.item_vectors, vectors)


@pytest.mark.parametrize(
    "rankings",
    [
        RANKINGS.replace(" ", "\t"),
        RANKINGS.replace(" ", "   ").replace("\n", " \r\n"),
        "# made elsewhere\n" + RANKINGS.replace("\n", "\n\n"),
        RANKINGS.replace("4", "4.000000000000000000e+00"),  # numpy's own way to write numbers
    ],
)
def test_what_numpy_reads_is_read(dataset: Dataset, tmp_path: Path, rankings: str) -> None:
    files = read_dllm2rec(folder_of(tmp_path, rankings), dataset)
    assert files.items is not None
    assert files.items.tolist() == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 2]]
    assert files.scores is None
    assert files.item_vectors is None


@given(data=st.data(), width=st.integers(1, 4))
def test_round_trip(
    data: st.DataObject, width: int, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    numbers = st.lists(FLOATS, min_size=width, max_size=width)
    scores = np.array(data.draw(st.lists(numbers, min_size=6, max_size=6)), dtype=np.float32)
    ranking = st.permutations(range(5)).map(lambda items: items[:width])
    items = np.array(data.draw(st.lists(ranking, min_size=6, max_size=6)))
    vectors = torch.tensor(data.draw(st.lists(numbers, min_size=5, max_size=5)), dtype=torch.float32)
    folder = tmp_path_factory.mktemp("files") / "made"
    write_dllm2rec(folder, dataset, examples=np.array(EXAMPLES), items=items, scores=scores, item_vectors=vectors)
    files = read_dllm2rec(folder, dataset)
    assert files.items is not None
    assert files.scores is not None
    assert files.item_vectors is not None
    assert (files.items == items).all()
    assert (files.scores == scores).all()
    assert torch.equal(files.item_vectors, vectors)
    # The published code reads them like this.
    assert (torch.LongTensor(np.loadtxt(folder / "myrank_train.txt", ndmin=2)).numpy() == items).all()
    distances = torch.tensor(np.loadtxt(folder / "confidence_train.txt", ndmin=2), dtype=torch.float)
    assert (distances.numpy() == -scores).all()
    # Best first, they come through the import unchanged, too.
    ordered = -np.sort(-scores, axis=1)
    write_dllm2rec(folder, dataset, examples=np.array(EXAMPLES), items=items, scores=ordered)
    recorded = read_recorded(RecordedSettings(folder=folder), dataset)
    assert recorded.frame.rows() == list(zip(EXAMPLES, items.tolist(), ordered.tolist(), strict=True))
    assert recorded.vectors is not None
    assert torch.equal(recorded.vectors, vectors)
    assert recorded.report.reordered == 0


def test_every_digit_of_a_distance_is_written(dataset: Dataset, tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (6, 500), dtype=np.uint32)
    scores = np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), np.float32(8388609.5))
    write_dllm2rec(tmp_path, dataset, examples=np.array(EXAMPLES), items=np.zeros((6, 500), dtype=int), scores=scores)
    files = read_dllm2rec(tmp_path, dataset)
    assert files.scores is not None
    assert (files.scores == scores).all()


def test_import_counts_what_it_drops(dataset: Dataset, tmp_path: Path) -> None:
    # 5 is the padding id of the published code; the third line is out of order, the fifth has only unknown items.
    folder = folder_of(tmp_path, "0 1\n2 2\n4 0\n1 5\n9 -1\n0 2\n", "0 1\n2 3\n2 1\n4 5\n0 0\n7 7\n")
    recorded = read_recorded(RecordedSettings(folder=folder, tolerance=0.25), dataset)
    assert recorded.frame.rows() == [
        (1, [0, 1], [0.0, -1.0]),
        (2, [2], [-2.0]),
        (6, [0, 4], [-1.0, -2.0]),
        (13, [1], [-4.0]),
        (15, [0, 2], [-7.0, -7.0]),
    ]
    report = recorded.report
    assert (report.rows, report.kept, report.mentions, report.empty_lists) == (6, 5, 12, 1)
    assert (report.unknown_items, report.unknown_item_ids, report.repeated_items) == (3, ("5", "9", "-1"), 1)
    assert (report.reordered, report.reversed) == (1, 1)
    with pytest.raises(
        InputError, match=r"myrank_train.txt: 3 of 12 item ids .*'5', '9', '-1'\. .*tolerance=0.25 or more"
    ):
        read_recorded(RecordedSettings(folder=folder, tolerance=0.24), dataset)


def test_a_folder_may_hold_vectors_alone(dataset: Dataset, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", vectors=torch.ones(5, 3))
    recorded = read_recorded(RecordedSettings(folder=folder), dataset)
    assert recorded.frame.is_empty()
    assert recorded.vectors is not None
    assert recorded.report.item_vectors == (5, 3)
    np.save(tmp_path / "v.npy", np.zeros((5, 2)))
    other = read_recorded(RecordedSettings(folder=folder, item_vectors=tmp_path / "v.npy"), dataset)
    assert other.report.item_vectors == (5, 2)  # what is named wins over what lies about


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "neither myrank_train.txt nor all_embeddings.pt is there"),
        ({"distances": DISTANCES}, "neither myrank_train.txt nor"),
        ({"distances": DISTANCES, "vectors": torch.ones(5, 2)}, "confidence_train.txt is there and myrank_train.txt is not"),
        ({"rankings": "0 1\n" * 5}, "5 lines, 6 are expected: one for each training example"),
        ({"rankings": "0 1\n" * 7}, "7 lines, 6 are expected"),
        ({"rankings": "0 1\n" * 4 + "0\n1 1\n"}, "not lines of the same count of numbers"),
        ({"rankings": "0 one\n" * 6}, "not lines of the same count of numbers"),
        ({"rankings": "0 1\n" * 4 + "1 0.5\n0 nan\n"}, "2 entries are no item ids, the first one is 0.5 in line 5"),
        ({"rankings": ""}, "the file is empty"),
        ({"rankings": "\n\n"}, "holds no numbers"),
        ({"rankings": RANKINGS, "distances": "1\n" * 6}, "6 lines of 1 distances, 6 of 2 are expected"),
        ({"rankings": RANKINGS, "distances": "1 1\n" * 5}, "5 lines of 2 distances, 6 of 2 are expected"),
        ({"rankings": RANKINGS, "distances": "1 1\n" * 3 + "1 inf\n" * 3}, "3 distances are not finite, the first one in line 4"),
        ({"rankings": RANKINGS, "distances": "1 1\n" * 5 + "1 1e39\n"}, "1 distances are not finite, the first one in line 6"),
        ({"vectors": torch.ones(6, 2)}, r"shape \[6, 2\], \[5, any\] is expected"),
        ({"vectors": [torch.ones(5, 2)]}, "holds a list, one tensor is expected"),
        ({"vectors": torch.full((5, 2), torch.inf)}, "5 of 5 item vectors hold a number that is not finite"),
    ],
)  # fmt: skip
def test_bad_folders(dataset: Dataset, tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_dllm2rec(folder_of(tmp_path, **files), dataset)
    assert "\n" not in caught.value.line()
    assert str(tmp_path) in caught.value.line()


def test_what_the_format_cannot_say_is_not_written(dataset: Dataset, tmp_path: Path) -> None:
    items, scores = np.array([[0, 1]] * 6), np.array([[2.0, 1.0]] * 6, dtype=np.float32)
    short = scores.copy()
    short[3, 1] = -np.inf
    for examples, table, given_scores, vectors, words in (
        (
            EXAMPLES[:5],
            items[:5],
            scores[:5],
            None,
            "each of the 6 training examples in ascending order; 1 are missing",
        ),
        (EXAMPLES[::-1], items, scores, None, "ascending order; 0 are missing"),
        (EXAMPLES, items[:, :1], scores, None, r"items \[6, 1\] and scores \[6, 2\]"),
        (EXAMPLES, items, short, None, "some lists are shorter"),
        (EXAMPLES, items, scores, torch.ones(4, 2), r"shape \[4, 2\]"),
    ):
        with pytest.raises(InputError, match=words):
            write_dllm2rec(
                tmp_path / "new",
                dataset,
                examples=np.array(examples),
                items=table,
                scores=given_scores,
                item_vectors=vectors,
            )
        assert not (tmp_path / "new").exists()
