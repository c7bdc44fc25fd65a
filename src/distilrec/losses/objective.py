"""From settings to a loss: what a target is compared with, and how. The one place where losses are looked up by name."""

from dataclasses import replace

import torch
from torch import Tensor

from distilrec.config import LossSettings
from distilrec.data.batching import Batch, Negatives
from distilrec.losses.catalogue import cross_entropy
from distilrec.losses.dro import dro, propensities
from distilrec.losses.negatives import Sampler, hidden
from distilrec.losses.sampled import bce, bpr, gbce, sampled_softmax, shared_sampled_softmax

WHOLE_CATALOGUE = frozenset({"ce", "dro"})


class Objective:
    """The loss that `settings` describe.

    Args:
        settings: its `name` must be set.
        popularity: [N] number of training interactions of each item.
        dtype: of the logits over the catalogue and the products around them; the table's own by default.
    """

    def __init__(self, settings: LossSettings, popularity: Tensor, dtype: torch.dtype | None = None) -> None:
        if settings.name is None:
            raise ValueError("the loss has no name yet: the student's default must be put in first")
        self.settings, self.dtype = settings, dtype
        self.n_items = len(popularity)
        self._sampler = Sampler(settings, popularity)
        self._propensity = propensities(popularity)

    @property
    def whole_catalogue(self) -> bool:
        """Whether the loss scores every item."""
        return self.settings.name in WHOLE_CATALOGUE

    def draw(self, batch: Batch) -> Batch:
        """Return the batch with negatives, where the loss needs some."""
        samples = self.settings.name not in WHOLE_CATALOGUE or (
            self.settings.name == "dro" and self.settings.base != "ce"
        )
        return replace(batch, negatives=self._sampler.draw(batch.targets)) if samples else batch

    def __call__(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Return the named parts of the loss.

        Args:
            batch: targets [T] and negatives, in the numbering of `table`.
            states: [T, d].
            table: [N, d] item vectors, or those that the batch needs.
        """
        settings = self.settings
        if settings.name == "ce":
            return {"target": cross_entropy(states, table, batch.targets, dtype=self.dtype)}
        if settings.name == "dro":
            base = (
                cross_entropy(states, table, batch.targets, dtype=self.dtype)
                if settings.base == "ce"
                else self._sampled(settings.base, batch, states, table)
            )
            return {"target": base, **self.further(batch, states, table)}
        return {"target": self._sampled(str(settings.name), batch, states, table)}

    def further(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Return the parts beside the comparison of target and other items: the term of DROS, where that is the loss."""
        if self.settings.name != "dro":
            return {}
        self._propensity = self._propensity.to(states.device)
        term = dro(states, table, batch.targets, self._propensity, beta=self.settings.dro_beta)
        return {"dro": self.settings.dro_weight * term}

    def _sampled(self, name: str, batch: Batch, states: Tensor, table: Tensor) -> Tensor:
        drawn = batch.negatives
        if drawn is None:
            raise ValueError(f"the loss {name} needs negatives")
        unfit = hidden(drawn.items, batch, exclude_history=self.settings.exclude_history)
        own_q = drawn.log_q_targets if self.settings.log_q == "all" else None
        log_q = drawn.log_q if self.settings.log_q != "none" else None
        if name == "sampled_softmax" and drawn.items.dim() == 1:
            items = drawn.items
            return shared_sampled_softmax(
                states, table, batch.targets, items, unfit, log_q_positive=own_q, log_q_negative=log_q
            )
        positive = (states * table[batch.targets]).sum(dim=1)  # [T]
        negative = score(states, table, drawn.items)  # [T, n]
        if name == "sampled_softmax":
            return sampled_softmax(positive, negative, unfit, log_q_positive=own_q, log_q_negative=log_q)
        if name == "gbce":
            return gbce(positive, negative, unfit, n_items=self.n_items, calibration=self.settings.calibration)
        return (bce if name == "bce" else bpr)(positive, negative, unfit)


def only_needed_rows(batch: Batch) -> tuple[Tensor, Batch]:
    """Renumber a batch's items by the rows of the item table that it needs.

    Returns:
        The catalogue ids of these rows, [U] ascending, and the batch in which item n is row n of them.
    """
    drawn = batch.negatives
    parts = [batch.histories.clamp_min(0), batch.targets] + ([drawn.items] if drawn is not None else [])
    items, numbers = torch.unique(torch.cat([part.flatten() for part in parts]), return_inverse=True)
    split = [
        number.view(part.shape)
        for number, part in zip(numbers.split([part.numel() for part in parts]), parts, strict=True)
    ]
    histories = torch.where(batch.histories < 0, batch.histories, split[0])  # a mask stays a mask
    negatives = None if drawn is None else Negatives(split[2], drawn.log_q, drawn.log_q_targets)
    return items, replace(batch, histories=histories, targets=split[1], negatives=negatives)


def score(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Score some items: [T, d] states with [n] shared or [T, n] own items, never the whole catalogue; [T, n]."""
    if items.dim() == 1:
        return states @ table[items].T
    return torch.bmm(table[items], states[:, :, None])[:, :, 0]
