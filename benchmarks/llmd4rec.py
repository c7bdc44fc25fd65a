"""LLMD4Rec over rounds: SASRec and SmolLM2 teach each other on Beauty and Toys; both are tested after every round.

    python benchmarks/llmd4rec.py train                             # hours: every run that is not done yet
    python benchmarks/llmd4rec.py train --datasets amazon-toys --variants ablations --seeds 42 --threads 1
    python benchmarks/llmd4rec.py report                            # results/llmd4rec.json, of the runs that are there

Settings: configs/llmd4rec/DATASET.yaml. Both sides are selected on validation and tested on all test users, whole catalogue, items of
the history taken out, targets that never occur in training counted. Round 0 is each side alone, before the rounds. Teachers are
trained with one seed; students of further seeds learn from the same teachers, round by round, as do those of variants that `led`
names. From benchmarks/methods.py come the plain students, and soft_labels from a teacher (one way, once), with that teacher.

Figures are means over users of the mean over seeds, with a bootstrap over users. There is a row for every round, and one (`kept`) for
the round that validation chose, seed by seed. The latter are tested: p is a Wilcoxon signed-rank test of the users' gains against the
plain student with the same seeds (a teacher: against itself before the rounds; an ablation: against the whole method), corrected after
Holm over all; `users_and_seeds` is the test of evaluation/crossed.py, where seeds are drawn too.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import methods  # the benchmark beside this one
from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.evaluation.crossed import SeedSpread, crossed, spread_of
from distilrec.evaluation.metrics import gain
from distilrec.evaluation.rank import target_ranks
from distilrec.evaluation.significance import Side, compare
from distilrec.files import read_json, write_json, write_with
from distilrec.pipeline import Pipeline
from distilrec.pipeline.alternating import MODEL, Alternation
from distilrec.pipeline.stage import Stage
from distilrec.progress import say
from distilrec.students import STUDENTS
from distilrec.students.base import load_student
from distilrec.training.loop import load_fit

CONFIGS = Path("configs/llmd4rec")
RANKS = "test_ranks.npy"
WHOLE = "llmd4rec"
PLAIN = "plain"  # before the rounds: trained on the targets alone
KEPT = "kept"  # the round that validation chose, seed by seed


def main() -> None:
    """Do what is asked for."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "report"])
    parser.add_argument("--datasets", nargs="+", default=names)
    parser.add_argument("--variants", nargs="+", default=None, help="`ablations` stands for all of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/llmd4rec"))
    parser.add_argument("--others", type=Path, default=Path("runs/dllm2rec"), help="the runs of benchmarks/methods.py")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("results/llmd4rec.json"))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "train":
        for seed in arguments.seeds:
            for name in arguments.datasets:
                for variant in chosen(name, arguments):
                    train(name, variant, seed, arguments)
    else:
        report(arguments)


def settings_of(name: str) -> dict[str, Any]:
    """Return a data set's settings."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def chosen(name: str, arguments: argparse.Namespace) -> list[str]:
    """Return the variants to run; ablations on Toys alone."""
    content = settings_of(name)
    ablations = list(content["ablations"]) if name == "amazon-toys" else []
    every = [*content["variants"], *ablations]
    wanted = arguments.variants
    return [one for one in every if wanted is None or one in wanted or (one in ablations and "ablations" in wanted)]


def configuration(name: str, variant: str, seed: int, data: Path) -> Config:
    """Return the configuration of one run."""
    content = settings_of(name)
    variants = {**content.pop("variants"), **content.pop("ablations")}
    content.pop("led")
    content["method"] = {**content["method"], **(variants[variant] or {})}
    content["name"] = f"{name}-{seed}"  # variants share what they have in common
    for key in ("interactions", "items"):
        content["data"][key] = str(data / content["data"][key])
    return load_config(None, [f"seed={seed}"], content)


def train(name: str, variant: str, seed: int, arguments: argparse.Namespace) -> None:
    """Do all rounds of a run and test both sides after each, unless that is done; teachers are trained with one seed alone."""
    config = configuration(name, variant, seed, arguments.data)
    run = Pipeline(config, arguments.runs / config.name)
    led = None
    leads = WHOLE if variant in settings_of(name)["led"] else variant
    if (leads, methods.TEACHER_SEED) != (variant, seed):
        leading = configuration(name, leads, methods.TEACHER_SEED, arguments.data)
        led = Pipeline(leading, arguments.runs / leading.name).alternation
    course = Alternation(run, led).course
    summary: dict[str, Any] = {"student": [], "llm": []}
    for side, halves in (("student", course.students), ("llm", course.teachers if led is None else [])):
        for half in halves:
            ranks = tested(run, half.made, side)
            fit = load_fit(half.made.folder)
            summary[side].append(
                {
                    "round": half.number, "valid": half.measure, "best_epoch": fit.best_epoch, "seconds": half.made.seconds,
                    "seconds_to_best": sum(epoch["seconds"] for epoch in fit.history[: fit.best_epoch]),
                    "ranks": f"{half.made.folder.name}/{RANKS}",
                }
            )  # fmt: skip
            shown = ", ".join(f"{metric} {gain(metric, ranks).mean():.4f}" for metric in ("hr@10", "ndcg@10"))
            say(f"{config.name}, {side} after round {half.number}: validation {half.measure:.4f}, test {shown}")
    summary["best"] = {
        "student": course.best_student.number,
        "llm": course.best_teacher.number if led is None else None,
    }
    write_json(run.root / course_file(variant), summary)


def course_file(variant: str) -> str:
    """Return where a variant's course is kept in its run's folder."""
    return f"course-{variant.replace(' ', '-')}.json"


def tested(run: Pipeline, stage: Stage, side: str) -> methods.Ranks:
    """Return the ranks of the test targets, [n], and keep them in the stage's folder."""
    path = stage.folder / RANKS
    if not path.exists():
        model: Any = (
            load_student(stage.folder / MODEL, STUDENTS) if side == "student" else run.teaching.restored(stage)()
        )
        examples = np.asarray(run.data.examples("test"))
        found = target_ranks(model, run.data, examples, filter_seen=run.config.evaluate.filter_seen)
        write_with(path, lambda part: methods._save(part, found))
    ranks: methods.Ranks = np.load(path, allow_pickle=False)
    return ranks


def report(arguments: argparse.Namespace) -> None:
    """Write the rows of all runs that are there."""
    table = Table(arguments)
    ratios: dict[str, float] = {}
    for name in arguments.datasets:
        for method in (PLAIN, "soft_labels"):
            table.add(name, method, "student", None, others(name, method, arguments))
        table.add(name, "soft_labels", "llm", None, teacher_of_soft_labels(name, arguments))
        for variant in chosen(name, arguments):
            courses = {
                seed: course for seed in arguments.seeds if (course := course_of(name, variant, seed, arguments))
            }
            add_courses(table, name, variant, courses)
            if variant == WHOLE:
                if name == "amazon-toys":
                    add_courses(table, name, "one round", {seed: first_of(one) for seed, one in courses.items()})
                if methods.TEACHER_SEED in courses:
                    ratios[name] = round_ratio(courses[methods.TEACHER_SEED])
    table.put_tests()
    content = read_json(arguments.out) if arguments.out.exists() else {}
    content |= {
        "rows": table.rows, "ablations": table.ablations, "round_time_ratio": max(ratios.values(), default=None),
        "round_time_ratios": ratios, "command": "python benchmarks/llmd4rec.py report",
    }  # fmt: skip
    write_json(arguments.out, content)
    for row in table.rows + table.ablations:
        shown = ", ".join(f"{metric} {row['metrics'][metric]:.4f}" for metric in ("hr@10", "ndcg@10"))
        p = f", p {row['p_value']['ndcg@10']:.2g}" if "p_value" in row else ""
        say(f"{row['dataset']} {row['variant']} {row['side']} round {row['round']} x{len(row['seeds'])}: {shown}{p}")


class Table:
    """Rows of figures, and what is tested: what a way of training comes to, never its rounds one by one.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        self.ablations: list[dict[str, Any]] = []
        self._found: dict[tuple[str, str, str], dict[int, methods.Ranks]] = {}
        self._tested: list[tuple[tuple[str, str, str], dict[str, Any]]] = []

    def add(
        self, name: str, variant: str, side: str, number: int | str | None, by_seed: dict[int, methods.Ranks],
        valid: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Append a row, if there are ranks for it."""
        if not by_seed:
            return
        row = {"dataset": name, "side": side, "round": number, "variant": variant}
        row |= {**methods.figures(list(by_seed.values())), "seeds": sorted(by_seed)}
        if valid is not None:
            row["valid"] = [round(one, 5) for one in valid]
        (self.ablations if is_ablation(name, variant) else self.rows).append(row)
        if number in (None, KEPT):
            self._found[name, variant, side] = by_seed
            self._tested.append(((name, variant, side), row))
        elif (variant, side, number) == (WHOLE, "llm", 0):
            self._found[name, PLAIN, side] = by_seed

    def put_tests(self) -> None:
        """Hold students against the plain one, teachers against the teacher before the rounds, ablations against the whole method."""
        comparisons: list[Any] = []
        for (name, variant, side), row in self._tested:
            base = self._found.get((name, WHOLE if is_ablation(name, variant) else PLAIN, side), {})
            own = self._found[name, variant, side]
            seeds = sorted(set(base) & set(own))
            if variant == PLAIN or not seeds:
                continue
            left, right = (Side("", [ranks[seed] for seed in seeds]) for ranks in (base, own))
            comparisons.extend((row, gap) for gap in compare(left, [right], methods.TESTED))
            row["users_and_seeds"] = {
                metric: asdict(crossed(left, right, metric, spread=self._spread(name, side, metric)))
                for metric in methods.TESTED
            }
        methods.put_tests(comparisons)

    def _spread(self, name: str, side: str, metric: str) -> SeedSpread | None:
        """Return how far seeds of a side lie apart, over all that was trained with several."""
        several = [
            np.stack([gain(metric, ranks) for ranks in by_seed.values()])
            for (dataset, _, of), by_seed in self._found.items()
            if (dataset, of) == (name, side)
        ]
        return spread_of(several)


def is_ablation(name: str, variant: str) -> bool:
    """Whether a variant lacks a part of the method."""
    return variant == "one round" or variant in settings_of(name)["ablations"]


def add_courses(table: Table, name: str, variant: str, courses: dict[int, dict[str, Any]]) -> None:
    """Append both sides after every round, then after the round that validation chose."""
    every = courses
    for side in ("student", "llm"):
        courses = {seed: course for seed, course in every.items() if course[side]}
        for number in sorted({half["round"] for course in courses.values() for half in course[side]}):
            by_seed = {seed: ranks_of(course, side, number) for seed, course in courses.items()}
            table.add(
                name, variant, side, number, by_seed, [at(course, side, number)["valid"] for course in courses.values()]
            )
        best = {seed: course["best"][side] for seed, course in courses.items()}
        by_seed = {seed: ranks_of(course, side, best[seed]) for seed, course in courses.items()}
        table.add(
            name, variant, side, KEPT, by_seed, [at(one, side, best[seed])["valid"] for seed, one in courses.items()]
        )


def first_of(course: dict[str, Any]) -> dict[str, Any]:
    """Return a course as it would have been with one round."""
    cut = {side: [half for half in course[side] if half["round"] <= 1] for side in ("student", "llm")}
    best = {
        side: max(halves, key=lambda half: half["valid"])["round"] if halves else None for side, halves in cut.items()
    }
    return {**course, **cut, "best": best}


def others(name: str, method: str, arguments: argparse.Namespace) -> dict[int, methods.Ranks]:
    """Return SASRec's ranks under a method of benchmarks/methods.py, by seed."""
    own = argparse.Namespace(data=arguments.data, runs=arguments.others)
    found = {seed: methods.trained((name, "sasrec", method, None, seed), own) for seed in arguments.seeds}
    return {seed: one[0] for seed, one in found.items() if one is not None}


def teacher_of_soft_labels(name: str, arguments: argparse.Namespace) -> dict[int, methods.Ranks]:
    """Return the test ranks of the teacher of benchmarks/methods.py, whose ID embeddings are another student's, by its seed."""
    run = methods.taught(name, argparse.Namespace(data=arguments.data, runs=arguments.others))
    stage = run.teaching.trained
    return {} if stage is None else {methods.TEACHER_SEED: tested(run, stage, "llm")}


def course_of(name: str, variant: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return what a run's rounds came to; None if they are not done."""
    root = arguments.runs / configuration(name, variant, seed, arguments.data).name
    path = root / course_file(variant)
    return {**read_json(path), "root": root} if path.exists() else None


def at(course: dict[str, Any], side: str, number: int) -> dict[str, Any]:
    """Return what a side came to after a round, or after its last one before it."""
    halves: list[dict[str, Any]] = [half for half in course[side] if half["round"] <= number]
    return halves[-1]


def ranks_of(course: dict[str, Any], side: str, number: int) -> methods.Ranks:
    """Return the test ranks of a side after a round, [n]."""
    ranks: methods.Ranks = np.load(course["root"] / at(course, side, number)["ranks"], allow_pickle=False)
    return ranks


def round_ratio(course: dict[str, Any]) -> float:
    """Return what one round took on average, in units of what the teacher alone took up to its best epoch."""
    rounds = [half for side in ("student", "llm") for half in course[side] if half["round"] > 0]
    alone = next(half for half in course["llm"] if half["round"] == 0)
    return float(sum(half["seconds"] for half in rounds) / rounds[-1]["round"] / alone["seconds_to_best"])


if __name__ == "__main__":
    sys.exit(main())
