"""`distilrec evaluate A B [C ...]`: are the differences between stored ranks more than luck? A is the baseline.

A side is `PLACE[:ROLE]`, where a place is a run's folder (its last evaluation), or a file of ranks; without a role, every role
found there is a side. Several places with commas between are several seeds of one side: gains are averaged user by user.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from distilrec.errors import ConfigError, FingerprintError, InputError
from distilrec.evaluation.significance import Comparison, Side, compare
from distilrec.evaluation.stored import StoredRanks, find_ranks, read_ranks
from distilrec.files import write_json
from distilrec.progress import console, say

METRICS = ("hr@10", "ndcg@10")
RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
_CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Part:
    """One word of the command line, or a piece of it between commas: where ranks lie, and which of them is meant."""

    place: Path
    role: str | None


@dataclass(frozen=True, slots=True)
class Operand:
    """A side with its files: (file, role) for each seed."""

    side: Side
    sources: tuple[tuple[StoredRanks, str], ...]

    def key(self) -> tuple[tuple[Path, str], ...]:
        """Return what makes two operands the same."""
        return tuple((found.path.resolve(), role) for found, role in self.sources)


def read_part(word: str) -> Part:
    """Read `PLACE` or `PLACE:ROLE`; a place that exists under the whole name has no role."""
    place, colon, role = word.rpartition(":")
    if Path(word).exists() or not (colon and place and role) or "/" in role or "," in role:
        return Part(Path(word), None)
    return Part(Path(place), role)


def read_side(word: str) -> list[Part]:
    """Read a side: one part, or several with commas between, unless a place is called so."""
    whole = read_part(word)
    pieces = [word] if whole.place.exists() else word.split(",")
    if not all(pieces):
        raise ConfigError(f"{word!r} names an empty place.", remedy="Write PLACE,PLACE without blanks or ends.")
    return [read_part(piece) for piece in pieces]


def is_comparison(words: Sequence[str]) -> bool:
    """Tell ranks from a configuration: two or more plain words, none of them key=value or YAML.

    Raises:
        ConfigError: one word only, and it names ranks.
    """
    if any("=" in word or Path(word).suffix.lower() in _CONFIGS for word in words):
        return False
    if len(words) == 1:
        part = read_part(words[0])
        stored = part.place.is_dir() or part.place.suffix.lower() in (".parquet", ".csv", ".tsv")
        if stored and part.place.exists():
            raise ConfigError(
                f"{words[0]}: ranks are compared two by two, one place was given.",
                remedy=f"Name two, for example {part.place}:student {part.place}:distilled.",
            )
    return len(words) > 1


def compare_ranks(
    words: Sequence[str],
    *,
    metrics: Sequence[str] = METRICS,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    target: Path | None = None,
) -> dict[str, Any]:
    """Compare the sides that `words` name with the first of them, print the table, write it to `target`.

    Raises:
        InputError: ranks that are missing or cannot be read, other examples.
        ConfigError: an unknown role or metric.
        FingerprintError: ranks of different data sets.
    """
    if target is not None and target.is_dir():
        raise ConfigError("this is a folder, a file is expected.", where=str(target), remedy="Give --json a file name.")
    names = [name for text in metrics for name in re.split(r"[,\s]+", text) if name]
    operands = _distinct([one for word in words for one in _operands(word)])
    files = [found for operand in operands for found, _role in operand.sources]
    _same_data(files)
    baseline, *others = (operand.side for operand in operands)
    found = compare(
        baseline, others, list(dict.fromkeys(names)) or METRICS, resamples=resamples, seed=seed, level=LEVEL
    )
    summary = _summary(operands, files, found, resamples, seed)
    if target is not None:
        write_json(target, summary)
    _show(summary, found)
    if target is not None:
        say(str(target))
    return summary


def _operands(word: str) -> list[Operand]:
    """Return the sides that a word names: one, or one a role where it names none and there are several."""
    parts = read_side(word)
    stored = [read_ranks(find_ranks(part.place)) for part in parts]
    roles = [_roles(part, found) for part, found in zip(parts, stored, strict=True)]
    if all(len(some) == 1 for some in roles):
        return [_operand(word, stored, [some[0] for some in roles])]
    if any(set(some) != set(roles[0]) for some in roles):
        raise ConfigError(
            f"{word}: the places do not hold the same roles.", remedy="Name the role of each: PLACE:ROLE,PLACE:ROLE."
        )
    return [
        _operand(",".join(f"{part.place}:{role}" for part in parts), stored, [role] * len(parts)) for role in roles[0]
    ]


def _roles(part: Part, found: StoredRanks) -> list[str]:
    if part.role is None:
        return list(found.roles)
    if part.role not in found.roles:
        raise ConfigError(
            f"no role {part.role!r} is stored.", where=str(part.place), remedy=f"There is: {', '.join(found.roles)}."
        )
    return [part.role]


def _operand(name: str, stored: Sequence[StoredRanks], roles: Sequence[str]) -> Operand:
    ranks = [found.roles[role] for found, role in zip(stored, roles, strict=True)]
    return Operand(Side(name, ranks), tuple(zip(stored, roles, strict=True)))


def _distinct(operands: Sequence[Operand]) -> list[Operand]:
    """Leave out what was named before: comparing it with itself would only make the family larger."""
    kept: dict[Any, Operand] = {}
    for operand in operands:
        kept.setdefault(operand.key(), operand)
    if len(kept) < 2:
        raise ConfigError(
            f"{operands[0].side.name} was named twice; there is nothing to compare.", remedy="Name another role or run."
        )
    return list(kept.values())


def _same_data(files: Sequence[StoredRanks]) -> None:
    """Check that all ranks are of the same data set and the same examples."""
    named = [found for found in files if found.fingerprint is not None]
    for found in named:
        if found.fingerprint != named[0].fingerprint:
            raise FingerprintError(
                f"ranks of another data set than {named[0].path}.",
                where=str(found.path),
                remedy="Compare models that were evaluated on the same prepared data.",
            )
    for found in files:
        if not np.array_equal(found.examples, files[0].examples):
            common = len(np.intersect1d(found.examples, files[0].examples, assume_unique=True))
            raise InputError(
                f"other examples than in {files[0].path}: {len(found.examples)} and {len(files[0].examples)}, "
                f"{common} of them in both.",
                where=str(found.path),
                remedy="Compare models that were evaluated on the same examples.",
            )
    silent = dict.fromkeys(str(found.path) for found in files if found.fingerprint is None)
    if silent:
        say(f"{', '.join(silent)}: the data set is not named there, only the example ids were checked.")


def _summary(
    operands: Sequence[Operand], files: Sequence[StoredRanks], found: Sequence[Comparison], resamples: int, seed: int
) -> dict[str, Any]:
    prints = [one.fingerprint for one in files if one.fingerprint is not None]
    return {
        "baseline": operands[0].side.name,
        "sides": [
            {"name": one.side.name, "ranks": [{"file": str(ranks.path), "role": role} for ranks, role in one.sources]}
            for one in operands
        ],
        "dataset": {"fingerprint": prints[0] if prints else None},
        "n": len(operands[0].side.ranks[0]),
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "family": len(found),
        "comparisons": [{**asdict(one), "interval": list(one.interval)} for one in found],
    }


def _show(summary: dict[str, Any], found: Sequence[Comparison]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("against the baseline", "metric"):
        table.add_column(title)
    for title in ("baseline", "mean", "difference [95 %]", "bootstrap p", "Wilcoxon p", "Holm p", "d_z"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for one in found:
        low, high = one.interval
        table.add_row(
            one.other,
            one.metric,
            f"{one.baseline_mean:.4f}",
            f"{one.other_mean:.4f}",
            f"{one.difference:+.4f} [{low:+.4f}, {high:+.4f}]",
            *(_p(p) for p in (one.bootstrap_p, one.wilcoxon_p, one.holm_p)),
            "" if one.effect_size is None else f"{one.effect_size:+.3f}",
            one.verdict,
        )
    say(f"Baseline: {summary['baseline']}. Paired over {summary['n']:,} examples, {summary['resamples']:,} resamples.")
    console.print(table, markup=False)
    say(f"Verdict: Holm over {len(found)} comparisons (sides times metrics), of the bootstrap p, at 0.05.")


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
