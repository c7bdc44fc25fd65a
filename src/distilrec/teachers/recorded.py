"""The recorded teacher: rankings and item vectors made elsewhere, matched to the data set by their ids.

Nothing is guessed in silence: what does not match is counted and, beyond the tolerance, an error; what is dropped, repeated or
put in another order is counted in the report.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator
from torch import Tensor

from distilrec.columns import EXAMPLE, ITEMS, ROW, SCORES
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.data.tables import Table, as_text
from distilrec.errors import InputError
from distilrec.files import sha256_file
from distilrec.settings import Settings
from distilrec.teachers.base import Asked, Materials, Trained
from distilrec.teachers.dllm2rec_files import RANKINGS, read_dllm2rec
from distilrec.teachers.ranking_files import (
    RankingColumns,
    list_column,
    read_rankings,
)
from distilrec.teachers.recorded_keys import HELD_OUT, UNKNOWN, key_kind, matched, places_in
from distilrec.teachers.recorded_long import gathered, in_order
from distilrec.teachers.recorded_report import RecordedReport
from distilrec.teachers.vector_files import listed, read_item_vectors

_ROW, _ITEM, _SCORE = "row", "item", "score"  # of the long table: one row per item mentioned
_SHOWN = 5  # offenders kept for messages
_NOTHING = pl.DataFrame(schema={EXAMPLE: pl.Int64, ITEMS: pl.List(pl.Int32), SCORES: pl.List(pl.Float32)})


class RecordedSettings(Settings):
    """Where recorded knowledge lies and how it is matched.

    `rankings`: a table of rankings. `folder`: DLLM2Rec's files instead. `item_vectors`: a file of item vectors, alone or with
    either; it wins over those of the folder. `key`: what the key column of `rankings` holds: example ids, or original user or
    session ids, which mean the last training example of that history. `tolerance`: share of rows, and apart from that of item
    mentions, that may fail to match; they are dropped. `scores_are`: whether higher is surer (scores) or lower is (distances)
    in `rankings`; DLLM2Rec's files always hold distances.
    """

    rankings: Path | None = None
    item_vectors: Path | None = None
    folder: Path | None = None
    key: Literal["auto", "example", "user"] = "auto"
    tolerance: float = Field(0.0, ge=0, le=1)
    scores_are: Literal["scores", "distances"] = "scores"
    columns: RankingColumns = RankingColumns()

    @model_validator(mode="after")
    def _something_to_read(self) -> "RecordedSettings":
        if self.rankings is None and self.folder is None and self.item_vectors is None:
            raise ValueError("give rankings (a table), folder (DLLM2Rec's files) or item_vectors (a file)")
        if self.rankings is not None and self.folder is not None:
            raise ValueError(
                "give rankings or folder, not both; vectors of a folder can be had with item_vectors=FOLDER/all_embeddings.pt"
            )
        return self


@dataclass(frozen=True, slots=True)
class Recorded:
    """Recorded knowledge in the data set's own ids.

    Attributes:
        frame: EXAMPLE int64, ascending, each once; ITEMS list[int32] internal ids, best first; SCORES list[float32], higher =
            surer, descending, 0 where there were none.
        vectors: [N, D] float32, or None.
        report: what was kept and dropped.
    """

    frame: pl.DataFrame
    vectors: Tensor | None
    report: RecordedReport


@dataclass(frozen=True, slots=True)
class _Lists:
    """Rankings laid out flat: [R] example ids and lengths; [M] internal item ids (`UNKNOWN` outside the catalogue), scores."""

    examples: Ints
    lengths: Ints
    items: Ints
    scores: npt.NDArray[np.float32]


def read_recorded(settings: RecordedSettings, dataset: Dataset) -> Recorded:
    """Read recorded knowledge and match it to a data set.

    Raises:
        InputError: files that cannot be read, ids that do not match beyond the tolerance, scores that are missing or not finite,
            or rankings of which nothing is left.
    """
    frame, vectors, report = _NOTHING, None, RecordedReport()
    if settings.rankings is not None:
        lists, report = _from_table(settings, settings.rankings, dataset)
        frame, report = _cleaned(lists, report, settings, dataset, where=settings.rankings)
    elif settings.folder is not None:
        files = read_dllm2rec(settings.folder, dataset)
        vectors = files.item_vectors
        if files.items is not None:
            lists, report = _from_lines(files.examples, files.items, files.scores, dataset)
            frame, report = _cleaned(lists, report, settings, dataset, where=settings.folder / RANKINGS)
    if settings.item_vectors is not None:
        vectors = read_item_vectors(settings.item_vectors, dataset)
    if vectors is not None:
        report = replace(report, item_vectors=(vectors.shape[0], vectors.shape[1]))
    return Recorded(frame, vectors, report)


def _from_table(settings: RecordedSettings, path: Path, dataset: Dataset) -> tuple[_Lists, RecordedReport]:
    """Read a table of rankings; drop the rows whose key is of no use, and gather those that hold one item of a ranking each."""
    distances = settings.scores_are == "distances"
    found = read_rankings(path, settings.columns, distances=distances, key=settings.key)
    keys = found.keys()
    examples = matched(keys, key_kind(settings.key, found, dataset), dataset)
    unknown, trained = examples == UNKNOWN, examples >= 0
    first = np.zeros(len(examples), dtype=bool)
    first[np.unique(np.where(trained, examples, UNKNOWN), return_index=True)[1]] = True
    long = gathered(found, examples, trained)
    kept = trained & (first | long)
    report = RecordedReport(
        rows=len(examples),
        unknown_keys=int(unknown.sum()),
        unknown_key_ids=_first(keys, unknown),
        held_out=int((examples == HELD_OUT).sum()),
        repeated_rows=int((trained & ~first & ~long).sum()),
        gathered_rows=int(long.sum()),
        gathered=int((long & first).sum()),
    )
    if report.unknown_keys > settings.tolerance * report.rows:
        raise _mismatch(report.unknown_keys, report.rows, "rows are for keys", report.unknown_key_ids, found.where)
    order = in_order(found, examples, kept, long)
    table = Table(path, found.table.frame[order])
    lists = list_column(table, found.items)
    lengths = _lengths(lists)
    text = as_text(_flat(lists))
    items = places_in(text, dataset.item_ids)
    scores = np.zeros(len(items), dtype=np.float32)
    if found.scores is not None:
        scores = _scores(table, found.scores, lengths)
        scores = np.float32(0) - scores if distances else scores
    report = replace(report, unknown_item_ids=_first(text, items == UNKNOWN))
    starts = np.flatnonzero(np.diff(examples[order], prepend=UNKNOWN))
    return _Lists(examples[order][starts], np.add.reduceat(lengths, starts), items, scores), report


def _from_lines(
    examples: Ints, items: Ints, scores: npt.NDArray[np.float32] | None, dataset: Dataset
) -> tuple[_Lists, RecordedReport]:
    """Take DLLM2Rec's [E, K] item ids, which are internal ids already."""
    flat = items.ravel()
    known = (flat >= 0) & (flat < dataset.n_items)
    report = RecordedReport(rows=len(examples), unknown_item_ids=_first(pl.Series(flat), ~known))
    scores = np.zeros(items.shape, dtype=np.float32) if scores is None else scores
    lengths = np.full(len(examples), items.shape[1])
    return _Lists(examples, lengths, np.where(known, flat, UNKNOWN), scores.ravel()), report


def _lengths(lists: pl.Series) -> Ints:
    return lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def _flat(lists: pl.Series) -> pl.Series:
    return lists.filter(lists.list.len() > 0).explode()  # an empty list would explode into a null


def _scores(table: Table, column: str, lengths: Ints) -> npt.NDArray[np.float32]:
    """Return the scores of all items, flat; `lengths` are those of the item lists."""
    lists = list_column(table, column)
    found = _lengths(lists)
    if len(wrong := np.flatnonzero(found != lengths)):
        raise InputError(
            f"{found[wrong[0]]} scores for {lengths[wrong[0]]} items ({len(wrong):,} rows are so).",
            where=table.where(int(table.frame[ROW][int(wrong[0])]), column),
            remedy="Give a score for each item, or leave the column out.",
        )
    numbers = _flat(lists).cast(pl.Float32, strict=False).fill_null(float("nan")).to_numpy()
    if len(wrong := np.flatnonzero(~np.isfinite(numbers))):
        first = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
        raise InputError(
            f"{len(wrong):,} scores are no finite numbers.",
            where=table.where(int(table.frame[ROW][first]), column),
            remedy="Mend or drop these rows.",
        )
    return numbers


def _cleaned(
    lists: _Lists, report: RecordedReport, settings: RecordedSettings, dataset: Dataset, *, where: Path
) -> tuple[pl.DataFrame, RecordedReport]:
    """Drop unknown and repeated items, put each list in the order of its scores, and count all of it."""
    mentions, unknown = len(lists.items), int((lists.items == UNKNOWN).sum())
    if unknown > settings.tolerance * mentions:
        raise _mismatch(unknown, mentions, "item ids are of items", report.unknown_item_ids, str(where))
    rows = np.repeat(np.arange(len(lists.examples)), lists.lengths)
    long = pl.DataFrame({_ROW: rows, _ITEM: lists.items, _SCORE: lists.scores}).filter(pl.col(_ITEM) >= 0)
    distinct = long.filter((pl.col(_ROW) * dataset.n_items + pl.col(_ITEM)).is_first_distinct())
    same_list = pl.col(_ROW) == pl.col(_ROW).shift()
    step = pl.col(_SCORE) - pl.col(_SCORE).shift()
    rising = distinct.filter(same_list & (step > 0))[_ROW].unique()
    falling = distinct.filter(same_list & (step < 0))[_ROW].unique()
    ordered = distinct
    if rising.len():
        ordered = distinct.sort(_ROW, _SCORE, descending=[False, True], maintain_order=True)
    frame = (
        ordered.group_by(_ROW, maintain_order=True)
        .agg(pl.col(_ITEM).cast(pl.Int32).alias(ITEMS), pl.col(_SCORE).alias(SCORES))
        .select(pl.lit(pl.Series(EXAMPLE, lists.examples)).gather(pl.col(_ROW)), ITEMS, SCORES)
        .sort(EXAMPLE)
    )
    if frame.is_empty():
        raise InputError(
            f"none of {report.rows:,} rows can be used: {report.held_out:,} are held out from training, "
            f"{report.unknown_keys:,} unknown, the others without any item of the catalogue.",
            where=str(where),
            remedy="Give rankings for the training part of this data set.",
        )
    return frame, replace(
        report,
        mentions=mentions,
        unknown_items=unknown,
        repeated_items=long.height - distinct.height,
        empty_lists=len(lists.examples) - frame.height,
        kept=frame.height,
        reordered=rising.len(),
        reversed=len(set(rising.to_list()) - set(falling.to_list())),
    )


def _first(values: pl.Series, wrong: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the first few different values of those that are wrong."""
    found = values.filter(pl.Series(wrong)).unique(maintain_order=True).head(_SHOWN).cast(pl.String)
    return tuple(found.fill_null("(empty)").to_list())


def _mismatch(count: int, total: int, what: str, offenders: tuple[str, ...], where: str) -> InputError:
    share = min(math.ceil(count / total * 1000) / 1000, 1.0)
    return InputError(
        f"{count:,} of {total:,} {what} that are not in the data set: {listed([*offenders])}.",
        where=where,
        remedy=f"Give what was made for this data set, or drop them with teacher.tolerance={share:g} or more.",
    )


class RecordedTeacher:
    """A teacher that was asked elsewhere."""

    name: ClassVar[str] = "recorded"
    Settings = RecordedSettings
    asked: ClassVar[Asked] = "file"
    trained: ClassVar[Trained] = "nothing"
    gives: ClassVar[frozenset[str]] = frozenset({"rankings", "scores", "item_vectors"})

    @classmethod
    def files(cls, settings: RecordedSettings) -> list[list[str]]:
        """Return role, name and SHA-256 (none where there is no file) of each file that is read, and the settings that say how."""
        named = [("rankings", settings.rankings), ("item_vectors", settings.item_vectors), ("folder", settings.folder)]
        if settings.folder is not None and settings.folder.is_dir():
            inside = sorted(path for path in settings.folder.iterdir() if path.suffix in (".pt", ".txt"))
            named[2:] = [("folder", path) for path in inside]
        found = [
            [role, path.name, sha256_file(path) if path.is_file() else ""] for role, path in named if path is not None
        ]
        how = settings.model_dump(mode="json", exclude={"rankings", "item_vectors", "folder"})
        return [*found, ["settings", json.dumps(how, sort_keys=True)]]

    @classmethod
    def knowledge_vectors(cls, folder: Path | None, settings: RecordedSettings, materials: Materials) -> Tensor | None:
        """Return nothing: recorded vectors are read along with the rankings."""
        return None
