"""The training loop: a killed run ends with the same bits as an unbroken one, and the best epoch is the one kept."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from distilrec.config import LossSettings, TrainSettings
from distilrec.data.batching import Batch
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, FingerprintError, TrainingError
from distilrec.evaluation.metrics import evaluate_ranks
from distilrec.evaluation.rank import target_ranks
from distilrec.files import write_bytes
from distilrec.students import STUDENTS
from distilrec.students.base import build_student
from distilrec.teachers.e4srec import E4SRec, E4SRecSettings
from distilrec.training.checkpoint import load_moments, snapshot, trainable
from distilrec.training.loop import Fit, fit, load_fit
from distilrec.training.optim import RowAdamW
from distilrec.training.tasks import Task

EVERY_STEP = TrainSettings(
    epochs=3,
    learning_rate=0.01,
    batch_tokens=100,
    checkpoint_seconds=0,
    select_by="ndcg@5",
    warmup_steps=4,
    clip_norm=1.0,
)
REACH = 12


class KilledError(Exception):
    """Stands for a power cut."""


class Fragile(Task):
    """A task that dies at its n-th event: events are training steps and validations."""

    dies_at: int | None = None
    events: int = 0

    def _event(self) -> None:
        self.events += 1
        if self.events == self.dies_at:
            raise KilledError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self._event()
        return super().forward(batch)

    def validate(self) -> dict[str, float]:
        self._event()
        return super().validate()


def tiny_student(dataset: Dataset, seed: int, name: str = "sasrec") -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_student(name, {"hidden_size": 8, "max_length": REACH, "dropout": 0.3}, dataset.n_items, STUDENTS)


class FakeTokenizer:
    """Gives three ids for whatever it is asked."""

    def __call__(self, text: str, return_tensors: str) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[1, 2, 3]])}


def tiny_teacher(dataset: Dataset, seed: int) -> torch.nn.Module:
    torch.manual_seed(0)  # the language model and the ID embeddings are given, whatever the seed
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    llm = LlamaModel(config).requires_grad_(False).eval()
    ids = torch.randn(dataset.n_items, 8)
    torch.manual_seed(seed)
    options = E4SRecSettings(max_length=REACH, lora_rank=2, lora_dropout=0.1, input_dropout=0.1, output_dropout=0.1)
    return E4SRec(options, llm, FakeTokenizer(), ids)


AVERAGED = EVERY_STEP.model_copy(update={"average": 0.8})
LAZY = AVERAGED.model_copy(
    update={"loss": LossSettings(name="sampled_softmax", negatives=5, sampling="popularity"), "accumulate": 2}
)
MODELS: dict[str, tuple[Callable[[Dataset, int], torch.nn.Module], TrainSettings]] = {
    "student": (tiny_student, EVERY_STEP),
    "averaged student": (tiny_student, AVERAGED),
    "student touched row by row": (tiny_student, LAZY),
    "teacher": (tiny_teacher, EVERY_STEP),
}


def task_of(dataset: Dataset, model: torch.nn.Module, options: TrainSettings = EVERY_STEP, seed: int = 5) -> Fragile:
    def validate(model: Any) -> dict[str, float]:
        return evaluate_ranks(target_ranks(model, dataset, dataset.examples("valid")), [5])

    return Fragile(model, dataset, options, seed=seed, validate=validate)


def train(task: Task, folder: Path, options: TrainSettings = EVERY_STEP, identity: str = "one", seed: int = 5) -> Fit:
    return fit(task, options, folder, label="train", identity=identity, seed=seed)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


@pytest.fixture(scope="module")
def unbroken(
    tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Tensor], Fit, int]]:
    """Weights, outcome and number of events of unbroken runs."""
    runs = {}
    for kind, (build, options) in MODELS.items():
        task = task_of(tiny_dataset, build(tiny_dataset, 1), options)
        outcome = train(task, tmp_path_factory.mktemp("unbroken"), options)
        runs[kind] = (snapshot(task), outcome, task.events)
    return runs


@pytest.mark.parametrize("checkpoint_seconds", [0, 3600])
@pytest.mark.parametrize("kind", list(MODELS))
def test_killed_anywhere_it_ends_with_the_same_bits(
    kind: str, checkpoint_seconds: float, tiny_dataset: Dataset, unbroken: dict[str, tuple[dict[str, Tensor], Fit, int]]
) -> None:
    weights, expected, events = unbroken[kind]
    build, options = MODELS[kind]
    sizes = [
        task_of(tiny_dataset, build(tiny_dataset, 1), options).epoch(entry["epoch"])[0] for entry in expected.history
    ]
    steps = sizes[0]
    assert events == sum(sizes) + len(sizes) > 9
    options = options.model_copy(update={"checkpoint_seconds": checkpoint_seconds})

    def check(deaths: list[int]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for seed, death in enumerate([*deaths, None], start=1):
                # Started with other weights each time but the first: what counts is in the checkpoint. Before there is one,
                # only the first start's weights will do.
                begun = (Path(folder) / "checkpoint.safetensors").exists()
                task = task_of(tiny_dataset, build(tiny_dataset, seed if begun else 1), options)
                task.dies_at = death
                try:
                    outcome = train(task, Path(folder), options)
                except KilledError:
                    continue
                assert equal(snapshot(task), weights)
                assert untimed(outcome.history) == untimed(expected.history)
                assert (outcome.best_epoch, outcome.best) == (expected.best_epoch, expected.best)
                assert load_fit(Path(folder)) == outcome

    check([steps, 1, 1])  # before the last step of an epoch; then at once; and again
    check([steps + 1])  # in the validation
    check([steps + 2])  # at the first step of the second epoch

    @settings(max_examples=4, derandomize=True, database=None)
    @given(st.lists(st.integers(1, events), min_size=1, max_size=3))
    def anywhere(deaths: list[int]) -> None:
        check(deaths)

    anywhere()


def test_a_finished_training_is_not_done_again(tiny_dataset: Dataset, tmp_path: Path) -> None:
    task = task_of(tiny_dataset, tiny_student(tiny_dataset, 1))
    first = train(task, tmp_path)
    again = task_of(tiny_dataset, tiny_student(tiny_dataset, 2))
    assert train(again, tmp_path) == first
    assert again.events == 0
    assert equal(snapshot(again), snapshot(task))


def test_one_seed_one_result(tiny_dataset: Dataset, tmp_path: Path) -> None:
    def run(name: str, seed: int) -> tuple[dict[str, Tensor], Fit]:
        task = task_of(tiny_dataset, tiny_student(tiny_dataset, 1), seed=seed)
        outcome = train(task, tmp_path / name, seed=seed)
        return snapshot(task), outcome

    (weights, outcome), (same, same_outcome), (other, other_outcome) = run("a", 5), run("b", 5), run("c", 6)
    assert equal(weights, same)
    assert untimed(outcome.history) == untimed(same_outcome.history)
    assert not equal(weights, other)
    assert untimed(outcome.history) != untimed(other_outcome.history)


def scripted(dataset: Dataset, values: list[float], options: TrainSettings) -> tuple[Task, list[dict[str, Tensor]]]:
    """Return a task whose n-th validation gives the n-th value, and the weights it had then."""
    kept: list[dict[str, Tensor]] = []

    def validate(model: Any) -> dict[str, float]:
        kept.append(snapshot(task))
        return {"measure": values[len(kept) - 1]}

    task = Task(tiny_student(dataset, 1), dataset, options, seed=5, validate=validate)
    return task, kept


def test_early_stopping_keeps_the_best_epoch(tiny_dataset: Dataset, tmp_path: Path) -> None:
    options = TrainSettings(epochs=50, patience=2, batch_tokens=200, select_by="measure")
    task, kept = scripted(tiny_dataset, [0.1, 0.5, 0.3, 0.5, 0.9], options)  # an equal value is no progress
    outcome = train(task, tmp_path, options)
    assert (outcome.best_epoch, outcome.best) == (2, 0.5)
    assert [entry["epoch"] for entry in outcome.history] == [1, 2, 3, 4]
    assert equal(snapshot(task), kept[1])
    assert not equal(kept[1], kept[3])
    assert not task.training


def test_without_a_stop_all_epochs_are_done(tiny_dataset: Dataset, tmp_path: Path) -> None:
    options = TrainSettings(epochs=4, patience=2, batch_tokens=200, select_by="measure")
    task, kept = scripted(tiny_dataset, [0.1, 0.2, 0.3, 0.4], options)
    outcome = train(task, tmp_path, options)
    assert (outcome.best_epoch, len(outcome.history)) == (4, 4)
    assert equal(snapshot(task), kept[3])


@pytest.mark.parametrize(
    ("start", "best_epoch", "epochs"), [(0.1, 2, 4), (0.4, 0, 2), (0.3, 0, 2)], ids=["worse", "better", "as good"]
)
def test_the_start_is_kept_where_no_epoch_is_better(
    start: float, best_epoch: int, epochs: int, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    options = TrainSettings(epochs=9, patience=2, batch_tokens=200, select_by="measure", average=0.5)
    task, kept = scripted(tiny_dataset, [start, 0.2, 0.3, 0.1, 0.2], options)
    before = snapshot(task)
    outcome = fit(task, options, tmp_path, label="train", identity="one", seed=5, judge_start=True)
    assert (outcome.best_epoch, len(outcome.history)) == (best_epoch, epochs)
    assert outcome.best == max(start, 0.3)
    assert equal(kept[0], before)
    assert equal(snapshot(task), kept[best_epoch])
    assert not equal(kept[0], kept[2])


def test_a_killed_training_judges_its_start_once(tiny_dataset: Dataset, tmp_path: Path) -> None:
    def judged(death: int | None, seed: int, folder: str) -> tuple[Fragile, Fit]:
        task = task_of(tiny_dataset, tiny_student(tiny_dataset, seed))
        task.dies_at = death
        return task, fit(task, EVERY_STEP, tmp_path / folder, label="train", identity="one", seed=5, judge_start=True)

    whole, expected = judged(None, 1, "whole")
    plain = task_of(tiny_dataset, tiny_student(tiny_dataset, 1))
    train(plain, tmp_path / "plain")
    assert whole.events == plain.events + 1
    with pytest.raises(KilledError):
        judged(4, 1, "killed")
    again, outcome = judged(None, 2, "killed")  # other weights: a start judged anew would be another
    assert equal(snapshot(again), snapshot(whole))
    assert outcome.best == expected.best
    assert again.events == whole.events - 3


def test_a_training_goes_on_with_what_it_is_given(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Warm-up is not begun again, and the first steps are others than without moments."""
    options = EVERY_STEP.model_copy(update={"warmup_steps": 1000})

    def trained(folder: str, **given: Path | None) -> torch.nn.Module:
        task = task_of(tiny_dataset, tiny_student(tiny_dataset, 1), options)
        fit(task, options, tmp_path / folder, label="train", identity="one", seed=5, **given)  # type: ignore[arg-type]
        return task.model

    first = tmp_path / "moments"
    alone = trained("alone", keep=first)
    again = trained("again")
    on = trained("on", continued=first, keep=tmp_path / "after")
    assert equal(alone.state_dict(), again.state_dict())
    assert not equal(alone.state_dict(), on.state_dict())
    module = task_of(tiny_dataset, tiny_student(tiny_dataset, 1), options)
    steps = [
        load_moments(path, module, RowAdamW(module.parameter_groups(), lr=0.1)) for path in (first, tmp_path / "after")
    ]
    assert steps[1] == 2 * steps[0] > 0


def test_validation_now_and_then(tiny_dataset: Dataset, tmp_path: Path) -> None:
    options = TrainSettings(epochs=5, patience=5, batch_tokens=200, select_by="measure", validate_every=2)
    task, kept = scripted(tiny_dataset, [0.1, 0.3, 0.2], options)
    outcome = train(task, tmp_path, options)
    assert [entry["epoch"] for entry in outcome.history if "valid" in entry] == [2, 4, 5]  # the last epoch always
    assert outcome.best_epoch == 4
    assert equal(snapshot(task), kept[1])


def test_history_is_the_mean_over_steps(tiny_dataset: Dataset, tmp_path: Path) -> None:
    losses: list[float] = []

    class Listening(Task):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            parts = super().forward(batch)
            half = parts["target"] / 4
            losses.append(parts["target"].item())
            return {"one": half, "three": 3 * half}

    options = TrainSettings(epochs=2, batch_tokens=200, select_by="measure")
    task = Listening(
        tiny_student(tiny_dataset, 1), tiny_dataset, options, seed=5, validate=lambda _model: {"measure": 1.0}
    )
    history = train(task, tmp_path, options).history
    steps = task.epoch(1)[0]
    assert steps > 1
    for entry, part in zip(history, (losses[:steps], losses[steps:]), strict=True):
        mean = sum(part) / len(part)
        assert entry["loss"] == pytest.approx(mean, rel=1e-5)
        assert entry["parts"] == {
            "one": pytest.approx(mean / 4, rel=1e-5),
            "three": pytest.approx(mean * 3 / 4, rel=1e-5),
        }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(value: float, tiny_dataset: Dataset, tmp_path: Path) -> None:
    class Broken(Fragile):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            parts = super().forward(batch)
            return {"fine": parts["target"], "broken": parts["target"] * (value if self.events == 3 else 1.0)}

    task = Broken(
        tiny_student(tiny_dataset, 1), tiny_dataset, EVERY_STEP, seed=5, validate=lambda _model: {"ndcg@5": 1.0}
    )
    with pytest.raises(TrainingError, match="epoch 1"):
        train(task, tmp_path)
    assert task.events == 3
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())  # nothing was done with it


def test_a_checkpoint_of_something_else(tiny_dataset: Dataset, tmp_path: Path) -> None:
    train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1)), tmp_path, identity="one")
    with pytest.raises(FingerprintError, match="other data or settings"):
        train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1)), tmp_path, identity="two")


@pytest.mark.parametrize("damage", ["cut short", "cut to the header", "empty", "text", "no state"])
def test_a_broken_checkpoint(damage: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1)), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    content = {
        "cut short": whole[:-1],
        "cut to the header": whole[:20],
        "empty": b"",
        "text": b"not a checkpoint",
        "no state": whole.replace(b'"state":', b'"stale":', 1),
    }[damage]
    write_bytes(path, content)
    with pytest.raises(FingerprintError, match="broken checkpoint"):
        train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1)), tmp_path)


def test_an_unknown_measure(tiny_dataset: Dataset, tmp_path: Path) -> None:
    options = TrainSettings(epochs=1, select_by="ndcg@7")
    with pytest.raises(ConfigError, match=r"'ndcg@7'.*hr@5"):
        train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1), options), tmp_path, options)


def one_step(dataset: Dataset, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Return how far one step of training moves each weight."""
    options = TrainSettings(epochs=1, batch_tokens=100_000, learning_rate=0.01, select_by="ndcg@5", **changes)
    torch.manual_seed(1)
    student = build_student("sasrec", {"hidden_size": 8, "max_length": 30, "dropout": 0.0}, dataset.n_items, STUDENTS)
    task = task_of(dataset, student, options)
    before = snapshot(task)
    assert task.epoch(1)[0] == 1
    train(task, folder, options)
    return {name: value - before[name] for name, value in snapshot(task).items()}


def test_warm_up_scales_the_first_step(tiny_dataset: Dataset, tmp_path: Path) -> None:
    full, warm = one_step(tiny_dataset, tmp_path / "a"), one_step(tiny_dataset, tmp_path / "b", warmup_steps=10)
    at_once = one_step(tiny_dataset, tmp_path / "c", warmup_steps=1)
    table = "model.item_table.weight"
    torch.testing.assert_close(full[table], 10 * warm[table], rtol=1e-2, atol=1e-6)
    assert full[table].abs().max().item() == pytest.approx(0.01, rel=0.05)  # Adam's first step is as long as the rate
    assert equal(full, at_once)


def test_warm_up_goes_on_over_epochs(tiny_dataset: Dataset, tmp_path: Path) -> None:
    options = TrainSettings(epochs=2, batch_tokens=100_000, learning_rate=0.001, warmup_steps=10, select_by="measure")
    task, kept = scripted(tiny_dataset, [0.1, 0.2], options)
    start = snapshot(task)
    train(task, tmp_path, options)
    table = "model.item_table.weight"
    first, second = (kept[0][table] - start[table]).abs().max(), (kept[1][table] - kept[0][table]).abs().max()
    assert first.item() == pytest.approx(0.0001, rel=0.05)
    assert second.item() == pytest.approx(0.0002, rel=0.25)  # Adam's later steps are of about this length


def test_averaged_weights_are_judged_and_kept(tiny_dataset: Dataset, tmp_path: Path) -> None:
    before_step: list[dict[str, Tensor]] = []
    judged: list[dict[str, Tensor]] = []

    class Watched(Task):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            before_step.append(snapshot(self))
            return super().forward(batch)

    def validate(_model: Any) -> dict[str, float]:
        judged.append(snapshot(task))
        return {"measure": [0.1, 0.3, 0.2][len(judged) - 1]}

    options = TrainSettings(epochs=3, batch_tokens=150, learning_rate=0.01, average=0.5, select_by="measure")
    task = Watched(tiny_student(tiny_dataset, 1), tiny_dataset, options, seed=5, validate=validate)
    first, second, third = (task.epoch(epoch)[0] for epoch in (1, 2, 3))
    assert train(task, tmp_path, options).best_epoch == 2
    plain = TrainSettings(**{**options.model_dump(), "average": 0.0})
    for name, start in before_step[0].items():
        average = start.double()
        for step in range(1, first + second + 1):  # the weights after a step are those before the next
            decay = min(0.5, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * before_step[step][name].double()
            if step == first:
                torch.testing.assert_close(judged[0][name], average.float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(judged[1][name], average.float(), rtol=1e-4, atol=1e-6)
    assert equal(snapshot(task), judged[1])
    raw, _ = scripted(tiny_dataset, [0.1, 0.3, 0.2], plain)  # averaging only looks on: the training itself is the same
    trace: list[dict[str, Tensor]] = []
    forward = raw.forward
    raw.forward = lambda batch: (trace.append(snapshot(raw)), forward(batch))[1]  # type: ignore[method-assign]
    train(raw, tmp_path / "raw", plain)
    assert len(trace) == len(before_step) == first + second + third
    assert all(equal(one, other) for one, other in zip(trace, before_step, strict=True))


def test_a_checkpoint_of_another_model(tiny_dataset: Dataset, tmp_path: Path) -> None:
    train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1)), tmp_path)
    with pytest.raises(FingerprintError, match="another model"):
        train(task_of(tiny_dataset, tiny_student(tiny_dataset, 1, "gru4rec")), tmp_path)


def test_clipping_shortens_and_a_wide_limit_does_nothing(tiny_dataset: Dataset, tmp_path: Path) -> None:
    free, wide = one_step(tiny_dataset, tmp_path / "a"), one_step(tiny_dataset, tmp_path / "b", clip_norm=1e6)
    tight = one_step(tiny_dataset, tmp_path / "c", clip_norm=1e-10)  # far below Adam's epsilon
    table = "model.item_table.weight"
    assert equal(free, wide)
    assert tight[table].abs().max() < free[table].abs().max() / 50


def test_weight_decay_counts(tiny_dataset: Dataset, tmp_path: Path) -> None:
    assert not equal(one_step(tiny_dataset, tmp_path / "a"), one_step(tiny_dataset, tmp_path / "b", weight_decay=0.5))


def test_the_order_of_batches_depends_on_seed_and_epoch_alone(tiny_dataset: Dataset) -> None:
    def order(seed: int, epoch: int, first: int = 0) -> list[list[int]]:
        task = task_of(tiny_dataset, tiny_student(tiny_dataset, 1), seed=seed)
        return [batch.examples.tolist() for batch in task.epoch(epoch)[1](first)]

    assert order(5, 1) == order(5, 1)
    assert order(5, 1)[2:] == order(5, 1, first=2)
    assert len({str(order(5, 1)), str(order(5, 2)), str(order(6, 1))}) == 3
    starts, cuts = tiny_dataset.offsets[:-1], tiny_dataset.split.train_end
    every = sorted(int(start) + place for start, cut in zip(starts, cuts, strict=True) for place in range(1, int(cut)))
    for epoch in (1, 2, 3):
        assert sorted(example for batch in order(5, epoch) for example in batch) == every


def test_frozen_parameters_are_not_in_a_checkpoint(tiny_dataset: Dataset) -> None:
    teacher = tiny_teacher(tiny_dataset, 1)
    names = set(trainable(teacher))
    assert {"project.weight", "project.bias", "output"} < names
    assert all("lora_" in name for name in names - {"project.weight", "project.bias", "output"})
