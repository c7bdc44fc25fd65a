"""Lends the tiny language model and the base of runs that ask to the tests of this folder."""

import pytest

import fixtures_asking as asking
from fixtures_llm import tiny_llm

__all__ = ["tiny_llm"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> asking.Base:
    """Return a prepared data set, and a recommender, that questions are asked about."""
    return asking.make_base(tmp_path_factory.mktemp("asking"))
