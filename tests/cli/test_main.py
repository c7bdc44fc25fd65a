"""Words that belong to no verb, and paths as people name them."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_the_version(cli: Cli) -> None:
    done = cli("--version", out=False)
    assert (done.code, done.out.strip()) == (0, version("distilrec"))


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_comes_by_both_names(cli: Cli, word: str) -> None:
    whole, of_verb = cli(word, out=False), cli("prepare", word, out=False)
    assert (whole.code, of_verb.code) == (0, 0)
    assert "prepare" in whole.out
    assert "--interactions" in of_verb.out


def test_a_path_with_signs_beyond_the_basic_plane(cli: Cli, log: Path) -> None:
    odd = log.rename(log.with_name("log \U0001f600.csv"))
    done = cli("prepare", "--interactions", odd)
    assert (done.code, done.err.count("Error")) == (0, 0)
