"""Killed at any moment and resumed, a run ends with the very same weights; SIGTERM saves and stops."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from koala.distill.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
KILLS = 5


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "koala", "distill", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(run: RunFolder, pid: int) -> bool:
    status = run.status()
    return bool(status and status.pid == pid and status.state == "running")


def test_a_run_killed_at_random_moments_ends_bit_identical(small, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=30, checkpoint_every=3, optimizer="muon").to_dict()))
    whole, killed = (RunFolder(path=tmp_path / n) for n in ("whole", "killed"))
    undisturbed = start("--config", str(config), "--out", str(whole.path))
    assert undisturbed.wait(240) == 0, undisturbed.communicate()[1].decode()
    rng = random.Random()  # no fixed seed: every run of this test tries other moments
    arguments = ("--config", str(config), "--out", str(killed.path))
    for _ in range(KILLS):
        process = start(*arguments)
        wait_until(process, lambda process=process: running(killed, process.pid))
        time.sleep(rng.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed; the test needs more steps"
        process.communicate()
        arguments = ("--resume", str(killed.path))
    process = start(*arguments)
    assert process.wait(240) == 0, process.communicate()[1].decode()
    for name in ("student", "ema", "optimizer"):
        mine, its = (load_file(r.checkpoint(30) / f"{name}.safetensors") for r in (killed, whole))
        assert mine.keys() == its.keys()
        assert [n for n in mine if not mine[n].equal(its[n])] == []
    steps = [e["step"] for e in killed.metrics() if e["kind"] == "train"]
    assert steps == list(range(1, 31))  # no line twice, none lost
    assert not list((killed.path / "checkpoints").glob(".*"))


def test_sigterm_saves_and_stops(small, tmp_path):
    run = RunFolder(path=tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=500, checkpoint_every=400).to_dict()))
    process = start("--config", str(config), "--out", str(run.path))
    wait_until(process, lambda: running(run, process.pid) and run.status().step >= 1)
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error.decode()
    status = run.status()
    assert status.state == "stopped" and "SIGTERM" in status.message
    assert run.checkpoints() == [status.step] and 0 < status.step < 500
    assert f"go on with --resume {run.path}" in error.decode()


@pytest.mark.slow
def test_the_time_limit_saves_and_stops(small, tmp_path):
    run = RunFolder(path=tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small(num_steps=100_000, time_limit=0.2).to_dict()))
    process = start("--config", str(config), "--out", str(run.path))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()
    assert run.status().state == "stopped" and "time limit" in run.status().message
    assert run.checkpoints() == [run.status().step]
