"""Which training examples are worth asking an expensive teacher about."""

from distilrec.knowledge.select.chosen import Chosen, plot
from distilrec.knowledge.select.difficulty import difficulties
from distilrec.knowledge.select.draw import NAMES, Selection, select
from distilrec.knowledge.select.policies import POLICIES, GainSettings, Policy

__all__ = ["NAMES", "POLICIES", "Chosen", "GainSettings", "Policy", "Selection", "difficulties", "plot", "select"]
