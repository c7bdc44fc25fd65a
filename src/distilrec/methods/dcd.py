"""DCD: dual correction distillation, list losses on what the student ranks most unlike the teacher.

Lee and Kim, "Dual Correction Strategy for Ranking Distillation in Top-N Recommender System", CIKM 2021. With ranks of an item for
an example (1 best) by teacher and student, an item is under-estimated by tanh(max(sharpness (rank_S - rank_T), 0)) and
over-estimated by tanh(max(sharpness (rank_T - rank_S), 0)). A items are drawn in proportion to the one, put in the teacher's
order as i_1..i_A, and B items j in proportion to the other. Without a target, which is known already,
    list(i, j) = -1 / A sum_a log( exp(y_ia) / (sum_{b >= a} exp(y_ib) + sum_j exp(y_j)) )
    L = L_student + weight (user_weight L_U + item_weight L_I + relaxed_weight L_R)
L_U: list() of an example's under- and over-estimated items. L_I: the same the other way round, for an item the examples ("users")
that teacher and student rank for it. L_R: list() of some of the teacher's items, one at rank r drawn with chance
~ exp(-r / rank_decay), above others; relaxed ranking distillation (Kang et al., CIKM 2020), which the paper adds its corrections to.

Deviations: (1) Discrepancies are those of the step, not of the last epoch. The student's rank is exact among the stored items
and estimated from `sampled` others, shared by the batch: no catalogue is sorted. (2) Only the teacher's top K is stored: the
rank of an item behind it is taken to be the middle of those left. Under-estimated are stored items alone. (3) The item side
ranks the examples of the batch, `states` of them, for `items` drawn from their lists. How well an example fits is where the item
stands on its list, since a teacher may give no scores, and scores of different lists need not compare; those without the item
share the ranks left. (4) A discrepancy of 0 is never drawn: there is nothing to correct. (5) The paper's likelihood is a sum over
A, here a mean, so that a weight need not follow how many are drawn. (6) L_R draws by the place on the stored list, the
target's counted where the teacher lists it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.knowledge.store import NOTHING, Knowledge
from distilrec.losses.picked import score
from distilrec.methods.base import Method
from distilrec.methods.drawing import draw, listed_among
from distilrec.settings import Settings

_ABSENT = -1e9  # a score that adds nothing to a sum of exponentials, and whose gradient is 0 and not NaN


class DCDSettings(Settings):
    """Settings of DCD; a weight of 0 switches a part off."""

    weight: float = Field(0.5, ge=0)
    user_weight: float = Field(1.0, ge=0)
    item_weight: float = Field(1.0, ge=0)
    relaxed_weight: float = Field(1.0, ge=0)
    under: int = Field(10, ge=1)
    over: int = Field(10, ge=1)
    sharpness: float = Field(0.1, gt=0)
    rank_decay: float = Field(10.0, gt=0)
    sampled: int = Field(128, ge=1)
    items: int = Field(64, ge=1)
    states: int = Field(256, ge=2)


class DCD(Method):
    """Learns from the teacher where its own ranks differ most, of items for an example and of examples for an item."""

    name = "dcd"
    Settings = DCDSettings
    needs = frozenset({"rankings"})
    settings: DCDSettings
    knowledge: Knowledge

    @classmethod
    def needs_of(cls, settings: DCDSettings) -> frozenset[str]:
        """See `Method.needs_of`."""
        parts = settings.user_weight + settings.item_weight + settings.relaxed_weight
        return cls.needs if settings.weight * parts > 0 else frozenset()

    def loss(self, batch: Batch, states: Tensor, table: Tensor) -> dict[str, Tensor]:
        """See `Method.loss`."""
        parts, settings = self.own_loss(batch, states, table), self.settings
        if not self.needs_of(settings):
            return parts
        items, scores, asked = self.knowledge.rankings(batch.examples)
        there = (scores > NOTHING) & asked[:, None]  # [T, K]
        ranking = states.new_zeros((), dtype=table.dtype)
        if settings.user_weight > 0 or settings.relaxed_weight > 0:
            ranking = ranking + self._user_side(states, table, items, there, batch.targets)
        if settings.item_weight > 0:
            ranking = ranking + settings.item_weight * self._item_side(states, table, items, there, batch.targets)
        return parts | {"ranking": settings.weight * ranking}

    def _user_side(self, states: Tensor, table: Tensor, items: Tensor, there: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted L_U + L_R, the mean over T."""
        settings = self.settings
        others = torch.randperm(len(table), device=states.device)[: settings.sampled]  # [m]
        off_list = ~listed_among(others, items, there)  # [T, m]
        listed, free = (score(states, table, some).to(table.dtype) for some in (items, others))
        missing = there & (items != targets[:, None])
        below = off_list & (others != targets[:, None]) & there.any(dim=1, keepdim=True)
        places = torch.arange(1, items.shape[1] + 1, device=items.device).expand_as(items).to(table.dtype)
        total = states.new_zeros((), dtype=table.dtype)
        if settings.relaxed_weight > 0:
            log_weights = (-places / settings.rank_decay).where(missing, -torch.inf)
            columns, drawn = in_order(*draw(log_weights, settings.under), places)
            total = total + settings.relaxed_weight * list_loss(listed.gather(1, columns), drawn, free, below).mean()
        if settings.user_weight > 0:
            count = there.sum(dim=1, keepdim=True)
            unknown = (count + 1 + len(table)) / 2  # [T, 1]
            teacher = torch.cat([places, unknown.expand_as(free).to(places)], dim=1)
            found = student_ranks(listed.detach(), there, free.detach(), off_list, len(table))
            every = torch.cat([listed, free], dim=1)
            each = self._correction(every, teacher, found, missing, torch.cat([missing, below], dim=1))
            total = total + settings.user_weight * each.mean()
        return total

    def _item_side(self, states: Tensor, table: Tensor, items: Tensor, there: Tensor, targets: Tensor) -> Tensor:
        """Return L_I: the mean over items drawn from the batch's lists, times the share of examples that have one."""
        settings = self.settings
        asked = there.any(dim=1)
        rows, known = (part[0] for part in draw(asked.to(table.dtype).log()[None], settings.states))  # [S]
        lists, on = items[rows], there[rows] & known[:, None]  # [S, K]
        entries, chosen = (part[0] for part in draw(on.flatten().to(table.dtype).log()[None], settings.items))
        wanted = lists.flatten()[entries]  # [I]
        width = lists.shape[1]
        place = places_of(wanted, lists, on, len(table))  # [I, S]
        scores = (table[wanted] @ states[rows].to(table.dtype).T).to(table.dtype)
        student = 1 + above(scores.detach(), [known.expand_as(scores)])[0]
        missing = known & (targets[rows] != wanted[:, None])
        teacher = tied_ranks(place, known, width + 1).to(table.dtype)
        each = self._correction(scores, teacher, student.to(table.dtype), missing & (place < width), missing)
        return (each * chosen).sum() / chosen.sum().clamp_min(1) * asked.to(table.dtype).mean()

    def _correction(self, scores: Tensor, teacher: Tensor, student: Tensor, raise_: Tensor, lower: Tensor) -> Tensor:
        """Return list() for each row, [R].

        Args:
            scores: [R, n] the student's.
            teacher: [R, n] ranks.
            student: [R, n] ranks.
            raise_: [R, a] bool, which of the first columns may be drawn as under-estimated.
            lower: [R, n] bool, which columns may be drawn as over-estimated.
        """
        gap = torch.tanh(self.settings.sharpness * (student - teacher))
        width = raise_.shape[1]
        under = gap[:, :width].clamp_min(0).log().where(raise_, -torch.inf)
        up, up_drawn = in_order(*draw(under, self.settings.under), teacher)
        down, down_drawn = draw((-gap).clamp_min(0).log().where(lower, -torch.inf), self.settings.over)
        return list_loss(scores.gather(1, up), up_drawn, scores.gather(1, down), down_drawn)


def in_order(columns: Tensor, drawn: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Put drawn columns [R, c] in the order of their ranks [R, n], those that were not drawn last."""
    order = ranks.gather(1, columns).masked_fill(~drawn, torch.inf).argsort(dim=1, stable=True)
    return columns.gather(1, order), drawn.gather(1, order)


def list_loss(upper: Tensor, upper_there: Tensor, lower: Tensor, lower_there: Tensor) -> Tensor:
    """Return list() above, [R]; 0 for a row without upper items.

    Args:
        upper: [R, a] scores, in the order they should have.
        upper_there: [R, a] bool.
        lower: [R, b] scores of what should come after all of them.
        lower_there: [R, b] bool.
    """
    upper = upper.masked_fill(~upper_there, _ABSENT)
    after = lower.masked_fill(~lower_there, _ABSENT).logsumexp(dim=1, keepdim=True)
    left = torch.logaddexp(upper.flip(1).logcumsumexp(dim=1).flip(1), after)  # all from an item on
    each = (left - upper).masked_fill(~upper_there, 0.0)
    return each.sum(dim=1) / upper_there.sum(dim=1).clamp_min(1)


def above(values: Tensor, counted: Sequence[Tensor]) -> list[Tensor]:
    """Return how many columns that count have a higher number than each column of [R, n].

    Args:
        values: [R, n].
        counted: [R, n] bool each, which columns count.

    Returns:
        [R, n] int32 for each of `counted`; equal numbers are not above each other.
    """
    order = descending(values)
    placed = values.gather(1, order)
    first = torch.ones_like(placed, dtype=torch.bool)  # of those alike
    torch.ne(placed[:, 1:], placed[:, :-1], out=first[:, 1:])
    found = []
    for flags in counted:
        there = flags.gather(1, order).to(torch.int32)
        before = (there.cumsum(dim=1, dtype=torch.int32) - there).masked_fill_(~first, 0).cummax(dim=1).values
        found.append(torch.empty_like(before).scatter_(1, order, before))
    return found


def descending(values: Tensor) -> Tensor:
    """Return the columns of [R, n] by their numbers, the highest first; [R, n]."""
    if values.device.type == "cpu":  # numpy sorts with vector instructions
        return torch.from_numpy(np.argsort(-values.numpy(), axis=1))
    return values.argsort(dim=1, descending=True)


def student_ranks(listed: Tensor, there: Tensor, free: Tensor, off_list: Tensor, n_items: int) -> Tensor:
    """Estimate ranks in the catalogue: exact among the listed items, the others' share scaled up from a sample.

    Args:
        listed: [T, K] scores of the teacher's items.
        there: [T, K] bool.
        free: [T, m] scores of sampled items.
        off_list: [T, m] bool, False for those that stand on the list.
        n_items: size of the catalogue.

    Returns:
        [T, K + m], 1 for the best.
    """
    every = torch.cat([listed, free], dim=1)
    left = n_items - there.sum(dim=1, keepdim=True)  # items behind the list
    scale = left / off_list.sum(dim=1, keepdim=True).clamp_min(1)
    on_list = torch.cat([there, torch.zeros_like(off_list)], dim=1)
    inside, outside = above(every, [on_list, torch.cat([torch.zeros_like(there), off_list], dim=1)])
    return 1 + inside + (outside * scale).to(every.dtype)


def places_of(wanted: Tensor, lists: Tensor, on: Tensor, n_items: int) -> Tensor:
    """Return where items [I] stand on lists [S, K] as far as these go (`on`, bool): 0 the best, K for not at all; [I, S]."""
    width = lists.shape[1]
    own = torch.full((n_items,), -1, device=lists.device)  # one row for each item, which may be wanted twice
    own[wanted] = torch.arange(len(wanted), device=lists.device)
    row = own[lists]
    listed, column = (on & (row >= 0)).nonzero(as_tuple=True)
    found = torch.full((len(wanted), len(lists)), width, device=lists.device)
    found.view(-1).scatter_reduce_(0, row[listed, column] * len(lists) + listed, column, "amin")
    return found[own[wanted]]


def tied_ranks(place: Tensor, known: Tensor, levels: int) -> Tensor:
    """Return ranks by `place`, those alike sharing the mean of theirs; [R, n].

    Args:
        place: [R, n] int64, 0 (best) to levels - 1.
        known: [n] bool, columns that count.
        levels: how many different places there are.
    """
    counts = torch.zeros(len(place), levels, device=place.device, dtype=torch.float32)
    counts.scatter_add_(1, place, known.to(counts.dtype).expand_as(place))
    middle = counts.cumsum(dim=1) - counts + (counts + 1) / 2
    return middle.gather(1, place)
