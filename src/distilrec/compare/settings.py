"""What a comparison may be set to; what its parts mean stands in `compare.matrix`."""

from typing import Any

import numpy as np
import yaml
from pydantic import Field, model_validator

from distilrec.errors import ConfigError
from distilrec.evaluation.metrics import gain
from distilrec.pipeline.space import Range
from distilrec.settings import Settings

PLAIN = "plain"


class TuneSettings(Settings):
    """How every combination is tuned: `trials` settings each, the first as given; see `distilrec.compare.matrix`.

    `space`: keys of `train` and `student`, for all; `students` and `methods`: settings of some, by label.
    """

    trials: int = Field(1, ge=1)
    space: dict[str, Range | list[Any]] = {}
    students: dict[str, dict[str, Range | list[Any]]] = {}
    methods: dict[str, dict[str, Range | list[Any]]] = {}

    @model_validator(mode="after")
    def _something_to_draw(self) -> "TuneSettings":
        for part in (self.space, *self.students.values(), *self.methods.values()):
            for key, choices in part.items():
                if choices == []:
                    raise ValueError(f"{key} has no choices")
        return self


class CompareSettings(Settings):
    """The matrix. `metrics`: those tested; the first one ranks the table."""

    name: str = Field("compare", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: dict[str, Any] = {}
    datasets: dict[str, dict[str, Any]] = Field(min_length=1)
    students: dict[str, dict[str, Any] | None] = Field(min_length=1)
    methods: dict[str, dict[str, Any] | None] = Field(min_length=1)
    teachers: dict[str, dict[str, Any] | None] = {}
    seeds: list[int] = Field([42, 43, 44], min_length=1)
    tune: TuneSettings = TuneSettings()
    metrics: list[str] = Field(["ndcg@10", "hr@10"], min_length=1)

    @model_validator(mode="after")
    def _sensible(self) -> "CompareSettings":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in seeds")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("a metric stands twice in metrics")
        if min(self.seeds) < 0:
            raise ValueError("seeds must not be below 0")
        for name in (*self.datasets, *self.students, *self.methods, *self.teachers):
            if not name or "/" in name or name != name.strip():
                raise ValueError(f"{name!r} cannot be a label: no slash, no blanks at its ends")
        for group, some in (("students", self.students), ("methods", self.methods)):
            for name in getattr(self.tune, group):
                if name not in some:
                    raise ValueError(f"tune.{group} names {name!r}, which is none of the {group}")
        for key in self.tune.space:
            if not key.startswith(("train.", "student.")):
                raise ValueError(f"tune.space holds keys of train and student, not {key!r}")
        for metric in self.metrics:
            gain(metric, np.ones(1, np.int64))
        return self


def dumped(settings: CompareSettings) -> str:
    """Return a comparison as YAML."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def with_plain(settings: CompareSettings) -> CompareSettings:
    """Return the settings with the plain student among the methods, which all others are held against."""
    plain = [label for label, own in settings.methods.items() if (own or {}).get("name", label) == PLAIN]
    if len(plain) > 1:
        raise ConfigError(
            f"{' and '.join(plain)} are the same plain training.", where="methods", remedy="Keep one of them."
        )
    if plain and set(settings.methods[plain[0]] or {}) - {"name"}:
        raise ConfigError(
            "the plain training has no settings of its own.",
            where=f"methods.{plain[0]}",
            remedy="Set base.train, or students.NAME.train.",
        )
    return settings if plain else settings.model_copy(update={"methods": {PLAIN: None, **settings.methods}})
