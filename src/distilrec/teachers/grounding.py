"""From a text to the items whose titles lie nearest to it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_KEPT = 1 << 16  # texts whose vectors are kept
_SPARE = 16  # items looked at beyond the k nearest, since the fast distance is not exact


class Grounding:
    """Distances between texts and titles.

    Args:
        vectors: [N, D] of the titles.
        titles: by item id; a text that equals a title has that title's vector.
        read: texts -> [n, D].
        popularity: [N] share of interactions, 0..1.
        gamma: distances are divided by (1 + popularity)^gamma; 0 leaves them alone.
    """

    def __init__(
        self,
        vectors: Tensor,
        titles: Sequence[str],
        read: Callable[[Sequence[str]], Tensor],
        *,
        popularity: Tensor,
        gamma: float,
    ) -> None:
        self.vectors, self._read, self.gamma = vectors.float(), read, gamma
        self._centre = self.vectors.mean(dim=0)
        self._centred = (
            self.vectors - self._centre
        )  # what hidden states share is large, and would drown how they differ
        self._norms = self._centred.square().sum(dim=1)
        self._favour = (1 + popularity) ** gamma
        self._items: dict[str, int] = {}
        for item, title in enumerate(titles):
            self._items.setdefault(" ".join(title.split()), item)
        self._known: dict[str, Tensor] = {}

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one vector per text, [n, D]; each text is read once."""
        new = list(dict.fromkeys(text for text in texts if text not in self._items and text not in self._known))
        if new:
            if len(self._known) > _KEPT:
                self._known.clear()
                new = list(dict.fromkeys(text for text in texts if text not in self._items))
            self._known.update(zip(new, self._read(new).float().cpu(), strict=True))
        return torch.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Tensor:
        item = self._items.get(text)
        return self._known[text] if item is None else self.vectors[item]

    def distances(self, texts: Sequence[str]) -> Tensor:
        """Return the distance of each text to every item, [n, N], adjusted for popularity."""
        return self._adjust(torch.cdist(self.embed(texts), self.vectors, compute_mode="donot_use_mm_for_euclid_dist"))

    def _adjust(self, distances: Tensor) -> Tensor:
        if self.gamma == 0:
            return distances
        low, high = distances.amin(dim=1, keepdim=True), distances.amax(dim=1, keepdim=True)
        return (distances - low) / (high - low).clamp_min(1e-12) / self._favour

    def nearest(self, texts: Sequence[str], k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest items of each text, [n, k], nearest first (ties: the smaller id), and minus their distances.

        Products of numbers find a few more than k, whose distances are then taken exactly.
        """
        k = min(k, len(self.vectors))
        if self.gamma > 0:
            return _first(self.distances(texts), torch.arange(len(self.vectors)).expand(len(texts), -1), k)
        vectors = self.embed(texts)
        fast = torch.addmm(self._norms, vectors - self._centre, self._centred.T, alpha=-2)  # + what all items share
        near = fast.topk(min(k + _SPARE, len(self.vectors)), dim=1, largest=False).indices.sort(dim=1).values
        exact = (vectors[:, None] - self.vectors[near]).square().sum(dim=2).sqrt()
        return _first(exact, near, k)


def _first(distances: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ordered = distances.sort(dim=1, stable=True)
    at = ordered.indices[:, :k]
    return items.gather(1, at), -ordered.values[:, :k]
