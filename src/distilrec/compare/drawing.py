"""Plots as SVG markup that takes its colours from the page, so that they are readable in light, in dark and on paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from typing import Any

from distilrec.compare.findings import name_of

_WIDTH, _LINE, _LABELS, _RIGHT = 860, 24, 300, 90
_HUES = ("#0a7d46", "#2f6fde", "#c2571a", "#8a4fbf", "#b8912b", "#b3261e", "#3b8f9e", "#77808c")
_STYLE = (
    "<style>svg { color: #1c2330; background: #fff; } text { fill: currentColor; font: 13px sans-serif; } .tick { fill: #6b7482; "
    "font-size: 12px; } .zero { stroke: #6b7482; } "
    "@media (prefers-color-scheme: dark) { svg { color: #e4e8ef; background: #14181f; } }</style>"
)


def forest(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Draw each row's gain over its plain student with its interval; filled where significant. Empty if there is no such row."""
    shown = [row for row in rows if metric in row.get("difference", {})]
    if not shown:
        return ""
    edges = [0.0, *(edge for row in shown for edge in row["difference_ci95"][metric])]
    low, high = min(edges), max(edges)
    pad = 0.05 * ((high - low) or 1.0)
    low, high = low - pad, high + pad
    wide = _WIDTH - _LABELS - _RIGHT

    def x(value: float) -> float:
        return _LABELS + wide * (value - low) / (high - low)

    tall = _LINE * len(shown) + 40
    parts = [f'<line class="zero" x1="{x(0):.1f}" y1="4" x2="{x(0):.1f}" y2="{tall - 32}"/>']
    for place, row in enumerate(shown):
        y = _LINE * place + 16
        start, end = row["difference_ci95"][metric]
        gain, verdict = row["difference"][metric], row["verdict"][metric]
        kind = verdict.replace(" ", "-")
        parts.append(f'<text x="{_LABELS - 10}" y="{y + 4}" text-anchor="end">{escape(name_of(row))}</text>')
        parts.append(f'<line class="span {kind}" x1="{x(start):.1f}" y1="{y}" x2="{x(end):.1f}" y2="{y}"/>')
        parts.append(f'<circle class="dot {kind}" cx="{x(gain):.1f}" cy="{y}" r="4.5"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{y + 4}">{gain:+.4f}</text>')
    for value in _ticks(low, high):
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{tall - 14}" text-anchor="middle">{value:+.3g}</text>')
    title = f"Gain in {metric} over the plain student, with 95 % intervals"
    return _svg(tall, title, parts)


def scatter(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Draw quality against time to rank a user, on a logarithmic axis; what no other row beats is filled. Empty without times."""
    shown = [row for row in rows if row.get("ms_per_user")]
    if len(shown) < 2:
        return ""
    times = [log10(row["ms_per_user"]) for row in shown]
    heights = [row["metrics"][metric] for row in shown]
    (left, right), (bottom, top) = _padded(times), _padded(heights)
    tall, base = 340, 290
    wide = _WIDTH - 90 - 200

    def at(row: Mapping[str, Any]) -> tuple[float, float]:
        along = (log10(row["ms_per_user"]) - left) / (right - left)
        return 90 + wide * along, base - (base - 20) * (row["metrics"][metric] - bottom) / (top - bottom)

    parts = [f'<line class="zero" x1="90" y1="{base}" x2="{90 + wide}" y2="{base}"/>',
             f'<line class="zero" x1="90" y1="20" x2="90" y2="{base}"/>']  # fmt: skip
    for value in _ticks(bottom, top):
        y = base - (base - 20) * (value - bottom) / (top - bottom)
        parts.append(f'<text class="tick" x="82" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in _ticks(left, right):
        x = 90 + wide * (value - left) / (right - left)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 20}" text-anchor="middle">{10**value:.3g}</text>')
    parts.append(f'<text class="tick" x="{90 + wide / 2:.0f}" y="{base + 42}" text-anchor="middle">ms a user</text>')
    taken: list[float] = []
    for row in sorted(shown, key=lambda row: at(row)[1]):
        x, y = at(row)
        kind = "better" if row.get("on_front") else "not-significant"
        parts.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        if row.get("on_front"):  # names of the others would cover each other
            place = max([y, *(other + 15 for other in taken if abs(other - y) < 15)])
            taken.append(place)
            parts.append(f'<text x="{x + 10:.1f}" y="{place + 4:.1f}">{escape(name_of(row))}</text>')
    return _svg(tall, f"{metric} against time to rank a user", parts)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through figures: `points` are (x, mean, low, high)."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


def curves(some: Sequence[Curve], title: str, along: str, *, base: tuple[str, float] | None = None) -> str:
    """Draw curves over a common axis, each with its intervals; `base` is a level to hold them against. Empty without two points."""
    points = [point for curve in some for point in curve.points]
    if len({point[0] for point in points}) < 2:
        return ""
    heights = [edge for point in points for edge in point[1:]] + ([base[1]] if base else [])
    (left, right), (bottom, top) = _padded([point[0] for point in points]), _padded(heights)
    tall, floor = 360, 310
    wide = _WIDTH - 90 - 240

    def x(value: float) -> float:
        return 90 + wide * (value - left) / (right - left)

    def y(value: float) -> float:
        return floor - (floor - 20) * (value - bottom) / (top - bottom)

    parts = [f'<line class="zero" x1="90" y1="{floor}" x2="{90 + wide}" y2="{floor}"/>',
             f'<line class="zero" x1="90" y1="20" x2="90" y2="{floor}"/>']  # fmt: skip
    for value in _ticks(bottom, top):
        parts.append(f'<text class="tick" x="82" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in _ticks(left, right):
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{floor + 20}" text-anchor="middle">{value:,.6g}</text>')
    parts.append(
        f'<text class="tick" x="{90 + wide / 2:.0f}" y="{floor + 42}" text-anchor="middle">{escape(along)}</text>'
    )
    ends: list[tuple[float, str, str]] = []  # height, colour of the dot, name
    if base:
        parts.append(
            f'<line class="zero" stroke-dasharray="4 4" x1="90" y1="{y(base[1]):.1f}" x2="{90 + wide}" y2="{y(base[1]):.1f}"/>'
        )
        ends.append((y(base[1]), "", base[0]))
    shift = 0.006 * (right - left)
    for place, curve in enumerate(some):
        hue = _HUES[place % len(_HUES)]
        own = sorted((px + shift * (place - (len(some) - 1) / 2), *rest) for px, *rest in curve.points)
        line = " ".join(f"{x(point[0]):.1f},{y(point[1]):.1f}" for point in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{hue}" stroke-width="2"/>')
        for px, mean, low, high in own:
            parts.append(
                f'<line x1="{x(px):.1f}" y1="{y(low):.1f}" x2="{x(px):.1f}" y2="{y(high):.1f}" stroke="{hue}" stroke-opacity="0.45"/>'
                f'<circle cx="{x(px):.1f}" cy="{y(mean):.1f}" r="3.5" fill="{hue}"/>'
            )
        ends.append((y(own[-1][1]), hue, curve.name))
    taken = 0.0
    for height, hue, name in sorted(ends):
        taken = max(height, taken + 17)
        if hue:
            parts.append(f'<circle cx="{90 + wide + 18}" cy="{taken:.1f}" r="4" fill="{hue}"/>')
        parts.append(f'<text x="{90 + wide + 28}" y="{taken + 4:.1f}">{escape(name)}</text>')
    return _svg(tall, title, parts)


def standalone(markup: str) -> str:
    """Return SVG markup as a file of its own, with its colours in it."""
    head, tail = markup.split(">", 1)
    return f"{head}>{_STYLE}{tail}\n"


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers within a range."""
    raw = (high - low) / 5
    size = 10.0 ** int(f"{raw:e}".partition("e")[2])
    step = next(size * part for part in (1, 2, 5, 10) if size * part >= raw)
    first = int(low / step) - 1
    found = [round((first + number) * step, 12) for number in range(20)]
    return [value for value in found if low <= value <= high]


def _svg(tall: int, title: str, parts: Sequence[str]) -> str:
    inner = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {tall}" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>\n{inner}\n</svg>"
    )
