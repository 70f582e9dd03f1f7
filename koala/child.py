"""A command of this project as a process of its own: where it finds koala, and what it said last."""

import os
from pathlib import Path

import koala


def environment() -> dict[str, str]:
    """A process finds koala, and export beside it, wherever it is started from."""
    package = str(Path(koala.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}


def last_words(log: str, program: str) -> str:
    """The last line of what a program printed; the command lines print their errors as one line."""
    last = next((line.strip() for line in reversed(log.split("\n")) if line.strip()), "it ended without a word")
    return last.removeprefix(f"{program}: ")
