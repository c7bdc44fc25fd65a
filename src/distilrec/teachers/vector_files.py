"""Read item vectors made elsewhere, one row per item of the catalogue. No file can make the reader run code."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distilrec.columns import INDEX, ITEM
from distilrec.data.dataset import Dataset
from distilrec.data.tables import as_text, check_file, file_format, read_table
from distilrec.errors import InputError

KINDS = "a .safetensors, .npy or .pt file with one row per item, or Parquet with an item id and a list in each row"


def read_item_vectors(path: Path, dataset: Dataset) -> Tensor:
    """Read the vectors of the catalogue.

    .safetensors (a tensor `item_vectors`), .npy and .pt hold one row per item in the order of the internal ids; Parquet holds
    the original item id and a list of numbers in each row, in any order, and may hold further items.

    Returns:
        [N, D] float32.

    Raises:
        InputError: a file of another kind or a broken one, rows that do not fit the catalogue, items without a vector, or
            numbers that are not finite.
    """
    check_file(path)
    kind = file_format(path)
    if kind == ".safetensors":
        vectors = _from_safetensors(path)
    elif kind == ".npy":
        vectors = _from_npy(path)
    elif kind == ".pt":
        vectors = load_tensor(path)
    elif kind == ".parquet":
        vectors = _from_parquet(path, dataset)
    else:
        raise InputError(
            f"cannot read item vectors from {kind or path.name!r}.", where=str(path), remedy=f"Give {KINDS}."
        )
    return checked_vectors(vectors, dataset, where=path)


def checked_vectors(vectors: Tensor, dataset: Dataset, *, where: Path) -> Tensor:
    """Return vectors as [N, D] float32, or raise `InputError` where they are of another shape or not finite."""
    if vectors.ndim != 2 or vectors.shape[0] != dataset.n_items or vectors.shape[1] == 0:
        raise InputError(
            f"item vectors of shape {list(vectors.shape)}, [{dataset.n_items}, any] is expected: a row for each item.",
            where=str(where),
            remedy="Write them for this data set, in the order of its items.parquet.",
        )
    if not vectors.is_floating_point():
        kind = str(vectors.dtype).removeprefix("torch.")
        raise InputError(f"item vectors are {kind}, floats are expected.", where=str(where), remedy="Convert them.")
    vectors = vectors.detach().float().contiguous()
    wrong = torch.nonzero(~torch.isfinite(vectors).all(dim=1)).flatten()
    if len(wrong):
        raise InputError(
            f"{len(wrong):,} of {dataset.n_items:,} item vectors hold a number that is not finite "
            f"({listed([dataset.item_ids[row] for row in wrong[:5].tolist()])}).",
            where=str(where),
            remedy="Write these anew.",
        )
    return vectors


def load_tensor(path: Path) -> Tensor:
    """Read the one tensor of a .pt file; anything but plain tensors in it is refused unread."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a broken or hostile file fails in as many ways as there are
        raise InputError(
            "not a file of one plain tensor; nothing else is loaded from .pt files, for they can hold programs.",
            where=str(path),
            remedy="Save it with torch.save(tensor, path), or as .safetensors or .npy.",
        ) from None
    if not isinstance(content, Tensor):
        raise InputError(
            f"the file holds a {type(content).__name__}, one tensor is expected.",
            where=str(path),
            remedy="Save the tensor alone: torch.save(tensor, path).",
        )
    return content


def listed(values: list[str]) -> str:
    """Write up to five values down, for messages."""
    return ", ".join(repr(value) for value in values[:5])


def _from_safetensors(path: Path) -> Tensor:
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"not a safetensors file ({error}).", where=str(path), remedy="Write it anew.") from None
    if "item_vectors" not in tensors:
        names = listed(sorted(tensors)) or "nothing"
        raise InputError(
            f"no tensor 'item_vectors'; there is {names}.", where=str(path), remedy="Save it by that name."
        )
    return tensors["item_vectors"]


def _from_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, EOFError, TypeError, BadZipFile) as error:
        raise InputError(
            f"not a plain .npy array ({error}).", where=str(path), remedy="Save it with np.save(path, array)."
        ) from None


def _from_parquet(path: Path, dataset: Dataset) -> Tensor:
    table = read_table(path)
    lists = [name for name in table.names if isinstance(table.frame[name].dtype, (pl.List, pl.Array))]
    others = [name for name in table.names if name not in lists]
    keys = [name for name in others if name.lower() in (ITEM, "item")] or others
    if len(lists) != 1 or len(keys) != 1:
        raise InputError(
            f"one column of ids and one of lists are expected, there are {listed(table.names)}.",
            where=str(path),
            remedy="Keep these two columns.",
        )
    ids, vectors = as_text(table.frame[keys[0]]), table.frame[lists[0]]
    if isinstance(vectors.dtype, pl.Array):
        vectors = vectors.arr.to_list()
    found = pl.DataFrame({ITEM: ids, "vector": vectors})
    if twice := found.filter(pl.col(ITEM).is_duplicated())[ITEM].unique(maintain_order=True).cast(pl.String).to_list():
        raise InputError(
            f"{len(twice):,} items have more than one vector ({listed(twice)}).",
            where=str(path),
            remedy="Keep one row per item.",
        )
    catalogue = dataset.item_table.select(pl.col(INDEX), pl.col(ITEM))
    rows = catalogue.join(found, on=ITEM, how="left", maintain_order="left")
    lacking = rows.filter(pl.col("vector").is_null())[ITEM]
    if lacking.len():
        raise InputError(
            f"{lacking.len():,} of {dataset.n_items:,} items have no vector ({listed(lacking.to_list())}).",
            where=str(path),
            remedy="Add their rows.",
        )
    return _matrix(rows["vector"], path)


def _matrix(lists: pl.Series, path: Path) -> Tensor:
    """Lay lists of one length out as [N, D]; what is no number becomes NaN, which is refused later."""
    widths = lists.list.len().unique().sort().to_list()
    if len(widths) != 1 or widths[0] == 0:
        raise InputError(
            f"vectors of {widths[0]} to {widths[-1]} numbers, one length above 0 is expected.",
            where=str(path),
            remedy="Write them anew.",
        )
    try:
        flat: npt.NDArray[np.float32] = lists.explode().cast(pl.Float32).fill_null(float("nan")).to_numpy()
    except pl.exceptions.PolarsError:
        raise InputError("the lists do not hold numbers.", where=str(path), remedy="Write floats.") from None
    return torch.from_numpy(flat.reshape(len(lists), -1).copy())
