"""Ask a local, causal teacher about every training example: one pass over a history answers all of its examples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from distilrec.columns import EXAMPLE, ITEMS, SCORES
from distilrec.config import AnnotateSettings
from distilrec.data.batching import make_batch, plan, training_windows
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.knowledge.store import KnowledgeWriter, writing
from distilrec.progress import bar
from distilrec.teachers.base import CausalTeacher

_SCORES = 1 << 22


def annotate(
    teacher: CausalTeacher,
    item_vectors: Callable[[], torch.Tensor],
    dataset: Dataset,
    settings: AnnotateSettings,
    folder: Path,
    details: dict[str, Any],
) -> int:
    """Store the teacher's top K for every training example, and its item vectors. Resumes behind a killed run.

    The plan of shards and batches depends on the data and the settings alone, so a resumed run computes the very same batches
    that an unbroken one would have, and the store comes out equal.

    Args:
        teacher: in evaluation mode.
        item_vectors: computes the vectors, [N, D]; called only if they are not stored yet.
        dataset: what to annotate.
        settings: K and sizes.
        folder: the store.
        details: for the manifest.

    Returns:
        Number of examples in the store.
    """
    windows = training_windows(dataset, teacher.max_length, None)
    groups = plan(windows.end - windows.start, settings.batch_tokens, None)
    with writing(folder, dataset, details) as writer:
        if not writer.has_item_vectors:
            writer.put_item_vectors(item_vectors())
        done = writer.done()
        asked = [int((windows.end - windows.supervised_from)[rows].sum()) for rows in groups]
        with bar("annotate", sum(asked)) as progress:
            for shard in _shards_of(groups, asked, settings.shard_rows):
                first = windows.supervised_from[shard[0][0]] + 1
                rows = sum(int((windows.end - windows.supervised_from)[group].sum()) for group in shard)
                if not _contains(done, first):
                    _write_shard(teacher, dataset, windows, shard, settings.top_k, writer)
                progress.advance(rows)
        return len(writer.done())


@torch.inference_mode()
def _write_shard(
    teacher: CausalTeacher, dataset: Dataset, windows: Any, groups: Sequence[Ints], top_k: int, writer: KnowledgeWriter
) -> None:
    table = teacher.item_vectors()
    k = min(top_k, len(table))
    chunk = max(1, _SCORES // len(table))
    examples, items, scores = [], [], []
    for rows in groups:
        batch = make_batch(dataset, windows, rows).to(table.device)
        states = teacher.encode(batch.histories, batch.lengths, table).flatten(0, 1)[batch.positions]
        for first in range(0, len(states), chunk):
            logits = torch.log_softmax(states[first : first + chunk] @ table.T, dim=1)
            best = logits.topk(k, dim=1)
            items.append(best.indices.to(torch.int32).cpu().numpy())
            scores.append(best.values.float().cpu().numpy())
        examples.append(batch.examples.cpu().numpy())
    writer.append(
        pl.DataFrame(
            {
                EXAMPLE: np.concatenate(examples),
                ITEMS: pl.Series(np.concatenate(items)).cast(pl.List(pl.Int32)),
                SCORES: pl.Series(np.concatenate(scores)).cast(pl.List(pl.Float32)),
            }
        )
    )


def _shards_of(groups: Sequence[Ints], rows: Sequence[int], shard_rows: int) -> list[list[Ints]]:
    shards: list[list[Ints]] = []
    held = shard_rows
    for group, size in zip(groups, rows, strict=True):
        if held >= shard_rows:
            shards.append([])
            held = 0
        shards[-1].append(group)
        held += size
    return shards


def _contains(ordered: Ints, value: int) -> bool:
    place = int(np.searchsorted(ordered, value))
    return place < len(ordered) and int(ordered[place]) == int(value)
