"""Which examples a teacher is asked about: all, the last, a sample, a file that names them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.config import AnnotateSettings
from distilrec.data.dataset import Dataset, training_examples
from distilrec.data.split import Split
from distilrec.errors import InputError
from distilrec.knowledge.examples import chosen_examples


def in_memory(lengths: list[int], train_end: list[int]) -> Dataset:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nothing = np.empty(0, dtype=np.int64)
    split = Split(np.asarray(train_end, dtype=np.int64), nothing, nothing, "")
    return Dataset(Path(), {"n_items": 9}, offsets, np.zeros(offsets[-1], dtype=np.int32), None, split)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    return in_memory(lengths, [draw(st.integers(0, length)) for length in lengths])


def choose(dataset: Dataset, default: str = "all", seed: int = 0, **settings: Any) -> list[int]:
    found = chosen_examples(dataset, AnnotateSettings.model_validate(settings), default, seed)
    assert found.dtype == np.int64
    return found.tolist()


def written(folder: Path, text: str) -> Path:
    path = folder / "selection.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_by_hand() -> None:
    # Histories at 0..3, 4, 5..9; trained on are 0, 1, 2 | 4 | 5, 6. The first item of a history has nothing before it.
    dataset = in_memory([4, 1, 5], [3, 1, 2])
    assert training_examples(dataset).tolist() == [1, 2, 6]
    assert training_examples(dataset, "last").tolist() == [2, 6]


@given(dataset=datasets())
def test_all_and_last_like_a_naive_loop(dataset: Dataset) -> None:
    spans = list(zip(dataset.offsets.tolist(), dataset.split.train_end.tolist(), strict=False))
    everything = [[start + n for n in range(1, cut)] for start, cut in spans]
    assert training_examples(dataset).tolist() == [example for row in everything for example in row]
    assert training_examples(dataset, "last").tolist() == [row[-1] for row in everything if row]
    assert training_examples(dataset).dtype == training_examples(dataset, "last").dtype == np.int64


def test_the_settings_come_before_the_teachers_own_choice(tiny_dataset: Dataset) -> None:
    everything, last = (training_examples(tiny_dataset, which).tolist() for which in ("all", "last"))
    assert choose(tiny_dataset, "all") == choose(tiny_dataset, "last", examples="all") == everything
    assert choose(tiny_dataset, "last") == choose(tiny_dataset, "all", examples="last") == last
    assert len(last) == tiny_dataset.n_rows < len(everything) == tiny_dataset.manifest["n_train_targets"]
    held_out = {*tiny_dataset.examples("valid").tolist(), *tiny_dataset.examples("test").tolist()}
    assert not held_out & set(everything)


@given(small=st.integers(1, 40), more=st.integers(0, 500), seed=st.integers(0, 3))
def test_a_larger_sample_contains_a_smaller_one(tiny_dataset: Dataset, small: int, more: int, seed: int) -> None:
    everything = training_examples(tiny_dataset).tolist()
    first, second = choose(tiny_dataset, seed=seed, sample=small), choose(tiny_dataset, seed=seed, sample=small + more)
    assert len(first) == small
    assert len(second) == min(small + more, len(everything))
    assert set(first) <= set(second) <= set(everything)
    assert first == sorted(set(first))
    assert second == sorted(set(second))


def test_a_sample_follows_its_seed_and_is_spread(tiny_dataset: Dataset) -> None:
    assert choose(tiny_dataset, seed=1, sample=20) == choose(tiny_dataset, seed=1, sample=20)
    assert choose(tiny_dataset, seed=1, sample=20) != choose(tiny_dataset, seed=2, sample=20)
    rows = tiny_dataset.rows_of(np.array(choose(tiny_dataset, seed=1, sample=100)))
    assert len(set(rows.tolist())) > tiny_dataset.n_rows // 2


def test_a_selection_of_examples(tiny_dataset: Dataset, tmp_path: Path) -> None:
    a, b, c = training_examples(tiny_dataset)[[3, 40, 7]].tolist()
    path = written(tmp_path, f"{b}\n{a}\r\n\n  {c} {a}\n0{b}\n")
    assert choose(tiny_dataset, selection=path) == [a, c, b]  # ascending, each once
    assert choose(tiny_dataset, "last", selection=path) == [a, c, b]
    assert set(choose(tiny_dataset, selection=path, sample=2)) < {a, b, c}


def test_a_selection_of_users_means_their_last_training_example(tiny_dataset: Dataset, tmp_path: Path) -> None:
    last = dict(zip(tiny_dataset.user_ids, training_examples(tiny_dataset, "last").tolist(), strict=True))
    path = written(tmp_path, "u011\nu002\nu011\n")
    assert choose(tiny_dataset, selection=path, selection_by="user") == [last["u002"], last["u011"]]


@pytest.mark.parametrize("by", ["example", "user"])
def test_ids_that_are_none_are_counted_and_shown(by: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    good = "u001" if by == "user" else str(training_examples(tiny_dataset)[0])
    wrong = ["nobody", "-1", "1.5", "99999999", "u999", "x6", "x7"]
    path = written(tmp_path, "\n".join([good, *wrong]))
    with pytest.raises(InputError, match=r"7 of 8 ids are no .*nobody, -1, 1\.5, 99999999, u999 \.\.\.\. ") as caught:
        choose(tiny_dataset, selection=path, selection_by=by)
    assert "x6" not in caught.value.line()
    with pytest.raises(InputError, match="1 of 1 ids"):
        choose(tiny_dataset, selection=written(tmp_path, "9" * 5000), selection_by=by)
    assert str(path) in caught.value.line()


def test_held_out_and_first_items_cannot_be_chosen(tiny_dataset: Dataset, tmp_path: Path) -> None:
    for example in (tiny_dataset.examples("test")[0], tiny_dataset.examples("valid")[3], tiny_dataset.offsets[2]):
        with pytest.raises(InputError, match=rf"1 of 1 ids are no\s+training examples of this data set: {example}\."):
            choose(tiny_dataset, selection=written(tmp_path, str(example)))


def test_a_selection_that_cannot_be_read(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        choose(tiny_dataset, selection=tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        choose(tiny_dataset, selection=tmp_path)
    with pytest.raises(InputError, match="names no example"):
        choose(tiny_dataset, selection=written(tmp_path, " \n\n"))
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot be read \(not text\)"):
        choose(tiny_dataset, selection=broken)
