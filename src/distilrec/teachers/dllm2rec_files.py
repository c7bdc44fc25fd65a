"""The files that the published code of DLLM2Rec reads its teacher from; Cui et al., RecSys 2024, arXiv 2405.00338.

    all_embeddings.pt      [N, D] float tensor; row = item id
    myrank_train.txt       a line for each training sample: K item ids, best first, separated by white space
    confidence_train.txt   the same shape: the distance of each of these items, lower = surer

The text files are those of numpy's loadtxt and savetxt: ids may be written as floats, # starts a comment. Here item ids are the
data set's internal ids, and line n belongs to its n-th training example in ascending example id. The published data have their
own order of samples: their rankings fit only a data set with as many training examples in the same order, which the number of
lines can tell, but no more than that.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distilrec.data.dataset import Dataset, training_examples
from distilrec.data.split import Ints
from distilrec.data.tables import check_file
from distilrec.errors import InputError
from distilrec.files import write_with
from distilrec.teachers.vector_files import checked_vectors, load_tensor

EMBEDDINGS, RANKINGS, CONFIDENCES = "all_embeddings.pt", "myrank_train.txt", "confidence_train.txt"
_FORMATS = {RANKINGS: "%d", CONFIDENCES: "%.9g"}  # nine digits bring every float32 back


@dataclass(frozen=True)
class Dllm2recFiles:
    """Content of a folder; None for a file that is not there.

    Attributes:
        examples: [E] int64 example ids of the lines, ascending: all training examples of the data set.
        items: [E, K] int64 item ids as they stand in the file, best first; some may lie outside the catalogue.
        scores: [E, K] float32, the negated distances: higher = surer.
        item_vectors: [N, D] float32.
    """

    examples: Ints
    items: npt.NDArray[np.int64] | None
    scores: npt.NDArray[np.float32] | None
    item_vectors: Tensor | None


def read_dllm2rec(folder: Path, dataset: Dataset) -> Dllm2recFiles:
    """Read a folder that holds at least one of `all_embeddings.pt` and `myrank_train.txt`.

    Raises:
        InputError: neither is there; distances without rankings; a broken file; lines, columns or rows that do not fit.
    """
    rankings, confidences, embeddings = (folder / name for name in (RANKINGS, CONFIDENCES, EMBEDDINGS))
    if not (rankings.exists() or embeddings.exists()):
        raise InputError(
            f"neither {RANKINGS} nor {EMBEDDINGS} is there.", where=str(folder), remedy="Check teacher.folder."
        )
    if confidences.exists() and not rankings.exists():
        raise InputError(
            f"{CONFIDENCES} is there and {RANKINGS} is not.", where=str(folder), remedy="Add the rankings."
        )
    examples = training_examples(dataset)
    items = _items(rankings, examples) if rankings.exists() else None
    scores = _scores(confidences, items.shape) if items is not None and confidences.exists() else None
    vectors = checked_vectors(load_tensor(embeddings), dataset, where=embeddings) if embeddings.exists() else None
    return Dllm2recFiles(examples, items, scores, vectors)


def write_dllm2rec(
    folder: Path,
    dataset: Dataset,
    *,
    examples: Ints,
    items: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    item_vectors: Tensor | None = None,
) -> None:
    """Write knowledge as DLLM2Rec's files; each is written whole or not at all.

    Args:
        folder: made where there is none.
        dataset: what the ids belong to.
        examples: [E] example ids, ascending: all training examples, for the format has a line for each.
        items: [E, K] internal item ids, best first.
        scores: [E, K] higher = surer; written negated, as distances.
        item_vectors: [N, D], or None to write none.

    Raises:
        InputError: a training example is missing, a list is shorter than the others, or a score is not finite.
    """
    wanted = training_examples(dataset)
    if not np.array_equal(examples, wanted):
        missing = len(np.setdiff1d(wanted, examples))
        raise InputError(
            f"the format needs a line for each of the {len(wanted):,} training examples in ascending order; "
            f"{missing:,} are missing.",
            where=str(folder),
            remedy="Annotate all training examples first.",
        )
    if items.shape != scores.shape or items.ndim != 2 or len(items) != len(wanted):
        raise InputError(
            f"items {list(items.shape)} and scores {list(scores.shape)}, [{len(wanted)}, K] twice is expected.",
            where=str(folder),
            remedy="Give one list of items and one of scores for each example.",
        )
    if not np.isfinite(scores).all():
        raise InputError(
            "some lists are shorter than others, or have a score that is not finite; the format knows neither.",
            where=str(folder),
            remedy="Keep only as many items of each list as the shortest has.",
        )
    vectors = None if item_vectors is None else checked_vectors(item_vectors, dataset, where=folder / EMBEDDINGS)
    for name, table in ((RANKINGS, items), (CONFIDENCES, 0.0 - scores)):
        write_with(folder / name, lambda part, table=table, name=name: _save_text(part, table, _FORMATS[name]))  # type: ignore[misc]
    if vectors is not None:
        own = vectors.cpu().clone()  # a view would be saved with all of the tensor it looks into
        write_with(folder / EMBEDDINGS, lambda part: torch.save(own, part))


def _save_text(path: Path, table: npt.NDArray[Any], number: str) -> None:
    with path.open("w", encoding="ascii") as handle:
        np.savetxt(handle, table, fmt=number)


def _items(path: Path, examples: Ints) -> npt.NDArray[np.int64]:
    numbers = _numbers(path)
    if len(numbers) != len(examples):
        raise InputError(
            f"{len(numbers):,} lines, {len(examples):,} are expected: one for each training example of the data set.",
            where=str(path),
            remedy="Make it for this data set and its split; a line's place says what it belongs to.",
        )
    wrong = np.argwhere(~np.isfinite(numbers) | (numbers % 1 != 0) | (np.abs(numbers) >= 2**53))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"{len(wrong):,} entries are no item ids, the first one is {numbers[row, column]:g} in line {row + 1}.",
            where=str(path),
            remedy="Item ids are whole numbers.",
        )
    return numbers.astype(np.int64)


def _scores(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused below
        numbers = _numbers(path).astype(np.float32)
    if numbers.shape != shape:
        raise InputError(
            f"{numbers.shape[0]:,} lines of {numbers.shape[1]} distances, {shape[0]:,} of {shape[1]} are expected.",
            where=str(path),
            remedy=f"It must have the shape of {RANKINGS}.",
        )
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        raise InputError(
            f"{len(wrong):,} distances are not finite, the first one in line {wrong[0, 0] + 1}.",
            where=str(path),
            remedy="Write these lines anew.",
        )
    return np.float32(0) - numbers


def _numbers(path: Path) -> npt.NDArray[np.float64]:
    """Read a text file of numbers, [lines, K]."""
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a file of blank lines, which is refused below
            numbers = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        text = str(error).split(";")[0]  # what follows advises a programmer
        raise InputError(
            f"not lines of the same count of numbers ({text}).", where=str(path), remedy="Mend the file."
        ) from None
    if numbers.size == 0:
        raise InputError("the file holds no numbers.", where=str(path), remedy="Write it anew.")
    return numbers
