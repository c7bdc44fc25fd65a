"""Whom to ask: students tuned on GPT-4's recorded rankings of the sessions that each policy picks, at equal budgets.

    python benchmarks/alkdrec.py train              # an hour or two: every cell that is not trained yet
    python benchmarks/alkdrec.py train --students fpmc --seeds 0 --threads 1
    python benchmarks/alkdrec.py report             # results/alkdrec.json
    python benchmarks/alkdrec.py train --regime published       # students trained as the paper says; then report, likewise

Data: HetRec-ML as ALKDRec's authors cut it, 12,323 sessions, GPT-4's rankings of 4,992 training sessions. A policy sees all training
sessions, and the first of its draws that were annotated are taken; `authors_*` are the authors' own recorded selections. `tr` learns
from the conventional teacher's rankings of the sessions that `alkdrec` picks. Settings: configs/alkdrec. The best epoch
is picked on validation sessions, the student as it was among them; figures are means over 2,465 test sessions of the mean over seeds,
the whole catalogue ranked, nothing filtered, with a bootstrap over sessions; p-values (Wilcoxon, against the plain student and against
`random` at the same budget) are corrected after Holm over all rows. `policies`: each against `random` with all budgets averaged, a
family of its own.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import methods  # the benchmark beside this one
from distilrec.compare.drawing import Curve, curves, standalone
from distilrec.config_file import load_config
from distilrec.data.dataset import Dataset, training_examples
from distilrec.data.sources import fetch_llm
from distilrec.data.split import Ints
from distilrec.evaluation.metrics import gain
from distilrec.evaluation.rank import target_ranks, top_items
from distilrec.evaluation.significance import Side, compare, holm
from distilrec.files import read_json, write_json, write_text, write_with
from distilrec.knowledge.select import GainSettings, difficulties, select
from distilrec.knowledge.store import Knowledge
from distilrec.pipeline import Pipeline
from distilrec.pipeline.asking import estimate_ranker
from distilrec.pipeline.student import MODEL
from distilrec.progress import say
from distilrec.students import STUDENTS
from distilrec.students.base import load_student
from kept import Ranks, computed

CONFIGS = Path("configs/alkdrec")
REGIMES = {
    "tuned": ("hetrec-ml", "alkdrec", 5),
    "published": ("hetrec-ml-published", "alkdrec_published", 3),
}  # settings, results, seeds
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
AUTHORS = ("alkdrec", "rad_bc", "random", "hardest", "easiest")
TOP = 25
GPT4, DRAWN = "gpt-4-turbo-2024-04-09", "recall@10"


@dataclass(frozen=True)
class Cell:
    """One trained model: `plain`, `teacher`, or a policy at a budget."""

    student: str
    seed: int
    policy: str
    budget: int | None


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "report"])
    parser.add_argument(
        "--regime", choices=list(REGIMES), default="tuned", help="how plain students and teachers are trained"
    )
    parser.add_argument("--students", nargs="+", default=None)
    parser.add_argument("--policies", nargs="+", default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hetrec-ml"))
    parser.add_argument("--runs", type=Path, default=None, help="runs/alkdrec, or the like")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="results/alkdrec.json, or the like")
    arguments = parser.parse_args()
    _, name, seeds = REGIMES[arguments.regime]
    arguments.seeds = arguments.seeds or list(range(seeds))
    arguments.runs = arguments.runs or Path("runs") / name
    arguments.out = arguments.out or Path("results") / f"{name}.json"
    arguments.students = arguments.students or list(settings(arguments)["students"])
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "report":
        report(arguments)
        return
    for seed in arguments.seeds:
        for student in arguments.students:
            bench = Bench(student, seed, arguments)
            for cell in cells(student, seed, arguments):
                ranks = bench.ranks(cell)
                shown = ", ".join(f"{metric} {gain(metric, ranks).mean():.5f}" for metric in ("recall@10", "ndcg@10"))
                say(f"{student} {seed} {cell.policy} {cell.budget or ''}: {shown}")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the benchmark is set to."""
    path = CONFIGS / f"{REGIMES[arguments.regime][0]}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def cells(student: str, seed: int, arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield what is asked for."""
    content = settings(arguments)
    yield Cell(student, seed, "plain", None)
    yield Cell(student, seed, "teacher", None)
    for policy in (*content["policies"], "tr", *(f"authors_{name}" for name in AUTHORS)):
        if arguments.policies is None or policy in arguments.policies:
            for budget in content["budgets"]:
                if not policy.startswith("authors_") or budget <= len(authors_words(policy, arguments)):
                    yield Cell(student, seed, policy, budget)


def authors_words(policy: str, arguments: argparse.Namespace) -> list[str]:
    """Return the sessions that the authors' own policy picked, in its order."""
    path: Path = arguments.data / f"selected_{policy.removeprefix('authors_')}.txt"
    return path.read_text(encoding="utf-8").split()


class Bench:
    """One student with one seed: its plain form, its teacher, and what it becomes under every policy."""

    def __init__(self, student: str, seed: int, arguments: argparse.Namespace) -> None:
        self.arguments, self.student, self.seed = arguments, student, seed
        content = settings(arguments)
        students, self.policies, _ = (content.pop(key) for key in ("students", "policies", "budgets"))
        own = students[student]
        content["train"] |= own.get("train", {})
        log = written_log(arguments)
        content["data"] |= {"interactions": str(log), "items": str(arguments.data / "items.csv")}
        content |= {
            "name": f"{student}-{seed}", "student": {"name": student, **own["student"]}, "method": {"name": "alkdrec", "budget": None},
        }  # fmt: skip
        recorded = {"name": "recorded", "rankings": str(arguments.data / "gpt4_rankings.csv"), "tolerance": 0.05}
        conventional = {"name": "conventional", "recommender": {"name": student, **own["teacher"]}}
        root = arguments.runs / content["name"]
        self.run = Pipeline(load_config(None, [f"seed={seed}"], {**content, "teacher": recorded}), root)
        self.tutor = Pipeline(load_config(None, [f"seed={seed}"], {**content, "teacher": conventional}), root)

    def ranks(self, cell: Cell) -> Ranks:
        """Return the ranks of the test targets, [n], training what is not trained yet."""
        if cell.policy == "plain":
            return self._tested(self.run, "student", self.run.student)
        if cell.policy == "teacher":
            return self._tested(self.tutor, "teacher", self.recommender())
        run = Pipeline(self.run.config, self.run.root)
        run.__dict__["knowledge"] = self._knowledge(cell)
        run.stages["knowledge"] = replace(self._recorded()[1], key=f"{self._recorded()[1].key} {cell.policy == 'tr'}")
        return self._tested(run, "distilled", run.distilled)

    def recommender(self) -> Any:
        """Return the conventional teacher."""
        stage = self.tutor.teaching.trained
        assert stage is not None
        return load_student(stage.folder / MODEL, STUDENTS)

    def chosen(self, cell: Cell) -> Ints:
        """Return the examples that a policy asks about, among those that were annotated."""
        data, annotated = self.run.data, self._recorded()[0].examples
        if cell.policy.startswith("authors_"):
            last = {data.user_ids[row]: example for row, example in last_examples(data)}
            picked = np.array([last[word] for word in authors_words(cell.policy, self.arguments)], dtype=np.int64)
            return picked[np.isin(picked, annotated)][: cell.budget]
        examples = training_examples(data, "last")
        hard = difficulties(self.recommender(), data, examples)
        policy = "alkdrec" if cell.policy == "tr" else cell.policy
        return select(
            examples,
            hard,
            policy,
            cell.budget or len(examples),
            seed=self.seed,
            settings=GainSettings(),
            among=annotated,
        ).examples

    def _recorded(self) -> tuple[Knowledge, Any]:
        return self.run.knowledge, self.run.stages["knowledge"]

    def _knowledge(self, cell: Cell) -> Knowledge:
        """Return what was recorded of the chosen sessions; for `tr` what the conventional teacher says of them."""
        recorded, chosen = self._recorded()[0], np.sort(self.chosen(cell))
        if cell.policy == "tr":
            items = top_items(self.recommender(), self.run.data, chosen, TOP, filter_seen=True)
            scores = np.tile(-np.arange(TOP, dtype=np.float32), (len(chosen), 1))
            return Knowledge({}, chosen, items, scores, None)
        keep = np.isin(recorded.examples, chosen)
        return replace(
            recorded, examples=recorded.examples[keep], items=recorded.items[keep], scores=recorded.scores[keep]
        )

    def _tested(self, run: Pipeline, stage: str, model: Any) -> Ranks:
        path = run.stages[stage].folder / "test_ranks.npy"
        return computed(path, lambda: target_ranks(model, run.data, np.asarray(run.data.examples("test"))))


def usd_per_session(arguments: argparse.Namespace) -> dict[str, Any]:
    """Estimate what a session costs with the model that was asked, by our own prompts and the list price; asks nobody."""
    bench = Bench("fpmc", arguments.seeds[0], arguments)
    teacher = {"name": "ranker", "model": GPT4, "tokenizer": str(fetch_llm("smollm2-135m-instruct")), "api_key_env": "NO_KEY",
               "recommender": bench.tutor.config.teacher.settings()["recommender"]}  # fmt: skip
    content = bench.run.config.model_dump(mode="json") | {"teacher": teacher}
    content["annotate"] |= {"sample": 200}
    run = Pipeline(load_config(None, [], content), bench.run.root)
    found = estimate_ranker(run.teaching, None, run.teaching.trained)
    usd = 0.0 if found.usd is None else found.usd / 200
    return {
        "model": GPT4,
        "usd": round(usd, 5),
        "basis": [*found.basis, "tokens counted with another model's tokenizer"],
    }


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw recall@10 against sessions asked and against dollars, one curve a policy, one picture a student, beside the results."""
    for student in dict.fromkeys(row["student"] for row in rows):
        own = [row for row in rows if row["student"] == student]
        plain = next(("plain", row["metrics"][DRAWN]) for row in own if row["policy"] == "plain")
        for key, along in (("budget", "sessions asked about"), ("usd", f"US dollars ({GPT4}, list price)")):
            by_policy: dict[str, list[tuple[float, float, float, float]]] = {}
            for row in own:
                if row["budget"] is not None and row[key] and not row["policy"].startswith("authors_"):
                    low, high = row["ci95"][DRAWN]
                    by_policy.setdefault(row["policy"], []).append((row[key], row["metrics"][DRAWN], low, high))
            some = [Curve(name, points) for name, points in by_policy.items()]
            if markup := curves(some, f"{student}: {DRAWN} against {along}", along, base=plain):
                write_text(out.parent / "plots" / f"{out.stem}_{student}_{key}.svg", standalone(markup))


def last_examples(data: Dataset) -> Iterator[tuple[int, int]]:
    """Yield row and id of the last training example of each session."""
    examples = training_examples(data, "last")
    yield from zip(data.rows_of(examples).tolist(), examples.tolist(), strict=True)


def written_log(arguments: argparse.Namespace) -> Path:
    """Write the sessions as a log, once: the number of a session is its time."""
    path: Path = arguments.runs / "log.csv"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["session_id,item_id,time"]
        with (arguments.data / "sessions.csv").open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                session = row["session_id"]
                lines += [f"{session},{item},{session}" for item in (*row["items"].split(), row["label"])]
        write_with(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


def over_budgets(found: dict[tuple[str, str, int | None], dict[int, Ranks]]) -> list[dict[str, Any]]:
    """Return every policy against `random`, both averaged over all budgets and seeds."""
    sides: dict[tuple[str, str], list[Ranks]] = {}
    for (student, policy, budget), by_seed in found.items():
        if budget is not None:
            sides.setdefault((student, policy), []).extend(by_seed[seed] for seed in sorted(by_seed))
    rows = []
    for (student, policy), ranks in sides.items():
        base = sides.get((student, "random"), [])
        if policy == "random" or len(base) != len(ranks):
            continue
        for gap in compare(Side("random", base), [Side(policy, ranks)], ("recall@10", "ndcg@10")):
            rows.append(
                {
                    "student": student, "policy": policy, "metric": gap.metric, "mean": gap.other_mean, "random": gap.baseline_mean,
                    "difference": gap.difference, "ci95": list(gap.interval), "p_value": gap.wilcoxon_p,
                }
            )  # fmt: skip
    for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value"] = p
    return rows


def report(arguments: argparse.Namespace) -> None:
    """Write the rows of all cells that are trained; trains nothing new if `train` went through."""
    found: dict[tuple[str, str, int | None], dict[int, Ranks]] = {}
    for student in arguments.students:
        for seed in arguments.seeds:
            if not (arguments.runs / f"{student}-{seed}").exists():
                continue
            bench = Bench(student, seed, arguments)
            for cell in cells(student, seed, arguments):
                found.setdefault((student, cell.policy, cell.budget), {})[seed] = bench.ranks(cell)
    rows, tests = [], []
    for (student, policy, budget), by_seed in found.items():
        what = {"dataset": "hetrec-ml", "student": student, "policy": policy, "budget": budget}
        row: dict[str, Any] = {**what, **methods.figures(list(by_seed.values()), METRICS), "seeds": sorted(by_seed)}
        plain = found[student, "plain", None]
        row["unchanged"] = sum(np.array_equal(ranks, plain[seed]) for seed, ranks in by_seed.items())
        rows.append(row)
        for name, other in (
            ("plain", found[student, "plain", None]),
            ("random", found.get((student, "random", budget))),
        ):
            if policy not in ("plain", name) and other is not None and set(other) == set(by_seed):
                base, own = (Side("", [one[seed] for seed in sorted(by_seed)]) for one in (other, by_seed))
                tests += [(row, name, gap) for gap in compare(base, [own], ("recall@10", "ndcg@10"))]
    for (row, name, gap), p in zip(tests, holm([gap.wilcoxon_p for *_, gap in tests]), strict=True):
        row.setdefault(f"difference_{name}", {})[gap.metric] = gap.difference
        row.setdefault(f"p_{name}", {})[gap.metric] = p
    cost = usd_per_session(arguments)
    for row in rows:
        row["usd"] = 0.0 if row["policy"] in ("plain", "teacher", "tr") else row["budget"] * cost["usd"]
    content = read_json(arguments.out) if arguments.out.exists() else {}
    content |= {
        "rows": rows,
        "policies": over_budgets(found),
        "usd_per_session": cost,
        "command": "python benchmarks/alkdrec.py report" + " --regime published" * (arguments.regime == "published"),
    }
    write_json(arguments.out, content)
    if arguments.regime == "tuned":
        draw(rows, arguments.out)
    for row in rows:
        shown = ", ".join(f"{metric} {row['metrics'][metric]:.5f}" for metric in ("recall@10", "ndcg@10"))
        p = f", p {row['p_plain']['ndcg@10']:.2g}" if "p_plain" in row else ""
        say(f"{row['student']} {row['policy']} {row['budget'] or ''} x{len(row['seeds'])}: {shown}{p}")


if __name__ == "__main__":
    sys.exit(main())
