"""Processes that begin with torch, diffusers and Gradio in memory: forks of one that imported them and did no more.

A process of Python's own takes eight seconds of a core before its first line, a fork takes none of them.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "koala.distill.trainer",
        "koala.distill.estimate.forecast",
        "koala.compress.surgery",
        "app",
        "tests.ui.conftest",  # whose functions the forks run
        "tests.frozen",  # after all others
    ]
)


def _work(log: Path, environment: dict[str, str], task: Callable[..., object], arguments: tuple[str, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)
    sys.exit(task(*arguments))


def start(log: Path, task: Callable[..., object], *arguments: str, **environment: str) -> BaseProcess:
    """The process that runs a module's function at the repository's root, and ends with the status that it returns.

    All of its words go into the file `said`.
    """
    process = _FORKS.Process(target=_work, args=(log, os.environ | environment, task, arguments), daemon=True)
    process.start()
    return process


def end_of(process: BaseProcess, seconds: float = 240) -> int | None:
    """Its exit status; None if it goes on."""
    process.join(seconds)
    return process.exitcode
