"""Ray: every job done once, whatever workers die; errors come out as they are; nothing goes on in the background afterwards."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.columns import EXAMPLE, ITEMS, REPLY
from distilrec.config import AnnotateSettings
from distilrec.data.dataset import Dataset
from distilrec.errors import DistilrecError, InputError
from distilrec.knowledge import ray_pool
from distilrec.knowledge.annotate import Answerer, annotate, here
from distilrec.knowledge.ask import ask
from distilrec.knowledge.prices import Price
from distilrec.knowledge.ray_engine import RayBackend, backend_over_ray, over_ray
from distilrec.knowledge.ray_pool import pool_of, shares
from distilrec.knowledge.store import open_knowledge, writing
from distilrec.progress import Bar
from distilrec.teachers.backends.base import Batched, Prompt, Reply, Served
from fixtures_ray import ray

__all__ = ["ray"]

pytestmark = pytest.mark.usefixtures("ray")
SECONDS = 20.0


def wait_for(what: Callable[[], Any]) -> Any:
    ends = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.02)
    return found


def started(log: Path) -> list[tuple[int, str]]:
    """Return (process, job) of every job that was begun, also of those that were not finished."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def die() -> Callable[[str], str]:
    time.sleep(0.2)  # what was done before is on its way home
    os.kill(os.getpid(), signal.SIGKILL)
    return str


@dataclass(frozen=True)
class Work:
    """Makes what does jobs, which are names. It writes down each that it begins; the names say what happens then."""

    log: Path

    def __call__(self) -> Callable[[str], str]:
        return self.do

    def do(self, job: str) -> str:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {job}\n")
        tries = [name for _, name in started(self.log)].count(job)
        match job.split("-")[0]:
            case "meet":  # until another worker has begun something, too
                wait_for(lambda: len({pid for pid, _ in started(self.log)}) > 1)
            case "hold":  # until somebody kills this process
                wait_for(lambda: tries > 1)
            case "once":
                if tries == 1:
                    die()
            case "always":
                die()
            case "wrong":
                raise InputError("two columns are one too many.", where="a.csv, line 3", remedy="Drop one.")
            case "bug":
                raise ValueError("no such thing")
        return job.upper()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def jobs_named(*first: str, count: int = 8) -> list[str]:
    return [*first, *(f"j{number}" for number in range(count - len(first)))]


def test_every_job_is_done_once_and_by_both(log: Path) -> None:
    jobs = jobs_named("meet")
    with pool_of(Work(log), 2) as pool:
        found = list(pool.run(jobs))
        assert sorted(found) == [(place, job.upper()) for place, job in enumerate(jobs)]
        assert sorted(job for _, job in started(log)) == sorted(jobs)
        assert len({pid for pid, _ in started(log)}) == 2
        assert os.getpid() not in {pid for pid, _ in started(log)}
        assert list(pool.run([])) == []
        assert list(pool.run(["again"])) == [(0, "AGAIN")]  # a pool serves many times
    for pid, _ in started(log):
        wait_for(lambda pid=pid: gone(pid))


def test_a_worker_killed_from_outside_loses_only_what_it_was_at(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_named("meet", "j", "hold", count=12)
    with pool_of(Work(log), 2) as pool:
        results = pool.run(jobs)
        found = [next(results)]
        pid = wait_for(lambda: [pid for pid, job in started(log) if job == "hold"])[0]
        os.kill(pid, signal.SIGKILL)
        found += results
    assert sorted(found) == [(place, job.upper()) for place, job in enumerate(jobs)]
    assert Counter(job for _, job in started(log)) == Counter([*jobs, "hold"])
    assert len({pid for pid, _ in started(log)}) in (2, 3)  # the new worker may have come too late for a job


def test_the_last_worker_lost_is_replaced(log: Path) -> None:
    jobs = jobs_named("j", "once-a", "j", "once-b")
    with pool_of(Work(log), 1) as pool:
        assert sorted(pool.run(jobs)) == [(place, job.upper()) for place, job in enumerate(jobs)]
    assert Counter(job for _, job in started(log)) == Counter([*jobs, "once-a", "once-b"])
    assert len({pid for pid, _ in started(log)}) == 3


def test_a_job_that_kills_its_workers_is_an_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "_TRIES", 2)
    found = []
    with pytest.raises(DistilrecError) as raised, pool_of(Work(log), 1) as pool:
        for result in pool.run(jobs_named("first", "always", count=3)):
            found.append(result)
    assert raised.value.line().startswith("2 workers died over the same job (")
    assert "annotate.batch_tokens" in raised.value.line()
    assert sorted(found) == [(0, "FIRST"), (2, "J0")]  # whatever can be done is done first
    assert Counter(job for _, job in started(log))["always"] == 2


def test_errors_of_a_job_come_out_as_they_are(log: Path) -> None:
    with pool_of(Work(log), 1) as pool:
        with pytest.raises(InputError) as raised:
            list(pool.run(["wrong"]))
        assert type(raised.value) is InputError
        assert raised.value.line() == "a.csv, line 3: two columns are one too many. Drop one."
        assert raised.value.remedy == "Drop one."
        with pytest.raises(ValueError, match="no such thing"):
            list(pool.run(["bug"]))
        assert list(pool.run(["fine"])) == [(0, "FINE")]  # and the worker lives on
    assert len({pid for pid, _ in started(log)}) == 1


def refuse() -> Callable[[str], str]:
    raise InputError("no such model.", where="models/x")


def test_workers_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as raised, pool_of(refuse, 1) as pool:
        list(pool.run(["j"]))
    assert raised.value.line() == "models/x: no such model."
    monkeypatch.setattr(ray_pool, "_TRIES", 2)
    died = r"^2 workers died before they were ready \(.*worker process has died"
    with pytest.raises(DistilrecError, match=died), pool_of(die, 1) as pool:
        list(pool.run(["j"]))


def test_a_folder_that_a_worker_does_not_see(tmp_path: Path) -> None:
    worker = ray_pool._Worker(refuse, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"elsewhere: a worker on \S+ does not see this folder \(No such file"):
        worker.load()


def test_the_others_do_the_work_where_there_is_no_room_for_one(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "shares", lambda _machines, _workers: (2.0, 0.0))
    with pool_of(Work(log), 2) as pool:  # each takes the whole machine
        assert len(list(pool.run(jobs_named()))) == 8
    assert len({pid for pid, _ in started(log)}) == 1


def test_the_user_is_told_what_is_waited_for(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(line: str) -> None:
        raise TimeoutError(line)

    monkeypatch.setattr(ray_pool, "shares", lambda _machines, _workers: (3.0, 0.0))  # more than there are
    monkeypatch.setattr(ray_pool, "_PATIENCE", 0.1)
    monkeypatch.setattr(ray_pool, "say", say)
    with pytest.raises(TimeoutError, match="no worker is ready yet: Ray has no room"), pool_of(Work(log), 1) as pool:
        list(pool.run(["j"]))


def threads() -> Callable[[str], tuple[str, int]]:
    return lambda _: (os.environ["OMP_NUM_THREADS"], torch.get_num_threads())


def test_a_worker_uses_its_share_of_the_cores() -> None:
    with pool_of(threads, 1) as pool:
        assert list(pool.run(["j"])) == [(0, ("2", 2))]
    with pool_of(threads, 2) as pool:
        assert dict(pool.run(["j"] * 4)) == dict.fromkeys(range(4), ("1", 1))


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [
        ([(2, 0)], 1, (2, 0)),
        ([(2, 0)], 2, (1, 0)),
        ([(2, 0)], 3, (0.5, 0)),
        ([(1, 0)], 6, (0.1666, 0)),  # rounded down: six times 0.1667 is more than 1
        ([(16, 0), (4, 0)], 2, (8, 0)),
        ([(16, 0), (4, 0)], 5, (4, 0)),
        ([(16, 1), (4, 0)], 2, (8, 0.5)),  # only the machine with a GPU takes part
        ([(16, 4)], 2, (8, 1)),
        ([(8, 2), (8, 2)], 3, (4, 1)),
        ([(0, 1), (8, 1)], 2, (8, 1)),  # one of them would wait, were it not for another GPU
        ([(0, 0)], 2, (0, 0)),
        ([], 2, (0, 0)),
    ],
)
def test_shares_by_hand(machines: list[tuple[float, float]], workers: int, expected: tuple[float, float]) -> None:
    assert shares(machines, workers) == expected


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=5),
    st.integers(1, 40),
)
def test_shares_leave_room_for_all(machines: list[tuple[int, int]], workers: int) -> None:
    cores, gpus = shares([(float(a), float(b)) for a, b in machines], workers)
    assert cores > 0 and gpus <= 1
    assert (gpus > 0) == any(with_gpu for _, with_gpu in machines)
    room = sum(
        min(int(a / cores + 1e-9), int(b / gpus + 1e-9) if gpus else workers) for a, b in machines if b or not gpus
    )
    assert room >= workers


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(over_ray(refuse, [], workers=2)) == []  # nothing to do needs no Ray
    with pytest.raises(InputError) as raised:
        list(over_ray(refuse, ["j"], workers=2))  # type: ignore[list-item]
    assert raised.value.line() == (
        'Ray is not installed. Run `pip install "distilrec[ray]"`, or leave annotate.engine at local.'
    )


def test_ray_starts_and_ends_without_a_word(tmp_path: Path) -> None:
    program = """
import os, signal
from distilrec.knowledge.ray_pool import pool_of
signal.signal(signal.SIGTERM, handler := lambda *_: None)
with pool_of(lambda: lambda job: (job + 1, os.environ["RAY_USAGE_STATS_ENABLED"]), 1) as pool:
    assert list(pool.run([1])) == [(0, (2, "0"))]
    import ray
    assert signal.getsignal(signal.SIGTERM) is handler
assert not ray.is_initialized()
"""
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=quiet
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_cluster_is_joined_only_where_one_is_named(monkeypatch: pytest.MonkeyPatch, ray: Any) -> None:
    joined: list[str] = []

    def fail(address: str, **_: Any) -> None:
        joined.append(address)
        raise ConnectionError("Could not find any running Ray instance.\nTry again. Or not.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    line = r"^Ray cannot be reached or started \(Try again\)\. Start Ray there"
    with pytest.raises(InputError, match=line), pool_of(refuse, 1):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(InputError, match="^RAY_ADDRESS: Ray cannot be"), pool_of(refuse, 1):
        pass
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match="^RAY_ADDRESS: Ray cannot be"), pool_of(refuse, 1):
            pass
    assert joined == ["local", "auto", address]
    with pytest.raises(InputError) as raised, pool_of(refuse, 1):  # nobody listens any more
        pass
    assert raised.value.line() == (
        f"RAY_ADDRESS: nobody answers at {address} (Connection refused). Start Ray there (`ray start --head`), "
        "or unset RAY_ADDRESS to have workers on this machine only."
    )
    assert len(joined) == 3


# Annotation by a local teacher


@dataclass
class Cheap:
    """A teacher whose best item is the next one. It dies, interrupts or fails at one example, if told to."""

    n_items: int
    log: Path
    kill_at: int | None

    def rank(self, batch: Any, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        examples = batch.examples.tolist()
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {'+'.join(map(str, examples))}\n")
        tries = sum(str(self.kill_at) in job.split("+") for _, job in started(self.log))
        if self.kill_at in examples and tries == 1:
            die()
        scores = torch.cos(batch.examples[:, None] * torch.arange(1, self.n_items + 1).sqrt())
        best = scores.sort(dim=1, descending=True)
        return best.indices[:, :k], best.values[:, :k]


SETTINGS = AnnotateSettings(top_k=6, batch_tokens=40, shard_rows=50)


def answerer(dataset: Dataset, log: Path, kill_at: int | None = None) -> Answerer:
    return Answerer(partial(Cheap, dataset.n_items, log, kill_at), dataset.folder, 8, 6)  # type: ignore[arg-type]


def rows(folder: Path) -> pl.DataFrame:
    """Return all rows of all shards; a doubled one is there twice."""
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet"))]).sort(EXAMPLE)


def training_examples(dataset: Dataset) -> np.ndarray:
    starts, cuts = dataset.offsets[:-1], dataset.split.train_end
    return np.concatenate([np.arange(start + 1, start + cut) for start, cut in zip(starts, cuts, strict=True)])


def test_a_store_made_by_two_workers_one_of_them_killed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    examples = training_examples(tiny_dataset)
    arguments = (tiny_dataset, examples, SETTINGS)
    annotate(answerer(tiny_dataset, tmp_path / "a"), lambda: None, *arguments, tmp_path / "local", {})
    make = answerer(tiny_dataset, tmp_path / "b", kill_at=int(examples[len(examples) // 2]))
    account = annotate(make, lambda: None, *arguments, tmp_path / "ray", {}, engine=partial(over_ray, workers=2))
    assert account["rows_done"] == account["rows_total"] == len(examples)
    assert account["stopped_by"] is None
    one, other = rows(tmp_path / "local"), rows(tmp_path / "ray")
    assert one[EXAMPLE].to_list() == sorted(examples.tolist())
    assert one.equals(other)  # also the scores, bit by bit
    once, twice = (Counter(job for _, job in started(tmp_path / name)) for name in "ab")
    assert set(once) == set(twice) and set(once.values()) == {1}
    assert sorted(twice.values())[-2:] == [1, 2]  # only the job that the lost worker was at


def test_an_interruption_keeps_what_is_stored_and_ends_the_workers(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = training_examples(tiny_dataset)
    advanced: list[int] = []

    def interrupted(_bar: Bar, steps: int = 1, _note: str = "") -> None:
        advanced.append(steps)
        if len(advanced) == 5:  # the first says what was there before
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "advance", interrupted)
    make = answerer(tiny_dataset, tmp_path / "log")
    arguments = (make, lambda: None, tiny_dataset, examples, SETTINGS, tmp_path / "store", {})
    with pytest.raises(KeyboardInterrupt) as raised:
        annotate(*arguments, engine=partial(over_ray, workers=2))
    for pid in {pid for pid, _ in started(tmp_path / "log")}:
        wait_for(lambda pid=pid: gone(pid))
    assert raised.tb is not None  # while the trace still holds everything alive
    assert rows(tmp_path / "store").height == sum(advanced) < len(examples)
    account = annotate(*arguments, engine=here)  # the same command goes on where it was, even with another engine
    assert account["rows_done"] == len(examples)
    assert rows(tmp_path / "store")[EXAMPLE].to_list() == examples.tolist()


# A model that writes text


@dataclass(frozen=True)
class Question:
    example: int
    prompt: Prompt


@dataclass(frozen=True)
class Said:
    items: list[int]
    repairs: dict[str, int]
    usable: bool


@dataclass(frozen=True)
class Parrot:
    """A backend that says what it was asked, in capitals; asked for the first time about 30, its worker dies."""

    log: Path
    model = "parrot"

    def identity(self) -> dict[str, Any]:
        return {"kind": "parrot"}

    def count_tokens(self, prompt: Prompt) -> int:
        return len(prompt.user)

    def count_text(self, text: str) -> int:
        return len(text)

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        asked = [prompt.user for prompt in prompts]
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {'+'.join(asked)}\n")
        tries = sum("q30" in job.split("+") for _, job in started(self.log))
        if "q30" in asked and tries == 1 and self.log.name == "deadly":
            die()
        return [Reply(text.upper(), len(text), 2) for text in asked]


def read(question: Question, reply: Reply) -> Said:
    """Every seventh reply is of no use, however often it is asked for."""
    usable = question.example % 7 > 0 and reply.text == f"Q{question.example}"
    return Said([question.example % 20] if usable else [], {}, usable)


def fill(folder: Path, dataset: Dataset, backend: Batched, count: int = 100, **changes: Any) -> Any:
    settings = AnnotateSettings.model_validate({"batch_tokens": 40, "keep_replies": True, **changes})
    questions = [Question(n, Prompt("", f"q{n}", 5)) for n in range(1, count + 1)]
    with writing(folder, dataset, {}) as writer:
        return ask(questions, count, backend, read, writer, settings, price=Price(1.0, 1.0, "test"))


def test_a_text_backend_on_two_workers_one_of_them_killed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    local = fill(tmp_path / "local", tiny_dataset, Parrot(tmp_path / "quiet"))
    with backend_over_ray(partial(Parrot, tmp_path / "deadly"), 2) as backend:
        assert isinstance(backend, RayBackend) and not isinstance(backend, Served)
        assert (backend.model, backend.identity(), backend.count_text("abc")) == ("parrot", {"kind": "parrot"}, 3)
        assert backend.count_tokens(Prompt("", "four", 5)) == 4
        assert [reply.text for reply in backend.complete([Prompt("", "a", 5), Prompt("", "b", 5)])] == ["A", "B"]
        (tmp_path / "deadly").unlink()
        account = fill(tmp_path / "ray", tiny_dataset, backend)
    assert account.rows_done == 100 and account.run.stopped_by is None
    assert account.store == local.store
    one, other = rows(tmp_path / "local"), rows(tmp_path / "ray")
    assert one[EXAMPLE].to_list() == list(range(1, 101)) and one[REPLY][11] == "Q12"
    assert one.equals(other)
    asked = Counter(name for _, job in started(tmp_path / "deadly") for name in job.split("+"))
    lost = next(job.split("+") for _, job in started(tmp_path / "deadly") if "q30" in job.split("+"))
    expected = Counter({f"q{n}": 1 + (n % 7 == 0) for n in range(1, 101)})  # useless replies are asked for again
    assert asked == expected + Counter(lost)
    assert not (tmp_path / "ray" / "journal.jsonl").exists()


def test_caps_hold_and_a_later_run_goes_on(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with backend_over_ray(partial(Parrot, tmp_path / "log"), 1) as backend:
        first = fill(tmp_path / "store", tiny_dataset, backend, caps={"rows": 40})
        assert (first.rows_done + first.unfinished, first.stopped_by) == (40, "the cap of 40 rows")
        assert fill(tmp_path / "store", tiny_dataset, backend).rows_done == 100
    asked = Counter(name for _, job in started(tmp_path / "log") for name in job.split("+"))
    assert asked == Counter({f"q{n}": 1 + (n % 7 == 0) for n in range(1, 101)})


class Stops(Parrot):
    """Fails at the question about 30."""

    def complete(self, prompts: Sequence[Prompt]) -> list[Reply]:
        if any(prompt.user == "q30" for prompt in prompts):
            raise InputError("the prompt is too long.", remedy="Shorten it.")
        return super().complete(prompts)


def test_a_backend_that_fails_ends_the_run_and_keeps_what_was_said(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised, backend_over_ray(partial(Stops, tmp_path / "log"), 1) as backend:
        fill(tmp_path / "store", tiny_dataset, backend)
    assert raised.value.line() == "the prompt is too long. Shorten it."
    kept = rows(tmp_path / "store")
    assert 0 < kept.height < 100
    assert open_knowledge(tmp_path / "store", tiny_dataset).examples.tolist() == (
        kept.filter(pl.col(ITEMS).list.len() > 0)[EXAMPLE].to_list()
    )
