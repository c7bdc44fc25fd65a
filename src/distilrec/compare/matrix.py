"""What is compared: a matrix of data sets, students, methods, teachers and seeds, read from one YAML file.

    name: films
    base: {train: {epochs: 60}, evaluate: {filter_seen: true}}     # parts of a run's configuration, the same for all
    datasets: {ml-100k: {data: {source: ml-100k}}}                 # a name, and parts of a configuration laid over `base`
    students: {sasrec: {hidden_size: 64}, wide: {name: sasrec, hidden_size: 128, train: {learning_rate: 0.0005}}}
    methods: {plain: , soft_labels: , dllm2rec: {ranking_weight: 0.2}, alkdrec: {budget: 200, train: {learning_rate: 0.0003}}}
    teachers: {e4srec: {layers: 8, run: {teach: {epochs: 3}}}}     # `run`: parts of the configuration of the teacher's own run
    seeds: [42, 43, 44]
    tune:
      trials: 4
      space: {train.learning_rate: {low: 0.0005, high: 0.004, log: true}}
      methods: {dllm2rec: {ranking_weight: [0.2, 1]}}

A name that is no student, method or teacher of ours is a label and needs `name`. A method that needs no teacher is not
multiplied by teachers; one that needs what a teacher does not give is left out with that teacher, and this is said.

Tuning: the first trial of every combination is the configuration as it stands, the others draw from the space. All
combinations of a student draw the same values for the keys that they share, in as many trials, on the first seed, and
validation decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from distilrec.compare.settings import PLAIN, CompareSettings, with_plain
from distilrec.compare.trials import draw
from distilrec.config import Config
from distilrec.config_file import load_config, merged, read_yaml, with_words
from distilrec.errors import ConfigError
from distilrec.files import hash_json
from distilrec.methods import METHODS
from distilrec.methods.base import Method
from distilrec.pipeline import Pipeline
from distilrec.pipeline.names import named
from distilrec.pipeline.space import with_values
from distilrec.settings import checked
from distilrec.teachers import TEACHERS

_PARTS = tuple(name for name in Config.model_fields if name not in ("name", "seed", "student", "teacher", "method"))
Values = dict[str, Any]  # key of a setting -> value


@dataclass(frozen=True, slots=True, order=True)
class Combination:
    """One row of the table: labels of data set, student, method and teacher (None for a method that needs none)."""

    dataset: str
    student: str
    method: str
    teacher: str | None

    @property
    def label(self) -> str:
        """Return how it is called in lists."""
        return "/".join(part for part in (self.dataset, self.student, self.method, self.teacher) if part is not None)


class Matrix:
    """The combinations of one comparison, and the configuration of every run in it.

    Args:
        settings: checked.
        folder: that paths of data files are relative to.

    Raises:
        ConfigError: an unknown name or setting anywhere in the matrix, or nothing to compare.
    """

    def __init__(self, settings: CompareSettings, folder: Path = Path()) -> None:
        self.settings, self.folder = with_plain(settings), folder
        self.left_out: list[str] = []
        self.combinations = list(self._combinations())
        for name in settings.datasets:  # all that can be wrong in a setting is said before any work
            for teacher in settings.teachers:
                Pipeline(self.teacher_config(name, teacher), Path())
        for one in self.combinations:
            for number in range(settings.tune.trials):
                Pipeline(self.config(one, settings.seeds[0], self.trial(one, number)), Path())

    def _combinations(self) -> Iterator[Combination]:
        some = self.settings
        for dataset in some.datasets:
            for student in some.students:
                for method in some.methods:
                    needs = self.needs(method)
                    if not needs:
                        yield Combination(dataset, student, method, None)
                        continue
                    if not some.teachers:
                        raise ConfigError(f"the method {method} needs a teacher.", remedy="Add one under teachers.")
                    for teacher in some.teachers:
                        gives = self._gives(dataset, teacher)
                        if missing := needs - gives:
                            self._leave_out(method, teacher, " and ".join(sorted(missing)).replace("_", " "))
                        else:
                            yield Combination(dataset, student, method, teacher)

    def _leave_out(self, method: str, teacher: str, missing: str) -> None:
        line = f"{method} with {teacher}: needs {missing}, which {teacher} does not give"
        if line not in self.left_out:
            self.left_out.append(line)

    def kind(self, method: str) -> type[Method]:
        """Return the method behind a label."""
        return named(METHODS, _name(self.settings.methods, method), "method")

    def needs(self, method: str) -> frozenset[str]:
        """Return what a method takes from a teacher, its training in rounds included."""
        kind = self.kind(method)
        settings = checked(kind.Settings, _own(self.settings.methods[method]), where=f"methods.{method}")
        needs = kind.needs_of(settings)
        return needs if kind.rounds_of(settings) is None else needs | {"rankings"}

    def in_rounds(self, one: Combination) -> bool:
        """Whether student and teacher of a combination train in turn, so that nothing is stored."""
        kind = self.kind(one.method)
        settings = checked(kind.Settings, _own(self.settings.methods[one.method]), where=f"methods.{one.method}")
        if one.teacher is None or kind.rounds_of(settings) is None:
            return False
        teacher = named(TEACHERS, _name(self.settings.teachers, one.teacher), "teacher")
        return "logits" in teacher.gives and hasattr(teacher, "reopen")

    def _gives(self, dataset: str, teacher: str) -> frozenset[str]:
        kind = named(TEACHERS, _name(self.settings.teachers, teacher), "teacher")
        vectors = self.teacher_config(dataset, teacher).annotate.vectors is not None
        return frozenset(kind.gives | {"item_vectors"}) if vectors else frozenset(kind.gives)

    def teacher_config(self, dataset: str, teacher: str) -> Config:
        """Return the configuration of the run that holds a data set's teacher and what it says."""
        content = self._content(dataset)
        own = dict(self.settings.teachers[teacher] or {})
        content = merged(content, _run_of(own, teacher))
        content["teacher"] = {"name": _name(self.settings.teachers, teacher), **_own(own)}
        content |= {
            "name": f"{_safe(dataset)}-{_safe(teacher)}",
            "method": {"name": PLAIN},
            "seed": self.settings.seeds[0],
        }
        return load_config(None, [], content)

    def data_config(self, dataset: str) -> Config:
        """Return the configuration of the run that prepares a data set for all others."""
        return load_config(None, [], self._content(dataset) | {"name": _safe(dataset), "seed": self.settings.seeds[0]})

    def config(self, one: Combination, seed: int, values: Values, plain: Values | None = None) -> Config:
        """Return the configuration of one training.

        Args:
            one: the combination.
            seed: of the training.
            values: of the keys that were tuned.
            plain: values of the plain student, which a method that tunes a trained student starts from.
        """
        some, kind = self.settings, self.kind(one.method)
        content = self._content(one.dataset)
        student, method = dict(some.students[one.student] or {}), dict(some.methods[one.method] or {})
        content["train"] = merged(
            _group(content.get("train"), "train"), _group(student.pop("train", None), f"students.{one.student}.train")
        )
        own = _group(method.pop("train", None), f"methods.{one.method}.train")
        if one.teacher is not None:
            run = _run_of(some.teachers[one.teacher], one.teacher)
            content = merged(content, {key: run[key] for key in ("teach", "annotate") if key in run})
            content["teacher"] = {
                "name": _name(some.teachers, one.teacher),
                **_own(some.teachers[one.teacher]),
            }
        content["student"] = {"name": _name(some.students, one.student), **_own(student)}
        content["method"] = {"name": kind.name, **_own(method)}
        content["distil"] = merged(_group(content.get("distil"), "distil"), own)  # over `train`: load_config
        content |= {"name": self.run_name(one, seed), "seed": seed}
        config = load_config(None, [], content)
        if kind.name == PLAIN:
            tuned = with_values(config, values)
            return tuned.model_copy(update={"distil": None})
        of_distil = {(f"distil.{key[6:]}" if key.startswith("train.") else key): value for key, value in values.items()}
        if kind.fine_tunes:  # starts from the plain student: its size and training are settled
            of_distil = {key: value for key, value in of_distil.items() if not key.startswith("student.")} | (
                plain or {}
            )
        return with_values(config, of_distil)

    def run_name(self, one: Combination, seed: int) -> str:
        """Return the folder of a training: one for a student and seed, whatever the method."""
        return f"{_safe(one.dataset)}-{_safe(one.student)}-{seed}"

    def trial(self, one: Combination, number: int) -> Values:
        """Return the values of a trial: none in the first one, then drawn, alike for what combinations share."""
        if number == 0:
            return {}
        kind = self.kind(one.method)
        tune = self.settings.tune
        parts = {
            **tune.space,
            **{f"student.{key}": part for key, part in tune.students.get(one.student, {}).items()},
            **{f"method.{key}": part for key, part in tune.methods.get(one.method, {}).items()},
        }
        found = {key: draw(part, self.settings.seeds[0], number, key) for key, part in parts.items()}
        return {key: value for key, value in found.items() if not (kind.fine_tunes and key.startswith("student."))}

    def trials_of(self, one: Combination) -> list[Values]:
        """Return the values of all trials, none twice."""
        found: list[Values] = []
        for number in range(self.settings.tune.trials):
            values = self.trial(one, number)
            if values not in found:
                found.append(values)
        return found

    @property
    def tuned(self) -> bool:
        """Whether any combination has more than one trial."""
        return any(len(self.trials_of(one)) > 1 for one in self.combinations)

    def plain_of(self, one: Combination) -> Combination:
        """Return the plain student that a combination is held against."""
        label = next(label for label in self.settings.methods if self.kind(label).name == PLAIN)
        return Combination(one.dataset, one.student, label, None)

    def _content(self, dataset: str) -> dict[str, Any]:
        content = merged(
            _parts_of(self.settings.base, "base"), _parts_of(self.settings.datasets[dataset], f"datasets.{dataset}")
        )
        data = content.get("data") or {}
        if not isinstance(data, dict):  # the settings refuse it
            return content
        paths = {key: data[key] for key in ("interactions", "items") if isinstance(data.get(key), str) and data[key]}
        return {**content, "data": data | {key: str(self.folder / path) for key, path in paths.items()}}


def read_matrix(path: Path) -> Matrix:
    """Read a comparison from a YAML file; paths in it are relative to where the command is run.

    Raises:
        ConfigError: see `Matrix`; unreadable file.
    """
    return Matrix(checked(CompareSettings, read_yaml(path), where=str(path)))


def matrix_for_log(interactions: Path, items: Path | None, words: Sequence[str] = ()) -> Matrix:
    """Return the matrix that a log of one's own is compared on: compare.yaml over defaults.yaml, both of the package.

    `words` are `key=value` settings that all combinations share: `data`, `train`, `evaluate` and other parts of a run. They win over
    the `train` of a student.
    """
    defaults, own = (
        yaml.safe_load(files("distilrec").joinpath(name).read_text(encoding="utf-8"))
        for name in ("defaults.yaml", "compare.yaml")
    )
    name = _safe(interactions.name.split(".")[0]).strip("-._") or "log"
    base = {key: value for key, value in defaults.items() if key in _PARTS}
    base = _parts_of(with_words(base, words), "settings")
    data = _group(base.pop("data", None), "data")
    if twice := [f"data.{key}={data[key]}" for key in ("source", "interactions") if data.get(key) is not None]:
        raise ConfigError(
            f"the data are given more than once: {twice[0]} and --interactions {interactions}.",
            remedy="Leave one of them out.",
        )
    data |= {"interactions": str(interactions)} | ({} if items is None else {"items": str(items)})
    typed = {"train": _group(with_words({}, words).get("train"), "train")}
    students = {
        label: merged(some, typed) if some and "train" in some else some for label, some in own["students"].items()
    }
    teachers = {name: merged({key: value for key, value in defaults["teacher"].items() if key != "name"}, settings or {})
                for name, settings in own["teachers"].items()}  # fmt: skip
    content = {
        **own,
        "students": students,
        "teachers": teachers,
        "name": f"compare-{name}",
        "base": base,
        "datasets": {name: {"data": data}},
    }
    return Matrix(checked(CompareSettings, content, where="compare.yaml"))


def _group(content: Any, where: str) -> dict[str, Any]:
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"a group of settings is expected, got {content!r}.", where=where, remedy="Write key: value.")
    return content or {}


def _parts_of(content: Any, where: str, parts: tuple[str, ...] = _PARTS) -> dict[str, Any]:
    content = _group(content, where)
    for key in content:
        if key not in parts:
            raise ConfigError(
                f"{key!r} is no part of a run's configuration that can stand here.",
                where=where,
                remedy=f"Known: {', '.join(parts)}.",
            )
    return dict(content)


def _run_of(teacher: Mapping[str, Any] | None, label: str) -> dict[str, Any]:
    """Return the parts of the configuration of a teacher's own run; it may have a student, for ID embeddings."""
    return _parts_of((teacher or {}).get("run"), f"teachers.{label}.run", (*_PARTS, "student"))


def _name(group: Mapping[str, dict[str, Any] | None], label: str) -> str:
    return str((group[label] or {}).get("name", label))


def _own(content: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a student, method or teacher itself."""
    return {key: value for key, value in (content or {}).items() if key not in ("name", "train", "run")}


def _safe(text: str) -> str:
    """Return a label as the name of a folder: one that had to be changed gets a hash, so that no two become the same."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    kept = kept if kept[:1].isalnum() else f"x{kept}"
    return kept if kept == text else f"{kept}-{hash_json(text)[:6]}"
