"""Processes that begin with torch and the trainer in memory: forks of one that imported them and did no more."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["koala.distill.trainer", "koala.distill.forecast"])


def _work(said: Path, environment: dict[str, str], task: Callable[..., None], arguments: tuple[str, ...]) -> None:
    os.environ.update(environment)
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        task(*arguments)


def start(said: Path, task: Callable[..., None], *arguments: str, **environment: str) -> BaseProcess:
    """The process that runs a module's function; its words go into the file `said`."""
    process = _FORKS.Process(target=_work, args=(said, environment, task, arguments), daemon=True)
    process.start()
    return process


def end_of(process: BaseProcess, seconds: float = 240) -> int | None:
    """Its exit status; None if it goes on."""
    process.join(seconds)
    return process.exitcode
