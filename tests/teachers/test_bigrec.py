"""BIGRec on a tiny language model: what it writes is what transformers writes, and training supervises titles alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distilrec.config import TrainSettings
from distilrec.data.batching import Batch, make_batch, training_windows
from distilrec.data.dataset import Dataset, training_examples
from distilrec.errors import ConfigError, FingerprintError, InputError
from distilrec.evaluation.metrics import evaluate_ranks
from distilrec.evaluation.rank import target_ranks
from distilrec.settings import checked
from distilrec.teachers.base import Materials
from distilrec.teachers.bigrec import BigRec, BigRecSettings
from distilrec.teachers.llm import llm_identity, load_causal, load_llm, text_vectors
from distilrec.training.loop import Fit, fit
from distilrec.training.text import TextBatch, TextTask

REACH, BEAMS, MOST = 8, 4, 6
SMALL = {"max_length": REACH, "beams": BEAMS, "max_new": MOST, "lora_rank": 8, "precision": "float32", "windows": None}
TRAINING = TrainSettings(epochs=12, patience=12, batch_tokens=400, learning_rate=0.02, select_by="hr@1")


class KilledError(Exception):
    """Stands for a power cut."""


def settings_of(llm: Path, **changes: Any) -> BigRecSettings:
    return BigRecSettings.model_validate({**SMALL, "llm": str(llm), **changes})


def materials(dataset: Dataset) -> Materials:
    return Materials(dataset, 0, lambda: torch.empty(0), lambda: "")


def make(llm: Path, dataset: Dataset, noise: float = 0.0, **changes: Any) -> BigRec:
    """Build a teacher; `noise` stands for training, without which LoRA is nothing at all."""
    teacher = BigRec.create(settings_of(llm, **changes), materials(dataset))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if noise and "lora_B" in name:
                parameter.normal_(std=noise)
    return teacher.eval()


def train(teacher: BigRec, dataset: Dataset, folder: Path, training: TrainSettings = TRAINING) -> Fit:
    def validate(model: Any) -> dict[str, float]:
        return evaluate_ranks(target_ranks(model, dataset, dataset.examples("valid")), [1])

    task = TextTask(teacher, dataset, training, seed=0, validate=validate)
    return fit(task, training, folder, label="teach", identity="x", seed=0)


@pytest.fixture(scope="module")
def learnt(tiny_llm: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[BigRec, Fit, Path]:
    folder, teacher = tmp_path_factory.mktemp("learnt"), make(tiny_llm, tiny_dataset, lora_alpha=32.0)
    outcome = train(teacher, tiny_dataset, folder)
    teacher.save(folder, llm_identity(tiny_llm))
    return teacher.eval(), outcome, folder


@pytest.fixture(scope="module")
def noisy(tiny_llm: Path, tiny_dataset: Dataset) -> BigRec:
    return make(tiny_llm, tiny_dataset, noise=1.0)


def windows_of(dataset: Dataset, step: int = 5) -> Batch:
    windows = training_windows(dataset, REACH, None)
    return make_batch(dataset, windows, np.arange(len(windows))[::step])


# What it writes, and the items that are taken for it


def one_at_a_time(teacher: BigRec, llm: Path, dataset: Dataset) -> Callable[[list[int]], tuple[str, Tensor]]:
    """Return what, by transformers alone, gives the text behind a history and its distance to every item."""
    causal, tokenizer = load_causal(llm)
    plain, _ = load_llm(llm)
    causal.model = teacher.llm.base_model.model  # with LoRA
    end = tokenizer.pad_token_id  # this tokenizer has no line break and no end of text
    titles = text_vectors(plain, tokenizer, dataset.titles, quiet=True)

    def answer(history: list[int]) -> tuple[str, Tensor]:
        tokens = list(tokenizer(teacher.settings.instruction)["input_ids"])
        for item in history:
            tokens += [*tokenizer(dataset.titles[item])["input_ids"], end]
        written = causal.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
            num_beams=teacher.settings.beams,
            length_penalty=0.0,
            do_sample=False,
            max_new_tokens=teacher.settings.max_new,
            eos_token_id=end,
            pad_token_id=end,
        )[0, len(tokens) :]
        text = tokenizer.decode(written, skip_special_tokens=True)
        vector = text_vectors(plain, tokenizer, [text], quiet=True)
        return text, (titles - vector).square().sum(dim=1).sqrt()

    return answer


@pytest.mark.parametrize("which", ["noise", "learnt"])
def test_many_places_at_once_like_one_example_at_a_time_by_transformers(
    which: str, noisy: BigRec, learnt: tuple[BigRec, Fit, Path], tiny_llm: Path, tiny_dataset: Dataset
) -> None:
    teacher = noisy if which == "noise" else learnt[0]
    batch = windows_of(tiny_dataset, step=11)
    texts = teacher.generate(batch.histories, batch.lengths, batch.positions)
    items, scores = teacher.rank(batch, 20)
    answer, columns = one_at_a_time(teacher, tiny_llm, tiny_dataset), batch.histories.shape[1]
    assert len(texts) == len(items) == len(batch.positions) > 30
    for place, position in enumerate(batch.positions.tolist()):
        row, last = divmod(position, columns)
        text, distance = answer(batch.histories[row, : last + 1].tolist())
        assert texts[place] == text
        expected = distance.sort().values
        torch.testing.assert_close(-scores[place], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(distance[items[place]], expected, rtol=1e-3, atol=1e-4)
    assert len(set(texts)) > 3


@torch.inference_mode()
def test_a_score_is_minus_the_distance(noisy: BigRec, tiny_dataset: Dataset) -> None:
    batch = windows_of(tiny_dataset)
    items, scores = noisy.rank(batch, 20)
    distances = noisy.distances(batch.histories, batch.lengths, batch.positions)
    torch.testing.assert_close(scores, -distances.gather(1, items), rtol=1e-4, atol=1e-4)
    whole = noisy.score(batch.histories, batch.lengths)
    columns = batch.histories.shape[1]
    for row, length in enumerate(batch.lengths.tolist()):
        place = batch.positions.tolist().index(row * columns + length - 1)
        torch.testing.assert_close(whole[row], -distances[place], rtol=1e-4, atol=1e-4)


def test_a_title_that_is_written_is_at_no_distance(
    noisy: BigRec, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = windows_of(tiny_dataset)
    wanted = [(7 * place) % 20 for place in range(len(batch.positions))]
    monkeypatch.setattr(noisy, "generate", lambda *_: [tiny_dataset.titles[item] for item in wanted])
    items, scores = noisy.rank(batch, 3)
    assert items[:, 0].tolist() == wanted
    assert scores[:, 0].tolist() == [0.0] * len(wanted)
    assert (scores[:, 1] < 0).all()


def test_popularity_is_the_share_of_training_interactions(
    tiny_llm: Path, tiny_dataset: Dataset, make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Training parts of leave-one-out: i00 i00 i01 | i00 i02 | ..: item 0 is 3 of 5, items 1 and 2 one each.
    skewed = make_dataset([["i00", "i00", "i01", "i03", "i04"], ["i00", "i02", "i04", "i03"]])
    assert skewed.popularity.tolist() == [3, 1, 1, 0, 0]
    plain, popular = make(tiny_llm, skewed), make(tiny_llm, skewed, gamma=2.0)
    for teacher in (plain, popular):
        monkeypatch.setattr(teacher, "generate", lambda *_: ["Title i02"])
    nothing = torch.zeros(1, dtype=torch.int64)
    distance = plain.distances(nothing[None], nothing + 1, nothing)[0]
    adjusted = popular.distances(nothing[None], nothing + 1, nothing)[0]
    expected = distance / distance.max() / (1 + torch.tensor([0.6, 0.2, 0.2, 0, 0])) ** 2
    torch.testing.assert_close(adjusted, expected)
    assert adjusted[2] == 0


def test_titles_are_read_without_lora(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    """Where items lie does not move with training, and is kept with the teacher."""
    before, after = (make(tiny_llm, tiny_dataset, noise=noise) for noise in (0.0, 1.0))
    llm, tokenizer = load_llm(tiny_llm)
    expected = text_vectors(llm, tokenizer, tiny_dataset.titles)
    torch.testing.assert_close(before.grounding.vectors, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.grounding.vectors, expected, rtol=1e-5, atol=1e-5)
    texts = ["Title Title", "i03"]
    torch.testing.assert_close(after.grounding.embed(texts), before.grounding.embed(texts), rtol=1e-5, atol=1e-5)


def test_the_instruction_counts(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    batch = windows_of(tiny_dataset)
    answers = [
        make(tiny_llm, tiny_dataset, noise=1.0, instruction=instruction).generate(
            batch.histories, batch.lengths, batch.positions
        )
        for instruction in ("A user chose these items", "Predict", "")
    ]
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_what_was_computed_from_the_weights_is_forgotten_with_them(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    batch, teacher = windows_of(tiny_dataset), make(tiny_llm, tiny_dataset, noise=1.0)
    changed = make(tiny_llm, tiny_dataset, noise=2.0)
    first = teacher.generate(batch.histories, batch.lengths, batch.positions)
    teacher.load_state_dict(changed.state_dict())
    teacher.eval()
    second = teacher.generate(batch.histories, batch.lengths, batch.positions)
    assert second == changed.generate(batch.histories, batch.lengths, batch.positions) != first


# What is trained


def naive_batch(teacher: BigRec, dataset: Dataset, start: int, end: int, asked: int) -> tuple[list[int], list[int]]:
    """Return the tokens of a window and which of them are supervised: those of the titles behind `asked`, ends included."""
    tokens, supervised = list(teacher.instruction), []
    for place in range(start, end + 1):
        line = [*teacher.tokenizer(dataset.titles[dataset.items[place]])["input_ids"], 0]
        if place > asked:
            supervised += range(len(tokens), len(tokens) + len(line))
        tokens += line
    return tokens, supervised


def test_a_batch_supervises_the_titles_of_the_targets_and_nothing_else(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    teacher = make(tiny_llm, tiny_dataset)
    assert len(teacher.instruction) == len(teacher.settings.instruction.split())
    task = TextTask(teacher, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
    windows = training_windows(tiny_dataset, REACH, None)
    cut = np.flatnonzero(windows.supervised_from > windows.start)
    rows = np.array([0, int(cut[0]), 3, int(cut[-1])])
    batch = task._batch(windows, rows)
    width = batch.tokens.shape[1]
    positions, targets = [], []
    for number, row in enumerate(rows):
        start, end, asked = (int(getattr(windows, name)[row]) for name in ("start", "end", "supervised_from"))
        tokens, supervised = naive_batch(teacher, tiny_dataset, start, end, asked)
        assert batch.tokens[number].tolist() == tokens + [0] * (width - len(tokens))
        positions += [number * width + place - 1 for place in supervised]
        targets += [tokens[place] for place in supervised]
    assert batch.positions.tolist() == positions
    assert batch.targets.tolist() == targets
    assert all(part.dtype == torch.int64 for part in (batch.tokens, batch.positions, batch.targets))


def test_a_batch_by_hand(tiny_llm: Path, make_dataset: Any) -> None:
    # Trained on: i02 i00 i01, so the targets are i00 and i01; read "X: | Title i02 . | Title i00 . | Title i01 .".
    dataset = make_dataset([["i02", "i00", "i01", "i03", "i04"]])
    teacher = make(tiny_llm, dataset, instruction="Predict the")
    task = TextTask(teacher, dataset, TRAINING, seed=0, validate=lambda _model: {})
    batches = list(task.epoch(1)[1](0))
    assert len(batches) == 1
    words = teacher.tokenizer.convert_ids_to_tokens(batches[0].tokens[0].tolist())
    line = ["Title", "i02", "[PAD]", "Title", "i00", "[PAD]", "Title", "i01", "[PAD]"]
    assert words == ["Predict", "the", *line]
    assert batches[0].positions.tolist() == [4, 5, 6, 7, 8, 9]
    assert teacher.tokenizer.convert_ids_to_tokens(batches[0].targets.tolist()) == line[3:]


def test_the_loss_is_that_of_each_token_given_all_before_it(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    teacher = make(tiny_llm, tiny_dataset, noise=0.5)
    task = TextTask(teacher, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
    batch = next(task.epoch(1)[1](0))
    causal, _ = load_causal(tiny_llm)
    causal.model = teacher.llm.base_model.model
    logits = causal(input_ids=batch.tokens).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits[batch.positions], batch.targets)
    parts = task(batch)
    assert list(parts) == ["title"]
    torch.testing.assert_close(parts["title"], expected)


def titles_asked(batches: list[TextBatch]) -> list[int]:
    """Return the numbers of the items whose titles are supervised: `Title`, the item's word, the end."""
    targets = [batch.targets.view(-1, 3) for batch in batches]
    return torch.cat(targets)[:, 1].tolist()


def test_every_training_target_once_an_epoch(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    teacher = make(tiny_llm, tiny_dataset)
    task = TextTask(teacher, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
    first = teacher.titles.titles[0][1]
    expected = [first + int(item) for item in tiny_dataset.items[training_examples(tiny_dataset)]]
    orders = []
    for epoch in (1, 2):
        steps, start = task.epoch(epoch)
        batches = list(start(0))
        assert len(batches) == steps > 3
        assert sorted(titles_asked(batches)) == sorted(expected)
        for batch in batches:
            assert len(batch.tokens) == 1 or batch.tokens.numel() <= TRAINING.batch_tokens
        orders.append(titles_asked(batches))
        rest = list(task.epoch(epoch)[1](2))  # a resumed epoch goes on where it was
        assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(rest, batches[2:], strict=True))
    assert orders[0] != orders[1]


def test_some_windows_an_epoch_others_each_time(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    teacher = make(tiny_llm, tiny_dataset, windows=9)
    task = TextTask(teacher, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
    drawn = [[tuple(row) for batch in task.epoch(epoch)[1](0) for row in batch.tokens.tolist()] for epoch in (1, 2, 1)]
    assert [len(rows) for rows in drawn] == [9, 9, 9]
    assert drawn[0] == drawn[2] != drawn[1]
    more = make(tiny_llm, tiny_dataset, windows=10_000)
    task = TextTask(more, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
    assert len(titles_asked(list(task.epoch(1)[1](0)))) == tiny_dataset.manifest["n_train_targets"]


def test_several_processes_share_the_windows(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    teacher, seen = make(tiny_llm, tiny_dataset), []
    for rank in range(2):
        task = TextTask(teacher, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
        whole, _ = task.epoch(1)
        task.share = (rank, 2)
        steps, start = task.epoch(1)
        assert steps == -(-whole // 2)
        seen += [tuple(row) for batch in start(0) for row in batch.tokens.tolist()]
    task.share = (0, 1)
    assert set(seen) == {tuple(row) for batch in task.epoch(1)[1](0) for row in batch.tokens.tolist()}


def test_only_lora_is_trained(tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = make(tiny_llm, tiny_dataset)
    before = {name: value.clone() for name, value in [*teacher.named_parameters(), *teacher.named_buffers()]}
    train(teacher, tiny_dataset, tmp_path, TRAINING.model_copy(update={"epochs": 1}))
    for name, value in [*teacher.named_parameters(), *teacher.named_buffers()]:
        assert torch.equal(value, before[name]) == ("lora_" not in name), name
    assert any("lora_" in name for name in before)
    assert "head" in before


def test_it_learns(learnt: tuple[BigRec, Fit, Path], tiny_dataset: Dataset) -> None:
    """It comes to write titles, and better than by chance the right ones."""
    teacher, outcome, _ = learnt
    losses = [entry["loss"] for entry in outcome.history]
    assert losses[-1] < 0.6 * losses[0]
    batch = windows_of(tiny_dataset, step=1)
    texts = teacher.generate(batch.histories, batch.lengths, batch.positions)
    assert sum(text in tiny_dataset.titles for text in texts) > 0.95 * len(texts)
    items, _ = teacher.rank(batch, 1)
    assert (items[:, 0] == batch.targets).float().mean() > 2 / 20


def test_saved_and_restored_it_writes_the_same(
    learnt: tuple[BigRec, Fit, Path], tiny_llm: Path, tiny_dataset: Dataset
) -> None:
    teacher, _, folder = learnt
    names = {path.name for path in folder.iterdir()} - {"checkpoint.safetensors", "fit.json"}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "titles.safetensors", "teacher.json"}
    again = BigRec.restore(folder, settings_of(tiny_llm, beams=1), materials(tiny_dataset))
    assert again.settings == teacher.settings  # those it was trained with
    batch = windows_of(tiny_dataset)
    first, second = (one.generate(batch.histories, batch.lengths, batch.positions) for one in (teacher, again))
    assert first == second
    assert torch.equal(again.grounding.vectors, teacher.grounding.vectors)
    vectors = BigRec.knowledge_vectors(folder, again.settings, materials(tiny_dataset))
    assert vectors is not None
    assert torch.equal(vectors, teacher.grounding.vectors)


def test_a_killed_training_goes_on_to_the_same_bits(tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    options = TRAINING.model_copy(update={"epochs": 2, "checkpoint_seconds": 0.0})
    dropout = {"lora_dropout": 0.2, "windows": 12}

    class Fragile(TextTask):
        left = 0

        def forward(self, batch: TextBatch) -> dict[str, Tensor]:
            self.left -= 1
            if self.left == 0:
                raise KilledError
            return super().forward(batch)

    def measure(model: Any) -> dict[str, float]:  # tells every weight apart; the last ones need not be the best
        return {"hr@1": sum(float(value.sin().sum()) for name, value in model.state_dict().items() if "lora_" in name)}

    def run(folder: str, dies_at: int, noise: float = 0.0) -> dict[str, Tensor]:
        teacher = make(tiny_llm, tiny_dataset, noise, **dropout)
        task = Fragile(teacher, tiny_dataset, options, seed=0, validate=measure)
        task.left = dies_at
        fit(task, options, tmp_path / folder, label="teach", identity="x", seed=0)
        return {name: value for name, value in teacher.state_dict().items() if "lora_" in name}

    whole = run("whole", 0)
    with pytest.raises(KilledError):
        run("killed", 3)
    with pytest.raises(KilledError):
        run("killed", 2, noise=1.0)  # what counts is in the checkpoint
    again = run("killed", 0, noise=2.0)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_checkpointing_changes_no_gradient(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    gradients, computed = [], []
    for checkpointing in (False, True):
        teacher = make(tiny_llm, tiny_dataset, noise=0.5, gradient_checkpointing=checkpointing).train()
        calls: list[int] = []
        layer = teacher.llm.base_model.model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        task = TextTask(teacher, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
        torch.manual_seed(0)
        task(next(task.epoch(1)[1](0)))["title"].backward()
        gradients.append({name: p.grad for name, p in teacher.named_parameters() if p.requires_grad})
        computed.append(len(calls))
    assert computed == [1, 2]  # it does compute again
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_in_bfloat16_the_states_are_nearly_the_same(tiny_llm: Path, tiny_dataset: Dataset) -> None:
    exact, rough = (make(tiny_llm, tiny_dataset, precision=precision) for precision in ("float32", "bfloat16"))
    tokens = torch.arange(2, 22).reshape(2, 10)
    with torch.inference_mode():
        first, second = exact.states(tokens), rough.states(tokens)
    assert second.dtype == torch.float32
    assert 0 < (first - second).abs().max() < 0.2
    task = TextTask(rough, tiny_dataset, TRAINING, seed=0, validate=lambda _model: {})
    loss = task(next(task.epoch(1)[1](0)))["title"]
    loss.backward()
    assert torch.isfinite(loss)
    batch = windows_of(tiny_dataset)
    _, scores = rough.rank(batch, 5)
    assert torch.isfinite(scores).all()


# What does not fit


def test_another_language_model_or_another_catalogue(
    learnt: tuple[BigRec, Fit, Path], tiny_llm: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    from fixtures_llm import build_llm

    other = build_llm(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintError, match="another language model"):
        BigRec.restore(learnt[2], settings_of(other), materials(tiny_dataset))
    with pytest.raises(InputError, match=r"teacher\.json"):
        BigRec.restore(tmp_path, settings_of(tiny_llm), materials(tiny_dataset))


@pytest.mark.parametrize(
    "settings",
    [{"beams": 0}, {"max_new": 1}, {"gamma": -1}, {"windows": 0}, {"max_title": 0}, {"lora_dropout": 1.0}, {"beam": 4}],
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        checked(BigRecSettings, settings, where="teacher")
