"""Write the tables of README and docs from results/, between `<!-- NAME -->` and `<!-- /NAME -->`.

python benchmarks/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

import tables_methods as of_methods
import tables_models as of_models

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "<!-- /" in path.read_text(encoding="utf-8")
)
NOTHING_YET = "Not measured yet."


def main() -> None:
    """Fill every page."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8"), tables()), encoding="utf-8")


def filled(text: str, content: dict[str, str]) -> str:
    """Return a page with its tables replaced; where results/ has no figures yet, it says so."""

    def table(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{content.get(name, NOTHING_YET)}\n<!-- /{name} -->"

    return re.sub(r"<!-- ([\w -]+) -->.*?<!-- /\1 -->", table, text, flags=re.S)


def tables() -> dict[str, str]:
    """Return every table by name, of the figures that there are."""
    found = {}
    if demo := held("demo"):
        found["demo-table"] = of_models.demo_table(demo)
    if together := held("together"):
        found["together-table"] = of_models.demo_table(together)
    if peer := held("ml100k_sasrec"):
        found["sasrec-peer"] = of_models.peer_table(peer)
    if students := held("students"):
        rows = students["rows"]
        for name in sorted({row["student"] for row in rows} - {"popularity"}):
            shown = {name, "popularity", "transition_graph"}
            found[f"{name}-figures"] = of_models.student_table([row for row in rows if row["student"] in shown], name)
        found["students-table"] = of_models.marks_table(rows)
    if speed := held("training_speed"):
        found["speed-table"] = of_models.speed_table(speed)
    if (floor := held("floor")) and (scale := held("scale")):
        found["floor-table"] = of_models.floor_table(floor, scale)
    if annotation := held("annotation"):
        found["annotation-table"] = of_models.annotation_table(annotation)
        if "server" in annotation:
            found["estimate-table"] = of_models.estimate_table(annotation["server"])
    if distilled := held("dllm2rec"):
        found |= of_methods.method_tables(distilled)
        found["results-table"] = of_methods.results_table(distilled["rows"])
    if costs := held("method_costs"):
        found |= of_methods.cost_tables(costs)
    if rounds := held("llmd4rec"):
        found["llmd4rec-table"] = of_methods.rounds_table(rounds)
    if asking := held("alkdrec"):
        found["alkdrec-table"] = of_methods.asking_table(asking)
    if weak := held("alkdrec_published"):
        found["alkdrec-weak-table"] = of_methods.weak_table(weak)
    if compared := held("compare_ml100k"):
        found["compare-null"] = of_methods.null_table(compared["simulation"])
        if "rows" in compared:
            found["compare-table"] = of_methods.compare_table(compared)
    return found


def held(name: str) -> dict[str, Any] | None:
    """Return what results/NAME.json holds; None if there is no such file."""
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
