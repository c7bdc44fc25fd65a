"""Plots as SVG markup that takes its colours from the page, so that they are readable in light, in dark and on paper."""

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from distilrec.compare.findings import name_of

_WIDTH, _LINE, _LABELS, _RIGHT = 860, 24, 300, 90


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
