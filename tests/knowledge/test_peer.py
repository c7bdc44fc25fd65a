"""A frozen model's states and logits, against one history at a time."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from distilrec.data.dataset import Dataset, training_examples
from distilrec.errors import DiskFullError
from distilrec.knowledge.peer import peer_of, seen_items
from distilrec.students import STUDENTS
from distilrec.students.base import Student, build_student


def model_of(name: str, dataset: Dataset) -> Student:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "max_length": 12, "dropout": 0.0}
    return build_student(name, settings, dataset.n_items, STUDENTS).eval()


def alone(model: Student, dataset: Dataset, example: int) -> torch.Tensor:
    """Return the logits after one history, [N]."""
    start = int(dataset.offsets[dataset.rows_of(np.array([example]))[0]])
    history = np.asarray(dataset.items)[max(start, example - model.max_length) : example].astype(np.int64)
    table = model.item_vectors()
    state = model.encode_last(torch.from_numpy(history)[None], torch.tensor([len(history)]), table)
    return (state @ table.T)[0].detach()


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec", "fpmc"])
def test_logits_are_those_of_each_history_alone(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = model_of(name, tiny_dataset)
    peer = peer_of(model, tiny_dataset, tmp_path / "states", batch_tokens=40)
    assert np.array_equal(peer.examples.numpy(), training_examples(tiny_dataset))
    some = peer.examples[::5].flip(0)
    logits = peer.whole(some)
    for row, example in enumerate(some.tolist()):
        start = tiny_dataset.offsets[tiny_dataset.rows_of(np.array([example]))[0]]
        if example - start > 6 and name != "fpmc":
            continue  # behind the middle of a long history windows may read less of it
        torch.testing.assert_close(logits[row], alone(model, tiny_dataset, example), rtol=1e-4, atol=1e-5)


def test_what_was_computed_is_taken_again(tiny_dataset: Dataset, tmp_path: Path) -> None:
    first = peer_of(model_of("sasrec", tiny_dataset), tiny_dataset, tmp_path / "states")
    other = model_of("sasrec", tiny_dataset)
    with torch.no_grad():
        other.item_table.weight.mul_(2)  # type: ignore[union-attr, operator]
    again = peer_of(other, tiny_dataset, tmp_path / "states")
    assert torch.equal(again.states, first.states)
    assert not torch.equal(again.table, first.table)
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


def test_a_cut_file_is_begun_anew(tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("sasrec", tiny_dataset)
    whole = peer_of(model, tiny_dataset, tmp_path / "whole").states.clone()
    encode, calls = model.encode, 0

    def dying(*inputs: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(*inputs)

    monkeypatch.setattr(model, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        peer_of(model, tiny_dataset, tmp_path / "states", batch_tokens=40)
    assert not (tmp_path / "states").exists()
    monkeypatch.setattr(model, "encode", encode)
    assert torch.equal(peer_of(model, tiny_dataset, tmp_path / "states").states, whole)


def test_a_full_disk_is_told_before_anything_is_written(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(DiskFullError, match="are needed and 0 MiB are free"):
        peer_of(model_of("sasrec", tiny_dataset), tiny_dataset, tmp_path / "states")
    assert list(tmp_path.iterdir()) == []


def test_items_of_the_own_history_are_hidden_but_for_the_target(tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = model_of("sasrec", tiny_dataset)
    peer = peer_of(model, tiny_dataset, tmp_path / "states", hide_seen=True)
    open_peer = peer_of(model, tiny_dataset, tmp_path / "states")
    some = peer.examples[3::7]
    hidden = peer.whole(some) <= -1e4
    torch.testing.assert_close(peer.whole(some)[~hidden], open_peer.whole(some)[~hidden])
    items = np.asarray(tiny_dataset.items)
    for row, example in enumerate(some.tolist()):
        start = int(tiny_dataset.offsets[tiny_dataset.rows_of(np.array([example]))[0]])
        wanted = set(items[start:example].tolist()) - {int(items[example])}
        assert set(hidden[row].nonzero()[:, 0].tolist()) == wanted
    row, item = seen_items(tiny_dataset, some)
    assert len(row) == len(item)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_items_are_those_of_the_whole(tiny_dataset: Dataset, tmp_path: Path, dtype: torch.dtype) -> None:
    peer = peer_of(model_of("sasrec", tiny_dataset), tiny_dataset, tmp_path / "states", dtype=dtype, hide_seen=True)
    assert peer.states.dtype == peer.table.dtype == dtype
    first = peer.leading(5)
    logits = peer.whole(peer.examples).float()
    chances = torch.log_softmax(logits, dim=1)
    torch.testing.assert_close(first.log_probabilities, chances.topk(5, dim=1).values)
    torch.testing.assert_close(chances.gather(1, first.items.long()), first.log_probabilities)
    targets = torch.from_numpy(np.asarray(tiny_dataset.items)[peer.examples.numpy()].astype(np.int64))
    wanted = [int((row >= row[target]).sum()) for row, target in zip(logits, targets, strict=True)]
    assert first.ranks.tolist() == wanted
    assert peer.leading(10_000).items.shape[1] == tiny_dataset.n_items
