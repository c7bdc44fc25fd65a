"""How hard an example is for a conventional recommender, after ALKDRec.

Minus the mean, over the items of the history, of sigma(state . vector), the state being the one after the whole history: high where
the recommender's idea of the session fits its own items badly.
"""

from typing import Any

import numpy as np
import torch

from distilrec.data.batching import held_out_windows, make_batch, plan
from distilrec.data.dataset import Dataset
from distilrec.data.split import Ints
from distilrec.knowledge.select.policies import Floats


@torch.inference_mode()
def difficulties(model: Any, dataset: Dataset, examples: Ints, *, batch_tokens: int = 16_384) -> Floats:
    """Return how hard examples [n] are under a trained student, [n], higher is harder.

    Args:
        model: a student in evaluation mode.
        dataset: histories.
        examples: ids; an example's session is its history, its target left out, as far back as the model reads.
        batch_tokens: history items read at a time.
    """
    examples = np.asarray(examples, dtype=np.int64)
    windows = held_out_windows(dataset, examples, model.max_length)
    table, found = model.item_vectors(), np.empty(len(examples))
    for rows in plan(windows.end - windows.start, batch_tokens, None):
        batch = make_batch(dataset, windows, rows).to(table.device)
        states = model.encode_last(batch.histories, batch.lengths, table)
        fit = torch.sigmoid((table[batch.histories] @ states[:, :, None])[:, :, 0])  # [B, L]
        inside = torch.arange(fit.shape[1], device=fit.device) < batch.lengths[:, None]
        found[rows] = -((fit * inside).sum(dim=1) / batch.lengths).double().cpu().numpy()
    return found
