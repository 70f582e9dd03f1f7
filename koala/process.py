"""Processes by number: whether one still runs and is the one that was meant; and our own commands as children."""

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path

import psutil

import koala

_NAMESPACE = Path("/proc/self/ns/pid")  # containers of one host may share its name and count processes apart


def started(pid: int) -> float:
    """When a process began, on a clock that nobody can set; 0 where there is no such process.

    Clock ticks since the machine's start on Linux, seconds since the epoch elsewhere.
    """
    try:
        while True:
            boot = psutil.boot_time() if psutil.LINUX else 0.0
            began = psutil.Process(pid).create_time()
            if not psutil.LINUX:
                return began
            if psutil.boot_time() == boot:  # else the clock was set between the two
                return float(round((began - boot) * os.sysconf("SC_CLK_TCK")))
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def runs(pid: int, since: float = 0.0) -> bool:
    """Whether process `pid` is running and began at `since`, a value of `started`; 0 accepts any start.

    A zombie does not run.
    """
    try:
        if pid <= 0 or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
    except psutil.AccessDenied:  # it exists, and belongs to another user
        pass
    except (psutil.Error, ValueError, OverflowError):
        return False
    return not since or started(pid) == since


@lru_cache(maxsize=1)
def machine() -> str:
    """Six hexadecimal digits for this machine: on another one the same process number means nothing."""
    name = platform.node()
    if _NAMESPACE.exists():
        name += f"/{os.stat(_NAMESPACE).st_ino}"
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def environment() -> dict[str, str]:
    """The environment of a child process that finds koala, wherever it is started from."""
    package = str(Path(koala.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}


def last_words(log: str, program: str) -> str:
    """The last line of a program's output, without its name; our commands print their errors as one line."""
    last = next((line.strip() for line in reversed(log.split("\n")) if line.strip()), "it ended without a word")
    return last.removeprefix(f"{program}: ")
