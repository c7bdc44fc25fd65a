"""A matrix that cannot be is refused in one line before any work."""

from collections.abc import Callable
from typing import Any

import pytest

from distilrec.compare.matrix import Matrix
from distilrec.compare.settings import CompareSettings
from distilrec.errors import ConfigError
from distilrec.settings import checked

Content = dict[str, Any]
Change = Callable[[Content], Any]

REFUSED: dict[str, tuple[Change, str]] = {
    "a metric twice": (
        lambda c: c.update(metrics=["hr@10", "hr@10"]),
        "a metric stands twice",
    ),  # it would count twice for Holm
    "a student for all": (
        lambda c: c["base"].update(student="sasrec"),
        "'student' is no part of a run's configuration that can",
    ),
    "unknown key": (lambda c: c.update(sedes=[1]), r"unknown setting 'sedes'. Did you mean 'seeds'\?"),
    "unknown key of tune": (lambda c: c["tune"].update(trails=3), r"'tune.trails'. Did you mean 'trials'\?"),
    "unknown part": (lambda c: c["base"].update(trian={}), r"base: 'trian' is no part of a run's configuration"),
    "seed of a data set": (lambda c: c["datasets"]["toy"].update(seed=3), r"datasets.toy: 'seed' is no part"),
    "part of a teacher's run": (
        lambda c: c["teachers"]["big"].update(run={"tech": {}}),
        r"teachers.big.run: 'tech' is no part",
    ),
    "unknown setting below": (lambda c: c["base"]["train"].update(epoch=3), r"'train.epoch'. Did you mean 'epochs'\?"),
    "unknown method": (lambda c: c["methods"].update(soft=None), r"unknown method 'soft'. Known: plain, "),
    "unknown teacher": (lambda c: c.update(teachers={"bert": None}), r"unknown teacher 'bert'. Known: e4srec, "),
    "unknown setting of a method": (
        lambda c: c["methods"].update(soft_labels={"wieght": 1}),
        r"methods.soft_labels: unknown setting 'wieght'. Did you mean 'weight'\?",
    ),
    "unknown setting of training in the space": (
        lambda c: c["tune"].update(space={"train.lr": [1, 2]}),
        r"unknown setting 'train.lr'",
    ),
    "two plain methods": (
        lambda c: c["methods"].update(again={"name": "plain"}),
        r"methods: plain and again are the same plain training. Keep one of them.",
    ),
    "plain with settings": (
        lambda c: c["methods"].update(plain={"train": {"epochs": 3}}),
        r"methods.plain: the plain training has no settings of its own. Set base.train",
    ),
    "repeated seed": (lambda c: c.update(seeds=[1, 2, 1]), r"a seed stands twice in seeds"),
    "no seed": (lambda c: c.update(seeds=[]), r"seeds"),
    "seed below nought": (lambda c: c.update(seeds=[1, -1]), r"seeds must not be below 0"),
    "unknown metric": (lambda c: c.update(metrics=["ndgc@10"]), r"unknown metric 'ndgc@10'. Use hr@k, ndcg@k"),
    "metric without a cutoff": (lambda c: c.update(metrics=["hr"]), r"unknown metric 'hr'"),
    "slash": (lambda c: c["students"].update({"a/b": {"name": "sasrec"}}), r"'a/b' cannot be a label: no slash"),
    "blank at an end": (lambda c: c["methods"].update({" x": {"name": "rd"}}), r"' x' cannot be a label"),
    "empty label": (lambda c: c["teachers"].update({"": {"name": "text"}}), r"'' cannot be a label"),
    "no teacher": (lambda c: c.pop("teachers"), r"the method soft_labels needs a teacher. Add one under teachers."),
    "no data": (lambda c: c.update(datasets={"toy": {}}), r"data: give either source"),
    "data that are a number": (lambda c: c["datasets"]["toy"].update(data=5), r"data: .*5"),
    "data that are a list": (lambda c: c["datasets"]["toy"].update(data=[5]), r"data: .*5"),
    "a path that is a number": (
        lambda c: c["datasets"]["toy"]["data"].update(interactions=5),
        r"data.interactions: .*5",
    ),
    "a setting below a value": (
        lambda c: c["tune"].update(space={"train.epochs.x": [1]}),
        r"train.epochs.x: 'epochs' is a value, not a group of settings. Correct the key.",
    ),
    "no data set": (lambda c: c.update(datasets={}), r"datasets"),
    "no choices": (lambda c: c["tune"].update(space={"train.epochs": []}), r"train.epochs has no choices"),
    "training that is no group": (
        lambda c: c["students"]["sasrec"].update(train=["epochs"]),
        r"students.sasrec.train: a group of settings is expected, got \['epochs'\]",
    ),
    "training of a method that is no group": (
        lambda c: c["methods"].update(soft_labels={"train": "slow"}),
        r"methods.soft_labels.train: a group of settings is expected, got 'slow'",
    ),
    "a run that is no group": (
        lambda c: c["teachers"]["big"].update(run=[1]),
        r"teachers.big.run: a group of settings is expected, got \[1\]",
    ),
    "range upside down": (
        lambda c: c["tune"].update(space={"train.learning_rate": {"low": 2, "high": 1}}),
        r"low must be below high",
    ),
    "unknown student": (lambda c: c["students"].update(sasrek=None), r"unknown student 'sasrek'. Known: sasrec, "),
    "unknown setting of a student": (
        lambda c: c["students"]["sasrec"].update(hiden_size=8),
        r"student: unknown setting 'hiden_size'. Did you mean 'hidden_size'\?",
    ),
    "setting of a student out of range": (
        lambda c: c["students"]["sasrec"].update(hidden_size=-8),
        r"student: hidden_size: .*\(got -8\)",
    ),
    "unknown setting of a teacher": (
        lambda c: c["teachers"]["big"].update(recomender={}),
        r"teacher: unknown setting 'recomender'. Did you mean 'recommender'\?",
    ),
    "unknown setting of a student in the space": (
        lambda c: c["tune"].update(space={"student.hiden_size": [8, 16]}),
        r"student: unknown setting 'hiden_size'",
    ),
    "unknown setting of one student in its space": (
        lambda c: c["tune"].update(students={"fpmc": {"blocks": [1, 2]}}),
        r"student: unknown setting 'blocks'",
    ),
    "unknown setting of a method in its space": (
        lambda c: c["tune"].update(methods={"soft_labels": {"wieght": [1, 2]}}),
        r"method: unknown setting 'wieght'. Did you mean 'weight'\?",
    ),
    "space of a method that is not there": (
        lambda c: c["tune"].update(methods={"soft_lables": {"weight": [1, 2]}}),
        r"tune.methods names 'soft_lables', which is none of the methods",
    ),
    "space of a student that is not there": (
        lambda c: c["tune"].update(students={"sasrek": {"blocks": [1, 2]}}),
        r"tune.students names 'sasrek', which is none of the students",
    ),
    "space of a method for all": (
        lambda c: c["tune"].update(space={"method.weight": [1, 2]}),
        r"tune.space holds keys of train and student, not 'method.weight'",
    ),
    "selection by what is not measured": (
        lambda c: c["base"]["train"].update(select_by="mrr@7"),
        r"train.select_by: 'mrr@7' is not measured",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_refused_in_one_line(content: Content, what: str) -> None:
    change, words = REFUSED[what]
    change(content)
    with pytest.raises(ConfigError, match=words) as error:
        Matrix(checked(CompareSettings, content, where="test"))
    assert "\n" not in error.value.line()
