"""`distilrec VERB ...`: one file a verb; errors become one line and an exit code."""

import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from distilrec.cli import compare, fetch, select, stages, tune
from distilrec.errors import DistilrecError
from distilrec.files import disk_error

_NO_MEMORY = ("can't allocate memory", "out of memory")  # torch has no error of its own for it on a CPU
_INTERRUPTED = 130

app = typer.Typer(
    help="Turn a slow LLM recommender into a small sequential recommender.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fetch")(fetch.fetch)
for verb in stages.VERBS:
    app.command(verb.__name__)(verb)
app.command("select")(select.select)
app.command("tune")(tune.tune)
app.command("compare")(compare.compare)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(version("distilrec"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Take options of no verb."""


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 2 wrong input, 3 some jobs failed, 130 interrupted, 1 a fault of ours."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except DistilrecError as error:
        _stop(f"Error: {error.line()}", error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: unknown option, missing argument
            _stop(f"Error: {error.format_message().rstrip('.')}. See distilrec --help.", 2)
        named = getattr(error, "filename", None)
        known = disk_error(error, _here() if not isinstance(named, str) else _here() / named)
        if isinstance(known, DistilrecError):
            _stop(f"Error: {known.line()}", known.exit_code)
        if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
            _stop(f"Error: {error.filename}: {error.strerror}. Choose another path, or change its permissions.", 2)
        if isinstance(error, FileNotFoundError) and error.filename and _making_a_folder(error):
            _stop(f"Error: {error.filename}: no folder can be made there. Choose another path.", 2)
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            said = " ".join(str(error).split()).rpartition("DefaultCPUAllocator: ")[2]
            first = said.partition(". Error code")[0][:160]
            _stop(f"Error: not enough memory ({first}). Make the model or its batches (batch_tokens) smaller.", 2)
        raise  # a fault of ours: the traceback belongs into a report, Python exits with 1
    if code == _INTERRUPTED:  # typer turns an interruption into this code and says nothing
        _stop("Interrupted. The same command goes on where it was.", _INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


def _making_a_folder(error: Exception) -> bool:
    """Tell whether the file system itself refused a folder, as /proc does, in the words that it has for a missing file."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code.co_name in ("mkdir", "makedirs")


def _here():  # type: ignore[no-untyped-def]
    from pathlib import Path

    return Path.cwd()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
