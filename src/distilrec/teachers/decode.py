"""Text from a causal language model by beam search, many continuations of many texts at once.

What texts share is computed once. The common beginning of all (an instruction) is a `Prefix`, whose keys and values are kept.
A text may be continued at several places (after each item of a history): its branches all read the one set of keys and
values. And the beams of a branch share it too: their tokens are queries of one attention call over the text's own cache, each
of which sees the text up to its branch's place and the tokens of its own ancestors, nothing else. So a beam that changes its
parent copies no cache; only its row of the mask changes. Only states that a token is chosen from go through the output head.

The search is that of transformers' `generate` with `length_penalty=0`: a text scores the sum of its tokens' log-probabilities,
the end token included, which is the log-probability of the text; at each step the best `beams` candidates are looked at, those
that end are set aside, and `beams` others live on. Since a score only falls, a branch is done as soon as its best ended text is
no worse than its best living one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SCORES = 1 << 22  # scores of tokens held at a time


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a branch was continued with.

    Attributes:
        tokens: the best text found, without the end token.
        score: its log-probability.
        ended: whether it came to an end, or was cut off at the most tokens.
    """

    tokens: list[int]
    score: float
    ended: bool


class Prefix:
    """Keys and values of a beginning that many texts share.

    Args:
        body: the decoder, without its output head.
        tokens: the beginning; may be empty.
        embedded: its vectors instead, [1, P, D].
    """

    def __init__(self, body: Any, tokens: Sequence[int] = (), embedded: Tensor | None = None) -> None:
        self.body = body
        self.length = len(tokens) if embedded is None else embedded.shape[1]
        self.layers: list[tuple[Tensor, Tensor]] = []
        if self.length == 0:
            return
        given = {"input_ids": torch.tensor([list(tokens)], device=body.device)} if embedded is None else {}
        if embedded is not None:
            given = {"inputs_embeds": embedded}
        cache = _new_cache(body)
        with torch.inference_mode():
            body(**given, past_key_values=cache, use_cache=True)
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self, rows: int) -> Any:
        """Return a cache for `rows` texts that all begin so."""
        cache = _new_cache(self.body)
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return cache


def _new_cache(body: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=body.config)


@dataclass(slots=True)
class _Beams:
    """What lives on, [b] each, those of one branch together; all branches have equally many.

    Attributes:
        branch: whose they are.
        score: log-probability so far.
        tokens: [b, t] chosen so far.
        slots: [b, t] where in its text's cache each of them stands.
    """

    branch: Tensor
    score: Tensor
    tokens: Tensor
    slots: Tensor

    def pick(self, rows: Tensor) -> "_Beams":
        return _Beams(self.branch[rows], self.score[rows], self.tokens[rows], self.slots[rows])


class Decoder:
    """Beam search.

    Args:
        body: the decoder, without its output head.
        head: [V, D] the head's weights.
        prefix: what all texts begin with.
        ends: tokens that end a continuation.
        beams: how many continuations of a branch are followed.
        max_tokens: most tokens of a continuation, its end included.
    """

    def __init__(
        self, body: Any, head: Tensor, prefix: Prefix, *, ends: Sequence[int], beams: int, max_tokens: int
    ) -> None:
        self.body, self.head, self.prefix = body, head, prefix
        self.beams, self.max_tokens = beams, max_tokens
        self.ends = torch.tensor(sorted(set(ends)), device=head.device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[list[Continuation]]:
        """Continue every text at each of its places.

        Args:
            texts: tokens of each text behind the prefix, none of them empty.
            places: for each text the numbers of tokens, 1..len(text), after which it is to be continued.

        Returns:
            One continuation for each place of each text.
        """
        search = _Search(self, texts, places)
        while search.choose():
            search.forward()
        found = iter(search.found)
        return [[one for _ in some if (one := next(found)) is not None] for some in places]


class _Search:
    """One call of a decoder as it stands."""

    def __init__(self, decoder: Decoder, texts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> None:
        self.decoder = decoder
        device = decoder.head.device
        self.width = max(len(text) for text in texts)
        tokens = torch.zeros(len(texts), self.width, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
        self.cache = decoder.prefix.cache(len(texts))
        hidden = decoder.body(
            input_ids=tokens.to(device), past_key_values=self.cache, use_cache=True
        ).last_hidden_state  # [R, L, D]
        pairs = [(row, place) for row, some in enumerate(places) for place in some]
        self.row, self.place = torch.tensor(pairs, device=device).T.contiguous()  # [E] each
        self.states = hidden[self.row, self.place - 1]  # [b, D]
        count = len(pairs)
        none = torch.empty(count, 0, dtype=torch.int64, device=device)
        self.beams = _Beams(torch.arange(count, device=device), torch.zeros(count, device=device), none, none)
        self.found: list[Continuation | None] = [None] * count

    def choose(self) -> bool:
        """Choose each branch's next tokens; set aside what has ended. Returns whether anything lives on."""
        beams, decoder = self.beams, self.decoder
        many = decoder.beams
        branches = beams.branch.unique_consecutive()
        wanted = min(many + len(decoder.ends), len(decoder.head))
        values, indices = self._likeliest(wanted)
        scores = beams.score[:, None] + values
        each = len(beams.branch) // len(branches)
        scores, tokens = scores.view(len(branches), -1), indices.view(len(branches), -1)  # [e, each * wanted]
        ending = torch.isin(tokens, decoder.ends)
        self._set_aside(branches, scores, tokens, ending, each)
        living = scores.masked_fill(ending, -torch.inf).topk(min(many, scores.shape[1]), dim=1)
        done = self._finish(branches, living, tokens, each)
        keep = ~done
        parents = (torch.arange(len(branches), device=keep.device)[:, None] * each + living.indices // wanted)[keep]
        picked = beams.pick(parents.flatten())
        chosen = tokens.gather(1, living.indices)[keep].flatten()
        self.beams = _Beams(
            picked.branch,
            living.values[keep].flatten(),
            torch.cat([picked.tokens, chosen[:, None]], dim=1),
            picked.slots,
        )
        return len(chosen) > 0

    def _likeliest(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and numbers of each beam's likeliest next tokens, [b, count] each, best first."""
        head = self.decoder.head
        rows = max(1, _SCORES // len(head))
        values, indices = [], []
        for first in range(0, len(self.states), rows):
            logits = (self.states[first : first + rows] @ head.T).float()
            best = logits.topk(count, dim=1)
            values.append(best.values - logits.logsumexp(dim=1, keepdim=True))
            indices.append(best.indices)
        return torch.cat(values), torch.cat(indices)

    def _set_aside(self, branches: Tensor, scores: Tensor, tokens: Tensor, ending: Tensor, each: int) -> None:
        """Remember the best candidate that ends, of those among the best `beams` of its branch."""
        top = scores.topk(min(self.decoder.beams, scores.shape[1]), dim=1)
        ended = ending.gather(1, top.indices)
        value, at = top.values.masked_fill(~ended, -torch.inf).max(dim=1)
        parent = torch.arange(len(branches), device=at.device) * each + (
            top.indices.gather(1, at[:, None])[:, 0] // (scores.shape[1] // each)
        )
        for place in value.isfinite().nonzero()[:, 0].tolist():
            branch, score = int(branches[place]), float(value[place])
            before = self.found[branch]
            if before is None or score > before.score:
                self.found[branch] = Continuation(self.beams.tokens[parent[place]].tolist(), score, True)

    def _finish(self, branches: Tensor, living: Any, tokens: Tensor, each: int) -> Tensor:
        """Return which branches are done, [e]; one at its most tokens takes the best text, ended or not."""
        full = self.beams.tokens.shape[1] + 1 >= self.decoder.max_tokens
        top = living.values[:, 0].tolist()
        done = []
        for place, branch in enumerate(branches.tolist()):
            found = self.found[branch]
            beaten = found is not None and found.score >= top[place]
            if full and not beaten:
                at = int(living.indices[place, 0])
                parent = place * each + at // (tokens.shape[1] // each)
                text = [*self.beams.tokens[parent].tolist(), int(tokens[place, at])]
                self.found[branch] = Continuation(text, top[place], False)
            done.append(full or beaten)
        return torch.tensor(done, device=branches.device)

    def forward(self) -> None:
        """Read the chosen tokens: the states that the next ones are chosen from."""
        self._drop_finished_texts()
        beams = self.beams
        device = beams.branch.device
        row, place = self.row[beams.branch], self.place[beams.branch]  # [b]
        column = _rank_within(row)
        rows, columns = self.cache.layers[0].keys.shape[0], int(column.max()) + 1
        held = self.cache.get_seq_length()
        start = self.decoder.prefix.length
        tokens = torch.zeros(rows, columns, dtype=torch.int64, device=device)
        tokens[row, column] = beams.tokens[:, -1]
        positions = torch.zeros_like(tokens)
        positions[row, column] = start + place + beams.tokens.shape[1] - 1
        beams.slots = torch.cat([beams.slots, (held + column)[:, None]], dim=1)
        sees = torch.zeros(rows, columns, held + columns, dtype=torch.bool, device=device)
        text = torch.arange(held + columns, device=device) < (start + place)[:, None]  # [b, K]
        sees[row, column] = text.scatter(1, beams.slots, True)
        dtype = self.states.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
        hidden = self.decoder.body(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.states = hidden[row, column]

    def _drop_finished_texts(self) -> None:
        """Take texts that nothing lives on in out of the cache, once they are half of it."""
        rows = self.cache.layers[0].keys.shape[0]
        alive = self.row[self.beams.branch].unique()
        if 2 * len(alive) > rows:
            return
        self.cache.batch_select_indices(alive)
        moved = torch.zeros(rows, dtype=torch.int64, device=alive.device)
        moved[alive] = torch.arange(len(alive), device=alive.device)
        self.row = moved[self.row]  # of texts that are gone: anything, nobody asks any more


def _rank_within(groups: Tensor) -> Tensor:
    """Return how many earlier entries are in the same group, for each of [b] entries whose groups ascend."""
    first = torch.searchsorted(groups, groups)
    return torch.arange(len(groups), device=groups.device) - first
