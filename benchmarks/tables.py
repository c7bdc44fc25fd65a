"""Write the tables of README and docs from results/, between `<!-- NAME -->` and `<!-- /NAME -->`.

python benchmarks/tables.py
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "<!-- /" in path.read_text(encoding="utf-8")
)
NOTHING_YET = "Not measured yet."
DATASETS = {"amazon-beauty": "Amazon Beauty", "amazon-toys": "Amazon Toys", "ml-100k": "MovieLens-100K"}


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
    """Return every table by name."""
    demo = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    found = {"demo-table": demo_table(demo)}
    peer = ROOT / "results/ml100k_sasrec.json"
    if peer.exists():
        found["sasrec-peer"] = peer_table(json.loads(peer.read_text(encoding="utf-8")))
    students = ROOT / "results/students.json"
    if students.exists():
        rows = json.loads(students.read_text(encoding="utf-8"))["rows"]
        for name in sorted({row["student"] for row in rows} - {"popularity"}):
            shown = {name, "popularity", "transition_graph"}
            found[f"{name}-figures"] = student_table([row for row in rows if row["student"] in shown], name)
        found["students-table"] = marks_table(rows)
    speed = ROOT / "results/training_speed.json"
    if speed.exists():
        found["speed-table"] = speed_table(json.loads(speed.read_text(encoding="utf-8")))
    floor, scale = ROOT / "results/floor.json", ROOT / "results/scale.json"
    if floor.exists() and scale.exists():
        found["floor-table"] = floor_table(*(json.loads(path.read_text(encoding="utf-8")) for path in (floor, scale)))
    annotation = ROOT / "results/annotation.json"
    if annotation.exists():
        figures = json.loads(annotation.read_text(encoding="utf-8"))
        found["annotation-table"] = annotation_table(figures)
        if "server" in figures:
            found["estimate-table"] = estimate_table(figures["server"])
    methods = ROOT / "results/dllm2rec.json"
    if methods.exists():
        figures = json.loads(methods.read_text(encoding="utf-8"))
        found |= method_tables(figures)
        found["results-table"] = results_table(figures["rows"])
    rounds, asking = ROOT / "results/llmd4rec.json", ROOT / "results/alkdrec.json"
    if rounds.exists():
        found["llmd4rec-table"] = rounds_table(json.loads(rounds.read_text(encoding="utf-8")))
    if asking.exists():
        found["alkdrec-table"] = asking_table(json.loads(asking.read_text(encoding="utf-8")))
    compared = ROOT / "results/compare_ml100k.json"
    if compared.exists():
        figures = json.loads(compared.read_text(encoding="utf-8"))
        found["compare-null"] = null_table(figures["simulation"])
        if "rows" in figures:
            found["compare-table"] = compare_table(figures)
    return found


def results_table(rows: list[dict[str, Any]]) -> str:
    """Return plain students beside the same ones distilled by dllm2rec, where both have three seeds or more."""
    lines = ["| data | student | trained | HR@10 | NDCG@10 | gain | p |", "|---|---|---|---|---|---|---|"]
    by_key = {(row["dataset"], row["student"], row["method"]): row for row in rows}
    seeds = set()
    for (dataset, student, method), row in by_key.items():
        plain = by_key.get((dataset, student, "plain"))
        if method != "dllm2rec" or plain is None or min(len(row["seeds"]), len(plain["seeds"])) < 3:
            continue
        seeds.add(len(row["seeds"]))
        gain = row["metrics"]["ndcg@10"] / (row["metrics"]["ndcg@10"] - row["difference"]["ndcg@10"]) - 1
        for one, said in ((plain, "| |"), (row, f"| {gain:+.1%} | {row['users_and_seeds']['ndcg@10']['p']:.2g} |")):
            how = "alone" if one is plain else "with an LLM teacher (dllm2rec)"
            cells = (DATASETS[dataset], student, how, interval(one, "hr@10"), interval(one, "ndcg@10"))
            lines.append(f"| {' | '.join(cells)} {said}")
    lines += [
        "",
        f"{' or '.join(map(str, sorted(seeds)))} seeds; teacher: E4SRec on eight layers of SmolLM2-135M. Trained on the training part "
        "alone, whole catalogue ranked, items of the history taken out, targets that never occur in training counted; 95 % intervals "
        "over users, p over users and seeds. `results/dllm2rec.json`; all methods: [methods](docs/methods/README.md).",
    ]
    return "\n".join(lines)


def rounds_table(figures: dict[str, Any]) -> str:
    """Return both sides after every round, what they are held against, and ablations."""
    lines = ["| data | side | variant | round | seeds | HR@10 | NDCG@10 | p |", "|---|---|---|---|---|---|---|---|"]
    for row in [*figures["rows"], *figures["ablations"]]:
        p = f"{row['p_value']['ndcg@10']:.2g}" if "p_value" in row else ""
        number = "" if row["round"] is None else str(row["round"])
        cells = (DATASETS[row["dataset"]], row["side"], row["variant"], number, str(len(row["seeds"])))
        lines.append(f"| {' | '.join(cells)} | {interval(row, 'hr@10')} | {interval(row, 'ndcg@10')} | {p} |")
    ratio = figures.get("round_time_ratio")
    lines += [
        "",
        "Trained on the training part alone; whole catalogue ranked, items of the history taken out, targets that never occur in "
        "training counted; 95 % intervals over users; p: Wilcoxon signed-rank test of users' NDCG@10 against the plain student, Holm."
        + (f" A round takes {ratio:.2f} times what training the teacher alone to its best takes." if ratio else "")
        + f" `{figures['command']}`.",
    ]
    return "\n".join(lines)


def asking_table(figures: dict[str, Any]) -> str:
    """Return students under every policy and budget."""
    lines = [
        "| student | policy | asked | USD | seeds | recall@10 | NDCG@10 | p against plain | p against random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures.get("rows", []):
        tests = [f"{row[name]['recall@10']:.2g}" if name in row else "" for name in ("p_plain", "p_random")]
        asked = "" if row["budget"] is None else f"{row['budget']:,}"
        cells = (
            row["student"],
            row["policy"],
            asked,
            f"{row['usd']:.2f}" if row["usd"] else "",
            str(len(row["seeds"])),
        )
        figured = (interval(row, metric) for metric in ("recall@10", "ndcg@10"))
        lines.append(f"| {' | '.join((*cells, *figured, *tests))} |")
    lines += [
        "",
        "HetRec-ML, 2,465 test sessions, whole catalogue ranked, nothing taken out; GPT-4's recorded rankings; 95 % intervals over "
        f"sessions; p: Wilcoxon signed-rank test of sessions' recall@10, after Holm over all rows. `{figures['command']}`."
        if figures.get("rows")
        else "",
    ]
    if "end_to_end" in figures:
        end = figures["end_to_end"]
        lines += [
            "",
            f"End to end with nothing recorded: SmolLM2-135M behind a server on loopback, {end['asked']} chosen sessions of "
            f"MovieLens-100K, {end['minutes']:.1f} minutes on two cores; {end['usable']} replies could be used, "
            f"{end['repaired']} of them mended. "
            f"`{end['command']}`.",
        ]
    return "\n".join(lines)


def null_table(simulation: dict[str, Any]) -> str:
    """Return how often the statistics of a comparison were right where the truth was known."""
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value:.1%} |" for name, value in simulation.items() if isinstance(value, float)]
    return "\n".join(lines)


def compare_table(figures: dict[str, Any]) -> str:
    """Return the rows of the published comparison."""
    lines = [
        "| student | method | seeds | HR@10 | NDCG@10 | NDCG@10 against plain | p, Holm | ms a user |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        gain, p = (row.get(name, {}).get("ndcg@10") for name in ("difference", "p_value"))
        cells = (
            row["student"] or row["teacher"], row["method"] or "(teacher)", str(len(row["seeds"])), interval(row, "hr@10"),
            interval(row, "ndcg@10"), "" if gain is None else f"{gain:+.4f} {row['verdict']['ndcg@10']}",
            "" if p is None else f"{p:.2g}", "" if row["ms_per_user"] is None else f"{row['ms_per_user']:.3f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    killed = " and ".join(f"{minute:g}" for minute in figures["killed_at_minutes"])
    lines += [
        "",
        f"MovieLens-100K, {figures['minutes']:.0f} minutes on {figures['cores']} cores"
        + (f", killed with SIGKILL after {killed} minutes and started again" if killed else "")
        + f". `{figures['command']}`.",
        "",
        *(f"> {' '.join(advice['words'])}" for advice in figures["advice"]),
    ]
    return "\n".join(lines)


def method_tables(figures: dict[str, Any]) -> dict[str, str]:
    """Return one table for all methods, one for each, one of the ablations and one of speed."""
    rows, found = figures.get("rows", []), {}
    for name in sorted({row["method"] for row in rows}):
        shown = [row for row in rows if row["method"] in (name, "plain")]
        cells = {(row["dataset"], row["student"]) for row in rows if row["method"] == name}
        found[f"method-table {name}"] = method_table(
            [row for row in shown if (row["dataset"], row["student"]) in cells]
        )
    if rows:
        found["methods-table"] = method_table(rows)
    if figures.get("ablations"):
        whole = [
            row
            for row in rows
            if (row["dataset"], row["student"]) == ("amazon-toys", "sasrec") and row["method"] in ("plain", "dllm2rec")
        ]
        found["dllm2rec-ablations"] = method_table(whole + figures["ablations"], against="the whole method")
    if "speed" in figures:
        found["distilling-speed"] = distilling_table(figures)
    return found


def method_table(rows: list[dict[str, Any]], against: str = "the plain student") -> str:
    """Return rows of students under methods, and what they are above the plain one."""
    lines = [
        "| data | student | method | seeds | HR@10 | NDCG@10 | NDCG@10 against plain | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {(row["dataset"], row["student"]): row["metrics"]["ndcg@10"] for row in rows if row["method"] == "plain"}
    for row in rows:
        base = plain.get((row["dataset"], row["student"]))
        if "difference" in row and "ablation" not in row:  # of the same seeds
            base = row["metrics"]["ndcg@10"] - row["difference"]["ndcg@10"]
        gain = "" if base is None or row["method"] == "plain" else f"{row['metrics']['ndcg@10'] / base - 1:+.1%}"
        p = f"{row['p_value']['ndcg@10']:.2g}" if "p_value" in row else ""
        lines.append(
            f"| {DATASETS[row['dataset']]} | {row['student']} | {row.get('ablation', row['method'])} | {len(row['seeds'])} "
            f"| {interval(row, 'hr@10')} | {interval(row, 'ndcg@10')} | {gain} | {p} |"
        )
    if any(len(row["seeds"]) == 1 for row in rows):
        lines += [
            "",
            "Rows with one seed show what was seen, and claim nothing: seeds of one method differ by a few percent.",
        ]
    lines += [
        "",
        "Trained on the training part alone; whole catalogue ranked, items of the history taken out, targets that never occur in "
        f"training counted; 95 % intervals over users; p: Wilcoxon signed-rank test of users' NDCG@10 against {against}, after Holm "
        "over all rows. `results/dllm2rec.json`.",
    ]
    return "\n".join(lines)


def distilling_table(figures: dict[str, Any]) -> str:
    """Return seconds of an epoch: plain, distilling, and the naive reference."""
    speed = figures["speed"]
    plain, ours = (statistics.median(speed["seconds"][name]) for name in ("plain", "distilling"))
    naive, published = speed["naive"], speed["published"]
    lines = [
        "| SASRec on Beauty, teacher vectors 4,096 wide, K = 10 | seconds an epoch | against ours distilling |",
        "|---|---|---|",
        f"| plain | {plain:.1f} | {plain / ours:.2f} |",
        f"| distilling | {ours:.1f} ({figures['epoch_ratio_plain']:.2f} times plain) | 1 |",
        f"| the published code's way, written anew | {naive['epoch_seconds']:.0f} | {figures['epoch_ratio_naive']:.1f} |",
        f"| the published code, measured earlier on two cores | {published['distilling_seconds']} "
        f"| {published['distilling_seconds'] / ours:.1f} |",
        "",
        f"{speed['precision']}, {speed['threads']} threads, medians; preparing the vectors once took "
        f"{speed['preparing_seconds']:.1f} s. `{speed['command']}`.",
    ]
    return "\n".join(lines)


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


def interval(row: dict[str, Any], metric: str) -> str:
    """Return a figure with its interval."""
    low, high = row["ci95"][metric]
    return f"{row['metrics'][metric]:.4f} ({low:.4f} to {high:.4f})"


if __name__ == "__main__":
    main()
