"""Annotation: the teacher's K best for every example asked for, each asked about once, whatever kills the run."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.columns import EXAMPLE, ITEMS, SCORES
from distilrec.config import AnnotateSettings, CapSettings
from distilrec.data.batching import Batch, training_windows
from distilrec.data.dataset import Dataset, training_examples
from distilrec.data.split import Ints, Split
from distilrec.errors import FingerprintError, InputError, LockedError
from distilrec.files import read_json
from distilrec.knowledge.annotate import ACCOUNT, Answer, Answerer, Job, annotate, answer, here, jobs_of
from distilrec.knowledge.examples import chosen_examples
from distilrec.knowledge.store import KnowledgeWriter, open_knowledge, writing
from distilrec.teachers.base import rank_by_states
from distilrec.teachers.e4srec import E4SRec, E4SRecSettings
from distilrec.teachers.llm import load_llm

REACH, TOP = 8, 6
SETTINGS = AnnotateSettings(top_k=TOP, batch_tokens=40, shard_rows=50, shard_seconds=1e9)
DETAILS = {"teacher": "tiny", "settings": SETTINGS.content()}


class KilledError(Exception):
    """Stands for a power cut."""


class Counting:
    """A teacher that remembers what it was asked, and may die over its n-th batch."""

    def __init__(self, teacher: E4SRec, dies_at: int | None = None) -> None:
        self.teacher, self.dies_at = teacher, dies_at
        self.asked: Counter[int] = Counter()
        self.calls = self.loaded = 0
        self.dead = False

    @property
    def max_length(self) -> int:
        return self.teacher.max_length

    def item_vectors(self) -> Tensor:
        return self.teacher.item_vectors()

    def encode(self, histories: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        return self.teacher.encode(histories, lengths, table)

    def rank(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls == self.dies_at:
            self.dead = True
            raise KilledError
        self.asked.update(batch.examples.tolist())
        return rank_by_states(self, batch, k)

    def load(self) -> "Counting":
        self.loaded += 1
        return self


@pytest.fixture(scope="module")
def teacher(tiny_llm: Path, tiny_dataset: Dataset) -> E4SRec:
    llm, tokenizer = load_llm(tiny_llm)
    torch.manual_seed(0)
    settings = E4SRecSettings(max_length=REACH, lora_rank=2, precision="float32")
    return E4SRec(settings, llm, tokenizer, torch.randn(tiny_dataset.n_items, 8)).eval()


VECTORS = torch.arange(60, dtype=torch.float32).reshape(20, 3)


def ask(
    counting: Counting,
    dataset: Dataset,
    folder: Path,
    settings: AnnotateSettings = SETTINGS,
    details: dict[str, Any] = DETAILS,
    examples: Ints | None = None,
    item_vectors: Callable[[], Tensor | None] = lambda: VECTORS,
    **options: Any,
) -> dict[str, Any]:
    make = Answerer(counting.load, dataset.folder, REACH, settings.top_k)
    examples = training_examples(dataset) if examples is None else examples
    return annotate(make, item_vectors, dataset, examples, settings, folder, details, **options)


def shards(folder: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet"))]


def told(folder: Path) -> dict[int, tuple[list[int], list[float]]]:
    """Return items and scores by example; each may be there only once."""
    rows = [row for shard in shards(folder) for row in shard.select(EXAMPLE, ITEMS, SCORES).iter_rows()]
    found = {example: (items, scores) for example, items, scores in rows}
    assert len(found) == len(rows)
    return found


def same_answers(first: Path, second: Path) -> None:
    one, other = told(first), told(second)
    assert sorted(one) == sorted(other)
    for example, (_, scores) in one.items():
        assert scores == pytest.approx(other[example][1], abs=2e-5)


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
    account = ask(counting, tiny_dataset, folder)
    assert account["rows_done"] == account["rows_total"] == tiny_dataset.manifest["n_train_targets"]
    assert account["stopped_by"] is None
    assert account == read_json(folder / ACCOUNT)
    return folder, counting


def test_every_training_target_is_asked_for_and_stored_once(
    unbroken: tuple[Path, Counting], tiny_dataset: Dataset
) -> None:
    folder, counting = unbroken
    everything = training_examples(tiny_dataset).tolist()
    assert sorted(told(folder)) == everything
    assert counting.asked == Counter(everything)
    assert len(shards(folder)) > 3
    assert counting.calls > len(shards(folder))  # several batches a shard
    assert counting.loaded == 1
    held_out = {*tiny_dataset.examples("valid").tolist(), *tiny_dataset.examples("test").tolist()}
    assert not held_out & set(told(folder))


@torch.inference_mode()
def test_the_best_equal_those_of_each_example_alone(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset
) -> None:
    knowledge = open_knowledge(unbroken[0], tiny_dataset)
    assert knowledge.examples.tolist() == training_examples(tiny_dataset).tolist()
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
    ask(Counting(teacher), tiny_dataset, tmp_path, SETTINGS.model_copy(update=changes))
    same_answers(tmp_path, unbroken[0])


@pytest.mark.parametrize("tokens", [4, 1000])
def test_what_an_item_counts_makes_batches_smaller(
    tokens: int, unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    counting = Counting(teacher)
    settings = SETTINGS.model_copy(update={"batch_tokens": 160})
    make = Answerer(counting.load, tiny_dataset.folder, REACH, TOP, tokens_per_item=tokens)
    examples = training_examples(tiny_dataset)
    annotate(make, lambda: VECTORS, tiny_dataset, examples, settings, tmp_path, DETAILS)
    windows = len(training_windows(tiny_dataset, REACH, None))
    assert counting.calls == (unbroken[1].calls if tokens == 4 else windows)  # 160 / 4 = 40; one window always fits
    same_answers(tmp_path, unbroken[0])


def test_pieces_of_the_catalogue_change_nothing(
    unbroken: tuple[Path, Counting],
    teacher: E4SRec,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distilrec.teachers.base._SCORES", 45)  # two states at a time
    ask(Counting(teacher), tiny_dataset, tmp_path)
    same_answers(tmp_path, unbroken[0])


def same_store(first: Path, second: Path) -> None:
    names = [path.name for path in sorted(first.iterdir()) if path.name != ".lock"]
    assert names == [path.name for path in sorted(second.iterdir()) if path.name != ".lock"]
    for one, other in zip(shards(first), shards(second), strict=True):
        assert one.equals(other)


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

    written, append = [], KnowledgeWriter.append

    def dying(writer: KnowledgeWriter, rows: pl.DataFrame) -> None:
        if len(written) == after:
            raise KilledError  # whatever is written after the power cut is not written
        append(writer, rows)
        written.append(1)
        if len(written) == after:
            raise KilledError

    if after == 0:
        monkeypatch.setattr(KnowledgeWriter, "done", lambda _writer: (_ for _ in ()).throw(KilledError))
    else:
        monkeypatch.setattr(KnowledgeWriter, "append", dying)
    with pytest.raises(KilledError):
        ask(counting, tiny_dataset, tmp_path, item_vectors=item_vectors)
    monkeypatch.undo()
    assert len(shards(tmp_path)) == after
    ask(counting, tiny_dataset, tmp_path, item_vectors=item_vectors)
    same_store(tmp_path, unbroken[0])
    assert counting.asked == unbroken[1].asked
    assert len(vectors) == 1


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_killed_inside_a_shard_only_that_shard_is_asked_again(
    share: float,
    unbroken: tuple[Path, Counting],
    teacher: E4SRec,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting, append = Counting(teacher, dies_at=int(share * unbroken[1].calls)), KnowledgeWriter.append

    def unless_dead(writer: KnowledgeWriter, rows: pl.DataFrame) -> None:
        if not counting.dead:
            append(writer, rows)

    monkeypatch.setattr(KnowledgeWriter, "append", unless_dead)
    with pytest.raises(KilledError):
        ask(counting, tiny_dataset, tmp_path)
    monkeypatch.undo()
    kept = len(told(tmp_path))
    assert 0 < kept < tiny_dataset.manifest["n_train_targets"]
    ask(counting, tiny_dataset, tmp_path)
    same_store(tmp_path, unbroken[0])
    again = counting.asked - unbroken[1].asked
    assert set(again.values()) <= {1}
    assert again.total() <= SETTINGS.shard_rows
    assert not set(again) & set(pl.concat(shards(tmp_path))[EXAMPLE][:kept].to_list())


def test_interrupted_what_was_computed_is_kept(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """An error or Ctrl-C in the middle of a shard: nothing is asked twice."""
    counting = Counting(teacher, dies_at=unbroken[1].calls // 2)
    with pytest.raises(KilledError):
        ask(counting, tiny_dataset, tmp_path)
    assert set(told(tmp_path)) == set(counting.asked)
    ask(counting, tiny_dataset, tmp_path)
    assert counting.asked == unbroken[1].asked
    same_answers(tmp_path, unbroken[0])


def test_half_a_file_is_no_shard(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    tmp_path.joinpath(".shard-00000.parquet.123.part").write_bytes(b"PAR1 and then the power went")
    ask(Counting(teacher), tiny_dataset, tmp_path)
    same_store(tmp_path, unbroken[0])


PROGRAM = """
import os, sys
from pathlib import Path
import torch
from distilrec.config import AnnotateSettings
from distilrec.data.dataset import open_dataset
from distilrec.knowledge.annotate import Answerer, annotate
from distilrec.data.dataset import training_examples

root, data, moments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
left = 0

def event():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)

def watched(function):
    def call(*args):
        event()
        result = function(*args)
        event()
        return result
    return call

class Rule:
    max_length = 8

    def rank(self, batch, k):
        event()
        items = (batch.histories.flatten()[batch.positions][:, None] + torch.arange(1, k + 1)) % 20
        return items, -torch.arange(k).float().expand(len(items), k) / 7

def run(folder):
    dataset = open_dataset(data)
    settings = AnnotateSettings(top_k=3, batch_tokens=40, shard_rows=30, shard_seconds=1e9)
    make = Answerer(Rule, data, 8, 3)
    annotate(make, lambda: torch.ones(20, 2), dataset, training_examples(dataset), settings, folder, {"teacher": "rule"})

def child(folder, dies_at):  # in a process of its own: only the imports are shared
    global left
    process = os.fork()
    if process == 0:
        left, os.fsync, os.replace = dies_at, watched(os.fsync), watched(os.replace)
        run(folder)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

for moment in moments:
    killed = [child(root / moment, int(number)) for number in moment.split(",")]
    print(moment, *killed)
"""


def test_kill_9_at_twenty_moments(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Kills between batches, before, in and after the writing of every kind of file; the store ends the same."""
    generator = np.random.default_rng(0)
    moments = [f"{generator.integers(1, 70)},{generator.integers(1, 30)},0" for _ in range(10)]
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tiny_dataset.folder), "0", *moments]
    done = subprocess.run(program, timeout=300, check=True, capture_output=True, text=True).stdout.splitlines()
    outcomes = dict(line.split(maxsplit=1) for line in done if line)
    assert outcomes["0"] == "0"
    kills = 0
    for moment in moments:
        *killed, ended = outcomes[moment].split()
        assert ended == "0"
        assert set(killed) <= {"9", "0"}
        kills += killed.count("9")
        same_store(tmp_path / moment, tmp_path / "0")
    assert kills > 14
    assert sorted(told(tmp_path / "0")) == training_examples(tiny_dataset).tolist()
    for example, (items, _) in told(tmp_path / "0").items():
        assert items[0] == tiny_dataset.items[example]  # the rule of this data set


def test_a_full_store_is_left_alone(unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset) -> None:
    def fail() -> Tensor:
        raise AssertionError

    counting, before = Counting(teacher), [path.read_bytes() for path in sorted(unbroken[0].glob("*.parquet"))]
    account = ask(counting, tiny_dataset, unbroken[0], item_vectors=fail)
    assert account["rows_done"] == tiny_dataset.manifest["n_train_targets"]
    assert (counting.calls, counting.loaded) == (0, 0)
    assert [path.read_bytes() for path in sorted(unbroken[0].glob("*.parquet"))] == before


def test_a_teacher_without_vectors(teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path) -> None:
    ask(Counting(teacher), tiny_dataset, tmp_path, item_vectors=lambda: None)
    assert open_knowledge(tmp_path, tiny_dataset).item_vectors is None


def test_item_vectors_and_manifest_are_kept(unbroken: tuple[Path, Counting], tiny_dataset: Dataset) -> None:
    knowledge = open_knowledge(unbroken[0], tiny_dataset)
    assert knowledge.item_vectors is not None
    assert torch.equal(knowledge.item_vectors, VECTORS)
    assert knowledge.manifest["teacher"] == "tiny"
    assert knowledge.manifest["dataset"] == tiny_dataset.fingerprint
    frame = shards(unbroken[0])[0]
    assert frame.schema == {EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)}


def test_more_than_the_catalogue_cannot_be_asked_for(teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path) -> None:
    ask(Counting(teacher), tiny_dataset, tmp_path, AnnotateSettings(top_k=500))
    items = open_knowledge(tmp_path, tiny_dataset).items
    assert [sorted(row) for row in items.tolist()] == [list(range(tiny_dataset.n_items))] * len(items)


# Which examples, and how many


@pytest.mark.parametrize("which", ["last", "every third", "one", "late ones of long histories"])
def test_a_choice_of_examples_gets_the_answers_it_would_get_among_all(
    which: str, unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """A window of which only some places are asked for reads the same history."""
    everything = training_examples(tiny_dataset)
    place = everything - tiny_dataset.offsets[tiny_dataset.rows_of(everything)]
    chosen = {
        "last": training_examples(tiny_dataset, "last"),
        "every third": everything[::3],
        "one": everything[101:102],
        "late ones of long histories": everything[place > REACH],
    }[which]
    counting = Counting(teacher)
    account = ask(counting, tiny_dataset, tmp_path, examples=chosen)
    assert account["rows_done"] == account["rows_total"] == len(chosen)
    assert counting.asked == Counter(chosen.tolist())
    whole = told(unbroken[0])
    for example, (_, scores) in told(tmp_path).items():
        assert scores == pytest.approx(whole[example][1], abs=2e-5)


def test_a_sample_that_grows_keeps_what_is_there(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    counting, kept = Counting(teacher), dict[str, bytes]()
    for size in (20, 90, 10_000):
        settings = SETTINGS.model_copy(update={"sample": size})
        examples = chosen_examples(tiny_dataset, settings, "all", 3)
        ask(counting, tiny_dataset, tmp_path, settings, examples=examples)
        assert sorted(told(tmp_path)) == examples.tolist()
        now = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
        assert kept.items() < now.items()
        kept = now
    assert counting.asked == unbroken[1].asked
    same_answers(tmp_path, unbroken[0])


def test_another_selection_adds_to_the_store(teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path) -> None:
    everything, counting = training_examples(tiny_dataset), Counting(teacher)
    ask(counting, tiny_dataset, tmp_path, examples=everything[10:30])
    ask(counting, tiny_dataset, tmp_path, examples=everything[20:50])
    assert sorted(told(tmp_path)) == everything[10:50].tolist()
    assert set(counting.asked.values()) == {1}


@pytest.mark.parametrize("rows", [1, 37, 50, 113])
def test_the_cap_on_rows_is_kept_to_the_row_and_lifted_later(
    rows: int, unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    counting, capped = Counting(teacher), SETTINGS.model_copy(update={"caps": CapSettings(rows=rows)})
    for _ in range(2):  # the second run has nothing to do: what earlier runs stored counts
        account = ask(counting, tiny_dataset, tmp_path, capped)
        assert account["rows_done"] == len(told(tmp_path)) == counting.asked.total() == rows
        assert account["stopped_by"] == f"the cap of {rows:,} rows"
        assert account["rows_total"] == tiny_dataset.manifest["n_train_targets"]
    assert ask(counting, tiny_dataset, tmp_path)["stopped_by"] is None
    assert counting.asked == unbroken[1].asked
    same_answers(tmp_path, unbroken[0])


def test_a_cap_that_is_just_enough_stops_nothing(teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path) -> None:
    total = tiny_dataset.manifest["n_train_targets"]
    settings = SETTINGS.model_copy(update={"caps": CapSettings(rows=total)})
    account = ask(Counting(teacher), tiny_dataset, tmp_path, settings)
    assert (account["rows_done"], account["stopped_by"]) == (total, None)


def clock(monkeypatch: pytest.MonkeyPatch, step: float) -> list[float]:
    """Let every look at the clock take `step` seconds."""
    now = [1000.0]

    def monotonic() -> float:
        now[0] += step
        return now[0]

    monkeypatch.setattr("distilrec.knowledge.annotate.time", SimpleNamespace(monotonic=monotonic))
    return now


def test_the_cap_on_minutes(
    unbroken: tuple[Path, Counting],
    teacher: E4SRec,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = SETTINGS.model_copy(update={"caps": CapSettings(minutes=1.5)})
    counting, rounds = Counting(teacher), 0
    while len(counting.asked) < tiny_dataset.manifest["n_train_targets"]:
        clock(monkeypatch, step=10.0)  # looked at once at the start, once before the first batch, and after each
        calls = counting.calls
        account = ask(counting, tiny_dataset, tmp_path, settings)
        assert counting.calls - calls <= 8
        assert account["rows_done"] == len(told(tmp_path)) == counting.asked.total()
        if account["rows_done"] < account["rows_total"]:
            assert counting.calls - calls == 8
            assert account["stopped_by"] == "the cap of 1.5 minutes"
        rounds += 1
    assert rounds == -(-unbroken[1].calls // 8)
    assert counting.asked == unbroken[1].asked
    same_answers(tmp_path, unbroken[0])


def test_what_is_there_is_stored_every_so_many_seconds(
    teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, step=1.0)
    counting = Counting(teacher)
    ask(counting, tiny_dataset, tmp_path, SETTINGS.model_copy(update={"shard_rows": 10_000, "shard_seconds": 5.0}))
    assert len(shards(tmp_path)) == -(-counting.calls // 5)
    assert sorted(told(tmp_path)) == training_examples(tiny_dataset).tolist()


# Where it is done


def backwards(make: Callable[[], Answer], jobs: Sequence[Job]) -> Iterator[pl.DataFrame]:
    return here(make, jobs[::-1])


def test_the_order_in_which_jobs_come_back_does_not_matter(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    counting = Counting(teacher)
    ask(counting, tiny_dataset, tmp_path, engine=backwards)
    assert counting.asked == unbroken[1].asked
    same_answers(tmp_path, unbroken[0])
    assert shards(tmp_path)[0][EXAMPLE].to_list() != shards(unbroken[0])[0][EXAMPLE].to_list()


def test_an_engine_that_loses_what_it_had_is_resumed(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    def breaking(make: Callable[[], Answer], jobs: Sequence[Job]) -> Iterator[pl.DataFrame]:
        yield from here(make, jobs[: len(jobs) // 3])
        raise KilledError

    counting = Counting(teacher)
    with pytest.raises(KilledError):
        ask(counting, tiny_dataset, tmp_path, engine=breaking)
    assert set(told(tmp_path)) == set(counting.asked)
    ask(counting, tiny_dataset, tmp_path)
    assert counting.asked == unbroken[1].asked


def in_memory(lengths: list[int], train_end: list[int]) -> Dataset:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nothing = np.empty(0, dtype=np.int64)
    split = Split(np.asarray(train_end, dtype=np.int64), nothing, nothing, "")
    return Dataset(Path(), {"n_items": 9}, offsets, np.zeros(offsets[-1], dtype=np.int32), None, split)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    lengths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=8))
    return in_memory(lengths, [draw(st.integers(0, length)) for length in lengths])


@given(dataset=datasets(), reach=st.integers(1, 12), batch_tokens=st.integers(1, 60), data=st.data())
def test_jobs_ask_for_every_example_wanted_once_and_for_nothing_else(
    dataset: Dataset, reach: int, batch_tokens: int, data: st.DataObject
) -> None:
    everything = training_examples(dataset)
    kept = data.draw(st.lists(st.booleans(), min_size=len(everything), max_size=len(everything)))
    wanted = everything[np.array(kept, dtype=bool)]
    windows = training_windows(dataset, reach, None)
    jobs = jobs_of(dataset, reach, wanted, batch_tokens)
    assert sorted(example for job in jobs for example in job.wanted.tolist()) == wanted.tolist()
    read = [window for job in jobs for window in job.windows.tolist()]
    assert len(set(read)) == len(read)
    for job in jobs:
        assert job.wanted.tolist() == sorted(job.wanted.tolist())
        lengths = (windows.end - windows.start)[job.windows]
        assert len(job.windows) == 1 or len(job.windows) * lengths.max() <= batch_tokens
        for window in job.windows:  # no window is read for nothing
            asked = range(windows.supervised_from[window] + 1, windows.end[window] + 1)
            assert set(asked) & set(job.wanted.tolist())
    again = jobs_of(dataset, reach, wanted, batch_tokens)
    assert [job.windows.tolist() for job in again] == [job.windows.tolist() for job in jobs]


def test_part_of_a_job_is_answered_like_the_whole(teacher: E4SRec, tiny_dataset: Dataset) -> None:
    windows = training_windows(tiny_dataset, REACH, None)
    jobs = jobs_of(tiny_dataset, REACH, training_examples(tiny_dataset), 40)
    job = max(jobs, key=lambda one: len(one.wanted))
    whole = answer(teacher, tiny_dataset, windows, job, TOP)
    assert sorted(whole[EXAMPLE].to_list()) == job.wanted.tolist()
    for wanted in (job.wanted[:1], job.wanted[-1:], job.wanted[1::2]):
        part = answer(teacher, tiny_dataset, windows, replace(job, wanted=wanted), TOP)
        assert part.equals(whole.filter(pl.col(EXAMPLE).is_in(wanted.tolist())))


# What does not fit


def test_other_settings_need_another_store(
    unbroken: tuple[Path, Counting], teacher: E4SRec, tiny_dataset: Dataset
) -> None:
    with pytest.raises(FingerprintError, match="made with other teacher"):
        ask(Counting(teacher), tiny_dataset, unbroken[0], details={**DETAILS, "teacher": "another"})


def test_other_data_need_another_store(unbroken: tuple[Path, Counting], teacher: E4SRec, make_dataset: Any) -> None:
    other = make_dataset([[f"i{(3 * user + n) % 20:02d}" for n in range(6)] for user in range(20)])
    with pytest.raises(FingerprintError, match="dataset"):
        ask(Counting(teacher), other, unbroken[0])
    with pytest.raises(FingerprintError, match="another data set"):
        open_knowledge(unbroken[0], other)


def test_one_writer_at_a_time(tiny_dataset: Dataset, teacher: E4SRec, tmp_path: Path) -> None:
    counting = Counting(teacher)
    with writing(tmp_path, tiny_dataset, DETAILS), pytest.raises(LockedError, match="in use"):
        ask(counting, tiny_dataset, tmp_path)
    assert counting.calls == 0
    assert ask(counting, tiny_dataset, tmp_path)["rows_done"] > 0


def test_a_store_without_rows(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_knowledge(tmp_path, tiny_dataset)
    with writing(tmp_path, tiny_dataset, DETAILS):
        pass
    with pytest.raises(InputError, match="no rows"):
        open_knowledge(tmp_path, tiny_dataset)
