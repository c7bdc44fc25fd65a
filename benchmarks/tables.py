"""Write the tables of README and docs from results/, between `<!-- NAME -->` and `<!-- /NAME -->`.

python benchmarks/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/methods/dllm2rec.md", "docs/students/sasrec.md", "docs/teachers/e4srec.md")


def main() -> None:
    """Fill every page."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8"), tables()), encoding="utf-8")


def filled(text: str, content: dict[str, str]) -> str:
    """Return a page with its tables replaced."""
    for name, table in content.items():
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- /{name} -->", f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text, flags=re.S
        )
    return text


def tables() -> dict[str, str]:
    """Return every table by name."""
    demo = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    found = {"demo-table": demo_table(demo)}
    peer = ROOT / "results/ml100k_sasrec.json"
    if peer.exists():
        found["sasrec-figures"] = peer_table(json.loads(peer.read_text(encoding="utf-8")))
    return found


def demo_table(results: dict[str, Any]) -> str:
    """Return the demo's rows, with intervals."""
    lines = ["| model | role | HR@10 | NDCG@10 | ms a user | parameters |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        hr, ndcg = (interval(row, metric) for metric in ("hr@10", "ndcg@10"))
        lines.append(
            f"| {row['model']} | {row['role']} | {hr} | {ndcg} | {row['ms_per_user']:.3f} | {row['parameters']:,} |"
        )
    seconds = sum(stage["seconds"] for stage in results["stages"])
    lines += [
        "",
        f"MovieLens-100K, leave-one-out, whole catalogue ranked, seed {results['seed']}, 95 % intervals over users; "
        f"stages {seconds / 60:.1f} min, peak memory {results['peak_rss_mb'] / 1024:.1f} GiB, two CPU cores. "
        "One seed: the intervals overlap, so this shows that the chain works, not which model is better.",
    ]
    return "\n".join(lines)


def peer_table(results: dict[str, Any]) -> str:
    """Return our plain SASRec beside RecBole's."""
    lines = ["| MovieLens-100K | seeds | HR@10 | NDCG@10 | MRR@10 |", "|---|---|---|---|---|"]
    for name, label in (("distilrec", "distilrec"), ("recbole", "RecBole 1.2.1")):
        mean = results[name]["mean"]
        figures = " | ".join(f"{mean[metric]:.4f}" for metric in ("hr@10", "ndcg@10", "mrr@10"))
        lines.append(f"| {label} | {len(results[name]['seeds'])} | {figures} |")
    cells = []
    for metric in ("hr@10", "ndcg@10", "mrr@10"):
        gap = results["difference"][metric]
        low, high = gap["ci95"]
        cells.append(f"{gap['ours_minus_recbole']:+.4f} ({low:+.4f} to {high:+.4f})")
    lines.append(f"| difference, paired by user | | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(row: dict[str, Any], metric: str) -> str:
    """Return a figure with its interval."""
    low, high = row["ci95"][metric]
    return f"{row['metrics'][metric]:.4f} ({low:.4f} to {high:.4f})"


if __name__ == "__main__":
    main()
