"""distilrec: turn a slow, expensive LLM recommender into a small sequential recommender."""

__version__ = "0.1.0"
