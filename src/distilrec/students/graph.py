"""What needs no training and must be beaten by what does: the graph of item-to-item transitions, and popularity.

Han et al., "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential Recommendation", 2026
(arXiv 2605.07125): items one to three steps from the last one or two items of a history, in the graph of transitions seen in
training. For the last items s_1 (latest), s_2 .. of a history:
    c_ij    = sum_{k=1..window} decay^(k-1) * (how often j came k places behind i in one training history)
    w_ij    = c_ij / popularity_j^discount, the heaviest `max_neighbours` of each row only, then by `normalise`:
              row: w_ij / sum_j w_ij      log: log(1 + w_ij) / max_j log(1 + w_ij)      none: w_ij
    score_j = sum_n last_decay^(n-1) * (w_{s_n j} + second_hop * sum_m w_{s_n m} w_mj) + 1e-6 * popularity_j / max popularity
The last term orders what no transition reaches, and ties. Popularity counts the training part.

Deviations: the paper fills a fixed number of places from each ring of the graph (5 + 1 from the last item, 3 + 1 from the one
before) and orders a ring by the similarity of language-model vectors plus 0.5 times the `log` weight. Here there is
no item text, so nothing but the graph is measured; rings are weighted, not given places, so that the whole catalogue is ranked.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distilrec.data.dataset import Dataset
from distilrec.errors import InputError
from distilrec.files import write_with
from distilrec.settings import Settings
from distilrec.students.prefixes import last_items

_TIE = 1e-6
_HOPS = 1 << 22  # two-step paths held at a time
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Baseline(ABC):
    """A model that is counted, not trained. `fit` builds it, `score` ranks with it."""

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    dtypes: ClassVar[dict[str, torch.dtype]]  # the tensors it is made of

    def __init__(self, settings: Any, tensors: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.tensors = dict(tensors)

    @classmethod
    @abstractmethod
    def fit(cls, dataset: Dataset, settings: Any) -> Self:
        """Count the training part of `dataset`; what lies behind a history's `train_end` is not looked at."""

    @abstractmethod
    def score(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """Score every item after each history.

        Args:
            histories: [B, L] int64 item ids, right-padded.
            lengths: [B] int64, 1..L.

        Returns:
            [B, N] float32.
        """

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Most history items read."""

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.tensors["popularity"])

    def save(self, path: Path) -> None:
        """Write tensors and settings to one safetensors file, atomically."""
        metadata = {"baseline": self.name, "settings": self.settings.model_dump_json()}
        write_with(path, lambda part: save_file(self.tensors, part, metadata))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load what `save` wrote.

        Raises:
            InputError: the file is missing, broken or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if metadata["baseline"] != cls.name or {name: t.dtype for name, t in tensors.items()} != cls.dtypes:
                raise ValueError(f"it holds {metadata['baseline']}: {', '.join(sorted(tensors)) or 'nothing'}")
            settings = cls.Settings.model_validate_json(metadata["settings"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"not a saved {cls.name} ({text}).", where=str(path), remedy="Fit it again.") from None
        return cls(settings, tensors)


class PopularitySettings(Settings):
    """Popularity has no settings."""


class Popularity(Baseline):
    """The same ranking for everybody: how often an item occurs in the training part."""

    name = "popularity"
    Settings = PopularitySettings
    dtypes: ClassVar = {"popularity": torch.int64}

    @classmethod
    def fit(cls, dataset: Dataset, settings: PopularitySettings) -> Self:
        """See `Baseline.fit`."""
        return cls(settings, {"popularity": torch.from_numpy(dataset.popularity.astype(np.int64))})

    @property
    def max_length(self) -> int:
        """Most history items read: a history cannot be shorter than one item."""
        return 1

    def score(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """See `Baseline.score`."""
        return self.tensors["popularity"].float().to(histories.device).repeat(len(histories), 1)


class TransitionGraphSettings(Settings):
    """Settings of the transition graph; see the equations at the top of this file."""

    window: int = Field(5, ge=1)
    decay: float = Field(0.8, gt=0, le=1)
    discount: float = Field(0.0, ge=0, le=1)
    normalise: Literal["row", "log", "none"] = "row"
    max_neighbours: int = Field(50, ge=1)
    last: int = Field(2, ge=1)
    last_decay: float = Field(0.3, gt=0, le=1)
    second_hop: float = Field(0.1, ge=0)


class TransitionGraph(Baseline):
    """Items that came next after the last items, in compressed rows: row i is `starts[i]:starts[i + 1]` of the other two."""

    name = "transition_graph"
    Settings = TransitionGraphSettings
    settings: TransitionGraphSettings
    dtypes: ClassVar = {
        "popularity": torch.int64, "starts": torch.int64, "neighbours": torch.int32, "weights": torch.float32,
    }  # fmt: skip

    @classmethod
    def fit(cls, dataset: Dataset, settings: TransitionGraphSettings) -> Self:
        """See `Baseline.fit`."""
        n_items, popularity = dataset.n_items, dataset.popularity.astype(np.int64)
        pairs, weights = _transitions(dataset, settings.window, settings.decay)
        sources, targets = np.divmod(pairs, n_items)
        del pairs
        if settings.discount > 0:
            weights = (weights / popularity[targets] ** settings.discount).astype(np.float32)
        starts = np.searchsorted(sources, np.arange(n_items + 1))
        if len(sources) and np.diff(starts).max() > settings.max_neighbours:
            order = np.lexsort((-popularity[targets], -weights, sources))  # heaviest first, then the more popular
            place = np.arange(len(order)) - starts[sources]  # sources stay where they are: they are the first key
            kept = np.sort(order[place < settings.max_neighbours])
            sources, targets, weights = sources[kept], targets[kept], weights[kept]
            starts = np.searchsorted(sources, np.arange(n_items + 1))
        tensors: dict[str, npt.NDArray[Any]] = {
            "popularity": popularity,
            "starts": starts.astype(np.int64),
            "neighbours": targets.astype(np.int32),
            "weights": _normalised(weights, starts, settings.normalise),
        }
        return cls(settings, {name: torch.from_numpy(array) for name, array in tensors.items()})

    @property
    def max_length(self) -> int:
        """Most history items read."""
        return self.settings.last

    def score(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """See `Baseline.score`. Beyond one dense fill, only transitions out of the last items are touched."""
        popularity = self.tensors["popularity"].double()
        scores = (_TIE * popularity / popularity.max().clamp_min(1)).float().repeat(len(histories), 1)
        flat = scores.view(-1)
        items, exists = (part.cpu() for part in last_items(histories, lengths, self.settings.last))
        rows, column = exists.nonzero(as_tuple=True)
        paths = (rows, items[exists], self.settings.last_decay ** column.float())
        rows, items, weights = self._follow(*paths)
        flat.index_add_(0, rows * self.n_items + items, weights)
        if self.settings.second_hop > 0 and len(rows):
            step = max(1, _HOPS // int(self.tensors["starts"].diff().max()))
            for first in range(0, len(rows), step):
                some = slice(first, first + step)
                far, further, share = self._follow(rows[some], items[some], weights[some] * self.settings.second_hop)
                flat.index_add_(0, far * self.n_items + further, share)
        return scores.to(histories.device)

    def _follow(self, rows: Tensor, items: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go one step: P paths that end at `items` become all their continuations (histories, items, weights)."""
        starts = self.tensors["starts"]
        first, counts = starts[items], starts[items + 1] - starts[items]
        path = torch.repeat_interleave(counts)  # [E] which path an edge continues
        edge = torch.arange(len(path)) - (counts.cumsum(0) - counts)[path] + first[path]
        return rows[path], self.tensors["neighbours"][edge].long(), weights[path] * self.tensors["weights"][edge]


def _transitions(dataset: Dataset, window: int, decay: float) -> tuple[Ints, Floats]:
    """Return the pairs i * n_items + j of the training part, ascending, and their decayed counts, [E] each."""
    items = np.asarray(dataset.items)
    lengths = np.diff(dataset.offsets)
    place = np.arange(len(items)) - np.repeat(dataset.offsets[:-1], lengths)
    place[place >= np.repeat(dataset.split.train_end, lengths)] = -1  # held out: no transition ends there
    found, counts = [], []
    for distance in range(1, window + 1):
        later = np.flatnonzero(place >= distance)  # the item `distance` before is of the same training part, then
        pairs, times = np.unique(
            items[later - distance].astype(np.int64) * dataset.n_items + items[later], return_counts=True
        )
        found.append(pairs)
        counts.append((times * decay ** (distance - 1)).astype(np.float32))
    if window == 1:
        return found[0], counts[0]
    pairs, weights = np.concatenate(found), np.concatenate(counts)
    order = np.argsort(pairs, kind="stable")
    pairs, weights = pairs[order], weights[order]
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    return pairs[first], np.add.reduceat(weights, first) if len(first) else weights


def _normalised(weights: Floats, starts: Ints, kind: str) -> Floats:
    """Return the weights of each row divided as `kind` says; see the top of this file."""
    if kind == "none" or len(weights) == 0:
        return weights
    filled = np.flatnonzero(np.diff(starts))  # reduceat cannot sum an empty row
    weights = np.log1p(weights) if kind == "log" else weights
    reduced = (np.maximum if kind == "log" else np.add).reduceat(weights.astype(np.float64), starts[filled])
    return (weights / np.repeat(reduced, np.diff(starts)[filled])).astype(np.float32)


BASELINES: dict[str, type[Baseline]] = {kind.name: kind for kind in (TransitionGraph, Popularity)}
