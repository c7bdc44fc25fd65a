"""The matrix: which combinations there are, the configuration of each training, and what tuning draws."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures_compare import write_yaml

from distilrec.compare.matrix import Combination, Matrix, matrix_for_log, read_matrix
from distilrec.compare.plan import Plan
from distilrec.compare.settings import CompareSettings, dumped
from distilrec.errors import ConfigError
from distilrec.settings import checked

Content = dict[str, Any]


def matrix(content: Content) -> Matrix:
    return Matrix(checked(CompareSettings, content, where="test"))


def one(method: str, student: str = "sasrec", teacher: str | None = "big") -> Combination:
    return Combination("toy", student, method, None if method == "plain" else teacher)


def test_only_methods_that_need_a_teacher_are_multiplied_by_teachers(content: Content) -> None:
    content["teachers"]["small"] = {"name": "conventional"}
    content["methods"] = {"soft_labels": None, "none": {"name": "soft_labels", "weight": 0}, "plain": None}
    content["students"] = {"fpmc": None}
    assert [combination.label for combination in matrix(content).combinations] == [
        "toy/fpmc/soft_labels/big", "toy/fpmc/soft_labels/small", "toy/fpmc/none", "toy/fpmc/plain",
    ]  # fmt: skip


def test_the_plain_student_is_always_there(content: Content) -> None:
    content["methods"] = {"soft_labels": None}
    found = matrix(content)
    assert found.combinations[:2] == [one("plain"), one("soft_labels")]
    assert found.plain_of(one("soft_labels")) == one("plain")
    content["methods"] = {"soft_labels": None, "bare": {"name": "plain"}}
    assert matrix(content).plain_of(one("soft_labels")) == Combination("toy", "sasrec", "bare", None)


def test_what_a_teacher_does_not_give_is_left_out_and_said(content: Content) -> None:
    content["teachers"]["reader"] = {"name": "text"}
    found = matrix(content)
    assert found.left_out == [
        "soft_labels with reader: needs rankings and scores, which reader does not give",
        "alkdrec with reader: needs rankings, which reader does not give",
        "llmd4rec with reader: needs rankings, which reader does not give",
    ]
    assert {combination.teacher for combination in found.combinations} == {None, "big"}
    assert len(found.combinations) == 8


def test_only_a_teacher_that_can_train_on_goes_in_rounds(content: Content) -> None:
    content["teachers"]["file"] = {"name": "recorded", "rankings": "no.jsonl"}
    found = matrix(content)
    assert found.in_rounds(one("llmd4rec"))
    assert not found.in_rounds(one("llmd4rec", teacher="file"))
    assert not found.in_rounds(one("soft_labels"))
    assert not found.in_rounds(one("plain"))


def test_layers_of_a_configuration(content: Content) -> None:
    """base, then data set, then student, then method (for the distilled student alone), then what was tuned."""
    content["base"]["train"] |= {"patience": 1, "weight_decay": 0.1, "warmup_steps": 1, "accumulate": 1}
    content["datasets"]["toy"]["train"] = {"weight_decay": 0.2, "warmup_steps": 2, "accumulate": 2}
    content["students"]["sasrec"]["train"] = {"warmup_steps": 3, "accumulate": 3}
    content["methods"]["soft_labels"] = {"weight": 0.3, "train": {"accumulate": 4}}
    content["teachers"]["big"]["run"] = {"teach": {"epochs": 9}, "annotate": {"top_k": 3}, "train": {"patience": 9}}
    found = matrix(content)

    def shown(training: Any) -> tuple[Any, ...]:
        return (training.patience, training.weight_decay, training.warmup_steps, training.accumulate)

    plain = found.config(one("plain"), 2, {})
    assert (plain.seed, plain.name, plain.student.name, plain.method.name) == (2, "toy-sasrec-2", "sasrec", "plain")
    assert plain.student.settings() == {"hidden_size": 8, "max_length": 8, "blocks": 1, "heads": 1}
    assert shown(plain.train) == (1, 0.2, 3, 3)
    assert plain.distil is None
    taught = found.config(one("soft_labels"), 2, {"train.learning_rate": 0.5, "method.weight": 0.7})
    assert taught.name == plain.name  # they share a folder, and so the plain student
    assert shown(taught.train) == (1, 0.2, 3, 3)
    assert taught.train.learning_rate == 0.01
    assert taught.distil is not None
    assert shown(taught.distil) == (1, 0.2, 3, 4)
    assert taught.distil.learning_rate == 0.5
    assert taught.method.settings() == {"weight": 0.7}
    assert (taught.teacher.name, taught.teach.epochs, taught.annotate.top_k) == ("conventional", 9, 3)
    content["base"]["distil"] = {"patience": 7}  # for all that is distilled
    distilled, alone = (matrix(content).config(one(method), 2, {}) for method in ("soft_labels", "plain"))
    assert distilled.distil is not None
    assert shown(distilled.distil) == (7, 0.2, 3, 4)
    assert shown(alone.train) == (1, 0.2, 3, 3)
    teacher = found.teacher_config("toy", "big")
    assert (teacher.name, teacher.seed, teacher.method.name) == ("toy-big", 1, "plain")
    assert (teacher.teach.epochs, teacher.annotate.top_k, teacher.train.patience) == (9, 3, 9)
    assert teacher.teacher.settings() == {"recommender": content["teachers"]["big"]["recommender"]}
    data = found.data_config("toy")
    assert (data.name, data.annotate.top_k, data.teach.epochs) == ("toy", 5, 2)
    assert data.data == plain.data == taught.data == teacher.data


def test_a_method_that_tunes_a_trained_student_starts_from_the_plain_one(content: Content) -> None:
    content["tune"]["space"]["student.dropout"] = [0.1, 0.2]
    found = matrix(content)
    drawn = found.trial(one("alkdrec"), 1)
    assert list(drawn) == ["train.learning_rate"]  # its size is settled
    own = {"train.learning_rate": 0.02, "student.dropout": 0.3}
    config = found.config(one("alkdrec"), 1, own, {"train.learning_rate": 0.04, "student.dropout": 0.1})
    assert config.train.learning_rate == 0.04
    assert config.distil is not None
    assert config.distil.learning_rate == 0.02
    assert config.student.settings()["dropout"] == 0.1
    assert "dropout" not in found.config(one("alkdrec"), 1, own, {"train.learning_rate": 0.04}).student.settings()
    other = found.config(one("soft_labels"), 1, own)
    assert other.student.settings()["dropout"] == 0.3


def test_the_first_trial_is_as_configured_and_the_others_are_alike_for_all_methods(content: Content) -> None:
    content["tune"] |= {"trials": 5, "methods": {"soft_labels": {"weight": {"low": 0.0, "high": 1.0}}}}
    found = matrix(content)
    plain, soft, other = (found.trials_of(some) for some in (one("plain"), one("soft_labels"), one("plain", "fpmc")))
    assert plain[0] == soft[0] == {}
    assert plain == other
    assert [set(values) for values in soft[1:]] == [{"train.learning_rate", "method.weight"}] * 4
    assert [values["train.learning_rate"] for values in soft[1:]] == [v["train.learning_rate"] for v in plain[1:]]
    rates = [values["train.learning_rate"] for values in plain[1:]]
    assert all(0.005 <= rate <= 0.05 for rate in rates)
    assert all(0 <= values["method.weight"] <= 1 for values in soft[1:])
    assert len(set(rates)) == 4
    assert matrix(content).trials_of(one("plain")) == plain
    content["seeds"] = [2, 1]
    assert matrix(content).trials_of(one("plain")) != plain
    content["methods"]["soft_labels"] = {"weight": 0.9}  # what is drawn does not hang on what is configured
    content["seeds"] = [1, 2]
    assert matrix(content).trials_of(one("soft_labels")) == soft


def test_students_have_spaces_of_their_own(content: Content) -> None:
    content["tune"] |= {"trials": 3, "students": {"sasrec": {"blocks": [1, 2], "heads": [1]}}}
    found = matrix(content)
    assert set(found.trial(one("soft_labels"), 1)) == {"train.learning_rate", "student.blocks", "student.heads"}
    assert found.trial(one("soft_labels"), 2) == found.trial(one("plain"), 2)
    assert set(found.trial(one("plain", "fpmc"), 1)) == {"train.learning_rate"}
    assert set(found.trial(one("alkdrec"), 1)) == {"train.learning_rate"}


def test_kinds_of_ranges(content: Content) -> None:
    content["tune"] = {
        "trials": 200,
        "space": {
            "train.batch_tokens": {"low": 64, "high": 256, "step": 64},
            "train.weight_decay": {"low": 0.0, "high": 0.3, "step": 0.1},
            "train.learning_rate": {"low": 0.0001, "high": 0.1, "log": True},
            "student.dropout": [0.1, 0.2, 0.5],
        },
    }
    found = matrix(content)
    trials = [found.trial(one("plain"), number) for number in range(1, 200)]

    def drawn(key: str) -> list[Any]:
        return [values[key] for values in trials]

    assert set(drawn("train.batch_tokens")) == {64, 128, 192, 256}
    assert all(isinstance(value, int) for value in drawn("train.batch_tokens"))
    assert set(drawn("train.weight_decay")) == {0.0, 0.1, 0.2, 0.3}
    assert set(drawn("student.dropout")) == {0.1, 0.2, 0.5}
    rates = drawn("train.learning_rate")
    below = sum(rate < 0.1**2.5 for rate in rates)  # half of the range, by order of magnitude
    assert 70 <= below <= 130  # 99.5 +- 4 standard deviations
    assert min(rates) >= 0.0001
    assert max(rates) <= 0.1


def test_large_steps_are_kept(content: Content) -> None:
    content["tune"] = {"trials": 40, "space": {"train.batch_tokens": {"low": 4096, "high": 65536, "step": 4096}}}
    found = matrix(content)
    drawn = [found.trial(one("plain"), number)["train.batch_tokens"] for number in range(1, 40)]
    assert {value % 4096 for value in drawn} == {0}
    assert max(drawn) <= 65536


def test_trials_that_coincide_are_done_once(content: Content) -> None:
    content["tune"] = {"trials": 6, "space": {"train.learning_rate": [0.02, 0.03]}}
    values = matrix(content).trials_of(one("plain"))
    assert values[0] == {}
    assert {tuple(found.items()) for found in values[1:]} <= {
        (("train.learning_rate", 0.02),), (("train.learning_rate", 0.03),),
    }  # fmt: skip
    assert len(values) in (2, 3)


def test_from_a_file_and_back(tmp_path: Path, content: Content) -> None:
    found = read_matrix(write_yaml(tmp_path / "c.yaml", content))
    again = checked(CompareSettings, yaml.safe_load(dumped(found.settings)), where="again")
    assert again == found.settings
    assert Matrix(again).combinations == found.combinations


def test_a_log_of_ones_own_is_enough(tmp_path: Path) -> None:
    found = matrix_for_log(tmp_path / "my films.v2.csv", tmp_path / "titles.csv")
    (name,) = found.settings.datasets
    assert name.startswith("my-films")
    assert found.settings.name == f"compare-{name}"
    by_student: dict[str, set[str]] = {}
    for combination in found.combinations:
        by_student.setdefault(combination.student, set()).add(combination.method)
    assert len(by_student) >= 2
    assert all("plain" in methods and len(methods) >= 2 for methods in by_student.values())
    assert len(found.settings.seeds) >= 3
    data = found.data_config(name).data
    assert (data.interactions, data.items) == (tmp_path / "my films.v2.csv", tmp_path / "titles.csv")
    assert matrix_for_log(tmp_path / "log.csv", None).data_config("log").data.items is None


def test_words_beside_a_log_are_shared_by_all_combinations(tmp_path: Path) -> None:
    words = ["data.columns.user=customer", "data.filters.k_core_user=2", "evaluate.filter_seen=true", "threads=3"]
    found = matrix_for_log(
        tmp_path / "log.csv", tmp_path / "t.csv", [*words, "train.epochs=7", "train.learning_rate=0.5"]
    )
    plain = matrix_for_log(tmp_path / "log.csv", tmp_path / "t.csv")
    assert found.combinations == plain.combinations
    teachers = [found.teacher_config("log", name) for name in found.settings.teachers]
    trained = [found.config(one, 42, {}) for one in found.combinations]
    for config in (found.data_config("log"), *teachers, *trained):
        assert (config.data.columns.user, config.data.filters.k_core_user) == ("customer", 2)
        assert (config.evaluate.filter_seen, config.threads, config.train.epochs) == (True, 3, 7)
        assert (config.data.interactions, config.data.items) == (tmp_path / "log.csv", tmp_path / "t.csv")
    for config in trained:
        assert (config.train.learning_rate, config.distil_settings().learning_rate) == (0.5, 0.5)
    assert {plain.config(one, 42, {}).train.learning_rate for one in plain.combinations} == {0.001, 0.004}
    assert "train" not in (found.settings.students["sasrec"] or {})


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "data.source=ml-100k",
            "the data are given more than once: data.source=ml-100k and --interactions log.csv. Leave",
        ),
        ("data.interactions=b.csv", "the data are given more than once: data.interactions=b.csv and"),
        (
            "student.hidden_size=8",
            "settings: 'student' is no part of a run's configuration that can stand here. Known:",
        ),
        ("seed=3", "settings: 'seed' is no part"),
        ("data.columns.usr=x", "unknown setting 'data.columns.usr'. Did you mean 'user'?"),
        ("data=5", "data: a group of settings is expected, got 5"),
        ("train=5", "train: a group of settings is expected, got 5"),
        ("distil=5", "distil: Input should be a valid dictionary or instance of TrainSettings (got 5)"),
        ("evaluate=5", "evaluate: "),
        ("train.epochs=[", "train.epochs: cannot read the value"),
    ],
)
def test_a_word_beside_a_log_that_cannot_be(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        matrix_for_log(Path("log.csv"), None, [word])
    assert said in caught.value.line()


def test_trials_without_anything_to_search_tune_nothing(content: Content) -> None:
    assert matrix(content).tuned
    content["tune"] = {"trials": 3}
    assert not matrix(content).tuned
    assert Plan(matrix(content)).total == 17  # a teacher, and 8 combinations on two seeds
    content["tune"]["methods"] = {"soft_labels": {"weight": [0.1, 0.2]}}
    assert matrix(content).tuned


def test_a_log_whose_name_begins_with_a_dot(tmp_path: Path) -> None:
    assert matrix_for_log(tmp_path / ".films.csv", None).settings.name.startswith("compare-")


def test_paths_are_relative_to_the_folder_given(content: Content, tmp_path: Path) -> None:
    content["datasets"]["toy"]["data"] = {"interactions": "log.csv", "items": "/titles.csv"}
    data = Matrix(checked(CompareSettings, content, where="test"), tmp_path).data_config("toy").data
    assert (data.interactions, data.items) == (tmp_path / "log.csv", Path("/titles.csv"))


def test_labels_become_names_of_folders(content: Content) -> None:
    labels = ["wide", "wide &", "wide-", "wide  ~", "größe", "<new>", ".x"]
    content["students"] = {label: {"name": "sasrec"} for label in labels}
    found = matrix(content)
    names = [found.run_name(one("plain", label), 7) for label in labels]
    assert names[0] == "toy-wide-7"
    assert len(set(names)) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)
    assert [found.run_name(one("plain", label), 7) for label in labels] == names
    content["datasets"]["<new>"] = content["datasets"].pop("toy")
    other = matrix(content)
    assert other.combinations[0].label == "<new>/wide/plain"
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", other.data_config("<new>").name)
