"""Checkpoints: everything a training needs to go on bit for bit, in one safetensors file that is replaced atomically."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from distilrec.errors import FingerprintError
from distilrec.files import write_with


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trainable parameters."""
    return {name: parameter.detach().clone() for name, parameter in trainable(module).items()}


def restore(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put a snapshot back; names it lacks keep their values."""
    with torch.no_grad():
        for name, parameter in trainable(module).items():
            if name in values:
                parameter.copy_(values[name])


def _counters(module: nn.Module) -> dict[str, Tensor]:
    """Return the persistent buffers by name: what a training counts, and is to go on counting from."""
    kept = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: Optimizer,
    kept: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Save weights, counters, optimiser, random state, further sets of weights by name, and the JSON `state` (where it stands)."""
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in trainable(module).items()}
    tensors |= {f"counter.{name}": value.contiguous() for name, value in _counters(module).items()}
    for group, values in kept.items():
        tensors |= {f"{group}.{name}": value.contiguous() for name, value in values.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value).contiguous() for key, value in entries.items()}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    write_with(path, lambda part: save_file(tensors, part, {"state": json.dumps(dict(state))}))


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, kept: Sequence[str], identity: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Put a checkpoint back into module, optimiser and random state.

    Returns:
        The further sets of weights named in `kept` and the saved `state`, or None where there is no checkpoint.

    Raises:
        FingerprintError: it belongs to other data or settings, or cannot be read.
    """
    if not path.exists():
        return None
    tensors, state = _read(path, "state", "broken checkpoint", "Delete it and run again.")
    if state["identity"] != identity:
        raise FingerprintError(
            "the checkpoint belongs to other data or settings.",
            where=str(path),
            remedy="Delete it, or use another run name.",
        )
    weights = _under("model", tensors)
    if set(weights) != set(trainable(module)):
        raise FingerprintError(
            "the checkpoint is of another model.", where=str(path), remedy="Delete it and run again."
        )
    restore(module, weights)
    counted = _under("counter", tensors)
    for name, buffer in _counters(module).items():
        buffer.copy_(counted.get(name, buffer))
    saved = optimizer.state_dict()
    saved["state"] = {}
    for name, value in _under("optimizer", tensors).items():
        index, key = name.split(".", 1)
        saved["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(saved)
    torch.set_rng_state(tensors["random"])
    if "random_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random_cuda"])
    return {group: _under(group, tensors) for group in kept}, state


def save_moments(path: Path, module: nn.Module, optimizer: Optimizer, steps: int) -> None:
    """Save what the optimiser knows of each trainable parameter, by name, and how many steps it took."""
    known = optimizer.state_dict()["state"]
    tensors = {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for index, name in _numbered(module, optimizer).items()
        for key, value in known.get(index, {}).items()
    }
    write_with(path, lambda part: save_file(tensors, part, {"steps": str(steps)}))


def load_moments(path: Path, module: nn.Module, optimizer: Optimizer) -> int:
    """Give the optimiser what it knew of parameters of the same names, and return after how many steps; others start at nothing.

    Raises:
        FingerprintError: the file cannot be read, or is of another model.
    """
    again = "Delete its folder and run again."
    tensors, steps = _read(path, "steps", "broken optimiser state", again)
    saved, weights = optimizer.state_dict(), trainable(module)
    numbers = {name: index for index, name in _numbered(module, optimizer).items()}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        of, key = name.rsplit("/", 1)
        if of in numbers:
            if value.dim() and value.shape != weights[of].shape:
                raise FingerprintError(
                    f"the optimiser state of {of} is of another model.", where=str(path), remedy=again
                )
            state.setdefault(numbers[of], {})[key] = value
    optimizer.load_state_dict({**saved, "state": state})
    return int(steps)


def _read(path: Path, key: str, broken: str, remedy: str) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a file, and what its metadata has under `key`, in JSON."""
    try:
        with safe_open(path, framework="pt") as file:
            value = json.loads((file.metadata() or {})[key])
            return {name: file.get_tensor(name) for name in file.keys()}, value  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FingerprintError(f"{broken} ({error}).", where=str(path), remedy=remedy) from None


def _numbered(module: nn.Module, optimizer: Optimizer) -> dict[int, str]:
    """Return the name of each parameter by the number that the optimiser's state has for it."""
    names = {id(parameter): name for name, parameter in trainable(module).items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: names[id(parameter)] for index, parameter in enumerate(parameters)}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
