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
    # The column that comes up first is drawn first: waits are -log u, which is faster than a draw of exponential numbers.
    uniform = torch.rand_like(log_weights).clamp_min_(torch.finfo(log_weights.dtype).tiny)
    keys, columns = (log_weights - uniform.log_().neg_().log_()).topk(min(count, log_weights.shape[1]), dim=1)
    return columns, keys > -torch.inf


def listed_among(others: Tensor, items: Tensor, there: Tensor) -> Tensor:
    """Return which of the shared items `others` [n], all different or not, stand on each list; [T, n].

    Args:
        others: [n] item ids.
        items: [T, K] item ids of the lists.
        there: [T, K] bool, False behind the end of a list.
    """
    largest = torch.maximum(items.max(), others.max()) if items.numel() else others.max()
    place = torch.full((int(largest) + 1,), len(others), device=items.device)
    place[others] = torch.arange(len(others), device=items.device)  # of those alike, one
    at = place[items].masked_fill_(~there, len(others))
    flags = torch.zeros(len(items), len(others) + 1, dtype=torch.bool, device=items.device).scatter_(1, at, True)
    return flags[:, place[others]]
