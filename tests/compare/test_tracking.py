"""mlflow as a place for the rows: what is logged, by a stand-in for it, and what is said where it is not installed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from distilrec.compare.tracking import log_rows
from distilrec.errors import ConfigError

Cli = Callable[..., Any]


class MlflowException(Exception):
    """Stands in for mlflow's own."""


class Tracker(ModuleType):
    """Stands in for mlflow: keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.address = self.experiment = ""
        self.runs: list[dict[str, Any]] = []
        self.open = False
        self.MlflowException = MlflowException

    def set_tracking_uri(self, address: str) -> None:
        self.address = address

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    @contextmanager
    def start_run(self, *, run_name: str) -> Iterator[None]:
        assert not self.open
        self.open = True
        self.runs.append({"name": run_name, "params": {}, "metrics": {}})
        yield
        self.open = False

    def log_params(self, params: dict[str, Any]) -> None:
        assert self.open
        self.runs[-1]["params"] |= params

    def log_metrics(self, metrics: dict[str, float]) -> None:
        assert self.open
        assert all(isinstance(value, float) and "@" not in name for name, value in metrics.items())  # mlflow refuses @
        self.runs[-1]["metrics"] |= metrics


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    made = Tracker()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    return made


CONTENT = {
    "name": "films",
    "rows": [
        {
            "dataset": "toy", "student": "a", "method": "rd", "teacher": "big", "seeds": [1, 2],
            "values": {"train.learning_rate": 0.02}, "metrics": {"ndcg@10": 0.5, "hr@10": 0.75}, "parameters": 100,
            "ms_per_user": 0.25, "latency_ms": 1.5, "train_seconds": 60.0, "teacher_seconds": 30.0, "usd": None,
            "difference": {"ndcg@10": 0.125}, "p_value": {"ndcg@10": 0.01},
        },
        {
            "dataset": "toy", "student": None, "method": None, "teacher": "big", "seeds": [1], "values": {},
            "metrics": {"ndcg@10": 0.25}, "parameters": 200, "ms_per_user": None, "latency_ms": None,
            "train_seconds": 30.0, "teacher_seconds": 30.0, "usd": 1.5,
        },
    ],
}  # fmt: skip


def test_every_row_is_a_run(tracker: Tracker) -> None:
    log_rows(CONTENT, "http://localhost:1")
    assert (tracker.address, tracker.experiment) == ("http://localhost:1", "distilrec compare films")
    assert not tracker.open
    assert tracker.runs == [
        {
            "name": "toy: a + rd (big)",
            "params": {
                "dataset": "toy", "student": "a", "method": "rd", "teacher": "big", "seeds": "1 2",
                "train.learning_rate": 0.02,
            },
            "metrics": {
                "ndcg_at_10": 0.5, "hr_at_10": 0.75, "parameters": 100.0, "ms_per_user": 0.25, "latency_ms": 1.5,
                "train_seconds": 60.0, "teacher_seconds": 30.0, "gain_ndcg_at_10": 0.125, "p_ndcg_at_10": 0.01,
            },
        },
        {
            "name": "toy: big (teacher)",
            "params": {"dataset": "toy", "teacher": "big", "seeds": "1"},
            "metrics": {
                "ndcg_at_10": 0.25, "parameters": 200.0, "train_seconds": 30.0, "teacher_seconds": 30.0, "usd": 1.5,
            },
        },
    ]  # fmt: skip


def test_what_mlflow_refuses_is_one_line(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> None:
        raise MlflowException("no such store.\nand a second line")

    monkeypatch.setattr(tracker, "set_experiment", refuse)
    with pytest.raises(
        ConfigError, match=r"^somewhere: mlflow: no such store. The report is written; give another address"
    ):
        log_rows(CONTENT, "somewhere")
    assert tracker.runs == []


def test_the_verb_logs_when_all_is_written(
    tracker: Tracker, compare: Cli, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison itself is left out here: a stand-in writes the rows above."""
    from distilrec.compare import plan, report, workers

    def run(self: Any, plan: Any, _deadline: float) -> None:
        plan.outcome.trained[plan.matrix.combinations[0], 1] = {}

    monkeypatch.setattr(workers.Workers, "run", run)
    monkeypatch.setattr(plan.Plan, "timings", lambda _self: [])
    monkeypatch.setattr(
        report,
        "write_comparison",
        lambda *_: {**CONTENT, "metrics": ["ndcg@10"], "datasets": [], "failed": {}, "advice": []},
    )
    done = compare(content, "--mlflow", "somewhere")
    assert done.code == 0, done.err
    assert tracker.address == "somewhere"
    assert [run["name"] for run in tracker.runs] == ["toy: a + rd (big)", "toy: big (teacher)"]


def test_without_mlflow_it_says_how_to_get_it_before_any_work(
    compare: Cli, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = compare(content, "--mlflow", "somewhere")
    assert done.code == 2
    assert done.last == "Error: mlflow is not installed. Run pip install 'distilrec[mlflow]'."
    assert not done.runs.exists()
