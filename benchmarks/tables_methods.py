"""Tables of what methods bring, from results/: for `tables.py`."""

import statistics
from typing import Any

from tables_cells import DATASETS, interval

PAPER = {  # ALKDRec's own figures on HetRec-ML, about 500 sessions asked
    "fpmc": {"recall@10": 0.0215, "ndcg@10": 0.01019},
    "stamp": {"recall@10": 0.01623, "ndcg@10": 0.00799},
    "attmix": {"recall@10": 0.01095, "ndcg@10": 0.00547},
}


def results_table(rows: list[dict[str, Any]]) -> str:
    """Return plain students beside the same ones distilled by dllm2rec, where both have three seeds or more."""
    lines = ["| data | student | trained | HR@10 | NDCG@10 | gain | p |", "|---|---|---|---|---|---|---|"]
    by_key = {(row["dataset"], row["student"], row["method"]): row for row in rows}
    seeds = set()
    for (dataset, student, method), row in by_key.items():
        plain = by_key.get((dataset, row.get("against", student), "plain"))
        if method != "dllm2rec" or plain is None or min(len(row["seeds"]), len(plain["seeds"])) < 3:
            continue
        seeds.add(len(row["seeds"]))
        gain = row["metrics"]["ndcg@10"] / (row["metrics"]["ndcg@10"] - row["difference"]["ndcg@10"]) - 1
        said = {id(plain): "| |", id(row): f"| {gain:+.1%} | {row['users_and_seeds']['ndcg@10']['p']:.2g} |"}
        for one in (row,) if "against" in row else (plain, row):  # that plain one stands above it already
            how = "alone" if one is plain else "with an LLM teacher (dllm2rec)"
            cells = (DATASETS[dataset], student, how, interval(one, "hr@10"), interval(one, "ndcg@10"))
            lines.append(f"| {' | '.join(cells)} {said[id(one)]}")
    lines += others_plain(rows)
    lines += [
        "",
        f"{' or '.join(map(str, sorted(seeds)))} seeds; teacher: E4SRec on eight layers of SmolLM2-135M. Trained on the training part "
        "alone, whole catalogue ranked, items of the history taken out, targets that never occur in training counted; 95 % intervals "
        "over users, p over users and seeds. `results/dllm2rec.json`; all methods: [methods](docs/methods/README.md).",
    ]
    return "\n".join(lines)


def cost_tables(figures: dict[str, Any]) -> dict[str, str]:
    """Return what a step takes: a row for the page of every method, and the table of all."""
    threads = "one thread" if figures["threads"] == 1 else f"{figures['threads']} threads"
    caption = (
        f"{DATASETS[figures['dataset']]}, {figures['student']}, {figures['top_k']} teacher items, vectors {figures['vectors']} wide, "
        f"{figures['targets_a_step']:,} targets a step, {threads}, no GPU. `results/method_costs.json`."
    )
    head = ["| method | ms a training step | times plain |", "|---|---|---|"]
    rows = {
        row["method"]: f"| {row['method']} | {row['step_ms']:.1f} | {row['ratio_plain']:.2f} |"
        for row in sorted(figures["rows"], key=lambda row: row["step_ms"])
    }
    found = {
        f"cost {name}": "\n".join([*head, rows["plain"], line, "", caption])
        for name, line in rows.items()
        if name != "plain"
    }
    return found | {"costs-table": "\n".join([*head, *rows.values(), "", caption])}


def rounds_table(figures: dict[str, Any]) -> str:
    """Return both sides after every round, what they are held against, and ablations."""
    lines = [
        "| data | side | variant | round | seeds | HR@10 | NDCG@10 | p | p, seeds too |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in [*figures["rows"], *figures["ablations"]]:
        p = f"{row['p_value']['ndcg@10']:.2g}" if "p_value" in row else ""
        over_seeds = row.get("users_and_seeds", {}).get("ndcg@10")
        known = over_seeds is not None and over_seeds["seed_error"] is not None
        seeded = f"{over_seeds['p']:.2g}" if known else ""
        number = "" if row["round"] is None else str(row["round"])
        cells = (DATASETS[row["dataset"]], row["side"], row["variant"], number, str(len(row["seeds"])))
        lines.append(
            f"| {' | '.join(cells)} | {interval(row, 'hr@10')} | {interval(row, 'ndcg@10')} | {p} | {seeded} |"
        )
    ratios = figures.get("round_time_ratios", {})
    shown = " and ".join(f"{ratio:.2f} ({DATASETS[name]})" for name, ratio in ratios.items())
    lines += [
        "",
        "`kept`: the round that validation chose, seed by seed. Trained on the training part alone; whole catalogue ranked, items of "
        "the history taken out, targets that never occur in training counted; 95 % intervals over users. p of NDCG@10: a student "
        "against the plain one, an LLM against the one trained alone, an ablation against `llmd4rec` kept; Wilcoxon over users after "
        "Holm; `seeds too`: over users and seeds. Teachers have one seed, students of other seeds learned from the same ones."
        + (f" A round takes {shown} times what training the teacher alone to its best takes." if shown else "")
        + f" `{figures['command']}`.",
    ]
    return "\n".join(lines)


def asking_table(figures: dict[str, Any]) -> str:
    """Return students under every policy, a column a budget, and every policy beside a draw at random."""
    rows = figures.get("rows", [])
    lines = [*asking_lines(rows, "recall@10"), "", *asking_lines(rows, "ndcg@10"), ""]
    if rows:
        cost = figures["usd_per_session"]
        lines += [
            f"HetRec-ML, 2,465 test sessions, whole catalogue ranked, no filter; {len(rows[0]['seeds'])} seeds; GPT-4's recorded "
            "rankings (`tr`: the conventional teacher's; `authors_...`: what the paper's authors picked); `*`: differs from the "
            "plain student, Wilcoxon over sessions, p < .05 after Holm over all rows; (n): seeds of which the start was kept. "
            f"{asking_tests(figures)} A question costs about {cost['usd']:.4f} USD ({cost['model']}, list price). "
            f"Intervals and every p-value: `results/alkdrec.json`; curves: `results/plots/`; `{figures['command']}`.",
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


def weak_table(figures: dict[str, Any]) -> str:
    """Return the same for students that were trained as the paper says, untuned."""
    lines = [
        *asking_lines(figures["rows"], "recall@10"),
        "",
        f"As above, {len(figures['rows'][0]['seeds'])} seeds. {asking_tests(figures)} `results/alkdrec_published.json`; "
        f"`{figures['command']}`.",
    ]
    return "\n".join(lines)


def asking_lines(rows: list[dict[str, Any]], metric: str) -> list[str]:
    """Return the lines of a table: students and policies, a column a budget."""
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None})
    by_key = {(row["student"], row["policy"], row["budget"]): row for row in rows}
    lines = [
        f"| {metric.replace('ndcg', 'NDCG')} | policy | {' | '.join(f'{one:,} asked' for one in budgets)} |",
        "|---" * (len(budgets) + 2) + "|",
    ]
    for student, policy in dict.fromkeys((row["student"], row["policy"]) for row in rows):
        if (whole := by_key.get((student, policy, None))) is not None:
            cells = [f"{interval(whole, metric)}, nobody asked", *[""] * (len(budgets) - 1)]
        else:
            cells = [asked_cell(by_key.get((student, policy, one)), metric) for one in budgets]
        lines.append(f"| {student} | {policy} | {' | '.join(cells)} |")
    blank = " |" * (len(budgets) - 2)
    return lines + [f"| {name} | the paper's alkdrec | | {value[metric]:.5f} |{blank}" for name, value in PAPER.items()]


def asking_tests(figures: dict[str, Any]) -> str:
    """Say how many comparisons are significant."""
    rows, metrics = figures["rows"], ("recall@10", "ndcg@10")
    asked = [row["p_plain"][metric] for row in rows for metric in metrics if "p_plain" in row and row["budget"]]
    beside = [row["p_random"][metric] for row in rows for metric in metrics if "p_random" in row]
    pooled = [row["p_value"] for row in figures["policies"]]
    return (
        f"Of {len(asked)} comparisons with the plain student {sum(p < 0.05 for p in asked)} are significant, of {len(beside)} with "
        f"`random` at the same budget {sum(p < 0.05 for p in beside)}, of {len(pooled)} with `random` over all budgets "
        f"{sum(p < 0.05 for p in pooled)}."
    )


def asked_cell(row: dict[str, Any] | None, metric: str) -> str:
    """Return a figure, whether it differs from the plain student's, and how many seeds kept their start."""
    if row is None:
        return ""
    differs = "*" if row["p_plain"][metric] < 0.05 else ""
    return f"{row['metrics'][metric]:.4f}{differs}" + (f" ({row['unchanged']})" if row["unchanged"] else "")


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
    """Return tables: of all methods, of each, of baselines beside dllm2rec, of the ablations and of speed."""
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
        found["dllm2rec-ablations"] = ablations_table(rows, figures["ablations"])
    if figures.get("baselines"):
        found["baselines-table"] = baselines_table(figures["baselines"])
    if "speed" in figures:
        found["distilling-speed"] = distilling_table(figures)
    return found


def shown_method(row: dict[str, Any]) -> str:
    """Return what a row calls its method, marked where it is of an earlier report."""
    name: str = row.get("ablation", row["method"])
    return f"{name} `*`" if "earlier" in row else name


def others_plain(rows: list[dict[str, Any]]) -> list[str]:
    """Return a note on students that are tested against the plain training of another."""
    others = sorted({(row["student"], row["against"]) for row in rows if "against" in row})
    return [
        line for one, base in others for line in ("", f"{one} is held against plain {base}, the better plain student.")
    ]


def ablations_table(rows: list[dict[str, Any]], ablations: list[dict[str, Any]]) -> str:
    """Return the plain student, the whole method and what is left of it without a part; gains are over the same seeds."""
    lines = [
        "| data | student | method | seeds | HR@10 | NDCG@10 | NDCG@10 against plain | against the whole | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    places = {(row["dataset"], row["student"]) for row in ablations}
    whole = [
        row for row in rows if row["method"] in ("plain", "dllm2rec") and (row["dataset"], row["student"]) in places
    ]
    for row in whole + ablations:
        gains = row.get("gains", {})
        if row["method"] == "dllm2rec" and "ablation" not in row:
            gains = {
                "plain": row["metrics"]["ndcg@10"] / (row["metrics"]["ndcg@10"] - row["difference"]["ndcg@10"]) - 1
            }
        cells = ["" if gains.get(kind) is None else f"{gains[kind]:+.1%}" for kind in ("plain", "dllm2rec")]
        p = f"{row['p_value']['ndcg@10']:.2g}" if "ablation" in row and "p_value" in row else ""
        lines.append(
            f"| {DATASETS[row['dataset']]} | {row['student']} | {shown_method(row)} | {len(row['seeds'])} "
            f"| {interval(row, 'hr@10')} | {interval(row, 'ndcg@10')} | {' | '.join(cells)} | {p} |"
        )
    return "\n".join([*lines, *notes(ablations, "the whole method")])


def method_table(rows: list[dict[str, Any]]) -> str:
    """Return rows of students under methods, and what they are above the plain one."""
    lines = [
        "| data | student | method | seeds | HR@10 | NDCG@10 | NDCG@10 against plain | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {(row["dataset"], row["student"]): row["metrics"]["ndcg@10"] for row in rows if row["method"] == "plain"}
    for row in rows:
        base = plain.get((row["dataset"], row["student"]))
        if "difference" in row:  # of the same seeds
            base = row["metrics"]["ndcg@10"] - row["difference"]["ndcg@10"]
        gain = "" if base is None or row["method"] == "plain" else f"{row['metrics']['ndcg@10'] / base - 1:+.1%}"
        p = f"{row['p_value']['ndcg@10']:.2g}" if "p_value" in row else ""
        lines.append(
            f"| {DATASETS[row['dataset']]} | {row['student']} | {shown_method(row)} | {len(row['seeds'])} "
            f"| {interval(row, 'hr@10')} | {interval(row, 'ndcg@10')} | {gain} | {p} |"
        )
    return "\n".join([*lines, *others_plain(rows), *notes(rows, "the plain student")])


def notes(rows: list[dict[str, Any]], against: str) -> list[str]:
    """Return what stands below a table of rows that are tested `against` others."""
    lines: list[str] = []
    if any("earlier" in row for row in rows):
        lines += [
            "",
            "`*`: of an earlier report, whose ranks were not kept, from another training of the teacher (ten epochs, where "
            "it is three on Beauty now and six on Toys).",
        ]
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
    return lines


def baselines_table(rows: list[dict[str, Any]]) -> str:
    """Return every baseline beside dllm2rec, over the students and seeds that both were trained with."""
    lines = [
        "| data | baseline | students (seeds) | NDCG@10 against plain | dllm2rec, the same | dllm2rec above it, HR@10 | NDCG@10 | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = ", ".join(f"{student} ({len(seeds)})" for student, seeds in row["cells"].items())
        above = " | ".join(
            f"{row['difference'][metric]:+.4f} ({low:+.4f} to {high:+.4f})"
            for metric in ("hr@10", "ndcg@10")
            for low, high in [row["difference_ci95"][metric]]
        )
        lines.append(
            f"| {DATASETS[row['dataset']]} | {row['method']} | {cells} | {row['gain']:+.1%} | {row['dllm2rec_gain']:+.1%} "
            f"| {above} | {row['p_value']['ndcg@10']:.2g} |"
        )
    lines += [
        "",
        "Cells whose ranks are kept; gains are means over students and seeds, differences have 95 % intervals over users. The "
        "intervals are of means; p goes by the ranks of differences, not by their size: Wilcoxon signed-rank test of users' "
        "NDCG@10, averaged over students and seeds, after Holm over this table. Settings are those that "
        "validation on Beauty chose: of dllm2rec and soft_labels under each student, of the other baselines one weight each under "
        "SASRec (unkd's 1 and 3 were level, 3 was kept), and again under GRU4Rec (rrd, dcd, unkd, hint, htd, de, cd) and DROS (rrd, "
        "dcd, unkd). What was tried: `results/raw/dllm2rec_tried.jsonl`. `results/dllm2rec.json`.",
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
        f"{speed['preparing_seconds']:.1f} s. `{speed['command']}`. The published code was measured once, by hand; no script "
        "here repeats it.",
    ]
    return "\n".join(lines)
