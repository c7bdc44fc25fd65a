"""The table of a comparison as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from distilrec.compare.findings import name_of
from distilrec.evaluation.significance import NOT_SIGNIFICANT

_ESCAPED = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip


def as_markdown(content: Mapping[str, Any]) -> str:
    """Return advice and ranked tables as Markdown."""
    metrics: Sequence[str] = content["metrics"]
    lines = [f"# {content['name']}", ""]
    for advice in content["advice"]:
        lines += [f"**{advice['dataset']}.** {' '.join(advice['words'])}", ""]
    for dataset in content["datasets"]:
        lines += [
            f"## {dataset}",
            "",
            f"| model | {' | '.join(m.upper() for m in metrics)} | gain | verdict | ms a user | parameters |",
        ]
        lines.append("|---|" + "---|" * (len(metrics) + 4))
        for row in _of(content, dataset):
            figures = " | ".join(_figure(row, metric) for metric in metrics)
            lines.append(
                f"| {name_of(row).replace('|', '/')} | {figures} | {_gain(row, metrics[0])} | {_verdict(row, metrics[0])} "
                f"| {_time(row)} | {row['parameters']:,} |"
            )
        lines.append("")
    lines += [f"- {line}" for line in content["notes"]]
    return "\n".join(lines) + "\n"


def as_csv(content: Mapping[str, Any]) -> str:
    """Return one line a row and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["dataset", "student", "method", "teacher", "metric", "mean", "low", "high", "seeds", "difference", "difference_low",
         "difference_high", "p_holm", "verdict", "effect_size", "ms_per_user", "parameters", "usd", "train_seconds"]
    )  # fmt: skip
    for row in content["rows"]:
        for metric, mean in row["metrics"].items():
            low, high = row["ci95"][metric]
            gap = row.get("difference_ci95", {}).get(metric, ["", ""])
            writer.writerow(
                [row["dataset"], row["student"] or "", row["method"] or "", row["teacher"] or "", metric, mean, low, high,
                 " ".join(str(seed) for seed in row["seeds"]), row.get("difference", {}).get(metric, ""), *gap,
                 row.get("p_value", {}).get(metric, ""), row.get("verdict", {}).get(metric, ""),
                 _blank(row.get("effect_size", {}).get(metric)), _blank(row["ms_per_user"]), row["parameters"], _blank(row["usd"]),
                 row["train_seconds"]]
            )  # fmt: skip
    return text.getvalue()


def as_latex(content: Mapping[str, Any]) -> str:
    """Return one tabular a data set, best mean in bold, what is significantly above the plain student marked."""
    metrics: Sequence[str] = content["metrics"]
    lines = [
        "% Needs \\usepackage{booktabs}. $^\\uparrow$, $^\\downarrow$: significantly above, below the plain student (Holm)."
    ]
    for dataset in content["datasets"]:
        rows = _of(content, dataset)
        best = {metric: max((row["metrics"][metric] for row in rows), default=0.0) for metric in metrics}
        lines += ["", f"% {dataset}", r"\begin{tabular}{l" + "r" * len(metrics) + "}", r"\toprule"]
        lines += ["model & " + " & ".join(_tex(metric.upper()) for metric in metrics) + r" \\", r"\midrule"]
        for row in rows:
            cells = [_tex_cell(row, metric, best[metric]) for metric in metrics]
            lines.append(f"{_tex(name_of(row))} & " + " & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _of(content: Mapping[str, Any], dataset: str) -> list[Mapping[str, Any]]:
    return [row for row in content["rows"] if row["dataset"] == dataset]


def _figure(row: Mapping[str, Any], metric: str) -> str:
    low, high = row["ci95"][metric]
    return f"{row['metrics'][metric]:.4f} ({low:.4f} to {high:.4f})"


def _gain(row: Mapping[str, Any], metric: str) -> str:
    return f"{row['difference'][metric]:+.4f}" if metric in row.get("difference", {}) else ""


def _verdict(row: Mapping[str, Any], metric: str) -> str:
    if metric not in row.get("verdict", {}):
        return ""
    verdict, p = row["verdict"][metric], row["p_value"][metric]
    return f"{verdict} (p {'<0.0001' if p < 1e-4 else f'{p:.4f}'})"


def _time(row: Mapping[str, Any]) -> str:
    return "" if row["ms_per_user"] is None else f"{row['ms_per_user']:.3f}"


def _blank(value: Any) -> Any:
    return "" if value is None else value


def _tex(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in text)


def _tex_cell(row: Mapping[str, Any], metric: str, best: float) -> str:
    shown = f"{row['metrics'][metric]:.4f}"
    shown = rf"\textbf{{{shown}}}" if row["metrics"][metric] == best else shown
    verdict = row.get("verdict", {}).get(metric, NOT_SIGNIFICANT)
    return shown + {"better": r"$^\uparrow$", "worse": r"$^\downarrow$"}.get(verdict, "")
