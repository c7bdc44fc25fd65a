"""What tables of models and of methods share."""

from typing import Any

DATASETS = {"amazon-beauty": "Amazon Beauty", "amazon-toys": "Amazon Toys", "ml-100k": "MovieLens-100K"}


def interval(row: dict[str, Any], metric: str) -> str:
    """Return a figure with its interval."""
    low, high = row["ci95"][metric]
    return f"{row['metrics'][metric]:.4f} ({low:.4f} to {high:.4f})"
