"""What methods draw from a teacher's lists: places by weight, and other items that do not stand on a list.

Random numbers come from torch's global generator, as everywhere in a training.
"""

import torch
from torch import Tensor


def draw(log_weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw columns without replacement, with chances in proportion to the weights.

    Args:
        log_weights: [R, n]; -inf for a column that cannot be drawn.
        count: how many to draw from each row, at most n.

    Returns:
        Columns [R, count], the first drawn first, and [R, count] bool: False where a row had no more columns to give.
    """
    waits = torch.empty_like(log_weights).exponential_()  # the column that comes up first is drawn first
    keys, columns = (log_weights - waits.log()).topk(min(count, log_weights.shape[1]), dim=1)
    return columns, keys > -torch.inf


def listed_among(others: Tensor, items: Tensor, there: Tensor) -> Tensor:
    """Return which of the shared items `others` [n], all different or not, stand on each list; [T, n].

    Args:
        others: [n] item ids.
        items: [T, K] item ids of the lists.
        there: [T, K] bool, False behind the end of a list.
    """
    ordered, order = others.sort()
    place = torch.searchsorted(ordered, items).clamp_max(len(others) - 1)  # the first of several alike
    found = ((ordered[place] == items) & there).to(torch.int32)
    counts = torch.zeros(len(items), len(others), dtype=torch.int32, device=items.device).scatter_add_(1, place, found)
    first = torch.searchsorted(ordered, ordered)  # where the first of those alike stands
    flags = torch.empty_like(counts)
    flags[:, order] = counts[:, first]
    return flags > 0
