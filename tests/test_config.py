"""Settings: merging, overrides, and complaints that name the key and the remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distilrec.config import (
    AnnotateSettings,
    Config,
    EvaluateSettings,
    FilterSettings,
    LossSettings,
    SplitSettings,
    TrainSettings,
)
from distilrec.config_file import load_config
from distilrec.errors import ConfigError
from distilrec.settings import checked

DATA = "data.interactions=log.csv"


def complaint(*overrides: str, path: Path | None = None, base: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, base)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()
    return caught.value.line()


def test_defaults() -> None:
    config = load_config(None, [DATA])
    assert config.name == "run"
    assert config.seed == 42
    assert config.data.interactions == Path("log.csv")
    assert (config.student.name, config.teacher.name, config.method.name) == ("sasrec", "e4srec", "dllm2rec")
    assert config.train.model_dump() == {
        "epochs": 100, "patience": 10, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0, "clip_norm": None,
        "batch_tokens": 4096, "stride": None, "validate_every": 1, "average": 0.0, "select_by": "ndcg@10", "checkpoint_seconds": 30.0,
        "accumulate": 1, "validate_users": None, "lazy_rows": None, "precision": "auto", "compile": False, "refit": False,
        "loss": {
            "name": None, "negatives": 256, "sampling": "uniform", "popularity_power": 1.0, "shared": True,
            "exclude_history": False, "log_q": "all", "calibration": 0.75, "base": "ce", "dro_weight": 0.1, "dro_beta": 1.0,
        },
    }  # fmt: skip
    assert config.annotate == AnnotateSettings(top_k=20, batch_tokens=4096, shard_rows=20_000)
    assert config.evaluate == EvaluateSettings(
        cutoffs=[1, 5, 10, 20], bootstrap=2000, filter_seen=False, batch_tokens=16_384, timing_users=1000
    )
    assert config.data.filters == FilterSettings(
        min_rating=None, duplicates="exact", k_core_user=5, k_core_item=5, min_history=3
    )


def test_overrides_lie_over_the_file_over_the_base(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {source: ml-100k}\ntrain: {epochs: 7, patience: 3}\nseed: 1\n")
    base = {"train": {"epochs": 9, "batch_tokens": 64}, "seed": 2, "threads": 3}
    config = load_config(tmp_path / "c.yaml", ["seed=5", "train.epochs=8", "train.clip_norm=0.5"], base)
    assert (config.seed, config.threads) == (5, 3)
    assert (config.train.epochs, config.train.patience, config.train.batch_tokens, config.train.clip_norm) == (
        8,
        3,
        64,
        0.5,
    )
    assert base == {"train": {"epochs": 9, "batch_tokens": 64}, "seed": 2, "threads": 3}  # the base is not written into


def test_another_name_drops_the_settings_of_the_one_below(tmp_path: Path) -> None:
    base = {"student": {"name": "sasrec", "heads": 4}}
    (tmp_path / "same.yaml").write_text("data: {source: x}\nstudent: {blocks: 3}\n")
    (tmp_path / "other.yaml").write_text("data: {source: x}\nstudent: {name: gru4rec, blocks: 3}\n")
    assert load_config(tmp_path / "same.yaml", base=base).student.settings() == {"heads": 4, "blocks": 3}
    other = load_config(tmp_path / "other.yaml", base=base).student
    assert (other.name, other.settings()) == ("gru4rec", {"blocks": 3})


@pytest.mark.parametrize(("word", "value"), [("1e-4", 1e-4), ("0.5", 0.5), ("3", 3.0)])
def test_numbers_of_overrides(word: str, value: float) -> None:
    assert load_config(None, [DATA, f"train.learning_rate={word}"]).train.learning_rate == value


def test_lists_nulls_and_text_of_overrides() -> None:
    config = load_config(
        None, [DATA, "evaluate.cutoffs=[3, 7]", "train.stride=null", "name=a-b", "data.columns.text=[x]"]
    )
    assert config.evaluate.cutoffs == [3, 7]
    assert config.train.stride is None
    assert config.name == "a-b"
    assert config.data.columns.text == ["x"]


@pytest.mark.parametrize(
    ("override", "unknown", "hint"),
    [
        ("sede=1", "'sede'", "Did you mean 'seed'?"),
        ("train.epoch=1", "'train.epoch'", "Did you mean 'epochs'?"),
        ("distil.epoch=1", "'distil.epoch'", "Did you mean 'epochs'?"),
        ("data.filters.k_core_users=1", "'data.filters.k_core_users'", "Did you mean 'k_core_user'?"),
        ("data.columns.users=x", "'data.columns.users'", "Did you mean 'user'?"),
        ("zzz=1", "'zzz'", "Known: name, seed, threads, data,"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(override: str, unknown: str, hint: str) -> None:
    line = complaint(DATA, override)
    assert f"unknown setting {unknown}." in line
    assert hint in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1 (got 0)"),
        ("train.epochs=many", "train.epochs:"),
        ("train.learning_rate=.inf", "train.learning_rate:"),
        ("train.learning_rate=.nan", "train.learning_rate:"),
        ("train.learning_rate=-1", "train.learning_rate: Input should be greater than 0 (got -1)"),
        ("seed=-1", "seed:"),
        ("name=../x", "name:"),
        ("data.filters.min_history=1", "data.filters.min_history:"),
        ("data.split.kind=random", "data.split.kind:"),
        ("data.split.train=1.0", "data.split.train: Input should be less than 1"),
        ("data.source=ml-100k", "the data are given more than once: data.interactions=log.csv, data.source=ml-100k."),
        ("data.interactions=b.csv", "data.interactions=log.csv, data.interactions=b.csv. Leave one of them out"),
        ("evaluate.cutoffs=[0]", "evaluate: cutoffs must be at least 1"),
        ("evaluate.cutoffs=[]", "evaluate.cutoffs:"),
        ("student={}", "student.name: Field required"),
        ("train", "'train' is not key=value. Write overrides as train.epochs=5."),
        ("=3", "'=3' is not key=value."),
        ("train.epochs=[1", "train.epochs: cannot read the value '[1'."),
        ("seed.x=3", "seed.x: 'seed' is a value, not a group of settings."),
    ],
)
def test_a_bad_value_is_refused_by_its_key(override: str, words: str) -> None:
    assert words in complaint(DATA, "seed=1", override)


def test_shares_must_leave_something_to_test_on() -> None:
    assert "train + valid must stay below 1" in complaint(DATA, "data.split.train=0.9", "data.split.valid=0.1")
    assert "train + valid must stay below 1" in complaint(
        DATA, "data.split.train=0.85"
    )  # 0.2 to validation, by default
    assert SplitSettings(kind="global_time").shares() == (0.8, 0.1)
    assert SplitSettings(kind="random_sessions").shares() == (0.6, 0.2)
    assert SplitSettings(kind="global_time", train=0.5).shares() == (0.5, 0.1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train: [1", "not valid YAML"),
        (b"- a\n- b\n", "the file must hold `key: value` settings."),
        (b"", "the file must hold `key: value` settings."),
        (b"just words", "the file must hold `key: value` settings."),
        (b"name: \xff\n", "not valid YAML"),
        (b"seed: 1\n", "data: Field required"),
        (b"data: {source: x}\ntrain: {epochz: 1}\n", "unknown setting 'train.epochz'. Did you mean 'epochs'?"),
        (b"data: {source: x}\nstudent: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"data: {source: x, interactions: y}\n", "data: give either source (a public data set) or interactions"),
        (b"train: {epochs: 1}\n\nseed: 3\n'train': {patience: 2}\n", "the key 'train' stands twice, in lines 1 and 4."),
        (b"a:\n- {b: {c: 1, d: 2,\n c: 3}}\n", "the key 'c' stands twice, in lines 2 and 3. Put both into one,"),
        (b"a: {b: 1, b: 2}\n", "the key 'b' stands twice, in line 1."),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    line = complaint(path=path)
    assert line.startswith(f"{path}: ")
    assert words in line


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert (
        complaint(path=tmp_path / "no.yaml")
        == f"{tmp_path / 'no.yaml'}: no such file. Check the path of the configuration."
    )
    assert "Is a directory" in complaint(path=tmp_path)


def test_a_key_that_stands_twice_in_a_word_and_groups_that_share_keys(tmp_path: Path) -> None:
    assert "the key 'epochs' stands twice, in line 1." in complaint(DATA, "train={epochs: 1, epochs: 2}")
    (tmp_path / "c.yaml").write_text(
        "data: {source: x}\ntrain: &low {epochs: 1, patience: 2}\nteach: &mid {<<: *low, epochs: 3}\ndistil: {<<: *mid, epochs: 4}\n"
    )
    config = load_config(tmp_path / "c.yaml")
    assert [part.epochs for part in (config.train, config.teach, config.distil_settings())] == [1, 3, 4]
    assert config.distil_settings().patience == 2


def test_a_number_that_begins_with_0_is_decimal_or_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {source: 010}\nseed: 042\ntrain: {epochs: 0x1f, patience: 0_7}\n")
    config = load_config(tmp_path / "c.yaml", ["threads=010", "data.columns.user=007", "train.stride=0b11"])
    assert (config.seed, config.threads, config.train.epochs, config.train.stride) == (42, 10, 31, 3)
    assert config.train.patience == 7
    assert (config.data.source, config.data.columns.user) == ("010", "007")
    assert load_config(None, [DATA, "seed=0"]).seed == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.columns.user=no", "data.columns.user: Input should be a valid string (got False). Put it in quotes ("),
        ("data.columns.user=off", '("no" in a file, \'"no"\' on the command line); without them YAML reads on, off, '),
        ("data.columns.user=on", "(got True). "),
        ("data.columns.text=[title, yes]", "data.columns.text.1: Input should be a valid string (got True). Put it in"),
        (
            "data.items=on",
            "data.items: Input is not a valid path for <class 'pathlib.Path'> (got True). Put it in quotes",
        ),
        ("data.columns.user=2024", '(got 2024). Put it in quotes ("2024" in a file, \'"2024"\' on the command line).'),
        ("data.columns.user=2024-01-02", '"2024-01-02" in a file'),
        ("data.columns.user=[x]", "(got ['x']). Correct it."),
    ],
)
def test_text_that_yaml_takes_for_something_else(override: str, words: str) -> None:
    assert words in complaint(DATA, override)


def test_text_in_quotes_is_text() -> None:
    config = load_config(None, [DATA, 'data.columns.user="no"', 'data.columns.item="2024"'])
    assert (config.data.columns.user, config.data.columns.item) == ("no", "2024")


def test_the_base_is_not_written_into() -> None:
    base = {"train": {"epochs": 9}}
    assert load_config(None, [DATA, "train.epochs=3"], base).train.epochs == 3
    assert base == {"train": {"epochs": 9}}


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_config(None, [DATA]).train.epochs = 3  # type: ignore[misc]


def test_the_distilled_student_is_trained_like_the_plain_one_unless_told_otherwise() -> None:
    assert load_config(None, [DATA, "train.epochs=3"]).distil_settings().epochs == 3
    words = [DATA, "train={epochs: 3, loss: {name: bce, negatives: 7}}", "distil.patience=2", "distil.loss.negatives=9"]
    loss = LossSettings(name="bce", negatives=9)
    assert load_config(None, words).distil_settings() == TrainSettings(epochs=3, patience=2, loss=loss)


def test_checked_says_where() -> None:
    with pytest.raises(ConfigError, match=r"student: unknown setting 'epoch'\. Did you mean 'epochs'\?"):
        checked(TrainSettings, {"epoch": 3}, where="student")


KEYS = st.sampled_from("abc")
TREES = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@given(low=st.dictionaries(KEYS, TREES), high=st.dictionaries(KEYS, TREES))
def test_deep_merge_takes_each_leaf_from_the_highest_layer(low: dict[str, Any], high: dict[str, Any]) -> None:
    from distilrec.config_file import merged

    def look(tree: Any, path: tuple[str, ...]) -> Any:
        for key in path:
            if not isinstance(tree, dict) or key not in tree:
                return None
            tree = tree[key]
        return tree

    def leaves(tree: Any, path: tuple[str, ...] = ()) -> Any:
        if isinstance(tree, dict) and (tree or not path):
            for key, value in tree.items():
                yield from leaves(value, (*path, key))
        else:
            yield path, tree

    before = yaml.safe_dump([low, high])
    whole = merged(low, high)
    assert yaml.safe_dump([low, high]) == before
    for path, value in leaves(high):
        found = look(whole, path)
        assert found == value or (value == {} and isinstance(look(low, path), dict) and found == look(low, path))
    for path, value in leaves(low):
        shadowed = (
            any(not isinstance(look(high, path[:n]), dict | None) for n in range(1, len(path) + 1))
            or look(high, path) is not None
        )
        assert shadowed or look(whole, path) == value


def test_every_published_configuration_can_be_read() -> None:
    configs = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        assert isinstance(load_config(path), Config)


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["method=rd"], {"name": "rd"}),
        (["method.name=rd"], {"name": "rd"}),
        (["method=rd", "method.top_k=3"], {"name": "rd", "top_k": 3}),
        (["method.top_k=3", "method.name=rd"], {"name": "rd", "top_k": 3}),  # in any order
        (["method.name=dllm2rec"], {"name": "dllm2rec", "ranking_weight": 0.2}),  # the same one keeps its settings
        (["method.top_k=3"], {"name": "dllm2rec", "ranking_weight": 0.2, "top_k": 3}),
        (["method={name: rd, top_k: 4}", "method.top_k=5"], {"name": "rd", "top_k": 5}),
    ],
)
def test_another_name_drops_the_settings_of_the_one_before(overrides: list[str], method: dict[str, Any]) -> None:
    base = {"method": {"name": "dllm2rec", "ranking_weight": 0.2}}
    config = load_config(None, [DATA, *overrides], base)
    assert {"name": config.method.name, **config.method.settings()} == method
    assert load_config(None, [DATA, *overrides], {"method": "dllm2rec"}).method.name == method["name"]
