"""From settings to a loss: what a target is compared with, and how. The one place where losses are looked up by name."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from distilrec.config import LossSettings
from distilrec.data.batching import Batch, Negatives
from distilrec.losses.catalogue import Weigh, catalogue_loss, cross_entropy, scan
from distilrec.losses.dro import Robust, propensities
from distilrec.losses.negatives import Sampler, hidden, repeats
from distilrec.losses.picked import score
from distilrec.losses.sampled import (
    each_bce,
    each_bpr,
    each_gbce,
    each_sampled_softmax,
    shared_sampled_softmax,
)

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
        self.n_items, self.popularity = len(popularity), popularity
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
        if self.settings.name == "ce":
            return {"target": cross_entropy(states, table, batch.targets, dtype=self.dtype)}
        if self.settings.name == "dro":
            return self.weighted(batch, states, table, batch.targets[:, None], None)
        drawn = batch.negatives
        if self.settings.name == "sampled_softmax" and drawn is not None and drawn.items.dim() == 1:
            unfit, own_q, log_q, _ = self._compared(batch)
            return {
                "target": shared_sampled_softmax(
                    states, table, batch.targets, drawn.items, unfit, log_q_positive=own_q, log_q_negative=log_q
                )
            }
        return {"target": self._sampled(str(self.settings.name), batch, states, table, batch.targets[:, None]).mean()}

    def weighted(
        self,
        batch: Batch,
        states: Tensor,
        table: Tensor,
        items: Tensor,
        weights: Tensor | Weigh | None,
        *,
        published: bool = False,
    ) -> dict[str, Tensor]:
        """Return the loss with each of several items as the positive, weighted; the first column is the target's.

        Args:
            batch: see `__call__`.
            states: [T, d].
            table: [N, d], the whole catalogue.
            items: [T, M] int64.
            weights: [T, M]; or what gives them, [t, M], from the scores of a chunk of states (see `weigh` of `catalogue_loss`), for
                which a loss that does not score the catalogue scores it once more. None: all are 1.
            published: take the ranking's part of `bce` as DLLM2Rec's published code does, -log sigma(y) - log sigma(1 - z), the
                latter a mean over the negatives (it has one).

        Returns:
            "target" and, where M is above 1, "ranking": the mean over T of the first column and of the sum over the others; with
            the DRO term "dro" and "ranking_dro" beside them. The sum of all parts carries the gradient of the whole.
        """
        found: list[Tensor] = []
        fixed = weights if isinstance(weights, Tensor) else None
        noted = None if weights is None or isinstance(weights, Tensor) else _noting(weights, found)
        entropy = self.settings.name == "ce" or (self.settings.name == "dro" and self.settings.base == "ce")
        robust = self._robust(states) if self.settings.name == "dro" else None
        parts: dict[str, Tensor] = {}
        if entropy or robust is not None:
            total, shares = catalogue_loss(
                states, table, items, fixed, weigh=noted, entropy=entropy, robust=robust, dtype=self.dtype
            )
            parts = _named(total, shares, entropy, robust is not None)
        if entropy:
            return parts
        if noted is not None and not found:
            scan(states, table, items, noted, dtype=self.dtype)
        base = self.settings.base if self.settings.name == "dro" else str(self.settings.name)
        cells = self._sampled(base, batch, states, table, items, published=published)  # [T, M]
        if weights is not None:
            cells = cells * (torch.cat(found) if fixed is None else fixed).to(cells.dtype)
        sums = cells.sum(dim=0) / len(states)
        sampled = {"target": sums[0]} | ({"ranking": sums[1:].sum()} if len(sums) > 1 else {})
        return sampled | parts

    def _robust(self, states: Tensor) -> Robust:
        self._propensity = self._propensity.to(states.device)
        return Robust(self._propensity, self.settings.dro_beta, self.settings.dro_weight)

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None, Negatives]:
        """Return which negatives do not count, [T, n], the corrections of the targets' and the negatives' scores, and these."""
        drawn = batch.negatives
        if drawn is None:
            raise ValueError(f"the loss {self.settings.name} needs negatives")
        unfit = hidden(drawn.items, batch, exclude_history=self.settings.exclude_history)
        own_q = drawn.log_q_targets if self.settings.log_q == "all" else None
        return unfit, own_q, drawn.log_q if self.settings.log_q != "none" else None, drawn

    def _sampled(
        self, name: str, batch: Batch, states: Tensor, table: Tensor, items: Tensor, *, published: bool = False
    ) -> Tensor:
        """Return the loss of each positive against the batch's negatives, [T, M]."""
        unfit, own_q, log_q, drawn = self._compared(batch)
        positive = score(states, table, items)  # [T, M]
        negative = score(states, table, drawn.items)  # [T, n]
        again = None
        if items.shape[1] > 1:
            again = repeats(items, drawn.items, batch, exclude_history=self.settings.exclude_history)
        if name == "sampled_softmax":
            expected = None
            if items.shape[1] == 1 and own_q is not None:  # items may be renumbered: only the draw knew their ids
                expected = own_q[:, None]
            elif own_q is not None or log_q is not None:
                expected = self._sampler.log_expected(items, drawn.items.shape[-1])
            as_negative = positive if log_q is None or expected is None else positive - expected
            positive = positive if own_q is None or expected is None else positive - expected
            negative = negative if log_q is None else negative - log_q
            return each_sampled_softmax(positive, negative, unfit, again, as_negative)
        if name == "gbce":
            calibration = self.settings.calibration
            return each_gbce(positive, negative, unfit, again, n_items=self.n_items, calibration=calibration)
        cells = (each_bce if name == "bce" else each_bpr)(positive, negative, unfit, again)
        if published and name == "bce":
            against = functional.softplus(negative - 1).masked_fill(unfit, 0.0).sum(dim=1, keepdim=True)
            count = (~unfit).sum(dim=1, keepdim=True).clamp_min(1)  # one, there
            cells = torch.cat([cells[:, :1], functional.softplus(-positive[:, 1:]) + against / count], dim=1)
        return cells


def _noting(weigh: Weigh, found: list[Tensor]) -> Weigh:
    """Return a `weigh` that keeps what it gave."""

    def noted(logits: Tensor, picked: Tensor, rows: slice) -> Tensor:
        found.append(weigh(logits, picked, rows))
        return found[-1]

    return noted


def _named(total: Tensor, shares: Tensor, entropy: bool, robust: bool) -> dict[str, Tensor]:
    """Split a loss into named parts; the gradient of all of them flows through the first."""
    parts: dict[str, Tensor] = {}
    for row, there, name, ranking in ((0, entropy, "target", "ranking"), (1, robust, "dro", "ranking_dro")):
        if there:
            parts[name] = shares[row, 0]
            if shares.shape[1] > 1:
                parts[ranking] = shares[row, 1:].sum()
    first = next(iter(parts))
    others = [value for name, value in parts.items() if name != first]
    parts[first] = total - torch.stack(others).sum() if others else total
    return parts


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
