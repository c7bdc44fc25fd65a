"""The report of a comparison: one HTML file that needs nothing from outside, light or dark as the reader's system is, and prints."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from distilrec.compare.drawing import Curve, curves, forest, scatter
from distilrec.compare.findings import name_of


def as_page(content: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        content: what results.json holds.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    metric = content["metrics"][0]
    parts = []
    for dataset in content["datasets"]:
        rows = [row for row in content["rows"] if row["dataset"] == dataset]
        if rows:
            parts.append(
                {
                    "name": dataset, "rows": rows, "forest": forest(rows, metric), "scatter": scatter(rows, metric),
                    "advice": next((one for one in content["advice"] if one["dataset"] == dataset), None),
                    "budgets": budget_curves(rows, metric), "learnt": [row for row in rows if "overlap" in row], "about": content["about"].get(dataset, {}),
                    "shown": list(rows[0]["groups"]["history"][0]["metrics"]) if rows[0]["groups"]["history"] else [],
                }
            )  # fmt: skip
    return environment.from_string(_PAGE).render(content=content, parts=parts, metric=metric, name_of=name_of)


def budget_curves(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, str]]:
    """Draw quality against examples asked, and against dollars, for students whose methods ask about more or fewer of them.

    Labels that differ in a number at their end are points of one curve.
    """
    drawn = []
    for student in dict.fromkeys(row["student"] for row in rows if row["student"] is not None):
        own = [row for row in rows if row["student"] == student]
        asking = [row for row in own if row.get("asked")]
        if len({row["asked"] for row in asking}) < 2:
            continue
        plain = next((("plain", row["metrics"][metric]) for row in own if "difference" not in row), None)
        for key, along in (("asked", "examples asked about"), ("usd", "US dollars")):
            by_name: dict[str, list[tuple[float, float, float, float]]] = {}
            for row in asking:
                if row[key]:
                    name = (
                        row["method"].rstrip("0123456789 -_") or row["method"]
                    )  # `random 250` and `random 500` are one curve
                    low, high = row["ci95"][metric]
                    by_name.setdefault(name, []).append((float(row[key]), row["metrics"][metric], low, high))
            some = [Curve(name, points) for name, points in by_name.items()]
            title = f"{student}: {metric} against {along}"
            if markup := curves(some, title, along, base=plain):
                drawn.append({"title": title, "markup": markup})
    return drawn


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>distilrec compare: {{ content.name }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fff; --line: #d5dae2; --soft: #f3f5f8; --up: #0a7d46; --down: #b3261e; --mute: #6b7482; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14181f; --line: #39414e; --soft: #1d232c; --up: #4bd08b; --down: #ff8a80; --mute: #98a2b3; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin-top: 1.8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { background: var(--soft); }
small { color: var(--mute); } td small { white-space: nowrap; } .better { color: var(--up); } .worse { color: var(--down); }
.advice { border-left: 4px solid var(--up); background: var(--soft); padding: .6rem 1rem; }
svg { width: 100%; height: auto; max-width: 54rem; } svg text { fill: currentColor; font: 13px system-ui, sans-serif; paint-order: stroke; stroke: var(--paper); stroke-width: 4px; } svg .tick { fill: var(--mute); font-size: 12px; }
svg .zero { stroke: var(--mute); stroke-width: 1; } svg .span { stroke: var(--mute); stroke-width: 2.5; } svg .dot { fill: var(--paper); stroke: var(--mute); stroke-width: 2; }
svg .span.better { stroke: var(--up); } svg .dot.better { fill: var(--up); stroke: var(--up); } svg .span.worse { stroke: var(--down); } svg .dot.worse { fill: var(--down); stroke: var(--down); }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; }
@media print { :root { --ink: #000; --paper: #fff; --line: #bbb; --soft: #f3f3f3; --up: #0a7d46; --down: #b3261e; --mute: #555; } body { max-width: none; margin: 0; font-size: 11px; } tr, svg, .advice { break-inside: avoid; } details > * { display: block; } .wide { overflow: visible; } }
</style>
</head>
<body>
<h1>distilrec compare: {{ content.name }}</h1>
{% if not content.complete %}<p class="worse">Partial: {{ content.skipped | length }} jobs were not done, {{ content.failed | length }} failed. The same command goes on with the rest.</p>{% endif %}
{% for part in parts %}
<h2>{{ part.name }}</h2>
{% if part.about %}<p>{{ "{:,}".format(part.about.n_users) }} histories, {{ "{:,}".format(part.about.n_items) }} items, {{ "{:,}".format(part.about.n_interactions) }} interactions.
Split: {{ part.about.split }}; {{ "{:,}".format(part.about.n_test) }} test examples, the whole catalogue ranked, ties against the model, seen items {{ "taken out" if part.about.history_filtered else "left in" }}.</p>{% endif %}
{% if part.advice %}<div class="advice">{% for line in part.advice.words %}{{ line }} {% endfor %}</div>{% endif %}
<h3>Ranked by {{ metric }}</h3>
<div class="wide"><table>
<tr><th>model</th>{% for m in content.metrics %}<th>{{ m.upper() }}</th>{% endfor %}<th>against plain</th><th>p, Holm</th><th>d<sub>z</sub></th><th>ms a user</th><th>ms alone</th><th>parameters</th><th>USD</th><th>seeds</th></tr>
{% for row in part.rows %}
<tr><td>{{ name_of(row) }}{% if row.on_front %} <small>&#9679; front</small>{% endif %}</td>
{% for m in content.metrics %}<td>{{ "%.4f"|format(row.metrics[m]) }}<br><small>{{ "%.4f"|format(row.ci95[m][0]) }} to {{ "%.4f"|format(row.ci95[m][1]) }}</small></td>{% endfor %}
{% if row.verdict is defined %}<td class="{{ row.verdict[metric] }}">{{ "%+.4f"|format(row.difference[metric]) }} {{ row.verdict[metric] }}<br><small>{{ "%+.4f"|format(row.difference_ci95[metric][0]) }} to {{ "%+.4f"|format(row.difference_ci95[metric][1]) }}</small></td>
<td>{{ "&lt;0.0001"|safe if row.p_value[metric] < 0.0001 else "%.4f"|format(row.p_value[metric]) }}</td><td>{{ "" if row.effect_size[metric] is none else "%+.3f"|format(row.effect_size[metric]) }}</td>{% else %}<td></td><td></td><td></td>{% endif %}
<td>{{ "" if row.ms_per_user is none else "%.3f"|format(row.ms_per_user) }}</td><td>{{ "" if row.latency_ms is none else "%.2f"|format(row.latency_ms) }}</td><td>{{ "{:,}".format(row.parameters) }}</td><td>{{ "?" if row.usd is none else "%.2f"|format(row.usd) }}</td><td>{{ row.seeds | length }}</td></tr>
{% endfor %}
</table></div>
<p><small>Intervals and p-values: over other users and other seeds (variance components, Satterthwaite's t); with one seed over users alone. Holm over
{{ content.family }} comparisons. d<sub>z</sub>: standard deviations of a single user's difference. Front: no other row is as good, as fast, as small and as cheap, and better in one.</small></p>
{% if part.forest %}<h3>Gains</h3>{{ part.forest | safe }}<p><small>Filled: significant after Holm.</small></p>{% endif %}
{% if part.scatter %}<h3>Quality and speed</h3>{{ part.scatter | safe }}<p><small>Filled and named: on the front.</small></p>{% endif %}
{% for drawn in part.budgets %}<h3>{{ drawn.title }}</h3>{{ drawn.markup | safe }}{% endfor %}
{% if part.learnt %}
<h3>What came over from the teacher</h3>
<div class="wide"><table>
<tr><th>model</th><th>share of the teacher's lead kept</th><th>best 20 shared with the teacher, plain</th><th>distilled</th></tr>
{% for row in part.learnt %}<tr><td>{{ name_of(row) }}</td><td>{{ "the teacher has no sure lead" if row.transfer is none else "%.0f %%"|format(100 * row.transfer) }}</td>{% for side in ("plain", "distilled") %}<td>{{ "the whole catalogue" if row.overlap[side] is none else "%.1f %%"|format(100 * row.overlap[side]) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
<h3>Groups of test examples</h3>
{% for kind, title in (("history", "by items in the history"), ("target_popularity", "by the target's training interactions")) %}
<div class="wide"><table>
<tr><th>{{ title }}</th>{% for group in part.rows[0].groups[kind] %}<th>{{ group.label }}<br><small>n {{ "{:,}".format(group.n) }}</small></th>{% endfor %}</tr>
{% for row in part.rows %}<tr><td>{{ name_of(row) }}</td>{% for group in row.groups[kind] %}<td>{{ "%.4f"|format(group.metrics[part.shown[1]]) }}{% if group.ci95[part.shown[1]] %}<br><small>{{ "%.4f"|format(group.ci95[part.shown[1]][0]) }} to {{ "%.4f"|format(group.ci95[part.shown[1]][1]) }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
<p><small>{{ part.shown[1] }}. Head: the 20 % of items with most training interactions; mid and tail: the others, cut where their interactions are halved; cold: none.</small></p>
<h3>Time and cost</h3>
<div class="wide"><table>
<tr><th>model</th><th>training, s (median of seeds)</th><th>teacher and its answers, s</th><th>USD</th><th>trials</th><th>tuned to</th><th>validation</th></tr>
{% for row in part.rows %}<tr><td>{{ name_of(row) }}</td><td>{{ "%.0f"|format(row.train_seconds) }}</td><td>{{ "%.0f"|format(row.teacher_seconds) if row.teacher_seconds else "" }}</td><td>{{ "?" if row.usd is none else "%.2f"|format(row.usd) }}</td><td>{{ row.trials or "" }}</td><td>{% for key, value in row["values"].items() %}{{ key }} {{ value }} {% endfor %}</td><td>{% for value in row.valid %}{{ "%.4f"|format(value) }} {% endfor %}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
<h2>How it was compared</h2>
<ul>{% for line in content.notes %}<li>{{ line }}</li>{% endfor %}</ul>
{% if content.failed %}<h3>Failed</h3><ul>{% for label, reason in content.failed.items() %}<li>{{ label }}: {{ reason }}</li>{% endfor %}</ul>{% endif %}
<h3>To run it again</h3>
<p>Save this as compare.yaml, then <code>distilrec compare compare.yaml</code>. Data: {% for name, about in content.about.items() %}{{ name }} {{ about.fingerprint[:16] }} {% endfor %}.
Versions: {% for library, number in content.versions.items() %}{{ library }} {{ number }}{{ "" if loop.last else ", " }}{% endfor %}.</p>
<pre>{{ content.config }}</pre>
</body>
</html>
"""
