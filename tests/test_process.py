"""Which process is meant by a number: it runs, it has ended, or it is a later one of the same number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from koala import process


def ticks(pid: int) -> float:
    """Field 22 of proc(5): what runs of earlier versions wrote down."""
    return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.skipif(sys.platform != "linux", reason="the count of a Linux kernel")
def test_a_process_began_when_the_kernel_says():
    for pid in (os.getpid(), os.getppid()):
        assert process.started(pid) == ticks(pid)


def test_a_process_runs_until_it_has_ended():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = process.started(child.pid)
    assert process.runs(child.pid) and process.runs(child.pid, since) and not process.runs(child.pid, since + 1)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked how
    assert not process.runs(child.pid) and not process.runs(child.pid, since)
    child.wait()
    assert not process.runs(child.pid) and process.started(child.pid) == 0


@pytest.mark.parametrize("pid", [0, -1, -5, 2**31 - 1, 2**40, 10**30])
def test_a_number_that_a_damaged_file_names_is_no_process(pid):
    """Symptom: a process number of -5 would have signalled a whole group."""
    assert not process.runs(pid)


def test_another_machine_is_told_apart():
    assert process.machine() == process.machine() and len(process.machine()) == 6
