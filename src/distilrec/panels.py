"""Two pictures side by side as SVG text: the same bytes for the same figures, text as text."""

import io
from typing import Any


def panels() -> tuple[Any, Any, Any]:
    """Return a figure and its left and right axes."""
    import matplotlib  # loaded where a picture is drawn: it takes half a second

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "distilrec"})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    return figure, left, right


def markup(figure: Any, *, transparent: bool = False) -> str:
    """Return a figure as an SVG document, and close it."""
    from matplotlib import pyplot

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=transparent)
    pyplot.close(figure)
    return text.getvalue()
