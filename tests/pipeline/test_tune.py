"""A search: it finds the better setting, survives being killed, trains nothing twice and never looks at the test part."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distilrec.config import Config
from distilrec.config_file import load_config
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, InputError
from distilrec.pipeline import Pipeline
from distilrec.pipeline.space import distribution, read_space
from distilrec.pipeline.tune import tune
from distilrec.settings import checked
from distilrec.students import STUDENTS
from distilrec.training.tasks import Task

pytest.importorskip("optuna")
ITEMS = 12
SPACE = {
    "train.learning_rate": {"low": 0.001, "high": 0.05, "log": True},
    "student.dropout": {"low": 0.1, "high": 0.5, "step": 0.1},
    "student.hidden_size": [4, 8],
}


class KilledError(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """20 histories in which item + 1 follows item; a student of one block, two epochs."""
    folder = tmp_path_factory.mktemp("files")
    log, titles = folder / "log.csv", folder / "titles.csv"
    rows = [
        f"u{user:02d},i{(5 * user + n) % ITEMS:02d},{1_000_000 + 100 * n + user}\n"
        for user in range(20)
        for n in range(5 + user % 4)
    ]
    log.write_text("user_id,item_id,timestamp\n" + "".join(rows))
    titles.write_text("item_id,title\n" + "".join(f"i{item:02d},Title {item}\n" for item in range(ITEMS)))
    return {
        "name": "tiny",
        "seed": 3,
        "data": {
            "interactions": str(log),
            "items": str(titles),
            "filters": {"k_core_user": 1, "k_core_item": 1},
        },
        "student": {"name": "sasrec", "hidden_size": 8, "max_length": 8, "blocks": 1, "inner_size": 8},
        "train": {"epochs": 2, "batch_tokens": 64, "learning_rate": 0.01, "checkpoint_seconds": 0, "patience": 2},
    }


def search(settings: dict[str, Any], root: Path, space: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Search as the command line does; the space goes through a file."""
    pipeline = Pipeline(checked(Config, settings, where="test"), root)
    root.mkdir(parents=True, exist_ok=True)
    file = root / "space.yaml"
    file.write_text(yaml.safe_dump(space or SPACE, sort_keys=False))
    return tune(pipeline, read_space(file, pipeline.student_kind), **options)


def tried(found: dict[str, Any]) -> list[tuple[dict[str, Any], str, float]]:
    return [(outcome["params"], outcome["state"], outcome["value"]) for outcome in found["trials"]]


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return folder and outcome of a search of five trials that nothing disturbed."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    return root, search(settings, root, trials=5)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the identities of all trainings begun or resumed from now on."""
    identities: list[str] = []
    original = Pipeline.fit_student

    def counting(self: Pipeline, *args: Any, identity: str, **options: Any) -> Any:
        identities.append(identity)
        return original(self, *args, identity=identity, **options)

    monkeypatch.setattr(Pipeline, "fit_student", counting)
    return identities


def test_the_configuration_as_given_comes_first_and_all_is_kept(
    settings: dict[str, Any], whole: tuple[Path, dict[str, Any]]
) -> None:
    root, found = whole
    assert json.loads((root / "tune" / "trials.json").read_text()) == found
    assert [outcome["number"] for outcome in found["trials"]] == [1, 2, 3, 4, 5]
    assert found["given"] == found["trials"][0]
    assert found["given"]["params"] == {
        "train.learning_rate": 0.01,
        "student.dropout": 0.3,
        "student.hidden_size": 8,
    }
    assert found["best"]["value"] == max(
        outcome["value"] for outcome in found["trials"] if outcome["state"] == "complete"
    )
    for outcome in found["trials"]:
        folder = root / "tune" / outcome["folder"]
        assert (folder / "outcome.json").exists()
        assert not (folder / "checkpoint.safetensors").exists()


def test_best_yaml_is_the_whole_configuration_with_the_best_values(
    settings: dict[str, Any], whole: tuple[Path, dict[str, Any]], trained: list[str]
) -> None:
    root, found = whole
    best = load_config(root / "tune" / "best.yaml")
    expected = json.loads(json.dumps(settings))
    for key, value in found["best"]["params"].items():
        group, name = key.split(".")
        expected[group][name] = value
    assert best == checked(Config, expected, where="test")
    again = Pipeline(best, root)
    outcome = again.student
    assert outcome.settings.dropout == found["best"]["params"]["student.dropout"]
    assert again._fit_of("student").best == pytest.approx(found["best"]["value"])


def test_the_better_of_two_settings_is_found(settings: dict[str, Any], tmp_path: Path) -> None:
    bad = json.loads(json.dumps(settings))
    bad["train"] |= {"learning_rate": 1e-6, "epochs": 4}
    found = search(bad, tmp_path, {"train.learning_rate": [0.000001, 0.03]}, trials=2)
    assert found["best"]["params"] == {"train.learning_rate": 0.03}
    assert found["best"]["value"] > found["given"]["value"]


def test_an_exhausted_space_ends_the_search(
    settings: dict[str, Any], tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(settings, tmp_path, {"student.hidden_size": [8, 4]}, trials=9)
    assert [outcome["params"]["student.hidden_size"] for outcome in found["trials"]] == [8, 4]
    assert len(trained) == len(set(trained)) == 2
    assert "little left" in capsys.readouterr().err


def test_the_same_seed_tries_the_same_another_seed_does_not(
    settings: dict[str, Any], whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert tried(search(settings, tmp_path / "same", trials=5)) == tried(whole[1])
    other = search({**settings, "seed": 4}, tmp_path / "other", trials=2)
    assert other["trials"][1]["params"] != whole[1]["trials"][1]["params"]


def test_more_trials_go_on_and_a_finished_search_does_nothing(
    settings: dict[str, Any], whole: tuple[Path, dict[str, Any]], tmp_path: Path, trained: list[str]
) -> None:
    search(settings, tmp_path, trials=2)
    assert len(trained) == 2
    assert tried(search(settings, tmp_path, trials=5)) == tried(whole[1])
    assert len(trained) == len(set(trained)) == 5
    search(settings, tmp_path, trials=4)
    assert len(trained) == 5


@pytest.mark.parametrize("damage", ["other", "cut", "pages"])
def test_a_damaged_study_is_one_line_and_without_it_nothing_is_trained_again(
    settings: dict[str, Any], tmp_path: Path, trained: list[str], damage: str
) -> None:
    before = tried(search(settings, tmp_path, trials=2))
    path = next(tmp_path.rglob("study.db"))
    whole = path.read_bytes()
    broken = {"other": b"no database at all, but long enough to be one" * 9, "cut": whole[: len(whole) // 2]}
    path.write_bytes(broken.get(damage, whole[:4096] + b"\xff" * (len(whole) - 4096)))
    with pytest.raises(InputError, match="the study cannot be read .*study.db|study.db.*the study cannot be read"):
        search(settings, tmp_path, trials=2)
    path.unlink()
    assert tried(search(settings, tmp_path, trials=2)) == before
    assert len(trained) == 2


@pytest.mark.parametrize("when", [2, 5, 9])
def test_killed_in_a_training_it_ends_as_if_it_had_not_been(
    when: int,
    settings: dict[str, Any],
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[str],
) -> None:
    left = [when]
    original = Task.validate

    def dying(self: Task) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KilledError
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "validate", dying)
        with pytest.raises(KilledError):
            search(settings, tmp_path, trials=5)
    assert tried(search(settings, tmp_path, trials=5)) == tried(whole[1])
    assert len(set(trained)) == 5
    assert len(trained) == 6  # the one that was killed was gone on with


@pytest.mark.parametrize("owner", ["tune.write_json", "trial.write_json", "tune._Search._tell", "tune.line"])
def test_killed_between_trainings_it_ends_as_if_it_had_not_been(
    owner: str,
    settings: dict[str, Any],
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[str],
) -> None:
    with monkeypatch.context() as patch:
        dies_at_call(patch, owner, 3)
        with pytest.raises(KilledError):
            search(settings, tmp_path, trials=5)
    assert tried(search(settings, tmp_path, trials=5)) == tried(whole[1])
    assert len(set(trained)) == 5
    assert len(trained) == (6 if owner == "trial.write_json" else 5)


def dies_at_call(patch: pytest.MonkeyPatch, name: str, n: int) -> None:
    module, *path = name.split(".")
    original: Any = sys.modules[f"distilrec.pipeline.{module}"]
    for part in path:
        original = getattr(original, part)
    calls = [0]

    def dying(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == n:
            raise KilledError
        return original(*args, **options)

    owner: Any = sys.modules[f"distilrec.pipeline.{module}"]
    for part in path[:-1]:
        owner = getattr(owner, part)
    patch.setattr(owner, path[-1], dying)


def test_out_of_time_it_stops_in_good_order_and_goes_on(
    settings: dict[str, Any], whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search(settings, tmp_path, trials=5, minutes=0)["trials"] == []
    with monkeypatch.context() as patch:
        ticks = iter(range(1000))
        patch.setattr("distilrec.pipeline.trial.time.monotonic", lambda: next(ticks))
        search(settings, tmp_path, trials=5, minutes=20 / 60)
    assert tried(search(settings, tmp_path, trials=5)) == tried(whole[1])


def test_a_trial_that_lags_behind_is_given_up(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation gives the dropout: the first five differ upwards, so the pruner has finished ones to compare with."""
    monkeypatch.setattr(Pipeline, "_validate", lambda _self, model, *_users: {"ndcg@10": 1 - model.settings.dropout})
    slow = json.loads(json.dumps(settings))
    slow["train"] |= {"epochs": 4, "patience": 2}
    space = {"student.dropout": {"low": 0.1, "high": 0.9, "step": 0.01}}
    found = search(slow, tmp_path / "a", space, trials=10)
    states = [outcome["state"] for outcome in found["trials"]]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states
    given_up = [outcome for outcome in found["trials"] if outcome["state"] == "pruned"]
    assert all(outcome["epochs"] == 2 and outcome["value"] < found["best"]["value"] for outcome in given_up)
    kept = search(slow, tmp_path / "b", space, trials=7, prune=False)
    assert {outcome["state"] for outcome in kept["trials"]} == {"complete"}


def test_the_test_part_is_never_read(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[[Dataset, str], Any] = Dataset.examples

    def guarded(self: Dataset, part: str) -> Any:
        assert part != "test"
        return original(self, part)

    monkeypatch.setattr(Dataset, "examples", guarded)
    assert len(search(settings, tmp_path, trials=2)["trials"]) == 2


def test_refused_settings_are_said_and_do_not_count(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(settings, tmp_path, {"student.hidden_size": [8, 7]}, trials=2)
    assert [outcome["state"] for outcome in found["trials"] if outcome["params"]["student.hidden_size"] == 8] == [
        "complete"
    ]
    refused = [outcome for outcome in found["trials"] if outcome["state"] == "refused"]
    assert refused
    assert "hidden_size 7 cannot be shared by 2 heads" in refused[0]["reason"]
    assert "cannot be shared" in capsys.readouterr().err


def test_a_diverging_trial_is_no_end(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = {"train.learning_rate": [0.01, 1e38]}
    found = search(settings, tmp_path, wild, trials=2)
    assert [outcome["state"] for outcome in found["trials"]] == ["complete", "diverged"]
    assert found["best"]["params"] == {"train.learning_rate": 0.01}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("student.hidden_sise: [8]", "'student.hidden_sise' is no setting.*Did you mean 'student.hidden_size'"),
        ("train.select_by: [mrr@10]", "'train.select_by' is no setting that can be searched"),
        ("data.source: [ml-100k]", "no setting that can be searched"),
        ("train.epochs: {low: 9, high: 3}", "train.epochs: low must be below high"),
        ("train.epochs: {low: 1, high: 3, lag: true}", "unknown setting 'lag'.*log"),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "logarithmic range starts above 0"),
        ("train.epochs: 5", "neither a range nor choices"),
        ("train.epochs: []", "neither a range nor choices"),
        ("train.epochs: [", "not valid YAML"),
        ("train.epochs: [2024-13-01]", "not valid YAML"),
        ("[1]", "must hold `key: value`"),
        ("{}", "key: range or choices"),
        ("train.epochs: [3]\ntrain.epochs: [4]", "'train.epochs' stands twice, in lines 1 and 2"),
    ],
)
def test_a_wrong_space_is_one_clear_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_space(tmp_path / "space.yaml", STUDENTS["sasrec"])
    assert str(tmp_path / "space.yaml") in error.value.line()
    with pytest.raises(ConfigError, match="no such file"):
        read_space(tmp_path / "none.yaml", STUDENTS["sasrec"])


@pytest.mark.parametrize("student", sorted(STUDENTS))
def test_every_student_has_a_default_space_that_its_settings_accept(student: str) -> None:
    kind = STUDENTS[student]
    space = read_space(None, kind)
    assert "train.learning_rate" in space
    assert {"student.dropout", "student.hidden_size"} & set(space)
    for key, part in space.items():
        group, name = key.split(".", 1)
        if group == "student":
            for value in part if isinstance(part, list) else (part.low, part.high):
                checked(kind.Settings, {name: value}, where=student)


def test_ranges_make_room_for_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yaml").write_text(
        "train.epochs: {low: 5, high: 9}\ntrain.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "student.hidden_size: [8]\ntrain.clip_norm: {low: 1, high: 5}\n"
    )
    space = read_space(tmp_path / "space.yaml", STUDENTS["sasrec"])
    epochs = distribution("train.epochs", space["train.epochs"], 12)
    assert (type(epochs).__name__, epochs.low, epochs.high) == ("IntDistribution", 5, 12)
    assert "widened to 5..12" in capsys.readouterr().err
    rate = distribution("train.learning_rate", space["train.learning_rate"], 0.001)
    assert (type(rate).__name__, rate.low, rate.log) == ("FloatDistribution", 0.0001, True)
    assert distribution("student.hidden_size", space["student.hidden_size"], 16).choices == (8, 16)
    with pytest.raises(ConfigError, match="None in the configuration.*choices"):
        distribution("train.clip_norm", space["train.clip_norm"], None)
    with pytest.raises(ConfigError, match="choices"):
        distribution("train.learning_rate", space["train.learning_rate"], 0.0)
