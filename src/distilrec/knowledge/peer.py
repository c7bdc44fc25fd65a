"""What a model in this process says now about every training example: the other side of two models that teach each other.

A stored ranking says what a teacher once thought of its first items. Here the model itself is at hand, and frozen: its states
before all training targets are computed once, in one pass over the training windows, into a file that is mapped into memory
([examples, d], far smaller than [examples, catalogue]). Its logits are then formed chunk by chunk, as whole rows (`whole`), or its
first K items and the mass of the rest are kept of one scoring (`leading`), so that nothing is scored again however many epochs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilrec.data.batching import batches, plan, single_positions, training_windows
from distilrec.data.dataset import Dataset, history_items, training_examples
from distilrec.files import need_space
from distilrec.progress import bar

_SCORES = 1 << 22
_HIDDEN = -1e4  # the logit of an item that is never recommended


@dataclass(frozen=True)
class Peer:
    """A frozen model's states before the training targets, and its item vectors.

    Attributes:
        dataset: what the example ids refer to.
        examples: [E] int64 ids, ascending.
        states: [E, d], mapped from a file.
        table: [N, d], of the same number format.
        hide_seen: whether items of an example's own history are taken out: what is never recommended is not taught either.
    """

    dataset: Dataset
    examples: Tensor
    states: Tensor
    table: Tensor
    hide_seen: bool

    def whole(self, examples: Tensor) -> Tensor:
        """Return the logits of examples [t], [t, N]."""
        logits = self.states[self.places(examples)] @ self.table.T
        if self.hide_seen:
            row, item = seen_items(self.dataset, examples)
            logits[row, item] = _HIDDEN
        return logits

    def places(self, examples: Tensor) -> Tensor:
        """Return the rows of examples [t]."""
        return torch.searchsorted(self.examples, examples.contiguous())

    def leading(self, k: int) -> "First":
        """Score every example once and keep its first k items, their log-probabilities, and the target's rank."""
        count, k = len(self.examples), min(k, len(self.table))
        items = torch.empty(count, k, dtype=torch.int32)
        chances, ranks = torch.empty(count, k), torch.empty(count, dtype=torch.int32)
        targets = torch.from_numpy(np.asarray(self.dataset.items)[self.examples.numpy()].astype(np.int64))
        chunk = max(1, _SCORES // len(self.table))
        with bar("score examples", count) as progress:
            for first in range(0, count, chunk):
                part = slice(first, min(first + chunk, count))
                logits = self.whole(self.examples[part]).float()
                best = logits.topk(k, dim=1)
                items[part] = best.indices.int()
                chances[part] = best.values - logits.logsumexp(dim=1, keepdim=True)
                ranks[part] = (logits >= logits.gather(1, targets[part, None])).sum(dim=1).int()
                progress.advance(part.stop - part.start)
        return First(self.examples, items, chances, ranks)


@dataclass(frozen=True)
class First:
    """A model's first items of every example.

    Attributes:
        examples: [E] int64 ids, ascending.
        items: [E, K] int32, best first.
        log_probabilities: [E, K].
        ranks: [E] int32, of the target.
    """

    examples: Tensor
    items: Tensor
    log_probabilities: Tensor
    ranks: Tensor


def seen_items(dataset: Dataset, examples: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and item of all items of the histories of examples [t], other than the target itself: two of [M] int64."""
    ids = examples.cpu().numpy()
    row, item = history_items(dataset, ids)
    other = item != np.asarray(dataset.items)[ids][row]
    return torch.from_numpy(row[other]), torch.from_numpy(item[other])


def peer_of(
    model: Any,
    dataset: Dataset,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    hide_seen: bool = False,
    batch_tokens: int = 4096,
    label: str = "read training histories",
) -> Peer:
    """Freeze a model as it is now: compute its states before every training target.

    Args:
        model: a student, or a teacher with a prediction layer, in evaluation mode; see `CausalTeacher`.
        dataset: its training part is read.
        path: file for the states; a finished one is taken as it is, so it must be of this very model.
        dtype: of states and table.
        hide_seen: see `Peer`.
        batch_tokens: history items read at a time.
        label: of the progress bar.

    Raises:
        DiskFullError: there is no room for the states.
    """
    table = model.item_vectors().detach()
    examples = torch.from_numpy(training_examples(dataset))
    shape = len(examples), table.shape[1]
    if not path.exists():
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)
        need_space(part, shape[0] * shape[1] * dtype.itemsize)  # a mapped file that finds no room kills the process
        _write_states(model, dataset, examples, table, _mapped(part, shape, dtype, shared=True), batch_tokens, label)
        part.rename(path)
    states = _mapped(path, shape, dtype, shared=False)
    return Peer(dataset, examples, states, table.to("cpu", dtype).clone(), hide_seen)


def _mapped(path: Path, shape: tuple[int, int], dtype: torch.dtype, *, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=shape[0] * shape[1], dtype=dtype).view(shape)


@torch.inference_mode()
def _write_states(
    model: Any, dataset: Dataset, examples: Tensor, table: Tensor, states: Tensor, batch_tokens: int, label: str
) -> None:
    windows = training_windows(dataset, model.max_length, None)
    groups = plan(windows.end - windows.start, batch_tokens, None)
    with bar(label, len(groups)) as progress:
        for batch in batches(dataset, windows, groups):
            if getattr(model, "causal", True):
                here = batch.to(table.device)
                found = model.encode(here.histories, here.lengths, table).flatten(0, 1)[here.positions]
            else:
                here = single_positions(batch).to(table.device)
                found = model.encode_last(here.histories, here.lengths, table)
            states[torch.searchsorted(examples, batch.examples)] = found.to("cpu", states.dtype)
            progress.advance()
