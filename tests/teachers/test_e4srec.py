"""The LLM teacher on a language model of two tiny layers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distilrec.config import TrainSettings
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, FingerprintError, InputError
from distilrec.evaluation.rank import target_ranks
from distilrec.losses.catalogue import cross_entropy
from distilrec.settings import checked
from distilrec.teachers import TEACHERS
from distilrec.teachers.adapter import lora_targets
from distilrec.teachers.e4srec import E4SRec, E4SRecSettings, load_e4srec
from distilrec.teachers.llm import best_precision, llm_identity, load_llm, text_vectors
from distilrec.training.loop import fit
from distilrec.training.tasks import Task

N_ITEMS, ID_WIDTH, LLM_WIDTH, REACH = 20, 8, 32, 12
SMALL = {"max_length": REACH, "lora_rank": 4, "precision": "float32"}
TRAINED_HERE = ("lora_", "project.", "output")


def make(llm_folder: Path, seed: int = 0, **changes: Any) -> E4SRec:
    settings = E4SRecSettings.model_validate({**SMALL, **changes})
    llm, tokenizer = load_llm(llm_folder, settings.layers, best_precision(settings.precision))
    torch.manual_seed(seed)
    return E4SRec(settings, llm, tokenizer, torch.randn(N_ITEMS, ID_WIDTH)).eval()


def train(teacher: E4SRec, dataset: Dataset, folder: Path) -> E4SRec:
    settings = TrainSettings(epochs=2, batch_tokens=128, learning_rate=0.01, select_by="zero")
    task = Task(teacher, dataset, settings, seed=0, validate=lambda _model: {"zero": 0.0})
    with torch.no_grad():  # LoRA starts as nothing at all; let it be something, so that folding has something to fold
        for name, parameter in teacher.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    fit(task, settings, folder, label="teach", identity="x", seed=0)
    return teacher.eval()


@pytest.fixture(scope="module")
def trained(tiny_llm: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> E4SRec:
    return train(make(tiny_llm), tiny_dataset, tmp_path_factory.mktemp("fit"))


def some_histories(rows: int = 5, length: int = REACH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = length, 1
    return torch.randint(N_ITEMS, (rows, length), generator=generator), lengths


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_registered_under_its_own_name() -> None:
    assert TEACHERS["e4srec"] is E4SRec
    assert E4SRec.name == "e4srec"


@torch.inference_mode()
def test_shapes(tiny_llm: Path) -> None:
    teacher = make(tiny_llm)
    histories, lengths = some_histories()
    table = teacher.item_vectors()
    assert table.shape == (N_ITEMS, LLM_WIDTH)
    assert teacher.encode(histories, lengths, table).shape == (5, REACH, LLM_WIDTH)
    assert teacher.encode_last(histories, lengths, table).shape == (5, LLM_WIDTH)
    assert teacher.encode_last(histories[:1, :1], lengths[1:2], table).shape == (1, LLM_WIDTH)
    assert teacher.max_length == REACH


@torch.inference_mode()
def test_no_state_sees_a_later_item_or_the_padding(trained: E4SRec) -> None:
    histories, lengths = some_histories()
    table = trained.item_vectors()
    before = trained.encode(histories, lengths, table)
    for changed in range(1, REACH):
        other = histories.clone()
        other[:, changed] = (other[:, changed] + 1) % N_ITEMS
        after = trained.encode(other, lengths, table)
        close(after[:, :changed], before[:, :changed])
        assert (after[:, changed] - before[:, changed]).abs().max() > 1e-3
    inside = torch.arange(REACH) < lengths[:, None]
    padded = trained.encode(torch.where(inside, histories, 0), lengths, table)
    close(padded[inside], before[inside])


@torch.inference_mode()
def test_encode_last_is_the_last_of_encode_and_of_the_history_alone(trained: E4SRec) -> None:
    histories, lengths = some_histories()
    table = trained.item_vectors()
    last = trained.encode_last(histories, lengths, table)
    close(last, trained.encode(histories, lengths, table)[torch.arange(5), lengths - 1])
    for row, length in enumerate(lengths.tolist()):
        close(trained.encode_last(histories[row : row + 1, :length], lengths[row : row + 1], table)[0], last[row])


@torch.inference_mode()
def test_the_state_is_the_language_models_own(tiny_llm: Path) -> None:
    """Untrained, LoRA does nothing: the states are those of the plain model over prompt and projected items."""
    teacher = make(tiny_llm)
    llm, tokenizer = load_llm(tiny_llm)
    words = llm.get_input_embeddings()(tokenizer(teacher.settings.instruction, return_tensors="pt")["input_ids"])
    assert words.shape[1] > 5
    histories, lengths = some_histories()
    items = teacher.project(teacher.id_embeddings[histories])
    hidden = llm(inputs_embeds=torch.cat([words.expand(5, -1, -1), items], dim=1)).last_hidden_state
    close(teacher.encode(histories, lengths, teacher.item_vectors()), hidden[:, words.shape[1] :])


@torch.inference_mode()
def test_the_instruction_counts(tiny_llm: Path) -> None:
    histories, lengths = some_histories()
    states = []
    for instruction in ("A user chose these items", "Predict the next one:"):
        teacher = make(tiny_llm, instruction=instruction)
        states.append(teacher.encode_last(histories, lengths, teacher.item_vectors()))
    assert (states[0] - states[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_fewer_layers_are_another_teacher(tiny_llm: Path) -> None:
    histories, lengths = some_histories()
    both, one = make(tiny_llm), make(tiny_llm, layers=1)
    assert len(load_llm(tiny_llm, 1)[0].layers) == 1
    first, second = (teacher.encode_last(histories, lengths, teacher.item_vectors()) for teacher in (both, one))
    assert (first - second).abs().max() > 1e-3


def test_the_scale_of_id_embeddings_is_irrelevant(tiny_llm: Path) -> None:
    settings = E4SRecSettings.model_validate(SMALL)
    histories, lengths = some_histories()
    ids, states = torch.randn(N_ITEMS, ID_WIDTH), []
    for scale in (1.0, 1000.0):
        llm, tokenizer = load_llm(tiny_llm)
        torch.manual_seed(0)
        teacher = E4SRec(settings, llm, tokenizer, ids * scale).eval()
        with torch.inference_mode():
            states.append(teacher.encode_last(histories, lengths, teacher.item_vectors()))
    close(states[1], states[0])


def test_the_gradient_reaches_all_that_is_trained_and_nothing_else(tiny_llm: Path) -> None:
    teacher = make(tiny_llm)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    histories, lengths = some_histories()
    table = teacher.item_vectors()
    states = teacher.encode(histories, lengths, table).flatten(0, 1)
    cross_entropy(states, table, torch.arange(len(states)) % N_ITEMS).backward()
    for name, parameter in teacher.named_parameters():
        assert parameter.requires_grad == any(part in name for part in TRAINED_HERE), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


def test_training_moves_lora_projection_and_output_and_nothing_else(
    tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    teacher = make(tiny_llm)
    before = {name: value.clone() for name, value in [*teacher.named_parameters(), *teacher.named_buffers()]}
    train(teacher, tiny_dataset, tmp_path)
    moved = set()
    for name, value in [*teacher.named_parameters(), *teacher.named_buffers()]:
        if any(part in name for part in TRAINED_HERE):
            assert not torch.equal(value, before[name]), name
            moved.add(name)
        else:
            assert torch.equal(value, before[name]), name
    assert len(moved) == 2 * 3 * 2 + 3  # two layers, three projections, A and B; then weight, bias and output
    assert "id_embeddings" in before
    assert any("self_attn" in name for name in before)


def test_every_trained_parameter_is_in_one_group_with_its_rate(tiny_llm: Path) -> None:
    teacher = make(tiny_llm, head_rate_scale=0.25)
    rates = {id(parameter): group["lr"] for group in teacher.parameter_groups(0.1) for parameter in group["params"]}
    assert sum(len(group["params"]) for group in teacher.parameter_groups(0.1)) == len(rates)
    for name, parameter in teacher.named_parameters():
        expected = None if not parameter.requires_grad else 0.1 if "lora_" in name else 0.025
        assert rates.get(id(parameter)) == (expected if expected is None else pytest.approx(expected)), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_saved_and_loaded_it_ranks_the_same(
    precision: str, tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    teacher = train(make(tiny_llm, precision=precision), tiny_dataset, tmp_path / "fit")
    teacher.save(tmp_path / "saved", llm_identity(tiny_llm))
    loaded = load_e4srec(tmp_path / "saved", tiny_llm)
    assert loaded.settings == teacher.settings
    assert not loaded.training
    histories, lengths = some_histories()
    with torch.inference_mode():
        states, again = (model.encode_last(histories, lengths, model.item_vectors()) for model in (teacher, loaded))
    assert states.dtype == torch.float32
    close(again, states)
    assert torch.equal(loaded.item_vectors(), teacher.item_vectors())
    examples = tiny_dataset.examples("test")
    assert (
        target_ranks(loaded, tiny_dataset, examples).tolist() == target_ranks(teacher, tiny_dataset, examples).tolist()
    )
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "heads.safetensors", "teacher.json"}


def test_folding_changes_no_state_and_leaves_no_adapter(tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = train(make(tiny_llm), tiny_dataset, tmp_path)
    histories, lengths = some_histories()
    with torch.inference_mode():
        before = teacher.encode_last(histories, lengths, teacher.item_vectors())
    folded = teacher.fold()
    assert not any("lora_" in name for name, _ in folded.named_parameters())
    with torch.inference_mode():
        close(folded.encode_last(histories, lengths, folded.item_vectors()), before)


@torch.inference_mode()
def test_bfloat16_is_near_float32(tiny_llm: Path) -> None:
    histories, lengths = some_histories()
    exact, rough = make(tiny_llm), make(tiny_llm, precision="bfloat16")
    first, second = (teacher.encode_last(histories, lengths, teacher.item_vectors()) for teacher in (exact, rough))
    assert 0 < (first - second).abs().max() < 0.2
    assert first.std() > 0.5


def test_a_teacher_of_another_model(trained: E4SRec, tiny_llm: Path, tmp_path: Path) -> None:
    """Also where all shapes are the same and only the weights differ."""
    trained.save(tmp_path / "saved", llm_identity(tiny_llm))
    shutil.copytree(tiny_llm, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    changed = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    with pytest.raises(FingerprintError, match="another language model"):
        load_e4srec(tmp_path / "saved", tmp_path / "other")


def test_lora_sits_on_the_feed_forward_part(tiny_llm: Path) -> None:
    assert lora_targets(load_llm(tiny_llm)[0]) == ["down_proj", "gate_proj", "up_proj"]
    assert lora_targets(torch.nn.Sequential(torch.nn.Linear(2, 2))) == "all-linear"


def test_a_broken_teacher(trained: E4SRec, tiny_llm: Path, tmp_path: Path) -> None:
    trained.save(tmp_path, llm_identity(tiny_llm))
    heads = tmp_path / "heads.safetensors"
    heads.write_bytes(heads.read_bytes()[:100])
    with pytest.raises(InputError, match="Train it again"):
        load_e4srec(tmp_path, tiny_llm)


def test_no_teacher_there(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher\.json"):
        load_e4srec(tmp_path, tiny_llm)


def test_the_language_model_comes_frozen_and_as_precise_as_asked(tiny_llm: Path) -> None:
    for precision in (torch.float32, torch.bfloat16):
        llm, _ = load_llm(tiny_llm, precision=precision)
        assert not llm.training
        assert not any(parameter.requires_grad for parameter in llm.parameters())
        assert {parameter.dtype for parameter in llm.parameters()} == {precision}
    assert (best_precision("float32"), best_precision("bfloat16")) == (torch.float32, torch.bfloat16)
    assert best_precision("auto") in (torch.float32, torch.bfloat16)


def test_more_layers_than_there_are(tiny_llm: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers is 3 and the model has 2"):
        load_llm(tiny_llm, 3)


def test_a_folder_without_a_model(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no language model"):
        load_llm(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_llm / "config.json").read_bytes())  # a configuration and no weights
    with pytest.raises(InputError, match="no language model"):
        load_llm(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 0},
        {"lora_rank": 0},
        {"input_dropout": 1.0},
        {"precision": "int3"},
        {"lora_rnak": 4},
        {"max_length": 0},
    ],
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(E4SRecSettings, settings, where="teacher")


TEXTS = [f"Title i{item:02d}" + " Genre" * (7 * item % 11) for item in range(20)]


@pytest.mark.parametrize("batch_tokens", [1, 17, 2048])
def test_text_vectors_equal_one_text_at_a_time(batch_tokens: int, tiny_llm: Path) -> None:
    llm, tokenizer = load_llm(tiny_llm)
    with torch.inference_mode():
        alone = [llm(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in TEXTS]
    vectors = text_vectors(llm, tokenizer, TEXTS, batch_tokens=batch_tokens)
    assert vectors.dtype == torch.float32
    close(vectors, torch.stack(alone))
    assert (vectors[0] - vectors[1]).abs().max() > 1e-2


def test_long_texts_are_cut(tiny_llm: Path) -> None:
    llm, tokenizer = load_llm(tiny_llm)
    long, short = "Title i01 Genre Genre i02 i03", "Title i01 Genre"
    close(*text_vectors(llm, tokenizer, [long, short], max_tokens=3))
    assert (
        text_vectors(llm, tokenizer, [long], max_tokens=4)[0] - text_vectors(llm, tokenizer, [short])[0]
    ).abs().max() > 1e-3


def test_a_text_without_a_token_gets_a_vector(tiny_llm: Path) -> None:
    llm, tokenizer = load_llm(tiny_llm)
    assert tokenizer(" ")["input_ids"] == []
    vectors = text_vectors(llm, tokenizer, ["Title i01", "", " "])
    close(vectors[0], text_vectors(llm, tokenizer, ["Title i01"])[0])
    assert torch.isfinite(vectors).all()
    close(vectors[1:], text_vectors(llm, tokenizer, ["", " "]))  # the same, whoever shares the batch


# The instruction, computed once


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_behind_a_kept_instruction_the_states_are_those_of_training(
    precision: str, tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Training reads instruction and items in one go; without dropout that gives what ranking computes behind the cache."""
    teacher = train(make(tiny_llm, precision=precision), tiny_dataset, tmp_path)
    histories, lengths = some_histories()
    table = teacher.item_vectors()
    with torch.no_grad():
        whole = teacher.encode(histories, lengths, table)
    assert teacher._shared is None
    with torch.inference_mode():
        first, again = (teacher.encode(histories, lengths, table) for _ in range(2))
        assert teacher._shared is not None
        alone = teacher.encode(histories[2:3, :4], lengths[2:3], table)
    close(first, whole, 1e-5 if precision == "float32" else 0.1)
    assert torch.equal(first, again)  # what is kept is not written to
    close(alone[0], whole[2, :4], 1e-5 if precision == "float32" else 0.1)


def test_the_instruction_is_read_once_for_all_batches(tiny_llm: Path) -> None:
    teacher, read = make(tiny_llm), []
    teacher.llm.base_model.model.layers[0].register_forward_pre_hook(lambda _layer, args: read.append(args[0].shape[1]))
    histories, lengths = some_histories()
    with torch.inference_mode():
        for columns in (REACH, 5, 3):
            teacher.encode(histories[:, :columns], lengths.clamp(max=columns), teacher.item_vectors())
    assert read == [teacher.prompt.shape[1], REACH, 5, 3]


@pytest.mark.parametrize("step", ["eval", "train and eval", "fold"])
def test_changed_weights_are_read_anew(step: str, tiny_llm: Path) -> None:
    teacher, changed = make(tiny_llm), make(tiny_llm)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    histories, lengths = some_histories()
    with torch.inference_mode():
        before = teacher.encode(histories, lengths, teacher.item_vectors())
    teacher.load_state_dict(changed.state_dict())
    {"eval": teacher.eval, "train and eval": lambda: teacher.train().eval(), "fold": teacher.fold}[step]()
    with torch.inference_mode():
        after = teacher.encode(histories, lengths, teacher.item_vectors())
        expected = changed.encode(histories, lengths, changed.item_vectors())
    close(after, expected, 1e-4)
    assert (after - before).abs().max() > 1e-2


def test_dropout_acts_in_training_alone(tiny_llm: Path) -> None:
    teacher = make(tiny_llm, input_dropout=0.5, output_dropout=0.5, lora_dropout=0.5)
    histories, lengths = some_histories()
    table = teacher.item_vectors()
    with torch.no_grad():
        still = teacher.encode(histories, lengths, table)
        close(teacher.encode(histories, lengths, table), still)
        teacher.train()
        assert (teacher.encode(histories, lengths, table) - still).abs().max() > 0.1


def test_checkpointing_changes_no_gradient(tiny_llm: Path) -> None:
    gradients, computed = [], []
    for checkpointing in (False, True):
        teacher = make(tiny_llm, gradient_checkpointing=checkpointing, input_dropout=0.0, output_dropout=0.0).train()
        torch.manual_seed(4)
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        calls: list[int] = []
        layer = teacher.llm.base_model.model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        histories, lengths = some_histories()
        table = teacher.item_vectors()
        states = teacher.encode(histories, lengths, table).flatten(0, 1)
        cross_entropy(states, table, torch.arange(len(states)) % N_ITEMS).backward()
        gradients.append({name: value.grad for name, value in teacher.named_parameters() if value.requires_grad})
        computed.append(len(calls))
    assert computed == [1, 2]  # it does compute again
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
