"""LLMD4Rec over rounds: SASRec and SmolLM2 teach each other on Beauty and Toys; both are tested after every round.

    python benchmarks/llmd4rec.py train                             # hours: every run that is not done yet
    python benchmarks/llmd4rec.py train --datasets amazon-toys --variants ablations --seeds 42 --threads 1
    python benchmarks/llmd4rec.py report                            # results/llmd4rec.json, of the courses that are kept

Settings: configs/llmd4rec/DATASET.yaml. Both sides are selected on validation and tested on all test users, whole catalogue, items of
the history taken out, targets that never occur in training counted. Round 0 is each side alone, before the rounds. Teachers are
trained with one seed; students of further seeds learn from the same teachers, round by round, as do those of variants that `led`
names. `soft_labels` learns once from the teacher before the rounds, as configs/dllm2rec has it. The ranks of all are kept in
results/ranks/llmd4rec/ (`kept.py`).

Figures are means over users of the mean over seeds, with a bootstrap over users. There is a row for every round, and one (`kept`) for
the round that validation chose, seed by seed. The latter are tested: p is a Wilcoxon signed-rank test of the users' gains against the
plain student with the same seeds (a teacher: against itself before the rounds; an ablation: against the whole method), corrected after
Holm over all; `users_and_seeds` is the test of evaluation/crossed.py, where seeds are drawn too. `over_start` is that test against the
same student before the rounds, which of variants with a table of another kind is not the plain one.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import methods  # the benchmark beside this one, as kept
from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.evaluation.crossed import SeedSpread, crossed, spread_of
from distilrec.evaluation.metrics import gain
from distilrec.evaluation.rank import target_ranks
from distilrec.evaluation.significance import Side, compare
from distilrec.files import read_json, write_json
from distilrec.pipeline import Pipeline
from distilrec.pipeline.alternating import MODEL, Alternation
from distilrec.pipeline.stage import Stage
from distilrec.progress import say
from distilrec.students import STUDENTS
from distilrec.students.base import load_student
from distilrec.training.loop import load_fit
from kept import Ranks, computed, keep, kept

CONFIGS = Path("configs/llmd4rec")
WHOLE = "llmd4rec"
PLAIN = "plain"  # before the rounds: trained on the targets alone
ONCE = "soft_labels"  # one way, from the teacher before the rounds
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


def configuration(name: str, variant: str, seed: int, data: Path, *more: str) -> Config:
    """Return the configuration of one run; `more`: settings as on the command line."""
    content = content_of(name, variant)
    content["name"] = f"{name}-{seed}"  # variants share what they have in common
    for key in ("interactions", "items"):
        content["data"][key] = str(data / content["data"][key])
    return load_config(None, [f"seed={seed}", *more], content)


def content_of(name: str, variant: str) -> dict[str, Any]:
    """Return a variant's settings, the paths of its data left open."""
    content = settings_of(name)
    variants = {**content.pop("variants"), **content.pop("ablations")}
    content.pop("led")
    own = dict(variants[variant] or {})
    if variant == ONCE:
        return {**content, **own}
    content["student"] = {**content["student"], **own.pop("student", {})}
    content["method"] = {**content["method"], **own}
    return content


def leader(name: str, variant: str) -> str:
    """Return the variant whose teachers a variant's students learn from."""
    return WHOLE if variant in settings_of(name)["led"] else variant


def place(name: str, variant: str, seed: int, arguments: argparse.Namespace) -> tuple[Path, Any]:
    """Return where a course's ranks are kept, and the settings that they count for."""
    file = f"{name}-{variant}-{seed}.npz".replace(" ", "_")
    settings = [content_of(name, variant), content_of(name, leader(name, variant)), seed]
    return arguments.out.parent / "ranks" / arguments.out.stem / file, settings


def train(name: str, variant: str, seed: int, arguments: argparse.Namespace) -> None:
    """Do all rounds of a run and test both sides after each, unless that is done; teachers are trained with one seed alone."""
    if variant == ONCE:
        train_once(name, seed, arguments)
        return
    config = configuration(name, variant, seed, arguments.data)
    run = Pipeline(config, arguments.runs / config.name)
    led = None
    leads = leader(name, variant)
    if (leads, methods.TEACHER_SEED) != (variant, seed):
        led = leading(name, leads, arguments)
    course = Alternation(run, led).course
    about: dict[str, Any] = {"student": [], "llm": []}
    ranks: dict[str, Ranks] = {}
    for side, halves in (("student", course.students), ("llm", course.teachers if led is None else [])):
        for half in halves:
            ranks[f"{side} {half.number}"] = tested(run, half.made, side)
            fit = load_fit(half.made.folder)
            about[side].append(
                {
                    "round": half.number, "valid": half.measure, "best_epoch": fit.best_epoch, "seconds": half.made.seconds,
                    "seconds_to_best": sum(epoch["seconds"] for epoch in fit.history[: fit.best_epoch]),
                }
            )  # fmt: skip
            say_figures(
                f"{config.name}, {variant}, {side} after round {half.number}",
                half.measure,
                ranks[f"{side} {half.number}"],
            )
    about["best"] = {
        "student": course.best_student.number,
        "llm": course.best_teacher.number if led is None else None,
    }
    keep(*place(name, variant, seed, arguments), ranks, about)


def leading(name: str, variant: str, arguments: argparse.Namespace) -> Alternation:
    """Return the rounds that a variant's teachers are trained in."""
    config = configuration(name, variant, methods.TEACHER_SEED, arguments.data)
    return Pipeline(config, arguments.runs / config.name).alternation


def train_once(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train a student one way, once, on what the teacher before the rounds says."""
    alone = leading(name, WHOLE, arguments).course.teachers[0].made.folder
    asked = configuration(name, ONCE, methods.TEACHER_SEED, arguments.data, f"teacher.trained={alone}")
    taught = Pipeline(asked, arguments.runs / asked.name)
    config = configuration(name, ONCE, seed, arguments.data)
    run = Pipeline(config, arguments.runs / config.name, taught=taught)
    _ = run.distilled
    stage = run.stages["distilled"]
    ranks, fit = tested(run, stage, "student"), load_fit(stage.folder)
    say_figures(f"{config.name}, {ONCE}", fit.best, ranks)
    about = {"student": [{"round": None, "valid": fit.best, "best_epoch": fit.best_epoch}], "llm": []}
    keep(*place(name, ONCE, seed, arguments), {"student": ranks}, about)


def say_figures(what: str, valid: float, ranks: Ranks) -> None:
    """Say what a training came to."""
    shown = ", ".join(f"{metric} {gain(metric, ranks).mean():.4f}" for metric in ("hr@10", "ndcg@10"))
    say(f"{what}: validation {valid:.4f}, test {shown}")


def tested(run: Pipeline, stage: Stage, side: str) -> Ranks:
    """Return the ranks of the test targets, [n], and keep them in the stage's folder."""

    def rank() -> Ranks:
        folded = side == "student"
        model: Any = load_student(stage.folder / MODEL, STUDENTS) if folded else run.teaching.restored(stage)()
        examples = np.asarray(run.data.examples("test"))
        return target_ranks(model, run.data, examples, filter_seen=run.config.evaluate.filter_seen)

    return computed(stage.folder / "test_ranks.npy", rank)


def report(arguments: argparse.Namespace) -> None:
    """Write the rows of all courses that are kept."""
    table = Table(arguments)
    ratios: dict[str, float] = {}
    for name in arguments.datasets:
        kept_of = {variant: courses_of(name, variant, arguments) for variant in chosen(name, arguments)}
        whole = kept_of.get(WHOLE, {})
        table.add(name, PLAIN, "student", None, {seed: course.ranks("student", 0) for seed, course in whole.items()})
        once = kept_of.pop(ONCE, {})
        table.add(name, ONCE, "student", None, {seed: course.found["student"] for seed, course in once.items()})
        for variant, courses in kept_of.items():
            add_courses(table, name, variant, courses)
        if whole and name == "amazon-toys":
            add_courses(table, name, "one round", {seed: course.first() for seed, course in whole.items()})
        if methods.TEACHER_SEED in whole:
            ratios[name] = whole[methods.TEACHER_SEED].round_ratio()
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
        self._found: dict[tuple[str, str, str], dict[int, Ranks]] = {}
        self._starts: dict[tuple[str, str, str], dict[int, Ranks]] = {}
        self._tested: list[tuple[tuple[str, str, str], dict[str, Any]]] = []

    def add(
        self, name: str, variant: str, side: str, number: int | str | None, by_seed: dict[int, Ranks],
        valid: list[float] | None = None, start: dict[int, Ranks] | None = None,
    ) -> None:  # fmt: skip
        """Append a row, if there are ranks for it; `start`: those of the same before the rounds, where that is to be tested."""
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
            if start is not None:
                self._starts[name, variant, side] = start
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
            row["users_and_seeds"] = self._crossed(name, side, left, right)
            if (start := self._starts.get((name, variant, side))) is not None:
                before = Side("", [start[seed] for seed in seeds])
                row["over_start"] = self._crossed(name, side, before, right)
        methods.put_tests(comparisons)

    def _crossed(self, name: str, side: str, left: Side, right: Side) -> dict[str, Any]:
        """Return the tests of two sides over users and seeds."""
        return {
            metric: asdict(crossed(left, right, metric, spread=self._spread(name, side, metric)))
            for metric in methods.TESTED
        }

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


@dataclass(frozen=True)
class Kept:
    """What is kept of a course: ranks of the test targets by side and round, and what is said of each half-step."""

    found: dict[str, Ranks]
    about: dict[str, Any]

    def last(self, side: str, number: int) -> dict[str, Any]:
        """Return the half-step that a side had done last when a round was over."""
        halves: list[dict[str, Any]] = [half for half in self.about[side] if half["round"] <= number]
        return halves[-1]

    def ranks(self, side: str, number: int) -> Ranks:
        """Return the test ranks of a side after a round, [n]."""
        return self.found[f"{side} {self.last(side, number)['round']}"]

    def best(self, side: str) -> int:
        """Return the round that validation chose for a side."""
        number: int = self.about["best"][side]
        return number

    def first(self) -> "Kept":
        """Return the course as it would have been with one round."""
        cut: dict[str, Any] = {
            side: [half for half in self.about[side] if half["round"] <= 1] for side in ("student", "llm")
        }
        best = {
            side: max(halves, key=lambda half: half["valid"])["round"] if halves else None
            for side, halves in cut.items()
        }
        return Kept(self.found, {**cut, "best": best})

    def round_ratio(self) -> float:
        """Return what one round took on average, in units of what the teacher alone took up to its best epoch."""
        rounds = [half for side in ("student", "llm") for half in self.about[side] if half["round"] > 0]
        return float(
            sum(half["seconds"] for half in rounds) / rounds[-1]["round"] / self.last("llm", 0)["seconds_to_best"]
        )


def courses_of(name: str, variant: str, arguments: argparse.Namespace) -> dict[int, Kept]:
    """Return what is kept of a variant, by seed."""
    found = {seed: kept(*place(name, variant, seed, arguments)) for seed in arguments.seeds}
    return {seed: Kept(*one) for seed, one in found.items() if one is not None}


def add_courses(table: Table, name: str, variant: str, every: dict[int, Kept]) -> None:
    """Append both sides after every round, then after the round that validation chose."""
    for side in ("student", "llm"):
        courses = {seed: course for seed, course in every.items() if course.about[side]}
        for number in sorted({half["round"] for course in courses.values() for half in course.about[side]}):
            by_seed = {seed: course.ranks(side, number) for seed, course in courses.items()}
            table.add(
                name,
                variant,
                side,
                number,
                by_seed,
                [course.last(side, number)["valid"] for course in courses.values()],
            )
        by_seed = {seed: course.ranks(side, course.best(side)) for seed, course in courses.items()}
        start = {seed: course.ranks(side, 0) for seed, course in courses.items()}
        of_its_own = side == "student" and variant in settings_of(name)["led"]
        table.add(
            name, variant, side, KEPT, by_seed,
            [course.last(side, course.best(side))["valid"] for course in courses.values()], start if of_its_own else None,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
