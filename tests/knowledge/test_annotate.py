"""Annotation: the teacher's K best for every training example, each asked about once, whatever kills the run."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from distilrec.columns import EXAMPLE, ITEMS, SCORES
from distilrec.config import AnnotateSettings
from distilrec.data.dataset import Dataset
from distilrec.errors import FingerprintError, InputError, LockedError
from distilrec.knowledge.annotate import annotate
from distilrec.knowledge.store import KnowledgeWriter, open_knowledge, writing
from distilrec.teachers.e4srec import E4SRec, E4SRecSettings
from distilrec.teachers.llm import load_llm

REACH, TOP = 8, 6
SETTINGS = AnnotateSettings(top_k=TOP, batch_tokens=40, shard_rows=50)
DETAILS = {"teacher": "tiny", "settings": SETTINGS.model_dump()}


class KilledError(Exception):
    """Stands for a power cut."""


class Counting:
    """A teacher that remembers what it was asked; it may be asked about a history only so often."""

    def __init__(self, teacher: E4SRec) -> None:
        self.teacher, self.asked, self.dies_at = teacher, Counter[tuple[int, ...]](), None
        self.calls = 0

    @property
    def max_length(self) -> int:
        return self.teacher.max_length

    def item_vectors(self) -> Tensor:
        return self.teacher.item_vectors()

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KilledError
        for history, length in zip(histories.tolist(), lengths.tolist(), strict=True):
            self.asked[tuple(history[:length])] += 1
        return self.teacher.encode(histories, lengths, table)


@pytest.fixture(scope="module")
def teacher(tiny_llm: Path, tiny_dataset: Dataset) -> E4SRec:
    llm, tokenizer = load_llm(tiny_llm)
    torch.manual_seed(0)
    settings = E4SRecSettings(max_length=REACH, lora_rank=2, precision="float32")
    return E4SRec(settings, llm, tokenizer, torch.randn(tiny_dataset.n_items, 8)).eval()


VECTORS = torch.arange(60, dtype=torch.float32).reshape(20, 3)


def ask(
    teacher: Any,
    dataset: Dataset,
    folder: Path,
    settings: AnnotateSettings = SETTINGS,
    details: dict[str, Any] = DETAILS,
) -> int:
    return annotate(teacher, lambda: VECTORS, dataset, settings, folder, details)


def shards(folder: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet"))]


def training_examples(dataset: Dataset) -> list[int]:
    starts, cuts = dataset.offsets[:-1], dataset.split.train_end
    return [int(start) + place for start, cut in zip(starts, cuts, strict=True) for place in range(1, int(cut))]


def window_of(dataset: Dataset, example: int) -> list[int]:
    """Return the history that an example is answered from: windows of REACH items, cut every REACH / 2."""
    row = max(row for row, offset in enumerate(dataset.offsets) if offset <= example)
    start = int(dataset.offsets[row])
    inputs, place = int(dataset.split.train_end[row]) - 1, example - start  # items read; items before the target
    end = REACH
    while end < place:
        end += REACH // 2
    end = min(end, inputs)
    return [int(item) for item in dataset.items[start + max(end - REACH, 0) : example]]


@pytest.fixture(scope="module")
def unbroken(teacher: E4SRec, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counting]:
    folder, counting = tmp_path_factory.mktemp("store") / "whole", Counting(teacher)
    assert ask(counting, tiny_dataset, folder) == len(training_examples(tiny_dataset))
    return folder, counting


def test_every_training_target_is_there_once(unbroken: tuple[Path, Counting], tiny_dataset: Dataset) -> None:
    folder, counting = unbroken
    stored = [example for shard in shards(folder) for example in shard[EXAMPLE].to_list()]
    assert sorted(stored) == training_examples(tiny_dataset)
    assert len(shards(folder)) > 3
    assert counting.calls > len(shards(folder))  # several batches a shard
    held_out = {*tiny_dataset.examples("valid").tolist(), *tiny_dataset.examples("test").tolist()}
    assert not held_out & set(stored)


@torch.inference_mode()
def test_the_best_equal_those_of_each_example_alone(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset
) -> None:
    knowledge = open_knowledge(unbroken[0], tiny_dataset)
    assert knowledge.examples.tolist() == training_examples(tiny_dataset)
    table = teacher.item_vectors()
    seen = Counter()
    for example, items, scores in zip(knowledge.examples.tolist(), knowledge.items, knowledge.scores, strict=True):
        history = window_of(tiny_dataset, example)
        seen[len(history)] += 1
        state = teacher.encode(torch.tensor([history]), torch.tensor([len(history)]), table)[0, -1]
        said = torch.log_softmax((table @ state).double(), dim=0)
        expected = sorted(said.tolist(), reverse=True)[:TOP]
        assert scores.tolist() == pytest.approx(expected, abs=2e-5)
        assert said[torch.from_numpy(items)].tolist() == pytest.approx(expected, abs=2e-5)
        assert len(set(items.tolist())) == TOP
    assert {1, 2, REACH // 2 + 1, REACH} <= set(seen)  # short histories, and windows cut out of long ones


@pytest.mark.parametrize(
    "changes", [{"batch_tokens": 1}, {"batch_tokens": 10_000, "shard_rows": 1}, {"shard_rows": 10_000}]
)
def test_sizes_change_nothing_that_is_said(
    changes: dict[str, int], unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    ask(teacher, tiny_dataset, tmp_path, SETTINGS.model_copy(update=changes))
    first, second = open_knowledge(unbroken[0], tiny_dataset), open_knowledge(tmp_path, tiny_dataset)
    assert np.array_equal(first.examples, second.examples)
    np.testing.assert_allclose(first.scores, second.scores, atol=2e-5)


def test_pieces_of_the_catalogue_change_nothing(
    unbroken: tuple[Path, Counting],
    teacher: E4SRec,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distilrec.knowledge.annotate._SCORES", 45)  # two states at a time
    ask(teacher, tiny_dataset, tmp_path)
    first, second = open_knowledge(unbroken[0], tiny_dataset), open_knowledge(tmp_path, tiny_dataset)
    np.testing.assert_allclose(first.scores, second.scores, atol=2e-5)


def same_store(first: Path, second: Path) -> bool:
    names = [path.name for path in sorted(first.iterdir()) if path.name != ".lock"]
    assert names == [path.name for path in sorted(second.iterdir()) if path.name != ".lock"]
    return all(one.equals(other) for one, other in zip(shards(first), shards(second), strict=True))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_between_shards_nothing_is_asked_twice(
    after: int,
    unbroken: tuple[Path, Counting],
    teacher: E4SRec,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting, vectors = Counting(teacher), []

    def item_vectors() -> Tensor:
        vectors.append(1)
        return VECTORS

    def run() -> int:
        return annotate(counting, item_vectors, tiny_dataset, SETTINGS, tmp_path, DETAILS)

    written, append = [], KnowledgeWriter.append

    def dying(writer: KnowledgeWriter, rows: pl.DataFrame) -> None:
        append(writer, rows)
        written.append(1)
        if len(written) == after:
            raise KilledError

    if after == 0:
        monkeypatch.setattr(KnowledgeWriter, "done", lambda _writer: (_ for _ in ()).throw(KilledError))
    else:
        monkeypatch.setattr(KnowledgeWriter, "append", dying)
    with pytest.raises(KilledError):
        run()
    monkeypatch.undo()
    assert len(shards(tmp_path)) == after
    assert run() == len(training_examples(tiny_dataset))
    assert same_store(tmp_path, unbroken[0])
    assert counting.asked == unbroken[1].asked
    assert len(vectors) == 1
    calls = counting.calls
    assert run() == len(training_examples(tiny_dataset))  # a full store is left alone
    assert counting.calls == calls


def test_killed_inside_a_shard_only_that_shard_is_asked_again(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    counting = Counting(teacher)
    counting.dies_at = unbroken[1].calls // 2
    with pytest.raises(KilledError):
        ask(counting, tiny_dataset, tmp_path)
    kept = sum(shard.height for shard in shards(tmp_path))
    assert 0 < kept < len(training_examples(tiny_dataset))
    ask(counting, tiny_dataset, tmp_path)
    assert same_store(tmp_path, unbroken[0])
    lost = counting.asked.total() - unbroken[1].asked.total()
    assert 0 <= lost <= SETTINGS.shard_rows


def test_half_a_file_is_no_shard(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    tmp_path.joinpath(".shard-00000.parquet.123.part").write_bytes(b"PAR1 and then the power went")
    ask(teacher, tiny_dataset, tmp_path)
    assert same_store(tmp_path, unbroken[0])


def test_item_vectors_and_manifest_are_kept(unbroken: tuple[Path, Counting], tiny_dataset: Dataset) -> None:
    knowledge = open_knowledge(unbroken[0], tiny_dataset)
    assert knowledge.item_vectors is not None
    assert torch.equal(knowledge.item_vectors, VECTORS)
    assert knowledge.manifest["teacher"] == "tiny"
    assert knowledge.manifest["dataset"] == tiny_dataset.fingerprint
    frame = shards(unbroken[0])[0]
    assert frame.schema == {EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)}


def test_more_than_the_catalogue_cannot_be_asked_for(teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path) -> None:
    ask(teacher, tiny_dataset, tmp_path, AnnotateSettings(top_k=500))
    items = open_knowledge(tmp_path, tiny_dataset).items
    assert [sorted(row) for row in items.tolist()] == [list(range(tiny_dataset.n_items))] * len(items)


def test_other_settings_need_another_store(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset
) -> None:
    with pytest.raises(FingerprintError, match="made with other teacher"):
        ask(teacher, tiny_dataset, unbroken[0], details={**DETAILS, "teacher": "another"})


def test_other_data_need_another_store(unbroken: tuple[Path, Counting], teacher: E4SRec, make_dataset: Any) -> None:
    other = make_dataset([[f"i{(3 * user + n) % 20:02d}" for n in range(6)] for user in range(20)])
    with pytest.raises(FingerprintError, match="dataset"):
        ask(teacher, other, unbroken[0])
    with pytest.raises(FingerprintError, match="another data set"):
        open_knowledge(unbroken[0], other)


def test_one_writer_at_a_time(tiny_dataset: Dataset, teacher: E4SRec, tmp_path: Path) -> None:
    with writing(tmp_path, tiny_dataset, DETAILS), pytest.raises(LockedError, match="in use"):
        ask(teacher, tiny_dataset, tmp_path)
    assert ask(teacher, tiny_dataset, tmp_path) > 0


def test_a_store_without_rows(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_knowledge(tmp_path, tiny_dataset)
    with writing(tmp_path, tiny_dataset, DETAILS):
        pass
    with pytest.raises(InputError, match="no rows"):
        open_knowledge(tmp_path, tiny_dataset)
