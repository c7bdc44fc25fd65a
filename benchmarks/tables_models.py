"""Tables of plain students, of speed and of annotation, from results/: for `tables.py`."""

from typing import Any

from tables_cells import DATASETS, interval


def annotation_table(figures: dict[str, Any]) -> str:
    """Return rows per second of local teachers beside a plain loop."""
    lines = [
        "| teacher | precision | rows/s | plain loop | ratio | same top 20, in order | shared of top 20 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("e4srec", "bigrec"):
        for precision, part in figures.get(name, {}).get("precisions", {}).items():
            lines.append(
                f"| {name} | {precision} | {part['rows_per_s']:.1f} | {part['naive_rows_per_s']:.2f} | {part['ratio']:.1f} "
                f"| {part['identical_rankings']:.1%} | {part['overlap_top20']:.1%} |"
            )
    lines += [
        "",
        f"MovieLens-100K, SmolLM2-135M, {figures['machine']}; medians of several repeats. The plain loop asks about one example at a "
        "time, reads the whole prompt each time, and scores every position (e4srec) or calls transformers' beam search (bigrec).",
    ]
    return "\n".join(lines)


def estimate_table(server: dict[str, Any]) -> str:
    """Return what was foretold and measured on a real server."""
    lines = ["| | tokens in | tokens out |", "|---|---|---|"]
    lines += [
        f"| {what} | {server[what]['tokens_in']:,} | {server[what]['tokens_out']:,} |"
        for what in ("estimated", "measured")
    ]
    lines += [
        "",
        f"{server['rows']} sessions of MovieLens-100K, SmolLM2-135M-Instruct behind `transformers serve` on two cores, "
        "20 candidates, 10 wanted, 5 titles of history, the request for hints in it: "
        f"{server['cost_estimate_error']:+.1%} altogether. This model rambles to the limit every time. Of its replies "
        f"{server['usable']} could be used, all of them mended ({server['repaired_share']:.0%} repaired, "
        f"{server['unusable_share']:.0%} unusable): a model of this size cannot rank in this form.",
    ]
    return "\n".join(lines)


def floor_table(floor: dict[str, Any], scale: dict[str, Any]) -> str:
    """Return the step against its floor, and what a million items cost."""
    lines = ["| | |", "|---|---|"]
    for loss in ("ce", "sampled_softmax"):
        one = floor[loss]
        lines.append(
            f"| step with `{loss}`, {one['targets_per_step']:.0f} targets | {one['step_ms']:.1f} ms, "
            f"{one['ratio']:.2f} times its products |"
        )
    epoch, rank, steps = scale["epoch"], scale["rank"], scale["steps"]
    items, few = (f"{scale['settings'][key]:,}" for key in ("items", "few_items"))
    lines += [
        f"| epoch over {items} items, {epoch['targets']:,} targets | {epoch['seconds']:.0f} s, "
        f"peak {epoch['peak_rss_mb'] / 1024:.1f} GiB |",
        f"| step over {items} items | {steps['step_ms']:.1f} ms, {steps['ratio']:.2f} times that over {few} |",
        f"| ranking over {items} items | {rank['users_per_s']:.0f} users a second, peak {rank['peak_rss_mb'] / 1024:.1f} GiB |",
    ]
    return "\n".join(lines)


def student_table(rows: list[dict[str, Any]], name: str) -> str:
    """Return a student's figures on each data set, with what needs no training beside them."""
    lines = ["| data | model | trained on | seeds | HR@10 | NDCG@10 |", "|---|---|---|---|---|---|"]
    measured = {row["dataset"] for row in rows if row["student"] == name}
    for row in rows:
        if row["dataset"] in measured and (row["student"] == name or row["protocol"] == "train"):
            cells = (DATASETS[row["dataset"]], row["student"], trained_on(row), len(row["seeds"]))
            lines.append(f"| {' | '.join(map(str, cells))} | {interval(row, 'hr@10')} | {interval(row, 'ndcg@10')} |")
    ways = {row["dataset"]: row["counted"] for row in rows if row["dataset"] in measured}
    said = "; ".join(f"{DATASETS[name]}: {way}" for name, way in ways.items())
    return "\n".join(
        [*lines, "", f"Whole catalogue ranked, 95 % intervals over users. {said}. `results/students.json`."]
    )


def marks_table(rows: list[dict[str, Any]]) -> str:
    """Return plain students on the Amazon sets, counted in all four ways."""
    lines = [
        "| data | model | trained on | seeds | seen items | cold targets | HR@10 | NDCG@10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["dataset"].startswith("amazon"):
            for way, found in row["ways"].items():
                seen, cold = (part.split(" ", 1)[1] for part in way.split(", "))
                cells = (DATASETS[row["dataset"]], row["student"], trained_on(row), len(row["seeds"]), seen, cold)
                figures = (interval(found, metric) for metric in ("hr@10", "ndcg@10"))
                lines.append(f"| {' | '.join(map(str, (*cells, *figures)))} |")
    return "\n".join(lines)


def trained_on(row: dict[str, Any]) -> str:
    """Return the protocol in words."""
    return "train + validation" if row["protocol"] == "refit" else "train"


def speed_table(results: dict[str, Any]) -> str:
    """Return seconds, memory and ranking speed of all tools, with our ratio to each peer."""
    lines = [
        "| tool | cross-entropy, s an epoch: as documented | allocator tuned | best recipe found | sampled softmax: as documented "
        "| allocator tuned | best recipe found | peak MiB | users ranked a second |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tool in results["beauty"].items():
        ways = ("epoch_s_as_documented", "epoch_s_documented_any_allocator", "epoch_s")
        seconds = (*ways, *(f"sampled_{way}" for way in ways))
        cells = [f"{tool[key]:.1f}" if tool[key] is not None else "none" for key in seconds]
        lines.append(f"| {name} | {' | '.join(cells)} | {tool['peak_rss_mb']:.0f} | {tool['rank_users_per_s']:,.0f} |")
    return "\n".join(lines)


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
