"""Processes of this machine by their numbers: whether one still runs, and whether it is the one that was meant."""

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path

import psutil

_NAMESPACE = Path("/proc/self/ns/pid")  # containers of one host may share its name and count processes apart


def started(pid: int) -> float:
    """When a process began, in a count that a change of the clock leaves alone; 0 where there is no such process.

    Clock ticks since the machine's start on Linux, seconds since the epoch elsewhere.
    """
    try:
        while True:
            boot = psutil.boot_time() if psutil.LINUX else 0.0
            found = psutil.Process(pid).create_time()
            if not psutil.LINUX:
                return found
            if psutil.boot_time() == boot:  # else the clock was set between the two
                return float(round((found - boot) * os.sysconf("SC_CLK_TCK")))
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def runs(pid: int, since: float = 0.0) -> bool:
    """Whether a process runs that began at `since`, a value of `started`; 0 is any process of this number.

    One that has ended, and whose parent has not asked how, does not run.
    """
    try:
        if pid <= 0 or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
    except psutil.AccessDenied:  # it is there, and someone else's
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
