"""The store of knowledge: append, resume, look up, refuse what does not fit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.columns import EXAMPLE, ITEMS, REPLY, SCORES, TOKENS_IN
from distilrec.data.dataset import Dataset
from distilrec.errors import FingerprintError, InputError, LockedError
from distilrec.files import read_json, write_json
from distilrec.knowledge.store import FORMAT, NOTHING, open_knowledge, writing

DETAILS: dict[str, Any] = {"teacher": "t1", "settings": {"top_k": 2}}


def rows_of(*examples: int) -> pl.DataFrame:
    """Say of example e: items e and e + 1, scores -e and -e - 0.5."""
    return pl.DataFrame(
        {EXAMPLE: examples, ITEMS: [[e, e + 1] for e in examples], SCORES: [[-e, -e - 0.5] for e in examples]},
        schema={EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)},
    )


def test_what_is_appended_is_looked_up_by_example(tmp_path: Path, tiny_dataset: Dataset) -> None:
    vectors = torch.arange(40.0).reshape(20, 2)
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert not writer.has_item_vectors
        writer.put_item_vectors(vectors.to(torch.float64).requires_grad_())
        assert writer.has_item_vectors
        writer.append(rows_of(30, 10))
        writer.append(rows_of(20))
        assert writer.done().tolist() == [10, 20, 30]
    knowledge = open_knowledge(tmp_path, tiny_dataset)
    made_with = knowledge.manifest.pop("made_with")
    assert set(made_with) == {"distilrec", "torch", "transformers"}
    assert knowledge.manifest == {"format": FORMAT, "dataset": tiny_dataset.fingerprint, "n_items": 20, **DETAILS}
    assert knowledge.examples.tolist() == [10, 20, 30]
    assert knowledge.item_vectors is not None
    assert torch.equal(knowledge.item_vectors, vectors)
    items, scores, asked = knowledge.rankings(torch.tensor([20, 5, 30, 15, 99, 10, 20]))
    assert asked.tolist() == [True, False, True, False, False, True, True]
    assert items[asked].tolist() == [[20, 21], [30, 31], [10, 11], [20, 21]]
    assert scores[asked].tolist() == [[-20, -20.5], [-30, -30.5], [-10, -10.5], [-20, -20.5]]
    assert (items.dtype, scores.dtype, asked.dtype) == (torch.int64, torch.float32, torch.bool)
    assert items.shape == scores.shape == (7, 2)


SHARDS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=4)


@given(shards=SHARDS, wanted=st.lists(st.integers(0, 70), min_size=1, max_size=20))
def test_look_up_like_a_dict(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset, shards, wanted) -> None:
    folder = tmp_path_factory.mktemp("store")
    with writing(folder, tiny_dataset, DETAILS) as writer:
        for shard in shards:
            writer.append(rows_of(*shard))
    known = {example for shard in shards for example in shard}
    knowledge = open_knowledge(folder, tiny_dataset)
    assert knowledge.examples.tolist() == sorted(known)
    assert knowledge.item_vectors is None
    items, scores, asked = knowledge.rankings(torch.tensor(wanted))
    assert asked.tolist() == [example in known for example in wanted]
    for place, example in enumerate(wanted):
        if example in known:
            assert items[place].tolist() == [example, example + 1]
            assert scores[place].tolist() == [-example, -example - 0.5]


def test_an_example_told_twice_counts_once_and_the_first_telling_stays(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(1, 2))
        writer.append(rows_of(2, 3).with_columns(pl.Series(ITEMS, [[0, 0], [0, 0]], dtype=pl.List(pl.Int32))))
    knowledge = open_knowledge(tmp_path, tiny_dataset)
    assert knowledge.examples.tolist() == [1, 2, 3]
    assert knowledge.items.tolist() == [[1, 2], [2, 3], [0, 0]]


def test_a_second_run_goes_on_behind_the_first(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert writer.done().tolist() == []
        writer.append(rows_of(4))
    first = (tmp_path / "shard-00000.parquet").read_bytes()
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert writer.done().tolist() == [4]
        writer.append(rows_of(2))
    assert (tmp_path / "shard-00000.parquet").read_bytes() == first
    assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == [2, 4]


def test_what_a_killed_writer_left_half_done_is_ignored_and_removed(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(4))
    torn = tmp_path / ".shard-00001.parquet.4711.part"
    torn.write_bytes((tmp_path / "shard-00000.parquet").read_bytes()[:50])
    assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == [4]
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert not torn.exists()
        assert writer.done().tolist() == [4]
        writer.append(rows_of(5))
    assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == [4, 5]


KILLED = """
import os, sys
from pathlib import Path
import polars as pl
from distilrec.data.dataset import open_dataset
from distilrec.knowledge.store import writing

class Torn:
    def write_parquet(self, part):
        Path(part).write_bytes(b"PAR1 half a shard")
        os.kill(os.getpid(), 9)

with writing(Path(sys.argv[1]), open_dataset(Path(sys.argv[2])), {"teacher": "t1", "settings": {"top_k": 2}}) as writer:
    types = {"example_id": pl.Int64, "items": pl.List(pl.Int32), "scores": pl.List(pl.Float32)}
    writer.append(pl.DataFrame({"example_id": [7], "items": [[7, 8]], "scores": [[-7.0, -7.5]]}, schema=types))
    writer.append(Torn())
"""


def test_a_writer_killed_inside_a_shard_loses_that_shard_alone(tmp_path: Path, tiny_dataset: Dataset) -> None:
    program = [sys.executable, "-c", KILLED, str(tmp_path), str(tiny_dataset.folder)]
    assert subprocess.run(program, timeout=120, check=False).returncode == -9
    assert list(tmp_path.glob(".*.part"))
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert not list(tmp_path.glob(".*.part"))
        assert writer.done().tolist() == [7]
        writer.append(rows_of(8))
    assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == [7, 8]


def test_a_failed_append_writes_nothing_and_can_be_tried_again(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                writer.append(rows_of(2))
        assert writer.done().tolist() == [1]
        writer.append(rows_of(2))
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["shard-00000.parquet", "shard-00001.parquet"]


def test_a_second_writer_is_refused_while_readers_are_welcome(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(1))
        busy = pytest.raises(LockedError, match=f"the knowledge store is in use by another process .pid {os.getpid()}")
        with busy, writing(tmp_path, tiny_dataset, DETAILS):
            pass
        assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == [1]
        writer.append(rows_of(2))
    with writing(tmp_path, tiny_dataset, DETAILS):
        pass


def test_knowledge_of_another_data_set_is_refused(
    tmp_path: Path, tiny_dataset: Dataset, make_dataset: Callable[..., Dataset]
) -> None:
    other = make_dataset([["a", "b", "c", "d"], ["b", "c", "d", "a"]])
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(1))
    with pytest.raises(FingerprintError, match=r"belongs to another data set \(its fingerprint differs\)"):
        open_knowledge(tmp_path, other)
    with (
        pytest.raises(FingerprintError, match="the store was made with other dataset, n_items"),
        writing(tmp_path, other, DETAILS),
    ):
        pass


@pytest.mark.parametrize(
    ("details", "named"),
    [
        ({**DETAILS, "teacher": "t2"}, "teacher"),
        ({**DETAILS, "settings": {"top_k": 3}}, "settings"),
        ({**DETAILS, "prompt": "p"}, "prompt"),
    ],
)
def test_another_teacher_or_other_settings_do_not_mix(
    tmp_path: Path, tiny_dataset: Dataset, details: dict[str, Any], named: str
) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(1))
    with (
        pytest.raises(FingerprintError, match=f"the store was made with other {named}"),
        writing(tmp_path, tiny_dataset, details),
    ):
        pass
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert writer.done().tolist() == [1]


def test_no_store_and_an_empty_one(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_knowledge(tmp_path / "none", tiny_dataset)
    with writing(tmp_path, tiny_dataset, DETAILS):
        pass
    with pytest.raises(InputError, match=r"the store holds no rows\. Run annotate first\."):
        open_knowledge(tmp_path, tiny_dataset)


def test_arrays_are_of_the_promised_types(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(3, 1))
    knowledge = open_knowledge(tmp_path, tiny_dataset)
    assert (knowledge.examples.dtype, knowledge.items.dtype, knowledge.scores.dtype) == (np.int64, np.int64, np.float32)
    assert knowledge.items.tolist() == [[1, 2], [3, 4]]


def ragged(*lists: tuple[int, list[int]]) -> pl.DataFrame:
    """Say of each example its items, with scores -1, -2, .. ."""
    return pl.DataFrame(
        {
            EXAMPLE: [example for example, _ in lists],
            ITEMS: [items for _, items in lists],
            SCORES: [[-float(rank) for rank in range(1, len(items) + 1)] for _, items in lists],
        },
        schema={EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)},
    )


def test_rankings_of_different_lengths(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(ragged((30, [5]), (10, [7, 8, 9])))
        writer.append(ragged((20, [0, 4])))
    knowledge = open_knowledge(tmp_path, tiny_dataset)
    assert knowledge.examples.tolist() == [10, 20, 30]
    assert knowledge.items.tolist() == [[7, 8, 9], [0, 4, 0], [5, 0, 0]]
    assert knowledge.scores.tolist() == [[-1, -2, -3], [-1, -2, NOTHING], [-1, NOTHING, NOTHING]]
    items, scores, asked = knowledge.rankings(torch.tensor([30, 25, 20]))
    assert asked.tolist() == [True, False, True]
    assert items[asked].tolist() == [[5, 0, 0], [0, 4, 0]]
    assert scores[asked].tolist() == [[-1, NOTHING, NOTHING], [-1, -2, NOTHING]]


ROWS = st.dictionaries(st.integers(0, 50), st.lists(st.integers(0, 19), max_size=5), min_size=1, max_size=8)


@given(first=ROWS, second=ROWS)
def test_any_lengths_come_back_and_empty_lists_count_as_asked(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_dataset: Dataset,
    first: dict[int, list[int]],
    second: dict[int, list[int]],
) -> None:
    folder = tmp_path_factory.mktemp("store")
    second = {example: items for example, items in second.items() if example not in first}
    with writing(folder, tiny_dataset, DETAILS) as writer:
        writer.append(ragged(*first.items()))
        writer.append(ragged(*second.items()))
        assert writer.done().tolist() == sorted({*first, *second})  # what gave nothing is not asked again
    knowledge = open_knowledge(folder, tiny_dataset)
    said = {example: items for example, items in (first | second).items() if items}
    assert knowledge.examples.tolist() == sorted(said)
    width = max(map(len, said.values()), default=0)
    assert knowledge.items.shape == knowledge.scores.shape == (len(said), width)
    for example, items, scores in zip(knowledge.examples.tolist(), knowledge.items, knowledge.scores, strict=True):
        there = scores > NOTHING
        assert items[there].tolist() == said[example]
        assert scores[there].tolist() == [-rank for rank in range(1, len(said[example]) + 1)]
        assert there.tolist() == sorted(there.tolist(), reverse=True)
        assert not items[~there].any()


def test_a_store_of_item_vectors_alone(tmp_path: Path, tiny_dataset: Dataset) -> None:
    vectors = torch.arange(60.0).reshape(20, 3)
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.put_item_vectors(vectors)
    knowledge = open_knowledge(tmp_path, tiny_dataset)
    assert knowledge.item_vectors is not None
    assert torch.equal(knowledge.item_vectors, vectors)
    assert (knowledge.examples.shape, knowledge.items.shape, knowledge.scores.shape) == ((0,), (0, 0), (0, 0))
    with pytest.raises(InputError, match="holds no rankings"):
        knowledge.rankings(torch.tensor([1]))


def test_a_store_whose_every_ranking_is_empty(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(ragged((3, []), (4, [])))
    knowledge = open_knowledge(tmp_path, tiny_dataset)
    assert knowledge.examples.tolist() == []
    with pytest.raises(InputError, match="holds no rankings"):
        knowledge.rankings(torch.tensor([3]))


def test_the_digest_tells_which_examples_there_are(tmp_path: Path, tiny_dataset: Dataset) -> None:
    digests = []
    for number, shards in enumerate([[(1, 2)], [(2,), (1,)], [(1,)], [(1, 3)], [(1, 2), (3,)]]):
        with writing(tmp_path / str(number), tiny_dataset, DETAILS) as writer:
            for examples in shards:
                writer.append(rows_of(*examples))
        digests.append(open_knowledge(tmp_path / str(number), tiny_dataset).digest)
    assert digests[0] == digests[1]  # whatever the order they came in
    assert len(set(digests)) == 4
    assert len(digests[0]) == 64


def test_versions_are_kept_and_not_compared(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(1))
    manifest = tmp_path / "manifest.json"
    older = {**read_json(manifest), "made_with": {"distilrec": "0.0.1", "torch": "1.0"}}
    write_json(manifest, older)
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.append(rows_of(2))
    assert read_json(manifest) == older
    assert open_knowledge(tmp_path, tiny_dataset).examples.tolist() == [1, 2]
    write_json(manifest, {key: value for key, value in older.items() if key != "made_with"})
    with writing(tmp_path, tiny_dataset, DETAILS):
        pass


def test_columns_of_all_rows_stored(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert writer.stored([EXAMPLE, TOKENS_IN]).height == 0
        writer.append(rows_of(3).with_columns(pl.Series(TOKENS_IN, [11]), pl.Series(REPLY, ["3 2 1"])))
        writer.append(rows_of(1, 2))
        writer.append(rows_of(4).with_columns(pl.Series(TOKENS_IN, [13])))
        found = writer.stored([EXAMPLE, TOKENS_IN])
        assert found.columns == [EXAMPLE, TOKENS_IN]
        assert found.rows() == [(3, 11), (1, None), (2, None), (4, 13)]
        assert writer.stored([EXAMPLE]).rows() == [(3,), (1,), (2,), (4,)]


def test_the_journal_lies_in_the_store_and_outlives_its_writer(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        writer.journal.add([{"example": 5, "reply": "1 2"}])
    with writing(tmp_path, tiny_dataset, DETAILS) as writer:
        assert writer.journal.read() == [{"example": 5, "reply": "1 2"}]
        assert writer.journal.path.parent == tmp_path
