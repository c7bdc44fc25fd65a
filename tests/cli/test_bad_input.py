"""Wrong input, a full disk, an interruption: one clear line, the right exit code, nothing half done left as if it were whole."""

import errno
import gzip
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilrec.cli import stages
from distilrec.data.dataset import open_dataset
from distilrec.files import locked
from distilrec.students import STUDENTS

Cli = Callable[..., Any]
Done = Any  # see conftest.py


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


def insert(path: Path, line: int, text: str) -> None:
    """Put `text` so that it begins at 1-based line number `line`."""
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(line - 1, text)
    path.write_text("".join(lines))


def check(done: Done, *words: str) -> None:
    """Exit code 2; the last line alone is the error and holds `words`; no traceback, no data set, no stage marked done."""
    assert done.code == 2, done.err
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:], done.err
    assert "Traceback" not in done.err
    assert "Traceback" not in done.out
    for word in words:
        assert word in done.last, done.last
    assert re.search(r"[.?)] [A-Z].*[.?]$", done.last), f"no remedy: {done.last}"
    for left in ("manifest.json", "stage.json", "results.json", "*.part", "*.npy", "*.parquet"):
        assert list(done.runs.rglob(left)) == []


def test_good_input_is_the_yardstick(cli: Cli, log: Path, titles: Path) -> None:
    done = cli("prepare", "--interactions", log, "--items", titles)
    assert done.code == 0
    assert done.out == ""
    assert len(done.manifests) == 1
    assert (done.runs / "log").is_dir()


@pytest.mark.parametrize(("column", "role"), [("user_id", "user"), ("item_id", "item")])
def test_a_missing_column(cli: Cli, log: Path, titles: Path, column: str, role: str) -> None:
    edit(log, (column, "whatever"))
    done = cli("prepare", "--interactions", log, "--items", titles)
    check(done, f"{log}: no {role} column found among", "'whatever'", f"data.columns.{role}=NAME")


def test_an_ambiguous_column(cli: Cli, log: Path, titles: Path) -> None:
    edit(log, ("user_id,item_id,timestamp", "uid,item_id,user"))
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        f"{log}: ",
        "ambiguous: 'uid', 'user'",
        "data.columns.user=NAME",
    )


def test_a_chosen_column_that_does_not_exist(cli: Cli, log: Path, titles: Path) -> None:
    done = cli("prepare", "--interactions", log, "--items", titles, "data.columns.user=usr")
    check(done, f"{log}: no column 'usr'", "data.columns.user")


@pytest.mark.parametrize(
    ("content", "words"), [("", "the file is empty"), ("user_id,item_id,timestamp\n", "a header and no rows")]
)
def test_an_empty_log(cli: Cli, log: Path, titles: Path, content: str, words: str) -> None:
    log.write_text(content)
    check(cli("prepare", "--interactions", log, "--items", titles), f"{log}: ", words)


def test_an_empty_item_file(cli: Cli, log: Path, titles: Path) -> None:
    titles.write_text("")
    check(cli("prepare", "--interactions", log, "--items", titles), f"{titles}: the file is empty")


@pytest.mark.parametrize("line", [2, 60, 122])
def test_a_line_with_too_many_cells(cli: Cli, log: Path, titles: Path, line: int) -> None:
    insert(log, line, "u00,i00,1,2\n")
    check(
        cli("prepare", "--interactions", log, "--items", titles), f"{log}, line {line}: 4 cells where the header has 3"
    )


def test_a_broken_line_of_the_item_file(cli: Cli, log: Path, titles: Path) -> None:
    insert(titles, 5, "i99,a title, with a comma\n")
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        f"{titles}, line 5: 3 cells where the header has 2",
        "quote cells",
    )


def test_a_quote_that_is_never_closed(cli: Cli, log: Path, titles: Path) -> None:
    insert(titles, 5, 'i99,"a title\n')
    check(cli("prepare", "--interactions", log, "--items", titles), f"{titles}, line 5: broken quotes")


def test_a_line_that_is_no_json(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([json.dumps({"user_id": 1, "item_id": 2}), "", "{user_id: 1}", ""]))
    check(cli("prepare", "--interactions", path), f"{path}, line 3: not a JSON object")


@pytest.mark.parametrize("column", ["user_id", "item_id"])
@pytest.mark.parametrize(
    ("before", "line"),
    [("", 40), ("\n\n", 42), (",,\n", 41), ('"u\n99",i00,5\n', 42), ('"u\n\n99","i\n00",5\n\n', 45)],
    ids=["plain", "behind-blank-lines", "behind-separators", "behind-a-cell-of-two-lines", "behind-both"],
)
def test_an_empty_id(cli: Cli, log: Path, titles: Path, column: str, before: str, line: int) -> None:
    insert(log, 40, before + (",i00,1\n" if column == "user_id" else "u00, ,1\n"))
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        f"{log}, line {line}, column '{column}': the id is missing",
    )


def test_a_time_that_is_no_number(cli: Cli, log: Path, titles: Path) -> None:
    insert(log, 17, "u00,i00,yesterday\n")
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        f"{log}, line 17, column 'timestamp': time 'yesterday' is neither",
    )


def test_a_rating_that_is_no_number(cli: Cli, log: Path, titles: Path) -> None:
    edit(log, ("timestamp", "rating"))
    insert(log, 17, "u00,i00,good\n")
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        f"{log}, line 17, column 'rating': rating 'good' is not a number",
    )


@pytest.mark.parametrize(
    ("word", "key", "hint"),
    [
        ("trian.epochs=3", "settings: unknown setting 'trian'", "Did you mean 'train'?"),
        ("train.epoch=3", "settings: unknown setting 'train.epoch'", "Did you mean 'epochs'?"),
        ("student.hiden_size=3", "student: unknown setting 'hiden_size'", "Did you mean 'hidden_size'?"),
        ("teacher.layer=3", "teacher: unknown setting 'layer'", "Did you mean 'layers'?"),
        ("method.zzz=3", "method: unknown setting 'zzz'", "Known: "),
    ],
)
def test_an_unknown_setting(cli: Cli, log: Path, titles: Path, word: str, key: str, hint: str) -> None:
    check(cli("prepare", "--interactions", log, "--items", titles, word), key, hint)


@pytest.mark.parametrize(
    ("word", "key"),
    [("student.hidden_size=-1", "student: hidden_size"), ("train.epochs=0", "train.epochs"), ("seed=x", "seed")],
)
def test_a_setting_out_of_range(cli: Cli, log: Path, titles: Path, word: str, key: str) -> None:
    check(cli("prepare", "--interactions", log, "--items", titles, word), key, "got")


@pytest.mark.parametrize("what", ["student", "teacher", "method"])
def test_an_unknown_name(cli: Cli, log: Path, titles: Path, what: str) -> None:
    known = {"student": ", ".join(STUDENTS), "teacher": "e4srec", "method": "dllm2rec"}[what]
    done = cli("prepare", "--interactions", log, "--items", titles, f"{what}.name=nope")
    check(done, f"unknown {what} 'nope'. Known: ", known)


def test_a_name_alone_will_do(cli: Cli, log: Path, titles: Path) -> None:
    done = cli("prepare", "--interactions", log, "--items", titles, "student=nope")
    check(done, "unknown student 'nope'. Known: ", "sasrec")


@pytest.mark.parametrize(
    ("method", "teacher", "missing"),
    [
        ("cd", "{name: ranker, model: m, base_url: 'http://localhost:1/v1'}", "scores"),
        ("dllm2rec", "text", "rankings"),
        ("hint", "{name: ranker, model: m, base_url: 'http://localhost:1/v1'}", "item vectors"),
    ],
)
def test_a_teacher_that_does_not_give_what_the_method_needs(
    cli: Cli, log: Path, titles: Path, method: str, teacher: str, missing: str
) -> None:
    done = cli("run", "--interactions", log, "--items", titles, f"method={method}", f"teacher={teacher}")
    check(done, f"the method {method} needs {missing}, which the teacher", "does not give")


def test_an_unknown_data_set(cli: Cli) -> None:
    check(cli("prepare", "data.source=nope"), "no data set is called 'nope'. Known: ml-100k")


def test_a_catalogue_of_one_item(cli: Cli, log: Path, titles: Path) -> None:
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 3},i00,{n}\n" for n in range(30)))
    check(cli("prepare", "--interactions", log, "--items", titles), "one item only ('i00')", "data.columns.item")


def test_every_user_filtered_away(cli: Cli, log: Path, titles: Path) -> None:
    done = cli("prepare", "--interactions", log, "--items", titles, "data.filters.k_core_user=9")
    check(done, "no interaction of 120 is left after the filters", "k_core dropped 120", "data.filters")


def test_a_split_that_leaves_nothing(cli: Cli, log: Path, titles: Path) -> None:
    edit(log, ("timestamp", "price"))
    done = cli("prepare", "--interactions", log, "--items", titles, "data.split.kind=global_time")
    check(done, "global_time needs a time column", "data.columns.time=NAME")


@pytest.mark.parametrize("which", ["--interactions", "--items"])
def test_a_missing_file_a_folder_and_an_unknown_kind(
    cli: Cli, log: Path, titles: Path, tmp_path: Path, which: str
) -> None:
    files = {"--interactions": log, "--items": titles}
    for name, words in (
        ("no.csv", "no such file"),
        ("folder.csv", "this is a folder"),
        ("log.xlsx", "unknown kind of file '.xlsx'"),
    ):
        files[which] = tmp_path / name
        if name == "folder.csv":
            files[which].mkdir()
        if name == "log.xlsx":
            files[which].write_bytes(b"PK")
        done = cli("prepare", *(word for pair in files.items() for word in pair))
        check(done, f"{files[which]}: {words}")


@pytest.mark.parametrize("late", [False, True])
def test_text_that_is_not_utf8(cli: Cli, log: Path, titles: Path, late: bool) -> None:
    path, content = (log, log.read_bytes() + 400 * b"u00,i00,1700000500\n") if late else (titles, titles.read_bytes())
    path.write_bytes(content + "é,é,1\n".encode("latin-1"))
    line = content.count(b"\n") + 1
    done = cli("prepare", "--interactions", log, "--items", titles)
    check(done, f"{path}, line {line}: the text is not UTF-8", "Save the file as UTF-8")


def test_a_broken_gzip_file(cli: Cli, log: Path, titles: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(log.read_bytes())[:-30])
    check(
        cli("prepare", "--interactions", tmp_path / "log.csv.gz", "--items", titles),
        "log.csv.gz: not a whole gzip file",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train: [", "not valid YAML"),
        (b"words", "must hold"),
        (b"a: \xff", "not valid YAML"),
        (b"a: 2024-13-01", "not valid YAML (month must be in 1..12)"),
        (b"data: {}\n", "data: give either source"),
    ],
)
def test_a_configuration_that_is_none(cli: Cli, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    check(cli("prepare", tmp_path / "c.yaml"), f"{tmp_path / 'c.yaml'}: ", words)


def test_a_missing_configuration_a_folder_and_two(cli: Cli, tmp_path: Path) -> None:
    check(cli("prepare", tmp_path / "c.yaml"), f"{tmp_path / 'c.yaml'}: no such file")
    check(cli("prepare", tmp_path), f"{tmp_path}: cannot be read (Is a directory)")
    check(cli("prepare", "a.yaml", "b.yaml"), "one configuration file is expected, got a.yaml, b.yaml")


def test_a_value_that_cannot_be_read(cli: Cli, log: Path) -> None:
    for value in ("2024-13-01", "[1"):
        check(
            cli("prepare", "--interactions", log, f"seed={value}"), f"seed: cannot read the value {value!r}", "Quote it"
        )


def test_columns_apart_by_semicolons(cli: Cli, log: Path, titles: Path) -> None:
    log.write_text(log.read_text().replace(",", ";"))
    check(cli("prepare", "--interactions", log, "--items", titles), "is one column", "Separate columns by commas")


def test_a_seed_and_threads_beyond_all_reason(cli: Cli, log: Path) -> None:
    check(cli("prepare", "--interactions", log, "seed=99999999999999999999999"), "seed")
    check(cli("prepare", "--interactions", log, "threads=100000"), "threads")


def test_a_name_among_the_words_names_the_run(cli: Cli, log: Path) -> None:
    done = cli("prepare", "--interactions", log, "name=trial")
    assert done.code == 0
    assert (done.runs / "trial").is_dir()


def test_data_from_two_places(cli: Cli, log: Path, titles: Path) -> None:
    for word in ("data.source=ml-100k", "data.interactions=other.csv"):
        done = cli("prepare", "--interactions", log, "--items", titles, word)
        check(done, f"the data are given more than once: {word}, data.interactions={log}.", "Leave one of them out")
    done = cli("prepare", "--interactions", log, "--items", titles, "data.items=other.csv")
    check(done, f"the data are given more than once: data.items=other.csv, data.items={titles}.", "--items FILE means")
    assert cli("prepare", "--interactions", log, "--items", titles, f"data.items={titles}").code == 0


def test_a_word_that_yaml_takes_for_a_truth(cli: Cli, log: Path, titles: Path) -> None:
    words = ("prepare", "--interactions", log, "--items", titles)
    check(cli(*words, "data.columns.user=no"), "(got False)", "Put it in quotes", """'"no"' on the command line""")
    edit(log, ("user_id", "no"))
    assert cli(*words, 'data.columns.user="no"').code == 0


def test_no_data(cli: Cli) -> None:
    check(cli("prepare"), "there are no data", "--interactions FILE")


@pytest.mark.parametrize("words", [["nonsense"], ["prepare", "--nonsense"], ["prepare", "--interactions"]])
def test_a_command_line_that_is_none(cli: Cli, words: list[str]) -> None:
    check(cli(*words, out=False), "distilrec --help")


def test_no_words_at_all_show_the_help(cli: Cli) -> None:
    done = cli(out=False)
    assert done.code == 0
    assert "prepare" in done.out
    assert done.err == ""


def test_an_item_file_of_another_log(cli: Cli, log: Path, titles: Path) -> None:
    titles.write_text("item_id,title\nx1,One\nx2,Two\n")
    done = cli("prepare", "--interactions", log, "--items", titles)
    check(
        done,
        f"{titles}: no column holds the item ids of the log (such as 'i00', 'i01', 'i02')",
        "data.columns.item_key=NAME",
    )


def test_an_item_file_without_titles(cli: Cli, log: Path, titles: Path) -> None:
    edit(titles, ("title", "price"))
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        f"{titles}: no title column found among 'price'",
        "data.columns.title=NAME",
    )


def test_items_without_text_are_allowed_and_counted(cli: Cli, log: Path, titles: Path) -> None:
    edit(titles, ("i03,Title 3\n", ""), ("i05,Title 5\n", "i05, \n"))
    done = cli("prepare", "--interactions", log, "--items", titles)
    assert done.code == 0
    assert "2 of 12 items have no title; their id stands in" in done.err
    (manifest,) = done.manifests
    data = open_dataset(manifest.parent)
    assert data.manifest["items_without_text"] == 2
    assert data.titles[2:6] == ["Title 2", "i03", "Title 4", "i05"]


@pytest.mark.parametrize("late", [1, 4, 8, 9])
def test_a_full_disk(cli: Cli, log: Path, titles: Path, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    """Writing fails at the first file, at a later one, at the manifest (8 files come before it, if the folder's sync counts not)."""
    real, count = Path.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == late:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        done = cli("prepare", "--interactions", log, "--items", titles)
    assert done.code == 2
    assert [line for line in done.err.splitlines() if line.startswith("Error:")] == [done.last]
    assert re.search(r"no space left on the disk \(\d+ MiB free\)\. Free some room and run again\.$", done.last)
    assert str(done.runs) in done.last
    assert done.manifests == []
    assert list(done.runs.rglob("*.part")) == []
    assert list(done.runs.rglob("stage.json")) == []
    again = cli("prepare", "--interactions", log, "--items", titles)
    assert again.code == 0
    assert len(again.manifests) == 1


def test_too_little_room_is_found_before_anything_is_written(
    cli: Cli, log: Path, titles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage)
    check(
        cli("prepare", "--interactions", log, "--items", titles),
        "1 MiB are needed and 0 MiB are free",
        "Free some room",
    )


def test_a_folder_of_runs_that_is_a_file(cli: Cli, log: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    done = cli("prepare", "--interactions", log)
    assert done.code == 2
    assert (
        done.err
        == f"Error: {tmp_path / 'runs' / 'log'}: Not a directory. Choose another path, or change its permissions.\n"
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that makes no folders")
@pytest.mark.parametrize("verb", ["prepare", "compare"])
def test_a_folder_of_runs_that_cannot_be_made(cli: Cli, log: Path, verb: str) -> None:
    done = cli(verb, "--interactions", log, "--out", "/proc/foo", out=False)
    assert done.code == 2
    assert done.err.splitlines()[-1] == "Error: /proc/foo: no folder can be made there. Choose another path."
    assert "Traceback" not in done.err


def test_a_missing_file_of_ours_is_no_wrong_input(cli: Cli, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        Path("/nowhere/at/all").read_text()

    monkeypatch.setattr("distilrec.cli.stages.read_words", opened)
    with pytest.raises(FileNotFoundError):
        cli("prepare", "--interactions", log)


def test_a_model_too_large_for_memory(cli: Cli, log: Path, titles: Path) -> None:
    sizes = ("student.hidden_size=10000000000", "student.heads=1", "train.epochs=1")
    done = cli("train", "--interactions", log, "--items", titles, *sizes)
    assert done.code == 2
    assert done.last.startswith("Error: not enough memory (can't allocate memory: you tried to allocate ")
    assert done.last.endswith(" bytes). Make the model or its batches (batch_tokens) smaller.")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
def test_what_the_system_refuses(cli: Cli, log: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    done = cli("prepare", "--interactions", log)
    assert done.code == 2
    assert done.last.startswith("Error: ")
    assert os.strerror(number) in done.last


def test_a_run_that_another_process_works_on(cli: Cli, log: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "log" / ".lock", "this run"):
        check(
            cli("prepare", "--interactions", log),
            f"this run is in use by another process (pid {os.getpid()})",
            "Wait for it",
        )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_resumable(
    cli: Cli, log: Path, titles: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    from distilrec.data import prepare as module

    real = module.write_dataset

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), how)
        raise AssertionError("the signal did not stop it")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_dataset", interrupted)
        done = cli("prepare", "--interactions", log, "--items", titles)
    assert done.code == 130
    assert done.last == "Interrupted. The same command goes on where it was."
    assert "Traceback" not in done.err
    assert done.manifests == []
    assert module.write_dataset is real
    again = cli("prepare", "--interactions", log, "--items", titles)
    assert again.code == 0
    assert "data: going on in" in again.err
    third = cli("prepare", "--interactions", log, "--items", titles)
    assert third.code == 0
    assert "data: done before" in third.err


def test_a_fault_of_ours_keeps_its_traceback(cli: Cli, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(stages, "read_words", broken)
    with pytest.raises(ZeroDivisionError):
        cli("prepare", "--interactions", log)
