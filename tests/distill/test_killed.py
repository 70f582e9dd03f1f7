"""Killed at any moment and resumed, a run ends with the very same weights; SIGTERM saves and stops."""

import json
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from koala.cli import main
from koala.distill.run_folder import RunFolder
from tests import forked
from tests.forked import end_of

pytestmark = pytest.mark.long

KILLS = 5


def distill(*arguments: str) -> int:
    """`koala distill`: all that a process does."""
    return main(["distill", *arguments])


@pytest.fixture
def said(tmp_path) -> Path:
    """What the last process said."""
    return tmp_path / "said.txt"


@pytest.fixture
def start(said) -> Callable[..., BaseProcess]:
    """The arguments of `koala distill` -> the process that runs it."""
    return partial(forked.start, said, distill)


def wait_until(process: BaseProcess, said: Path, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)


def running(run: RunFolder, pid: int) -> bool:
    status = run.status()
    return bool(status and status.pid == pid and status.state == "running")


def test_a_run_killed_at_random_moments_ends_bit_identical(small, tmp_path, start, said):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=30, checkpoint_every=3, optimizer="muon").to_dict()))
    whole, killed = (RunFolder(path=tmp_path / n) for n in ("whole", "killed"))
    assert end_of(start("--config", str(config), "--out", str(whole.path))) == 0, said.read_text()
    rng = random.Random()  # no fixed seed: every run of this test tries other moments
    arguments = ("--config", str(config), "--out", str(killed.path))
    for _ in range(KILLS):
        process = start(*arguments)
        wait_until(process, said, lambda process=process: running(killed, process.pid))
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        assert end_of(process) == -signal.SIGKILL, "it ended before it was killed; the test needs more steps"
        arguments = ("--resume", str(killed.path))
    assert end_of(start(*arguments)) == 0, said.read_text()
    for name in ("student", "ema", "optimizer"):
        mine, its = (load_file(r.checkpoint(30) / f"{name}.safetensors") for r in (killed, whole))
        assert mine.keys() == its.keys()
        assert [n for n in mine if not mine[n].equal(its[n])] == []
    steps = [e["step"] for e in killed.metrics() if e["kind"] == "train"]
    assert steps == list(range(1, 31))  # no line twice, none lost
    assert not list((killed.path / "checkpoints").glob(".*"))


def test_sigterm_saves_and_stops(small, tmp_path, start, said):
    run = RunFolder(path=tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=500, checkpoint_every=400).to_dict()))
    process = start("--config", str(config), "--out", str(run.path))
    wait_until(process, said, lambda: running(run, process.pid) and run.status().step >= 1)
    process.terminate()
    assert end_of(process, 60) == 0, said.read_text()
    status = run.status()
    assert status.state == "stopped" and "SIGTERM" in status.message
    assert run.checkpoints() == [status.step] and 0 < status.step < 500
    assert f"go on with --resume {run.path}" in said.read_text()


@pytest.mark.slow
def test_the_time_limit_saves_and_stops(small, tmp_path, start, said):
    run = RunFolder(path=tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=100_000, time_limit=0.2).to_dict()))
    assert end_of(start("--config", str(config), "--out", str(run.path)), 120) == 0, said.read_text()
    assert run.status().state == "stopped" and "time limit" in run.status().message
    assert run.checkpoints() == [run.status().step]
