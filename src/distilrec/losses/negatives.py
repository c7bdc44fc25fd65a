"""Which items a target is told from: drawn uniformly, by popularity, or taken from the batch.

Random numbers come from torch's global generator, whose state is in every checkpoint: one seed, one result.
"""

import math

import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch, Negatives


class Sampler:
    """Draws negatives.

    Args:
        settings: how, and how many.
        popularity: [N] number of training interactions of each item.
    """

    def __init__(self, settings: LossSettings, popularity: Tensor) -> None:
        self.settings = settings
        weight = popularity.to(torch.float64)
        if settings.sampling == "uniform":
            weight = torch.ones_like(weight)
        elif settings.sampling == "popularity":  # in a batch targets stand as often as they are bought
            weight = weight**settings.popularity_power
        self._uniform = settings.sampling == "uniform" or float(weight.sum()) == 0
        self._n_items = len(popularity)
        share = torch.full_like(weight, 1 / len(weight)) if self._uniform else weight / weight.sum()
        least = share[share > 0].min()  # an item never seen in training is taken for one seen as rarely as any
        self._log_share = share.clamp_min(least).log().to(torch.float32)
        self._bounds = share.cumsum(0)

    def draw(self, targets: Tensor) -> Negatives:
        """Draw negatives for targets [T]."""
        settings = self.settings
        if settings.sampling == "in_batch":
            count = settings.negatives or len(targets)
            chosen = (
                targets if count >= len(targets) else targets[torch.randperm(len(targets))[:count].to(targets.device)]
            )
            return self._described(chosen, targets, len(chosen))
        shape = (settings.negatives,) if settings.shared else (len(targets), settings.negatives)
        if self._uniform:
            items = torch.randint(self._n_items, shape)
        else:
            items = torch.searchsorted(self._bounds, torch.rand(shape, dtype=torch.float64)).clamp_max(
                self._n_items - 1
            )
        return self._described(items.to(targets.device), targets, settings.negatives)

    def log_expected(self, items: Tensor, count: int) -> Tensor:
        """Return the log of how often each of some items is expected among `count` drawn ones, in the shape of `items`."""
        self._log_share = self._log_share.to(items.device)
        return self._log_share[items] + math.log(count)

    def _described(self, items: Tensor, targets: Tensor, count: int) -> Negatives:
        return Negatives(items, self.log_expected(items, count), self.log_expected(targets, count))


def hidden(negatives: Tensor, batch: Batch, *, exclude_history: bool) -> Tensor:
    """Return which negatives are none, [T, n]: the target itself and, where asked, what stands in its history.

    Args:
        negatives: [n] or [T, n] item ids, in the same numbering as the batch's.
        batch: targets and, for the history, the rows they belong to.
        exclude_history: hide every item of the window too, later ones included.
    """
    own: Tensor = negatives == batch.targets[:, None]
    if not exclude_history:
        return own
    width = batch.histories.shape[1]
    row = torch.div(batch.positions, width, rounding_mode="floor")  # [T]
    inside = torch.arange(width, device=row.device) < batch.lengths[:, None]  # [B, L]
    if negatives.dim() == 1:
        members = _members(negatives, batch.histories, inside)  # [B, n]
        return own | members[row]
    for column in range(width):  # [T, n] at a time, never [T, n, L]
        here = torch.where(inside[:, column], batch.histories[:, column], -1)[row]
        own |= negatives == here[:, None]
    return own


def _members(negatives: Tensor, histories: Tensor, inside: Tensor) -> Tensor:
    """Return whether each of the shared negatives [n] stands in each history [B, L]; [B, n]."""
    found = torch.zeros(len(histories), len(negatives), dtype=torch.bool, device=negatives.device)
    order = negatives.argsort()
    ordered = negatives[order]
    unique, count = torch.unique_consecutive(ordered, return_counts=True)
    group = torch.repeat_interleave(torch.arange(len(unique), device=order.device), count)  # of each ordered negative
    place = torch.searchsorted(unique, histories).clamp_max(len(unique) - 1)
    match = inside & (unique[place] == histories)
    flags = torch.zeros(len(histories), len(unique), dtype=torch.bool, device=negatives.device)
    rows = torch.arange(len(histories), device=order.device)[:, None].expand_as(histories)
    flags[rows[match], place[match]] = True
    found[:, order] = flags[:, group]
    return found


def repeats(items: Tensor, negatives: Tensor, batch: Batch, *, exclude_history: bool) -> Tensor:
    """Return how many of the negatives that count for a target are the item itself, [T, M].

    Args:
        items: [T, M] item ids that stand as positives beside the target, or the target itself.
        negatives: [n] or [T, n].
        batch: see `hidden`.
        exclude_history: see `hidden`.
    """
    if negatives.dim() == 1:
        ordered = negatives.sort().values
        found = torch.searchsorted(ordered, items, right=True) - torch.searchsorted(ordered, items)
    else:
        found = (negatives[:, None, :] == items[:, :, None]).sum(dim=2)
    return found.masked_fill(hidden(items, batch, exclude_history=exclude_history), 0)
