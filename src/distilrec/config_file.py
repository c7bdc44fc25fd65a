"""A run's configuration: a YAML file, laid over defaults, with `key=value` words on top."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distilrec.config import Config
from distilrec.errors import ConfigError
from distilrec.settings import checked

_CHOICES = ("student", "teacher", "method")  # the settings that are a `Choice`


def load_config(path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, lay it over `base`, lay `key.sub=value` overrides on top, and check everything.

    An override that names another student, teacher or method (`method=rd`, `method.name=rd`) drops the settings of the one before it,
    but for those that other overrides give.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one) or a value out of range.
    """
    content = merged(dict(base or {}), read_yaml(path) if path else {})
    given = []
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise ConfigError(f"{override!r} is not key=value.", remedy="Write overrides as train.epochs=5.")
        given.append((key, _parse(text, key)))
    given.sort(key=lambda one: one[0] not in _CHOICES and one[0].removesuffix(".name") not in _CHOICES)
    for key, value in given:
        _set(content, key.split("."), value, key)
    return checked(Config, content, where=str(path) if path else "settings")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds settings (ConfigError where it cannot be read or holds something else)."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file.", where=str(path), remedy="Check the path of the configuration.") from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror}).", where=str(path), remedy="Give a YAML file.") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # not UTF-8, a date that there is not, brackets without end
        text = " ".join(str(error).split())
        raise ConfigError(f"not valid YAML ({text}).", where=str(path), remedy="Mend the file.") from None
    if not isinstance(content, dict):
        raise ConfigError(
            "the file must hold `key: value` settings.", where=str(path), remedy="See the files in configs/."
        )
    return content


def _parse(text: str, key: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter of a date that there is not
        raise ConfigError(f"{key}: cannot read the value {text!r}.", remedy="Quote it.") from None


def _set(content: dict[str, Any], path: Sequence[str], value: Any, key: str) -> None:
    kind = path[0]
    if kind in _CHOICES and len(path) > 1:
        if isinstance(content.get(kind), str):
            content[kind] = {"name": content[kind]}
        if path[1:] == ["name"] and content.get(kind, {}).get("name") != value:
            content[kind] = {}
    for part in path[:-1]:
        step = content.setdefault(part, {})
        if not isinstance(step, dict):
            raise ConfigError(f"{key}: {part!r} is a value, not a group of settings.", remedy="Correct the key.")
        content = step
    content[path[-1]] = value


def merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one set of settings over another; a group with another `name` takes the place of the one below it."""
    whole = dict(low)
    for key, value in high.items():
        below = whole.get(key)
        same_name = (
            isinstance(value, Mapping)
            and isinstance(below, dict)
            and value.get("name", below.get("name")) == below.get("name")
        )
        whole[key] = merged(below, value) if same_name and isinstance(below, dict) else value
    return whole
