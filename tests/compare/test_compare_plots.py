"""Plots of figures at the edge: valid markup, every coordinate a number within the picture, every row shown."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from distilrec.compare.drawing import Curve, curves, forest, scatter
from distilrec.compare.page import budget_curves

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, mean: float, ms: float | None, edges: Sequence[float] = (), **changes: Any) -> dict[str, Any]:
    tested = {
        "difference": {"hr@1": sum(edges) / 2}, "difference_ci95": {"hr@1": list(edges)}, "verdict": {"hr@1": "better"},
    } if edges else {}  # fmt: skip
    return {
        "student": "a", "method": name, "teacher": "t", "metrics": {"hr@1": mean}, "ci95": {"hr@1": [mean, mean]},
        "ms_per_user": ms, "on_front": True, **tested, **changes,
    }  # fmt: skip


FIGURES: dict[str, list[dict[str, Any]]] = {
    "all alike": [row("x", 0.5, 1.0, (0, 0)), row("y", 0.5, 1.0, (0, 0))],
    "nothing hit": [row("x", 0.0, 0.001, (0, 0)), row("y", 0.0, 1000.0, (0, 0))],
    "far apart": [row("x", 1e-6, 1e-4, (-1e-7, 1e-7)), row("y", 1.0, 1e4, (-40, 60)), row("z", 0.3, None, (0.1, 0.2))],
    "below nought": [row("x", 0.1, 2.0, (-0.3, -0.2)), row("y", 0.2, 3.0, (-0.2, -0.1))],
    "one tested": [row("x", 0.3, 2.0, (0.01, 0.3)), row("plain", 0.3, 2.0)],
    "many": [row(f"m{n}", n / 60, 1 + n / 10, (n / 100 - 0.1, n / 100)) for n in range(60)],
}


def inside(markup: str) -> ElementTree.Element:
    """Read a drawing; all its coordinates are numbers within it."""
    drawing = ElementTree.fromstring(markup)
    _, _, wide, tall = map(float, drawing.attrib["viewBox"].split())
    for part in drawing.iter():
        for names, edge in ((("x", "x1", "x2", "cx"), wide), (("y", "y1", "y2", "cy"), tall)):
            for name in names:
                assert -1 <= float(part.attrib.get(name, 0)) <= edge + 1
        for x, y in (point.split(",") for point in part.attrib.get("points", "").split()):
            assert 0 <= float(x) <= wide
            assert 0 <= float(y) <= tall
    return drawing


@pytest.mark.parametrize("what", list(FIGURES))
def test_plots_of_figures_at_the_edge(what: str) -> None:
    rows = FIGURES[what]
    gains = inside(forest(rows, "hr@1"))
    assert len(list(gains.iter(f"{SVG}circle"))) == sum("difference" in one for one in rows)
    spans = [part.attrib for part in gains.iter(f"{SVG}line") if part.attrib["class"].startswith("span")]
    middles = [(float(span["x1"]) + float(span["x2"])) / 2 for span in spans]
    assert [float(dot.attrib["cx"]) for dot in gains.iter(f"{SVG}circle")] == pytest.approx(middles, abs=0.11)
    speeds = inside(scatter(rows, "hr@1"))
    assert len(list(speeds.iter(f"{SVG}circle"))) == sum(one["ms_per_user"] is not None for one in rows)
    for drawing in (gains, speeds):
        assert any(part.attrib.get("class") == "tick" for part in drawing.iter(f"{SVG}text"))


def test_nothing_to_draw_draws_nothing() -> None:
    assert forest([row("x", 0.5, 1.0)], "hr@1") == ""
    assert scatter([row("x", 0.5, 1.0), row("y", 0.5, None)], "hr@1") == ""
    assert curves([Curve("x", [(1, 0.5, 0.4, 0.6)]), Curve("y", [(1, 0.5, 0.4, 0.6)])], "t", "a") == ""


def test_budgets_are_points_of_one_curve() -> None:
    """Labels that differ in the number at their end belong together; the plain student is a level."""
    rows = [
        row("random 250", 0.2, 1.0, (0.0, 0.1), asked=250, usd=0.5),
        row("random 500", 0.3, 1.0, (0.0, 0.1), asked=500, usd=1.0),
        row("<best>-250", 0.4, 1.0, (0.0, 0.1), asked=250, usd=None),
        row("<best>-500", 0.5, 1.0, (0.0, 0.1), asked=500, usd=1.0),
        row("plain", 0.1, 1.0, asked=None, usd=0.0),
    ]  # fmt: skip
    asked, dollars = budget_curves(rows, "hr@1")
    assert asked["title"] == "a: hr@1 against examples asked about"
    drawing = inside(asked["markup"])
    assert [len(line.attrib["points"].split()) for line in drawing.iter(f"{SVG}polyline")] == [2, 2]
    words = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"random", "<best>", "plain", "examples asked about"} <= set(words)
    assert [len(line.attrib["points"].split()) for line in inside(dollars["markup"]).iter(f"{SVG}polyline")] == [2, 1]
    heights = [
        float(dot.attrib["cy"])
        for dot in drawing.iter(f"{SVG}circle")
        if "r" in dot.attrib and dot.attrib["r"] == "3.5"
    ]
    gaps = [one - other for one, other in pairwise(heights)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)  # 0.2, 0.3, 0.4, 0.5: evenly spaced
    assert gaps[0] > 0  # and upwards
    assert budget_curves(rows[:1] + rows[4:], "hr@1") == []


def test_braces_in_a_name_stay_as_they_are() -> None:
    drawing = inside(curves([Curve("set {} of {dot}", [(1, 0.5, 0.4, 0.6), (2, 0.5, 0.4, 0.6)])], "title", "along"))
    assert "set {} of {dot}" in [text.text for text in drawing.iter(f"{SVG}text")]
