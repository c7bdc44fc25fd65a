"""What every student must do, whatever is inside it. A new line in STUDENTS is tested without a change here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distilrec.config import DataSettings, TrainSettings
from distilrec.data.batching import Batch, held_out_windows, make_batch
from distilrec.data.dataset import Dataset
from distilrec.data.prepare import prepare
from distilrec.errors import ConfigError, InputError
from distilrec.evaluation.metrics import evaluate_ranks
from distilrec.evaluation.rank import target_ranks
from distilrec.files import write_bytes
from distilrec.losses.catalogue import cross_entropy
from distilrec.methods import METHODS
from distilrec.methods.dllm2rec import InformedTable
from distilrec.students import STUDENTS
from distilrec.students.base import Student, build_student, load_student, save_student
from distilrec.training.loop import fit
from distilrec.training.tasks import Task

N_ITEMS, WIDTH, REACH = 17, 16, 9
SMALL = {"hidden_size": WIDTH, "max_length": REACH, "dropout": 0.2}
VECTORS_PER_ITEM = {"fpmc": 2}  # side by side in one row of the table, so states are as wide
MIXES_EARLIER_ITEMS = {"fpmc", "stamp"}  # published so: these know which item is the last one, and no other order
EASIER = {"bert4rec": {"dropout": 0.0}}  # settings to learn the known answer with; hidden items are noise enough
PATIENT = {
    "bert4rec": {"epochs": 100, "patience": 25, "learning_rate": 0.003, "average": 0.9}
}  # it sees 4 targets in 10

pytestmark = pytest.mark.parametrize("name", list(STUDENTS))


def small(name: str, seed: int = 0, n_items: int = N_ITEMS, **changes: object) -> Student:
    torch.manual_seed(seed)
    return build_student(name, {**SMALL, **changes}, n_items, STUDENTS).eval()


def some_histories(rows: int = 6, length: int = REACH, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = length, 1
    histories = torch.randint(N_ITEMS, (rows, length), generator=generator)
    return torch.where(torch.arange(length) < lengths[:, None], histories, 0), lengths


def asked_everywhere(histories: Tensor, targets: Tensor) -> Batch:
    """Full-length histories of which every place predicts something."""
    count = histories.numel()
    lengths = torch.full((len(histories),), histories.shape[1])
    return Batch(histories, lengths, torch.arange(count), targets.flatten(), torch.arange(count))


def supervised_states(student: Student, batch: Batch, table: Tensor, seed: int = 5) -> Tensor:
    """The states that a training step compares with targets, [T, width]."""
    torch.manual_seed(seed)
    view = student.training_view(batch)
    states = student.encode(view.histories, view.lengths, table).flatten(0, 1)[view.positions]
    assert states.shape == (len(view.targets), table.shape[1])
    assert view.examples.shape == view.targets.shape
    return states


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def scores(student: Student) -> Tensor:
    histories, lengths = some_histories()
    with torch.inference_mode():
        table = student.item_vectors()
        return student.encode_last(histories, lengths, table) @ table.T


def test_registered_under_its_own_name(name: str) -> None:
    assert STUDENTS[name].name == name
    assert STUDENTS[name].__doc__


@pytest.mark.parametrize("length", [1, 4, REACH])
def test_shapes(name: str, length: int) -> None:
    student = small(name)
    histories, lengths = some_histories(length=length)
    table = student.item_vectors()
    width = WIDTH * VECTORS_PER_ITEM.get(name, 1)
    assert table.shape == (N_ITEMS, width)
    assert student.encode(histories, lengths, table).shape == (6, length, width)
    assert student.encode_last(histories, lengths, table).shape == (6, width)
    assert student.max_length == REACH


@torch.inference_mode()
def test_no_state_sees_a_later_item(name: str) -> None:
    if not STUDENTS[name].causal:
        pytest.skip("sees later items on purpose; see test_a_target_is_not_seen")
    student = small(name)
    histories, _ = some_histories()
    full = torch.full((len(histories),), REACH)
    table = student.item_vectors()
    before = student.encode(histories, full, table)
    for changed in range(1, REACH):
        other = histories.clone()
        other[:, changed] = (other[:, changed] + 1) % N_ITEMS
        after = student.encode(other, full, table)
        close(after[:, :changed], before[:, :changed])
        assert (after[:, changed] - before[:, changed]).abs().max() > 1e-4  # but the state of the item itself moves


@torch.inference_mode()
def test_a_target_is_not_seen(name: str) -> None:
    student = small(name)
    histories, _ = some_histories(rows=40)
    lengths = torch.full((40,), REACH)
    table = student.item_vectors()
    for place in range(REACH):
        targets = (histories[:, place + 1 :] if place + 1 < REACH else histories[:, :1])[:, 0].clone()

        def asked(history: Tensor, targets: Tensor, place: int = place) -> Tensor:
            positions = torch.arange(40) * REACH + place
            return supervised_states(student, Batch(history, lengths, positions, targets, torch.arange(40)), table)

        before = asked(histories, targets)
        other = histories.clone()
        if place + 1 < REACH:
            other[:, place + 1] = (other[:, place + 1] + 1) % N_ITEMS
        close(asked(other, (targets + 1) % N_ITEMS), before)


@torch.inference_mode()
def test_every_read_item_counts(name: str) -> None:
    """... and none beyond the reach does."""
    student = small(name)
    assert 1 <= student.reach <= student.max_length
    histories, _ = some_histories(rows=3)
    lengths = torch.full((3,), REACH)
    table = student.item_vectors() * 20  # untrained vectors are so small that a far item's share drowns in rounding
    before = student.encode_last(histories, lengths, table)
    for changed in range(REACH):
        other = histories.clone()
        other[:, changed] = (other[:, changed] + 1) % N_ITEMS
        after = student.encode_last(other, lengths, table)
        if changed >= REACH - student.reach:
            assert not torch.equal(after, before), changed
        else:
            close(after, before)


@torch.inference_mode()
def test_order_counts(name: str) -> None:
    student = small(name)
    histories = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]])
    states = student.encode_last(histories, torch.tensor([4, 4, 4]), student.item_vectors())
    assert (states[0] - states[1]).abs().max() > 1e-5
    if name not in MIXES_EARLIER_ITEMS:
        assert (states[0] - states[2]).abs().max() > 1e-5


@torch.inference_mode()
def test_padding_is_irrelevant(name: str) -> None:
    student = small(name)
    histories, lengths = some_histories()
    table = student.item_vectors()
    inside = torch.arange(REACH) < lengths[:, None]
    other = torch.where(inside, histories, N_ITEMS - 1)
    close(student.encode(other, lengths, table)[inside], student.encode(histories, lengths, table)[inside])
    close(student.encode_last(other, lengths, table), student.encode_last(histories, lengths, table))
    for row, length in enumerate(lengths.tolist()):  # alone and without padding it is the same, too
        alone = student.encode_last(histories[row : row + 1, :length], lengths[row : row + 1], table)
        close(alone[0], student.encode_last(histories, lengths, table)[row])


@pytest.mark.parametrize("mixed", [True, False])
@torch.inference_mode()
def test_encode_last_is_the_last_of_encode(name: str, mixed: bool) -> None:
    if not STUDENTS[name].causal:
        pytest.skip("asks a hidden place behind the history; its own tests compare the two")
    student = small(name)
    histories, lengths = some_histories()
    if not mixed:
        lengths = torch.full_like(lengths, REACH)
    table = student.item_vectors()
    states = student.encode(histories, lengths, table)
    close(student.encode_last(histories, lengths, table), states[torch.arange(len(lengths)), lengths - 1])


@torch.inference_mode()
def test_dropout_works_in_training_only(name: str) -> None:
    student = small(name, dropout=0.5)
    histories, lengths = some_histories()
    table = student.item_vectors()
    assert torch.equal(student.encode(histories, lengths, table), student.encode(histories, lengths, table))
    student.train()
    assert not torch.equal(student.encode(histories, lengths, table), student.encode(histories, lengths, table))


@torch.inference_mode()
def test_ids_are_rows_of_the_table_it_is_given(name: str) -> None:
    """A training step may hand over only the vectors that its batch needs, in any order."""
    student = small(name)
    histories, lengths = some_histories(length=5)
    full = student.item_vectors()
    generator = torch.Generator().manual_seed(8)
    needed = histories.unique()
    needed = needed[torch.randperm(len(needed), generator=generator)]
    assert len(needed) < N_ITEMS
    local = torch.zeros(N_ITEMS, dtype=torch.int64).scatter(0, needed, torch.arange(len(needed)))[histories]
    inside = torch.arange(5) < lengths[:, None]
    close(student.encode(local, lengths, full[needed])[inside], student.encode(histories, lengths, full)[inside])
    close(student.encode_last(local, lengths, full[needed]), student.encode_last(histories, lengths, full))


@pytest.mark.parametrize("width", [10, 100])
def test_any_embedding_size(name: str, width: int) -> None:
    student = build_student(name, {"hidden_size": width}, N_ITEMS, STUDENTS)
    histories, lengths = some_histories()
    table = student.item_vectors()
    assert table.shape == (N_ITEMS, width * VECTORS_PER_ITEM.get(name, 1))
    assert student.encode_last(histories, lengths, table).shape == (6, table.shape[1])
    states = supervised_states(student, asked_everywhere(histories, histories), table)
    states.square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_one_seed_one_student(name: str) -> None:
    first, again, other = (small(name, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_gradient_reaches_every_parameter(name: str) -> None:
    student = small(name)
    generator = torch.Generator().manual_seed(2)
    histories = torch.randint(N_ITEMS, (N_ITEMS, REACH), generator=generator)
    table = student.item_vectors()
    states = supervised_states(student, asked_everywhere(histories, histories.roll(-1, dims=1)), table)
    cross_entropy(states, table, torch.randint(N_ITEMS, (len(states),), generator=generator)).backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        rows = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]
        assert (rows.abs().amax(dim=1) > 0).float().mean() > 0.5, key


def test_saved_and_loaded_it_scores_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    student = small(name)
    save_student(student, tmp_path / "model.safetensors")
    loaded = load_student(tmp_path / "model.safetensors", STUDENTS)
    assert type(loaded) is STUDENTS[name]
    assert loaded.settings == student.settings
    assert not loaded.training
    assert torch.equal(scores(loaded), scores(student))


def test_folded_it_scores_the_same_and_is_no_larger(name: str, tmp_path: Path) -> None:
    plain, informed = small(name), small(name)
    vectors = torch.randn(N_ITEMS, 40, generator=torch.Generator().manual_seed(7))
    informed.item_table = InformedTable(informed.item_table, plain.item_vectors().shape[1], vectors, weight=0.5)
    assert (scores(informed) - scores(plain)).abs().max() > 1e-4  # the table makes a difference
    folded = informed.train().folded()
    assert not folded.training
    informed.eval()
    close(scores(folded), scores(informed))
    assert {key: value.shape for key, value in folded.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    save_student(informed, tmp_path / "model.safetensors")
    assert torch.equal(scores(load_student(tmp_path / "model.safetensors", STUDENTS)), scores(folded))


def test_folding_takes_a_copy(name: str) -> None:
    student = small(name)
    before = scores(folded := student.folded())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(scores(folded), before)


def test_defaults_can_be_built(name: str) -> None:
    kind = STUDENTS[name]
    student = build_student(name, {}, 5, STUDENTS)
    assert student.settings == kind.Settings()
    assert student.eval().encode_last(torch.tensor([[0, 4]]), torch.tensor([2]), student.item_vectors()).shape == (
        1,
        64 * VECTORS_PER_ITEM.get(name, 1),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_sise": 8}, "Did you mean 'hidden_size'"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"max_length": 0}, "max_length"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
    ],
)
def test_wrong_settings(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_student(name, settings, 5, STUDENTS)
    assert name in caught.value.line()


def test_what_is_no_student_cannot_be_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError):
        load_student(path, STUDENTS)
    save_student(small(name), path)
    with pytest.raises(InputError, match="unknown student"):
        load_student(path, {})
    write_bytes(path, path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a saved student"):
        load_student(path, STUDENTS)
    write_bytes(path, b"nothing of the kind")
    with pytest.raises(InputError, match="not a saved student"):
        load_student(path, STUDENTS)


@pytest.mark.parametrize("damage", ["tensor", "n_items", "settings", "unknown setting"])
def test_a_student_of_another_version_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    student = small(name)
    tensors = {key: value.clone() for key, value in student.state_dict().items()}
    metadata = {"student": name, "n_items": str(N_ITEMS), "settings": student.settings.model_dump_json()}
    if damage == "tensor":
        tensors.popitem()
    elif damage == "unknown setting":
        metadata["settings"] = metadata["settings"].replace("hidden_size", "width")
    else:
        del metadata[damage]
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    with pytest.raises(InputError, match=rf"not a {name} of this version.*Train it again"):
        load_student(tmp_path / "model.safetensors", STUDENTS)


def test_learns_what_comes_next(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """The next item is always (item + 1) mod n: whoever reads the last item can be right every time, and must be.

    The epoch is chosen by the likelihood of validation targets, since the first one with every rank right may be lucky.
    """
    changes = {"dropout": 0.1, "hidden_size": 32, **EASIER.get(name, {})}
    student = small(name, n_items=tiny_dataset.n_items, **changes)
    settings = TrainSettings.model_validate(
        {"epochs": 40, "patience": 6, "learning_rate": 0.01, "batch_tokens": 128, "select_by": "log_likelihood"}
        | PATIENT.get(name, {})
    )

    def measure(part: str) -> dict[str, float]:
        return evaluate_ranks(target_ranks(student, tiny_dataset, tiny_dataset.examples(part)), [1])

    def validate(_model: Student) -> dict[str, float]:
        return {"log_likelihood": log_likelihood(student, tiny_dataset)}

    assert measure("valid")["hr@1"] < 0.5
    method = METHODS["plain"](METHODS["plain"].Settings(), None)
    task = Task(student, tiny_dataset, settings, seed=1, validate=validate, method=method)
    outcome = fit(task, settings, tmp_path, label="train", identity="x", seed=1)
    assert measure("valid")["hr@1"] == 1
    assert measure("test")["hr@1"] == 1
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"] / 2


@torch.inference_mode()
def log_likelihood(student: Student, dataset: Dataset) -> float:
    """Of the validation targets, per target."""
    examples = dataset.examples("valid")
    batch = make_batch(dataset, held_out_windows(dataset, examples, student.max_length), np.arange(len(examples)))
    table = student.item_vectors()
    states = student.encode_last(batch.histories, batch.lengths, table)
    return -cross_entropy(states, table, batch.targets).item()


def test_trains_on_sessions_of_nobody(name: str, tmp_path: Path) -> None:
    """A log of sessions without users, times or titles is enough."""
    log = tmp_path / "sessions.csv"
    rows = [f"s{session},{(session + n) % 12}" for session in range(40) for n in range(2 + session % 6)]
    log.write_text("\n".join(["session_id,item_id", *rows]))
    data = DataSettings.model_validate(
        {
            "interactions": log,
            "filters": {"k_core_user": 1, "k_core_item": 1, "min_history": 2},
            "split": {"kind": "random_sessions"},
        }
    )
    dataset = prepare(log, None, data, tmp_path / "prepared", seed=1, say=lambda _line: None)
    student = small(name, n_items=dataset.n_items)
    settings = TrainSettings(epochs=12, learning_rate=0.01, batch_tokens=64, select_by="hr@5")

    def measure(model: Student) -> dict[str, float]:
        return evaluate_ranks(target_ranks(model, dataset, dataset.examples("valid")), [5])

    outcome = fit(
        Task(student, dataset, settings, seed=1, validate=measure), settings, tmp_path, label="x", identity="x", seed=1
    )
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"] * 0.9
