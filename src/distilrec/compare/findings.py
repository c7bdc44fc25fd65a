"""What the figures come to: which rows no other beats, and which one to take, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilrec.compare.figures import Measured, Spreads
from distilrec.evaluation.crossed import Crossed, crossed

_COSTS = ("ms_per_user", "parameters", "usd", "teacher_seconds")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to take for one data set.

    Attributes:
        dataset: label.
        student: label.
        method: label.
        teacher: label, if the method needs one.
        words: the advice with its reasons, sentence by sentence.
    """

    dataset: str
    student: str
    method: str
    teacher: str | None
    words: tuple[str, ...]


def mark_front(rows: Sequence[dict[str, Any]], metric: str) -> None:
    """Write into each row whether no other row of its data set is at least as good and as cheap in all, and better in one.

    Cheap means time to rank a user, parameters, and a teacher's dollars and seconds; what is not known counts as the worst.
    """
    for row in rows:
        rivals = [other for other in rows if other["dataset"] == row["dataset"] and other is not row]
        row["on_front"] = not any(_beats(other, row, metric) for other in rivals)


def _beats(other: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> bool:
    theirs = [-other["metrics"][metric], *(_cost(other, name) for name in _COSTS)]
    ours = [-row["metrics"][metric], *(_cost(row, name) for name in _COSTS)]
    pairs = list(zip(theirs, ours, strict=True))
    return all(one <= own for one, own in pairs) and any(one < own for one, own in pairs)


def _cost(row: Mapping[str, Any], name: str) -> float:
    return float("inf") if row.get(name) is None else float(row[name])


def advise(dataset: str, rows: Sequence[dict[str, Any]], some: Sequence[Measured], metric: str) -> Advice | None:
    """Say which student and method to take on a data set.

    The best row by mean is the champion. Rows whose gap to it could be luck (p of `evaluation.crossed`, not adjusted, at 0.05) stand
    beside it; of these the one is taken that needs no teacher, then no dollars, then the least time to rank. So a teacher is only
    advised where nothing without one comes as near.

    Args:
        dataset: label.
        rows: of the report, with tests.
        some: what was measured, with ranks.
        metric: that ranks the table.
    """
    own = [row for row in rows if row["dataset"] == dataset and row["student"] is not None]
    if not own:
        return None
    by_key = {one.key: one for one in some}
    champion = max(own, key=lambda row: row["metrics"][metric])
    near = [row for row in own if row is champion or _gap(by_key, row, champion, metric).p >= 0.05]
    taken = min(near, key=lambda row: (row["teacher"] is not None, _cost(row, "usd"), _cost(row, "ms_per_user")))
    words = [
        _opening(taken, champion, metric, by_key),
        *_reasons(taken, own, metric),
        *_price(taken),
        *_sureness(taken, metric),
    ]
    return Advice(dataset, taken["student"], taken["method"], taken["teacher"], tuple(words))


def _gap(by_key: Mapping[Any, Measured], row: Mapping[str, Any], champion: Mapping[str, Any], metric: str) -> Crossed:
    one, best = by_key[_key(row)], by_key[_key(champion)]
    return crossed(one.side, best.side, metric, spread=Spreads(list(by_key.values())).of(metric, one, best))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["dataset"], row["student"], row["method"], row["teacher"])


def name_of(row: Mapping[str, Any]) -> str:
    """Return how a row is called: student + method (teacher), or the teacher alone."""
    if row["student"] is None:
        return f"{row['teacher']} (teacher)"
    teacher = f" ({row['teacher']})" if row["teacher"] else ""
    return f"{row['student']} + {row['method']}{teacher}"


def _opening(taken: Mapping[str, Any], champion: Mapping[str, Any], metric: str, by_key: Mapping[Any, Measured]) -> str:
    low, high = taken["ci95"][metric]
    said = f"Take {name_of(taken)}: {metric} {taken['metrics'][metric]:.4f} (95 % interval {low:.4f} to {high:.4f})."
    if taken["metrics"][metric] >= champion["metrics"][metric]:
        return said + " No other row has a higher mean."
    gap = _gap(by_key, taken, champion, metric)
    return (
        f"{said} {name_of(champion)} has the highest mean, {champion['metrics'][metric]:.4f}, but its lead of {gap.difference:.4f} "
        f"could be luck (p {gap.p:.2f})."
    )


def _reasons(taken: Mapping[str, Any], own: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    verdict = taken.get("verdict", {}).get(metric)
    if verdict is None and taken["teacher"] is not None:
        return ["The plain student beside it was not measured, so nothing is known of its gain."]
    if verdict is None:
        better = [
            row for row in own if row.get("verdict", {}).get(metric) == "better" and row["student"] == taken["student"]
        ]
        if better:
            return [
                f"With this student {', '.join(name_of(row) for row in better)} would be better, at the price of a teacher."
            ]
        if all(row["teacher"] is None for row in own):
            return ["Nothing that was distilled was measured beside it."]
        return ["It needs no teacher: nothing that was distilled is surely better than it."]
    gain, plain = taken["difference"][metric], taken["metrics"][metric] - taken["difference"][metric]
    low, high = taken["difference_ci95"][metric]
    share = f" ({100 * gain / plain:+.1f} %)" if plain > 0 else ""
    said = f"Over the plain {taken['student']} that is {gain:+.4f}{share}, 95 % interval {low:+.4f} to {high:+.4f}: {verdict}."
    if taken.get("transfer") is not None:
        said += f" It keeps {100 * taken['transfer']:.0f} % of what its teacher is ahead."
    return [said]


def _price(taken: Mapping[str, Any]) -> list[str]:
    said = []
    if taken["ms_per_user"] is not None:
        said.append(
            f"A user takes {taken['ms_per_user']:.3f} ms when many are ranked together and {taken['latency_ms']:.2f} ms alone, on the "
            f"machine that made this report; the model has {taken['parameters']:,} parameters."
        )
    minutes = (taken["train_seconds"] + taken["teacher_seconds"]) / 60
    usd = "an unknown sum" if taken["usd"] is None else f"{taken['usd']:.2f} US dollars"
    said.append(f"It took {minutes:.0f} minutes to make and {usd} for the teacher's answers.")
    return said


def _sureness(taken: Mapping[str, Any], metric: str) -> list[str]:
    seeds = len(taken["seeds"])
    if seeds == 1:
        return ["One seed only: another seed may turn this around. Run at least three before you rely on it."]
    p = taken.get("p_value", {}).get(metric)
    if p is None:
        return [f"The intervals are over {seeds} seeds and all test users."]
    if p >= 0.05:
        return [
            f"How sure: not significant over {seeds} seeds and all test users (p {p:.2f} after Holm). Treat it as equal to plain."
        ]
    return [f"How sure: p {_p(p)} after Holm, over {seeds} seeds and all test users."]


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}"
