"""Ranks of test targets, kept beside the figures that are made of them, so that a report needs no run and may grow over many sittings.

Metrics reach down to place 20: what lies deeper is kept as 21. That leaves a byte a user and a few KB a training, small enough to be
committed, and enough to make every figure, interval and test of the report again.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distilrec.files import hash_json, write_with

DEEPEST = 20
Ranks = npt.NDArray[np.int64]
_ABOUT, _SETTINGS = "about", "settings"


def keep(path: Path, settings: Any, ranks: Mapping[str, Ranks], about: Mapping[str, Any]) -> None:
    """Keep the ranks of one training.

    Args:
        path: file to write, `.npz`.
        settings: all that the training was set to; what is kept counts only as long as these are asked for.
        ranks: [n] ranks of the test targets, 1 for the first place, by name.
        about: whatever else the report says of it.
    """
    content = {name: np.minimum(one, DEEPEST + 1).astype(np.uint8) for name, one in ranks.items()}
    for name, value in ((_ABOUT, dict(about)), (_SETTINGS, hash_json(settings))):
        content[name] = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **content)

    write_with(path, save)


def kept(path: Path, settings: Any) -> tuple[dict[str, Ranks], dict[str, Any]] | None:
    """Return the ranks of a training and what is said of it; None if none is kept, or one with other settings."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        ranks = {name: file[name].astype(np.int64) for name in file.files if name not in (_ABOUT, _SETTINGS)}
        about, stamp = (json.loads(bytes(file[name])) for name in (_ABOUT, _SETTINGS))
    return (ranks, about) if stamp == hash_json(settings) else None


def computed(path: Path, compute: Callable[[], Ranks]) -> Ranks:
    """Return the ranks in a file of a run, `.npy`, [n]; those of `compute`, which then lie there, if there are none."""
    if not path.exists():
        found = compute()

        def save(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, found, allow_pickle=False)

        write_with(path, save)
    ranks: Ranks = np.load(path, allow_pickle=False)
    return ranks
