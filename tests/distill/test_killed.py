"""Killed at any moment and resumed, a run ends with the very same weights; SIGTERM saves and stops."""

import json
import random
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from koala.cli.main import main
from koala.distill.run.folder import RunFolder
from recipes.measure import damage
from tests import forked
from tests.forked import end_of

pytestmark = pytest.mark.long


def distill(*arguments: str) -> int:
    """`koala distill`: all that a process does."""
    return main(["distill", *arguments])


@pytest.fixture
def log(tmp_path) -> Path:
    """What the last process said."""
    return tmp_path / "said.txt"


@pytest.fixture
def start(log) -> Callable[..., BaseProcess]:
    """The arguments of `koala distill` -> the process that runs it."""
    return partial(forked.start, log, distill)


def wait_until(process: BaseProcess, log: Path, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def running(run: RunFolder, pid: int) -> bool:
    status = run.status()
    return bool(status and status.pid == pid and status.state == "running")


@pytest.mark.parametrize(("kills", "num_steps"), [(1, 9), pytest.param(5, 30, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_identical(kills, num_steps, small, tmp_path, start, log):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=num_steps, checkpoint_every=3, optimizer="muon").to_dict()))
    whole, killed = (RunFolder(path=tmp_path / n) for n in ("whole", "killed"))
    assert end_of(start("--config", str(config), "--out", str(whole.path))) == 0, log.read_text()
    rng = random.Random()  # no fixed seed: every run of this test tries other moments
    first = ("--config", str(config), "--out", str(killed.path))
    saved_steps = list(damage.kill_and_resume(start, first, killed, kills, rng))
    assert len(saved_steps) == kills and saved_steps == sorted(saved_steps), log.read_text()
    assert damage.same(killed, whole, num_steps)
    steps = [e["step"] for e in killed.metrics() if e["kind"] == "train"]
    assert steps == list(range(1, num_steps + 1))  # no line twice, none lost
    assert not list((killed.path / "checkpoints").glob(".*"))


def test_sigterm_saves_and_stops(small, tmp_path, start, log):
    run = RunFolder(path=tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=500, checkpoint_every=400).to_dict()))
    process = start("--config", str(config), "--out", str(run.path))
    wait_until(process, log, lambda: running(run, process.pid) and run.status().step >= 1)
    process.terminate()
    assert end_of(process, 60) == 0, log.read_text()
    status = run.status()
    assert status.state == "stopped" and "SIGTERM" in status.message
    assert run.checkpoints() == [status.step] and 0 < status.step < 500
    assert f"resume it with --resume {run.path}" in log.read_text()


@pytest.mark.slow
def test_the_time_limit_saves_and_stops(small, tmp_path, start, log):
    run = RunFolder(path=tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=100_000, time_limit=0.2).to_dict()))
    assert end_of(start("--config", str(config), "--out", str(run.path)), 120) == 0, log.read_text()
    assert run.status().state == "stopped" and "time limit" in run.status().message
    assert run.checkpoints() == [run.status().step]
