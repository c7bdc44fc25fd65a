"""The store of a teacher's knowledge: Parquet shards, item vectors in safetensors, a JSON manifest, a journal of replies.

A shard is written whole or not at all and never changed; rows are keyed by example id. One process may write at a time, any
number may read. What a killed writer left behind is complete shards, and complete lines of the journal: what was paid for is
written there, and on the disk, before anything else happens to it. The next writer goes on behind both.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distilrec.columns import EXAMPLE, ITEMS, SCORES
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.errors import FingerprintError, InputError
from distilrec.files import locked, read_json, write_json, write_with
from distilrec.knowledge.journal import Journal

FORMAT = 2
NOTHING = -torch.inf  # score of a place behind the end of a short ranking
_VECTORS = "item_vectors.safetensors"
_MADE_WITH = "made_with"  # versions and times: kept, not compared


@dataclass(frozen=True)
class Knowledge:
    """A store opened for reading.

    Attributes:
        manifest: data set, teacher, versions and settings it was made with.
        examples: [E] int64 example ids, ascending; those that the teacher gave no item for are left out.
        items: [E, K] int64 item ids, the teacher's best first; 0 behind the end of a shorter ranking.
        scores: [E, K] float32, higher = surer; `NOTHING` behind the end of a shorter ranking, 0 where a teacher only ranks.
        item_vectors: [N, D] float32, or None if the teacher gave none.
    """

    manifest: dict[str, Any]
    examples: Ints
    items: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    item_vectors: Tensor | None

    @classmethod
    def of_vectors(cls, item_vectors: Tensor) -> "Knowledge":
        """Return item vectors [N, D] as knowledge without rankings."""
        none = np.empty(0, np.int64)
        return cls({}, none, none.reshape(0, 1), np.empty((0, 1), np.float32), item_vectors)

    @cached_property
    def digest(self) -> str:
        """Hash of which examples there are: what is learnt from a store depends on how far it was filled."""
        return hashlib.sha256(np.ascontiguousarray(self.examples).tobytes()).hexdigest()

    @cached_property
    def has_scores(self) -> bool:
        """Whether the teacher said how sure it is of its items; one that only ranks scores them all alike."""
        return bool(np.any(np.isfinite(self.scores) & (self.scores != 0)))

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.from_numpy(self.examples), torch.from_numpy(self.items), torch.from_numpy(self.scores)

    def without(self, dataset: Dataset, which: Literal["history", "training"]) -> "Knowledge":
        """Return the same without some items of the user's own; what is left of a ranking keeps its order.

        Args:
            dataset: what the example ids refer to.
            which: items of the example's `history`, or of the whole `training` part of it, its target and later ones included.
        """
        rows = dataset.rows_of(self.examples)
        first, last = dataset.offsets[rows], self.examples - 1
        if which == "training":
            last = np.maximum(last, first + dataset.split.train_end[rows] - 1)
        gone = self.scores == NOTHING
        active, back = np.arange(len(self.examples)), 0
        while len(active := active[last[active] - back >= first[active]]):
            gone[active] |= self.items[active] == np.asarray(dataset.items)[last[active] - back, None]
            back += 1
        order = np.argsort(gone, axis=1, kind="stable")
        items = np.take_along_axis(np.where(gone, 0, self.items), order, axis=1)
        scores = np.take_along_axis(np.where(gone, np.float32(NOTHING), self.scores), order, axis=1)
        some = ~gone.all(axis=1)
        return replace(self, examples=self.examples[some], items=items[some], scores=scores[some])

    def only(self, examples: Ints) -> "Knowledge":
        """Return what is said about some examples, by id."""
        some = np.isin(self.examples, examples)
        if some.all():
            return self
        return replace(self, examples=self.examples[some], items=self.items[some], scores=self.scores[some])

    def rankings(self, examples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look up what the teacher said about some examples.

        Args:
            examples: [T] int64 example ids.

        Returns:
            Items [T, K] int64, scores [T, K] float32 (`NOTHING` where a ranking has ended), and [T] bool: whether the teacher
            was asked. Where not, items and scores are those of some other example and must not be used.
        """
        known, items, scores = self._tensors
        if len(known) == 0:
            raise InputError("the store holds no rankings.", remedy="Ask a teacher that ranks, or run annotate again.")
        place = torch.searchsorted(known, examples.cpu()).clamp_(max=len(known) - 1)
        asked = known[place] == examples.cpu()
        device = examples.device
        return items[place].to(device), scores[place].to(device), asked.to(device)


class KnowledgeWriter:
    """Appends to a store. Made by `writing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "journal.jsonl")
        self._next = 1 + max((int(shard.stem.rpartition("-")[2]) for shard in _shards(folder)), default=-1)

    def done(self) -> Ints:
        """Return the ids of all examples stored so far, ascending."""
        frames = [
            pl.read_parquet(shard, glob=False, columns=[EXAMPLE])[EXAMPLE].to_numpy() for shard in _shards(self.folder)
        ]
        return np.sort(np.concatenate(frames)) if frames else np.empty(0, dtype=np.int64)

    def append(self, rows: pl.DataFrame) -> None:
        """Write one shard: EXAMPLE, ITEMS, SCORES and whatever else is worth keeping."""
        write_with(self.folder / f"shard-{self._next:05d}.parquet", lambda part: rows.write_parquet(part))
        self._next += 1

    def stored(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of all rows stored so far; a column that a shard lacks is null there."""
        frames = []
        for shard in _shards(self.folder):
            there = pl.read_parquet_schema(shard)
            frames.append(pl.read_parquet(shard, glob=False, columns=[name for name in columns if name in there]))
        return pl.concat(frames, how="diagonal") if frames else pl.DataFrame()

    def put_item_vectors(self, vectors: Tensor) -> None:
        """Store item vectors, [N, D] float32."""
        tensors = {"item_vectors": vectors.detach().float().contiguous().cpu()}
        write_with(self.folder / _VECTORS, lambda part: save_file(tensors, part))

    @property
    def has_item_vectors(self) -> bool:
        """Whether item vectors are stored."""
        return (self.folder / _VECTORS).exists()


@contextmanager
def writing(folder: Path, dataset: Dataset, details: dict[str, Any]) -> Iterator[KnowledgeWriter]:
    """Open a store for writing, making it if there is none; only one process can at a time.

    Args:
        folder: the store.
        dataset: what its example ids refer to.
        details: teacher and settings; kept in the manifest and compared when a run resumes.

    Raises:
        LockedError: another process writes it.
        FingerprintError: it was made from other data or by another teacher or other settings.
    """
    manifest = {"format": FORMAT, "dataset": dataset.fingerprint, "n_items": dataset.n_items, **details}
    made_with = {name: version(name) for name in ("distilrec", "torch", "transformers")}
    with locked(folder / ".lock", "the knowledge store"):
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        path = folder / "manifest.json"
        if path.exists():
            found = read_json(path)
            found.pop(_MADE_WITH, None)
            if found != manifest:
                keys = [key for key in manifest | found if manifest.get(key) != found.get(key)]
                raise FingerprintError(
                    f"the store was made with other {', '.join(keys)}.",
                    where=str(folder),
                    remedy="Use another folder, or delete this one.",
                )
        else:
            write_json(path, {**manifest, _MADE_WITH: made_with})
        yield KnowledgeWriter(folder)


def open_knowledge(folder: Path, dataset: Dataset) -> Knowledge:
    """Open a store for reading.

    Raises:
        InputError: there is none, or it holds neither rows nor item vectors.
        FingerprintError: it belongs to another data set.
    """
    manifest = read_json(folder / "manifest.json")
    if manifest.get("dataset") != dataset.fingerprint:
        raise FingerprintError(
            "the knowledge belongs to another data set (its fingerprint differs).",
            where=str(folder),
            remedy="Annotate this data set, or use the one it was made for.",
        )
    frame, path = _read_rows(folder), folder / _VECTORS
    if frame is None and not path.exists():
        raise InputError("the store holds no rows.", where=str(folder), remedy="Run annotate first.")
    if frame is None:
        frame = pl.DataFrame(schema={EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)})
    frame = frame.filter(pl.col(ITEMS).list.len() > 0).unique(EXAMPLE, keep="first").sort(EXAMPLE)
    vectors = load_file(path)["item_vectors"] if path.exists() else None
    return Knowledge(
        manifest,
        frame[EXAMPLE].to_numpy().astype(np.int64),
        _table(frame[ITEMS], 0, np.int64),
        _table(frame[SCORES], NOTHING, np.float32),
        vectors,
    )


def _read_rows(folder: Path) -> pl.DataFrame | None:
    """Read all shards; None where there are none. None of them is ever changed or taken away."""
    frames = [pl.read_parquet(shard, glob=False, columns=[EXAMPLE, ITEMS, SCORES]) for shard in _shards(folder)]
    return pl.concat(frames) if frames else None


def _table(lists: pl.Series, fill: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Lay lists of any length out as [E, K], K the longest, with `fill` behind the end of shorter ones."""
    lengths = lists.list.len().to_numpy()
    width = int(lengths.max()) if len(lengths) else 0
    table = np.full((len(lengths), width), fill, dtype=dtype)
    if width == 0:
        return table
    table[np.arange(width) < lengths[:, None]] = lists.explode().to_numpy()[: int(lengths.sum())]
    return table


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.parquet"))
