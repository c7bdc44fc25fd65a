"""The space that `distilrec tune` searches: settings of student and training by key, each with a range or choices.

    train.learning_rate: {low: 0.0003, high: 0.003, log: true}
    student.dropout: {low: 0.1, high: 0.7, step: 0.1}
    student.hidden_size: [64, 128, 256]

Every key is checked against the settings of the chosen student before any work.
"""

import difflib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, Field, model_validator

from distilrec.config import Config, TrainSettings
from distilrec.config_file import read_yaml
from distilrec.errors import ConfigError
from distilrec.progress import say
from distilrec.settings import Settings, checked
from distilrec.students.base import Student

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_FIXED = {
    "select_by",
    "checkpoint_seconds",
    "refit",
    "validate_users",
}  # what is measured, and what changes no training
_SCALARS = (str, int, float, bool, type(None))


class Range(Settings):
    """Numbers from `low` to `high`, both included: evenly, by order of magnitude (`log`) or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _sensible(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range starts above 0 and has no step")
        return self


Space = dict[str, Range | list[Any]]


def read_space(path: Path | None, student: type[Student]) -> Space:
    """Read the space from a file, or take the default one of a student.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one), or neither a range nor choices.
    """
    known = _searchable(student)
    if path is None:
        content = yaml.safe_load(files("distilrec").joinpath("spaces.yaml").read_text(encoding="utf-8"))
        merged = {**content["general"], **content.get(student.name, {})}
        return {key: _part(key, value, "spaces.yaml") for key, value in merged.items() if key in known}
    content = _read(path)
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(f"{str(key)!r} is no setting that can be searched.", where=str(path), remedy=hint)
    return {key: _part(key, value, str(path)) for key, value in content.items()}


def given_values(space: Space, config: Config, student: Settings) -> dict[str, Any]:
    """Return what the configuration as it stands has for every key of the space."""
    return {key: _at({"student": student.model_dump(), "train": config.train.model_dump()}, key) for key in space}


def with_values(config: Config, values: Mapping[str, Any], **train: Any) -> Config:
    """Return the configuration with other values at some keys (ConfigError where `Config` refuses one)."""
    content = config.model_dump(mode="json")
    for key, value in [*values.items(), *((f"train.{name}", value) for name, value in train.items())]:
        *groups, last = key.split(".")
        place = content
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key}: {group!r} is a value, not a group of settings.", remedy="Correct the key.")
        place[last] = value
    return checked(Config, content, where="trial")


def need_optuna() -> Any:
    """Return optuna, or say how to install it."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "tuning needs optuna, which is not installed.", remedy="Run pip install 'distilrec[tune]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def distribution(key: str, part: Range | list[Any], given: Any) -> "BaseDistribution":
    """Turn a part of the space into optuna's, with room for the value in the configuration as given.

    Raises:
        ConfigError: the value is no number, or none that a logarithmic range can hold.
    """
    kinds = need_optuna().distributions
    if isinstance(part, list):
        return kinds.CategoricalDistribution(part if given in part else [*part, given])
    if isinstance(given, bool) or not isinstance(given, int | float) or (part.log and given <= 0):
        raise ConfigError(
            f"{key} is {given!r} in the configuration, which does not fit a range.",
            remedy="Give a list of choices, or set it to a number first.",
        )
    low, high = min(part.low, given), max(part.high, given)
    if (low, high) != (part.low, part.high):
        say(f"  {key}: the range is widened to {low:g}..{high:g}, where the configuration is")
    if isinstance(given, int) and all(float(number).is_integer() for number in (low, high, part.step or 1)):
        return kinds.IntDistribution(int(low), int(high), log=part.log, step=int(part.step or 1))
    return kinds.FloatDistribution(low, high, log=part.log, step=part.step)


def _searchable(student: type[Student]) -> list[str]:
    return [
        *(f"student.{key}" for key in _leaves(student.Settings)),
        *(f"train.{key}" for key in _leaves(TrainSettings) if key not in _FIXED),
    ]


def _leaves(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (f"{name}.{key}" for key in _leaves(kind))
        else:
            yield name


def _part(key: str, value: Any, where: str) -> Range | list[Any]:
    if isinstance(value, dict):
        return checked(Range, value, where=f"{where}: {key}")
    if isinstance(value, list) and value and all(isinstance(choice, _SCALARS) for choice in value):
        return value
    raise ConfigError(
        f"{key}: neither a range nor choices (got {value!r}).",
        where=where,
        remedy="Write {low: 1, high: 5} or a list such as [32, 64].",
    )


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not content:
        raise ConfigError("the file must hold `key: range or choices`.", where=str(path), remedy="See docs/tune.md.")
    return content


def _at(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for part in key.split("."):
        value = value[part]
    return value
