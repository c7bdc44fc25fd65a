"""What every settings model is: frozen and typed; a wrong value is one line, an unknown key comes with a suggestion."""

import difflib
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distilrec.errors import ConfigError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, values checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(BaseModel):
    """A named thing and its own settings, still unchecked: `{name: sasrec, hidden_size: 64}`, or the name alone."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def settings(self) -> dict[str, Any]:
        """Return everything but the name."""
        return dict(self.model_extra or {})


def checked(model: type[S], content: Mapping[str, Any], *, where: str) -> S:
    """Build a settings model, turning pydantic's complaint into one line."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, [str(part) for part in first["loc"][:-1]])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(f"unknown setting {key!r}.", where=where, remedy=hint) from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
        remedy = "Correct it."
        if first["type"] in ("string_type", "path_type") and isinstance(first["input"], bool | int | float | date):
            remedy = _quotes(first["input"])
        raise ConfigError(f"{key + ': ' if key else ''}{message}{got}.", where=where, remedy=remedy) from None


def _quotes(value: bool | float | date) -> str:
    """Say how to write as text what YAML takes for something else."""
    word = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    why = "; without them YAML reads on, off, yes and no as true or false" if isinstance(value, bool) else ""
    return f"""Put it in quotes ("{word}" in a file, '"{word}"' on the command line){why}."""


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            break
        model = inner
    return list(model.model_fields)
