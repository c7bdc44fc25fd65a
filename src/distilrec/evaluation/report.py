"""The report: one HTML file that needs nothing from outside, light or dark as the reader's system is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from distilrec.evaluation.groups import main_cutoff
from distilrec.files import write_text
from distilrec.panels import markup, panels

_SHOWN = ("hr@5", "hr@10", "hr@20", "ndcg@10", "mrr@10")
_GROUPS = {"history": "by items in the history", "target_popularity": "by the target's training interactions"}


@dataclass(frozen=True, slots=True)
class Case:
    """One user, for the eye: titles of the history (oldest first), the held-out title, each model's best titles."""

    user: str
    history: list[str]
    target: str
    recommended: dict[str, list[str]]


def write_report(
    path: Path,
    name: str,
    results: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    cases: Sequence[Case],
) -> None:
    """Write the report of one run.

    Args:
        path: the HTML file.
        name: of the run.
        results: content of results.json.
        curves: model -> history of its training (`Fit.history`).
        cases: users to show.
    """
    first = results["rows"][0]
    metrics = [metric for metric in _SHOWN if metric in first["metrics"]]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_PAGE).render(
        name=name,
        results=results,
        metrics=metrics,
        figure=_figure(curves),
        cases=cases,
        models=list(curves),
        parts=_parts(results["rows"]),
        lists=[metric for metric in first["lists"] if metric.endswith(f"@{_list_cutoff(first)}")],
    )
    write_text(path, page)


def _list_cutoff(row: Mapping[str, Any]) -> int:
    return main_cutoff([int(metric.rpartition("@")[2]) for metric in row["lists"]])


def _parts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of the group table: headings, and lines with a label, n and each model's figures."""
    first = rows[0]
    lines: list[dict[str, Any]] = [
        {"label": "all targets", "n": sum(group["n"] for group in first["groups"]["history"]), "cells": rows},
        {
            "label": "without cold targets",
            "n": first["without_cold"]["n"],
            "cells": [row["without_cold"] for row in rows],
        },
    ]
    for kind, title in _GROUPS.items():
        lines.append({"heading": title})
        for place, group in enumerate(first["groups"][kind]):
            low, high = group["range"]
            spread = f"{low}" if low == high else f"{low} to {high}"
            label = group["label"] if kind == "history" else f"{group['label']} ({spread})"
            lines.append({"label": label, "n": group["n"], "cells": [row["groups"][kind][place] for row in rows]})
    return lines


def _figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Draw loss and validation measure by epoch; return SVG markup."""
    figure, left, right = panels()
    for model, history in curves.items():
        left.plot([entry["epoch"] for entry in history], [entry["loss"] for entry in history], label=model)
        measured = [entry for entry in history if "valid" in entry]
        metric = "ndcg@10" if measured and "ndcg@10" in measured[0]["valid"] else next(iter(measured[0]["valid"]), "")
        right.plot([entry["epoch"] for entry in measured], [entry["valid"][metric] for entry in measured], label=model)
        right.set_title(f"validation {metric}")
    left.set_title("training loss")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    right.legend(fontsize="small")
    drawn = markup(figure, transparent=True)
    return drawn[drawn.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>distilrec: {{ name }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fff; --line: #d5dae2; --soft: #f3f5f8; --mark: #0a7d46; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14181f; --line: #39414e; --soft: #1d232c; --mark: #4bd08b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { background: var(--soft); } th.inner { text-align: right; }
small { opacity: .75; } td small { white-space: nowrap; } .hit { color: var(--mark); font-weight: 600; }
.figure { background: #fff; border-radius: 6px; padding: .5rem; } .figure svg { width: 100%; height: auto; }
.case { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; border-top: 1px solid var(--line); padding: .8rem 0; }
.case h3 { font-size: .9rem; margin: 0 0 .3rem; } .case ol, .case ul { margin: 0; padding-left: 1.2rem; }
</style>
</head>
<body>
<h1>distilrec: {{ name }}</h1>
<p>{{ results.dataset.name }}: {{ "{:,}".format(results.dataset.n_users) }} histories,
{{ "{:,}".format(results.dataset.n_items) }} items, {{ "{:,}".format(results.dataset.n_interactions) }} interactions.
Split: {{ results.dataset.split }}. Ranked: {{ results.protocol.ranking }}; seen items
{{ "taken out" if results.protocol.history_filtered else "left in" }}. Seed {{ results.seed }}.</p>
<h2>Test figures, with 95 % intervals</h2>
<div class="wide"><table>
<tr><th>model</th>{% for metric in metrics %}<th>{{ metric.upper() }}</th>{% endfor %}<th>parameters</th><th>ms a user</th><th>ms alone</th></tr>
{% for row in results.rows %}
<tr><td>{{ row.model }}<br><small>{{ row.role }}</small></td>
{% for metric in metrics %}<td>{{ "%.4f"|format(row.metrics[metric]) }}<br><small>{{ "%.4f"|format(row.ci95[metric][0]) }} to {{ "%.4f"|format(row.ci95[metric][1]) }}</small></td>{% endfor %}
<td>{{ "{:,}".format(row.parameters) }}</td><td>{{ "%.3f"|format(row.ms_per_user) }}</td><td>{{ "%.2f"|format(row.latency_ms) }}</td></tr>
{% endfor %}
</table></div>
<p><small>Intervals: {{ results.protocol.interval }}. One seed; a claim needs several and a paired test (distilrec evaluate A B).
ms a user: top 10 of the whole catalogue for many users, per user; ms alone: one user at a time.</small></p>
<h2>Groups of users, with 95 % intervals</h2>
{% set shown = results.rows[0].groups.history[0].metrics | list %}
<div class="wide"><table>
<tr><th rowspan="2">test examples</th><th rowspan="2">n</th>{% for row in results.rows %}<th colspan="{{ shown | length }}">{{ row.model }}</th>{% endfor %}</tr>
<tr>{% for row in results.rows %}{% for metric in shown %}<th class="inner">{{ metric.upper() }}</th>{% endfor %}{% endfor %}</tr>
{% for line in parts %}
{% if line.heading %}
<tr><th colspan="{{ 2 + results.rows | length * shown | length }}">{{ line.heading }}</th></tr>
{% else %}
<tr><td>{{ line.label }}</td><td>{{ "{:,}".format(line.n) }}</td>
{% for cell in line.cells %}{% for metric in shown %}<td>{% if metric in cell.metrics %}{{ "%.4f"|format(cell.metrics[metric]) }}<br><small>{{ "%.4f"|format(cell.ci95[metric][0]) }} to {{ "%.4f"|format(cell.ci95[metric][1]) }}</small>{% endif %}</td>{% endfor %}{% endfor %}</tr>
{% endif %}
{% endfor %}
</table></div>
<p><small>Head: the 20 % of items with most training interactions; mid and tail: the others, cut where their interactions are halved; cold: none.
Small groups have wide intervals, and with many groups some differ by luck.</small></p>
<h2>What is recommended</h2>
<div class="wide"><table>
<tr><th>model</th>{% for metric in lists %}<th>{{ metric }}</th>{% endfor %}</tr>
{% for row in results.rows %}
<tr><td>{{ row.model }}<br><small>{{ row.role }}</small></td>{% for metric in lists %}<td>{{ "%.3f"|format(row.lists[metric]) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p><small>coverage: share of the catalogue in any list; popularity: mean percentile by training interactions (0.5 = evenly from the catalogue);
gini: how unevenly items are listed (0 = all equally often).</small></p>
<h2>Training</h2>
<div class="figure">{{ figure|safe }}</div>
<h2>Three users</h2>
{% for case in cases %}
<div class="case">
<div><h3>User {{ case.user }}: last items</h3><ul>{% for title in case.history %}<li>{{ title }}</li>{% endfor %}</ul>
<p>held out: <span class="hit">{{ case.target }}</span></p></div>
{% for model in models %}
<div><h3>{{ model }}</h3><ol>{% for title in case.recommended[model] %}<li{% if title == case.target %} class="hit"{% endif %}>{{ title }}</li>{% endfor %}</ol></div>
{% endfor %}
</div>
{% endfor %}
<p><small>Versions: {% for library, number in results.versions.items() %}{{ library }} {{ number }}{{ "" if loop.last else ", " }}{% endfor %}.</small></p>
</body>
</html>
"""
