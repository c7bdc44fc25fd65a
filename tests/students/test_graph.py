"""The transition graph and popularity: by hand, against plain loops, and blind to what is held out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import log1p
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distilrec.data.batching import held_out_windows, make_batch
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, InputError
from distilrec.settings import checked
from distilrec.students import graph
from distilrec.students.graph import (
    BASELINES,
    Baseline,
    Popularity,
    PopularitySettings,
    TransitionGraph,
    TransitionGraphSettings,
)

A, B, C, D, E = range(5)
ONE_STEP = {"window": 1, "decay": 1.0, "last": 1, "second_hop": 0.0, "max_neighbours": 100}


@pytest.fixture(scope="module")
def five(make_dataset: Callable[..., Dataset]) -> Dataset:
    """Training parts `a b c`, `a b d`, `b c`, `a c b`; the last two items of each history are held out."""
    return make_dataset(["abcde", "abdce", "bcae", "acbda"])


@pytest.fixture(scope="module")
def noise(make_dataset: Callable[..., Dataset]) -> Dataset:
    generator = np.random.default_rng(5)
    return make_dataset(
        [[f"i{item:02d}" for item in generator.integers(0, 12, generator.integers(3, 25))] for _ in range(40)]
    )


def fit(dataset: Dataset, **settings: object) -> TransitionGraph:
    return TransitionGraph.fit(dataset, TransitionGraphSettings(**{**ONE_STEP, **settings}))  # type: ignore[arg-type]


def scored(model: Baseline, *histories: list[int]) -> Tensor:
    lengths = torch.tensor([len(history) for history in histories])
    padded = torch.tensor([history + [0] * (int(lengths.max()) - len(history)) for history in histories])
    return model.score(padded, lengths)


def row(model: TransitionGraph, item: int) -> dict[int, float]:
    starts = model.tensors["starts"].tolist()
    some = slice(starts[item], starts[item + 1])
    return dict(zip(model.tensors["neighbours"][some].tolist(), model.tensors["weights"][some].tolist(), strict=True))


def test_by_hand(five: Dataset) -> None:
    counted = fit(five, window=2, decay=0.5, normalise="none")
    assert row(counted, A) == {B: 2.5, C: 1.5, D: 0.5}
    assert row(counted, B) == {C: 2.0, D: 1.0}
    assert row(counted, C) == {B: 1.0}
    assert row(counted, D) == row(counted, E) == {}
    assert counted.tensors["popularity"].tolist() == [3, 4, 3, 1, 0]

    both = fit(five, window=2, decay=0.5, last=2, last_decay=0.5)
    expected = [0, 0.5 * 2.5 / 4.5, 2 / 3 + 0.5 * 1.5 / 4.5, 1 / 3 + 0.5 * 0.5 / 4.5, 0]
    torch.testing.assert_close(scored(both, [E, A, B])[0], torch.tensor(expected), rtol=0, atol=2e-6)

    twice = fit(five, window=2, decay=0.5, second_hop=0.1)
    from_a = {B: 2.5 / 4.5, C: 1.5 / 4.5, D: 0.5 / 4.5}
    hop = {B: from_a[C], C: from_a[B] * 2 / 3, D: from_a[B] / 3}
    expected = [0, *(from_a[item] + 0.1 * hop[item] for item in (B, C, D)), 0]
    torch.testing.assert_close(scored(twice, [A])[0], torch.tensor(expected), rtol=0, atol=2e-6)

    logs = fit(five, window=2, decay=0.5, normalise="log")
    expected = [0, 1, log1p(1.5) / log1p(2.5), log1p(0.5) / log1p(2.5), 0]
    torch.testing.assert_close(scored(logs, [A])[0], torch.tensor(expected), rtol=0, atol=2e-6)

    assert scored(Popularity.fit(five, PopularitySettings()), [D], [E]).tolist() == [[3, 4, 3, 1, 0]] * 2


def test_popularity_decides_where_transitions_do_not(five: Dataset) -> None:
    counted = fit(five)
    assert scored(counted, [E])[0].argsort(descending=True, stable=True).tolist() == [B, A, C, D, E]  # E leads nowhere
    kept = fit(five, window=2, decay=1.0, max_neighbours=1)
    assert row(kept, A) == {B: 1.0}  # 3 against 2 for C
    assert row(fit(five, window=2, decay=0.5, max_neighbours=2), A) == pytest.approx({B: 2.5 / 4, C: 1.5 / 4})


def naive(dataset: Dataset, settings: TransitionGraphSettings, history: list[int]) -> list[float]:
    """The equations of the file, one interaction at a time. Without `max_neighbours`."""
    histories = [
        dataset.items[start : start + end].tolist()
        for start, end in zip(dataset.offsets, dataset.split.train_end, strict=False)
    ]
    popularity = Counter(item for items in histories for item in items)
    count: dict[int, Counter[int]] = {item: Counter() for item in range(dataset.n_items)}
    for items in histories:
        for place, item in enumerate(items):
            for distance in range(1, settings.window + 1):
                if place >= distance:
                    count[items[place - distance]][item] += settings.decay ** (distance - 1)
    weight: dict[int, dict[int, float]] = {}
    for source, targets in count.items():
        discounted = {j: value / popularity[j] ** settings.discount for j, value in targets.items()}
        if settings.normalise == "log":
            most = max((log1p(value) for value in discounted.values()), default=1)
            weight[source] = {j: log1p(value) / most for j, value in discounted.items()}
        else:
            total = sum(discounted.values()) if settings.normalise == "row" else 1
            weight[source] = {j: value / total for j, value in discounted.items()}
    most_popular = max(popularity.values())
    scores = [1e-6 * popularity[item] / most_popular for item in range(dataset.n_items)]
    for n, source in enumerate(history[::-1][: settings.last]):
        for middle, first in weight[source].items():
            scores[middle] += settings.last_decay**n * first
            for target, second in weight[middle].items():
                scores[target] += settings.last_decay**n * settings.second_hop * first * second
    return scores


@pytest.mark.parametrize("hops_held", [1, 100, 1 << 22])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": 3, "decay": 0.5, "last": 2},
        {"window": 30, "decay": 0.9, "last": 3, "second_hop": 0.4},
        {"window": 2, "discount": 0.5, "normalise": "log", "second_hop": 1.0},
        {"window": 4, "discount": 1.0, "normalise": "none", "last": 2},
    ],
)
def test_as_plain_loops_count_it(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], hops_held: int
) -> None:
    monkeypatch.setattr(graph, "_HOPS", hops_held)
    model = fit(noise, **changes)
    histories = [[1], [3, 3], [11, 0, 5], [2, 7, 2, 7], [9, 8]]
    expected = torch.tensor([naive(noise, model.settings, history) for history in histories])
    scores = scored(model, *histories)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cap", [1, 3, 7])
def test_the_heaviest_neighbours_are_kept(noise: Dataset, cap: int) -> None:
    every, kept = fit(noise, window=3, normalise="none"), fit(noise, window=3, normalise="none", max_neighbours=cap)
    popularity = noise.popularity
    for item in range(noise.n_items):
        order = sorted(row(every, item).items(), key=lambda pair: (-pair[1], -popularity[pair[0]], pair[0]))
        assert row(kept, item) == dict(order[:cap])


@pytest.mark.parametrize("name", list(BASELINES))
def test_what_is_held_out_is_not_looked_at(noise: Dataset, name: str) -> None:
    lengths = np.diff(noise.offsets)
    place = np.arange(len(noise.items)) - np.repeat(noise.offsets[:-1], lengths)
    held_out = place >= np.repeat(noise.split.train_end, lengths)
    assert 0 < held_out.sum() < len(held_out)
    kind = BASELINES[name]
    seen = kind.fit(noise, kind.Settings())
    changed = np.where(held_out, (noise.items + 5) % noise.n_items, noise.items).astype(np.int32)
    blind = kind.fit(replace(noise, items=changed), kind.Settings())
    assert {key: value.tolist() for key, value in blind.tensors.items()} == {
        key: value.tolist() for key, value in seen.tensors.items()
    }
    other = kind.fit(replace(noise, items=(noise.items + 5).astype(np.int32) % noise.n_items), kind.Settings())
    assert other.tensors["popularity"].tolist() != seen.tensors["popularity"].tolist()


@pytest.mark.parametrize("name", list(BASELINES))
def test_padding_and_items_out_of_reach_are_irrelevant(noise: Dataset, name: str) -> None:
    kind = BASELINES[name]
    model = kind.fit(noise, kind.Settings())
    lengths = torch.tensor([1, 2, 5])
    histories = torch.randint(noise.n_items, (3, 5), generator=torch.Generator().manual_seed(0))
    scores = model.score(histories, lengths)
    assert scores.shape == (3, model.n_items)
    for number, length in enumerate(lengths.tolist()):
        read = histories[number, max(0, length - model.max_length) : length]
        assert torch.equal(model.score(read[None], torch.tensor([len(read)]))[0], scores[number])
    padded = torch.where(torch.arange(5) < lengths[:, None], histories, noise.n_items - 1)
    assert torch.equal(model.score(padded, lengths), scores)
    scores.zero_()  # what it gave is the caller's
    assert model.score(histories, lengths).abs().max() > 0


def test_it_learns_what_comes_next(tiny_dataset: Dataset) -> None:
    """The next item is always (item + 1) mod n."""
    model = TransitionGraph.fit(tiny_dataset, TransitionGraphSettings())
    examples = tiny_dataset.examples("test")
    batch = make_batch(
        tiny_dataset, held_out_windows(tiny_dataset, examples, model.max_length), np.arange(len(examples))
    )
    assert model.score(batch.histories, batch.lengths).argmax(dim=1).tolist() == batch.targets.tolist()


@pytest.mark.parametrize("window", [1, 3])
def test_histories_without_a_transition(noise: Dataset, window: int) -> None:
    short = replace(noise, split=replace(noise.split, train_end=np.minimum(noise.split.train_end, 1)))
    model = fit(short, window=window, second_hop=1.0)
    popularity = short.popularity / short.popularity.max()
    assert scored(model, [0])[0].numpy() == pytest.approx(1e-6 * popularity)


@pytest.mark.parametrize("name", list(BASELINES))
def test_saved_and_loaded(noise: Dataset, name: str, tmp_path: Path) -> None:
    kind = BASELINES[name]
    assert kind.name == name
    model = kind.fit(noise, kind.Settings())
    path = tmp_path / "baseline.safetensors"
    model.save(path)
    loaded = kind.load(path)
    assert loaded.settings == model.settings
    assert loaded.n_items == noise.n_items
    assert torch.equal(scored(loaded, [1, 2], [3]), scored(model, [1, 2], [3]))


@pytest.mark.parametrize("name", list(BASELINES))
def test_what_is_no_baseline_cannot_be_loaded(noise: Dataset, name: str, tmp_path: Path) -> None:
    kind, path = BASELINES[name], tmp_path / "baseline.safetensors"
    with pytest.raises(InputError, match=f"not a saved {name}"):
        kind.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="Fit it again"):
        kind.load(path)
    for other in BASELINES.values():
        other.fit(noise, other.Settings()).save(path)
        if other is not kind:
            with pytest.raises(InputError, match=f"it holds {other.name}"):
                kind.load(path)
    save_file({"popularity": torch.ones(3)}, path, {"baseline": name, "settings": "{}"})
    with pytest.raises(InputError, match=f"not a saved {name}"):
        kind.load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windw": 2}, "Did you mean 'window'"),
        ({"window": 0}, "window"),
        ({"decay": 0}, "decay"),
        ({"last_decay": 1.5}, "last_decay"),
        ({"max_neighbours": 0}, "max_neighbours"),
        ({"normalise": "rows"}, "normalise"),
        ({"second_hop": -1}, "second_hop"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(TransitionGraphSettings, settings, where="baseline transition_graph")
