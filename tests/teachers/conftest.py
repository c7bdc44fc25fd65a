"""Lends the tiny language model to the tests of this folder."""

from fixtures_llm import tiny_llm

__all__ = ["tiny_llm"]
