"""Runs `distilrec` as often as told, each time in a process of its own, forked from this one, which has loaded everything.

So a test can kill a run twenty times without paying for twenty starts. One order a line of standard input, as JSON: an object
starts a run and is answered with its process id, "wait" waits for its end and is answered with its exit code. This process
itself does no work: libraries with threads do not survive a fork.
"""

import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import genai_prices  # noqa: F401
import openai  # noqa: F401

import distilrec.pipeline
import distilrec.teachers.backends.openai_api  # noqa: F401
from distilrec.cli.main import main as distilrec_main


def main() -> None:
    print("ready", flush=True)
    child = 0
    for line in sys.stdin:
        order = json.loads(line)
        if order == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            child = 0
        else:
            child = os.fork()
            if child == 0:
                _run(order)
            print(child, flush=True)
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _run(order: dict[str, Any]) -> NoReturn:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    sys.argv = ["distilrec", *order["words"]]
    code: Any = 1
    try:
        distilrec_main()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


main()
