"""From a name in the settings to what a registry holds under it."""

from collections.abc import Mapping
from typing import TypeVar

from distilrec.errors import ConfigError

T = TypeVar("T")


def named(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry called `name`, or raise a ConfigError that lists what there is."""
    if name not in registry:
        raise ConfigError(f"unknown {what} {name!r}.", remedy=f"Known: {', '.join(registry)}.")
    return registry[name]
