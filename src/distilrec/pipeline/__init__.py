"""The stages of a run, each done once for the same inputs and settings, strung together."""

from distilrec.pipeline.run import Pipeline

__all__ = ["Pipeline"]
