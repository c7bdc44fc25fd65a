"""A run's configuration: a YAML file, laid over defaults, with `key=value` words on top."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from distilrec.config import Config
from distilrec.errors import ConfigError
from distilrec.settings import checked

_CHOICES = ("student", "teacher", "method")  # the settings that are a `Choice`
_ORIGINS = (("data.source", "data.interactions"), ("data.items",))  # of each, one value
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


def load_config(path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, lay it over `base`, lay `key.sub=value` overrides on top, and check everything.

    What `distil` does not say is as in `train`.

    An override that names another student, teacher or method (`method=rd`, `method.name=rd`) drops the settings of the one before it,
    but for those that other overrides give.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one) or a value out of range.
    """
    content = with_words(merged(dict(base or {}), read_yaml(path) if path else {}), overrides)
    if isinstance(content.get("distil"), dict) and isinstance(content.get("train"), dict):
        content["distil"] = merged(content["train"], content["distil"])
    return checked(Config, content, where=str(path) if path else "settings")


def with_words(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `key.sub=value` words over settings that are still unchecked (ConfigError where a word cannot be read)."""
    whole = deepcopy(dict(content))
    given = []
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise ConfigError(f"{override!r} is not key=value.", remedy="Write overrides as train.epochs=5.")
        given.append((key, _parse(text, key)))
    for keys in _ORIGINS:
        origins = dict.fromkeys(f"{key}={value}" for key, value in given if key in keys and value is not None)
        if len(origins) > 1:
            option = keys[-1].removeprefix("data.")
            raise ConfigError(
                f"the data are given more than once: {', '.join(origins)}.",
                remedy=f"Leave one of them out (--{option} FILE means data.{option}=FILE).",
            )
    given.sort(key=lambda one: one[0] not in _CHOICES and one[0].removesuffix(".name") not in _CHOICES)
    for key, value in given:
        _set(whole, key.split("."), value, key)
    return whole


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds settings (ConfigError where it cannot be read or holds something else)."""
    try:
        content = _read(path.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(error.problem, where=str(path), remedy=error.remedy) from None
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


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice (YAML drops the first) and leaves 042 as text (YAML reads 34)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the keys as they are written: later `<<` has put those of other groups among them."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in lines:
                first, second = lines[key.value], key.start_mark.line + 1
                where = f"in lines {first} and {second}" if first != second else f"in line {first}"
                raise ConfigError(
                    f"the key {key.value!r} stands twice, {where}.", remedy="Put both into one, or delete one of them."
                )
            lines[key.value] = key.start_mark.line + 1
        return node

    def whole_number(self, node: yaml.ScalarNode) -> int | str:
        """Read a whole number, one that begins with 0 as text: where a number is wanted it is read as decimal."""
        return str(node.value) if _OCTAL.fullmatch(node.value) else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def _read(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _parse(text: str, key: str) -> Any:
    try:
        return _read(text)
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
