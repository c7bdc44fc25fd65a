"""From texts to items by distance: hand-computed, and the fast way against a plain sort."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distilrec.teachers.grounding import Grounding

TITLES = ["Alien", "Brazil", "Casablanca", "Dune"]
CORNERS = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 10.0]])


class Reader:
    """Knows the vectors of some texts, and remembers which it was asked to read."""

    def __init__(self, known: dict[str, list[float]]) -> None:
        self.known, self.read = known, list[str]()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.read += texts
        return torch.tensor([self.known[text] for text in texts])


def grounding(
    reader: Reader,
    *,
    vectors: Tensor = CORNERS,
    titles: Sequence[str] = TITLES,
    popularity: Tensor | None = None,
    gamma: float = 0.0,
) -> Grounding:
    popularity = torch.zeros(len(vectors)) if popularity is None else popularity
    return Grounding(vectors, titles, reader, popularity=popularity, gamma=gamma)


def test_by_hand() -> None:
    found = grounding(Reader({"origin": [0.0, 0.0], "right": [3.0, 0.0]}))
    expected = [[0.0, 5.0, 10.0, 10.0], [3.0, 4.0, 73**0.5, 109**0.5]]
    assert found.distances(["origin", "right"]).tolist() == [pytest.approx(row) for row in expected]
    items, scores = found.nearest(["right", "origin"], 3)
    assert items.tolist() == [[0, 1, 2], [0, 1, 2]]  # 2 and 3 are equally far from the origin: the smaller id
    assert scores.tolist() == [pytest.approx([-3.0, -4.0, -(73**0.5)]), pytest.approx([0.0, -5.0, -10.0])]
    assert (items.dtype, scores.dtype) == (torch.int64, torch.float32)


def test_popularity_by_hand() -> None:
    # Of the origin: distances 0, 5, 10, 10, from 0 to 1: 0, 0.5, 1, 1; divided by (1 + p)^2: 1, 1, 1.44, 4.
    popularity = torch.tensor([0.0, 0.0, 0.2, 1.0])
    found = grounding(Reader({"origin": [0.0, 0.0]}), popularity=popularity, gamma=2.0)
    expected = [0.0, 0.5, 1 / 1.44, 0.25]
    assert found.distances(["origin"])[0].tolist() == pytest.approx(expected)
    items, scores = found.nearest(["origin"], 4)
    assert items.tolist() == [[0, 3, 1, 2]]  # the popular one comes before a nearer one
    assert scores[0].tolist() == pytest.approx([0.0, -0.25, -0.5, -1 / 1.44])


def test_popularity_does_not_count_where_gamma_is_0() -> None:
    reader = Reader({"right": [3.0, 0.0]})
    plain, popular = (grounding(reader, popularity=torch.tensor(p)) for p in ([0.0] * 4, [0.1, 0.2, 0.3, 0.4]))
    assert torch.equal(plain.distances(["right"]), popular.distances(["right"]))


def test_equal_distances_adjusted() -> None:
    """Nothing to tell the items apart by: no division by zero."""
    found = grounding(Reader({"x": [1.0]}), vectors=torch.zeros(4, 1), gamma=1.0)
    assert found.distances(["x"]).tolist() == [[0.0] * 4]
    assert found.nearest(["x"], 4)[0].tolist() == [[0, 1, 2, 3]]


def test_a_text_that_is_a_title_has_its_vector_and_is_not_read() -> None:
    reader = Reader({})
    titles = ["Alien", "Two   words\n", "Two words", ""]
    found = grounding(reader, titles=titles)
    items, scores = found.nearest(["Alien", "Two words", ""], 1)
    assert items.tolist() == [[0], [1], [3]]  # of two items of one title: the first
    assert scores.tolist() == [[0.0]] * 3
    assert reader.read == []


def test_every_text_is_read_once() -> None:
    reader = Reader({"x": [0.0, 1.0], "y": [2.0, 2.0]})
    found = grounding(reader)
    found.nearest(["x", "Dune", "y", "x"], 2)
    found.distances(["y", "x", "x"])
    assert sorted(reader.read) == ["x", "y"]
    assert found.embed(["y", "Dune", "x", "y"]).tolist() == [[2.0, 2.0], [0.0, 10.0], [0.0, 1.0], [2.0, 2.0]]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilrec.teachers.grounding._KEPT", 3)
    known = {str(number): [float(number), 0.0] for number in range(20)}
    reader = Reader(known)
    found = grounding(reader)
    for first in range(0, 18, 2):
        texts = [str(first), str(first + 1), "0", "Alien"]
        assert found.embed(texts).tolist() == [known.get(text, [0.0, 0.0]) for text in texts]
        assert len(found._known) <= 3 + 3
    assert len(reader.read) < 20 + 9


def test_no_more_than_there_are() -> None:
    for gamma in (0.0, 1.0):
        items, scores = grounding(Reader({"x": [0.0, 1.0]}), gamma=gamma).nearest(["x"], 99)
        assert sorted(items[0].tolist()) == [0, 1, 2, 3]
        assert scores.shape == (1, 4)


VECTORS = st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=60)


@given(vectors=VECTORS, texts=VECTORS, k=st.integers(1, 70), gamma=st.sampled_from([0.0, 0.5, 3.0]))
def test_like_a_plain_sort(vectors: list[list[int]], texts: list[list[int]], k: int, gamma: float) -> None:
    """Small whole numbers: many ties, and all sums exact."""
    table, wanted = torch.tensor(vectors).double(), torch.tensor(texts).double()
    popularity = torch.linspace(0, 1, len(table))
    reader = Reader({f"text {n}": vector for n, vector in enumerate(wanted.tolist())})
    found = grounding(
        reader, vectors=table, titles=[f"title {n}" for n in range(len(table))], popularity=popularity, gamma=gamma
    )
    items, scores = found.nearest([f"text {n}" for n in range(len(wanted))], k)
    for row, text in enumerate(wanted):
        distance = (table - text).square().sum(dim=1).sqrt()
        if gamma > 0:
            low, high = distance.min(), distance.max()
            distance = (distance - low) / (high - low).clamp_min(1e-12) / (1 + popularity.double()) ** gamma
        distance = distance.float()
        expected = sorted(range(len(table)), key=lambda item: (distance[item].item(), item))[:k]
        assert scores[row].tolist() == pytest.approx([-distance[item].item() for item in expected], abs=1e-6)
        if gamma == 0:  # the ties of quotients hang on their last digit
            # Beyond as many equals as are looked at, which of them comes last may differ; the distance does not.
            assert items[row].tolist() == expected or len(table) > k + 16


def test_near_vectors_far_from_zero_are_told_apart() -> None:
    """Hidden states share a large part: products of numbers alone would lose what differs."""
    generator = torch.Generator().manual_seed(0)
    table = 300 + torch.randn(200, 64, generator=generator) * 0.05
    texts = table[:20] + torch.randn(20, 64, generator=generator) * 0.002
    reader = Reader({f"text {n}": vector for n, vector in enumerate(texts.tolist())})
    items, scores = grounding(reader, vectors=table, titles=[f"t{n}" for n in range(200)]).nearest(
        list(reader.known), 1
    )
    assert items[:, 0].tolist() == list(range(20))
    exact = (texts.double() - table[:20].double()).square().sum(dim=1).sqrt()
    torch.testing.assert_close(-scores[:, 0].double(), exact, rtol=1e-3, atol=1e-5)
