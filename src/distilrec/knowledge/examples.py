"""Which training examples a teacher is asked about."""

from pathlib import Path

import numpy as np

from distilrec.config import AnnotateSettings
from distilrec.data.dataset import Dataset, training_examples
from distilrec.data.split import Ints
from distilrec.errors import InputError

_SHOWN = 5


def chosen_examples(dataset: Dataset, settings: AnnotateSettings, default: str, seed: int) -> Ints:
    """Return the ids of the examples to ask about, ascending.

    Args:
        dataset: whose training examples they are.
        settings: all or the last ones, a sample, or a file that names them.
        default: `all` or `last`, where the settings leave it open.
        seed: of the sample; with the same seed a larger sample contains a smaller one.

    Raises:
        InputError: the file cannot be read, or names what is no training example.
    """
    if settings.selection is not None:
        found = _selected(dataset, settings.selection, settings.selection_by)
    else:
        found = training_examples(dataset, settings.examples or default)
    if settings.sample is not None and settings.sample < len(found):
        found = np.random.default_rng(seed).permutation(found)[: settings.sample]
    return np.sort(found)


def _selected(dataset: Dataset, path: Path, by: str) -> Ints:
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(
            f"the selection cannot be read ({reason}).", where=str(path), remedy="Give a file of ids, one a line."
        ) from None
    if not words:
        raise InputError("the selection names no example.", where=str(path), remedy="Write one id a line.")
    last = training_examples(dataset, "last")
    if by == "user":
        rows = dict(zip((dataset.user_ids[row] for row in dataset.rows_of(last)), last.tolist(), strict=True))
        known = {word: rows.get(word) for word in words}
    else:
        there = set(training_examples(dataset).tolist())
        known = {
            word: int(word) if word.isdecimal() and len(word) < 20 and int(word) in there else None for word in words
        }
    wrong = [word for word, example in known.items() if example is None]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(known)} ids are no {'histories with' if by == 'user' else ''} training examples of this data "
            f"set: {', '.join(wrong[:_SHOWN])}{' ...' if len(wrong) > _SHOWN else ''}.",
            where=str(path),
            remedy="Take them out, or set annotate.selection_by to example or user, whichever they are.",
        )
    return np.unique(np.array(list(known.values()), dtype=np.int64))  # 7 and 07 are one example
