"""Runs as processes: who is alive, what is left of one that was killed, and that nobody has to stay for them."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.run import manager as runs
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status
from koala.errors import UserError
from koala.process import started

TINY = dataclasses.replace(
    PRESETS["2-minutes"].config,
    num_steps=2000,
    num_pictures=24,
    batch_size=2,
    resolution=128,
    validation_pictures=4,
    validation_prompts=(),
    validate_every=0,
    checkpoint_every=5,
    log_every=1,
    threads=1,
)


def written(root: Path, name: str, config: DistillConfig | None = None, **status) -> RunFolder:
    """A run's folder as its own methods write it."""
    run = RunFolder(path=root / name)
    run.path.mkdir(parents=True)
    run.write_config(config or DistillConfig())
    if status:
        run.write_status(Status(**{"step": 7, "num_steps": 10} | status))
    return run


def sleeper() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def of(process: subprocess.Popen) -> dict:
    return {"pid": process.pid, "pid_started": started(process.pid)}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_runs_are_listed_newest_first_and_nothing_else_is(tmp_path):
    names = ["first-1", "second-1", "third-1"]
    for age, name in enumerate(names):
        config = written(tmp_path, name).path / "config.json"
        os.utime(config, (1000 + age, 1000 + age))
    (tmp_path / "notes").mkdir()
    written(tmp_path / ".public", "somebody-1")
    assert [run.name for run in runs.list_runs(tmp_path)] == names[::-1]
    assert runs.list_runs(tmp_path / "none") == []


def test_a_new_name_is_free_and_fit_for_a_folder(tmp_path):
    assert runs.new_name(tmp_path, "koala-700m") == "koala-700m-1"
    written(tmp_path, "koala-700m-1")
    written(tmp_path, "koala-700m-3")
    assert runs.new_name(tmp_path, "koala-700m") == "koala-700m-2"
    assert runs.new_name(tmp_path, "0,2,5/-/3+3,2+2,0+0") == "0-2-5-3-3-2-2-0-0-1"


@pytest.mark.parametrize("name", ["../out", "", ".hidden", "a/b", "a" * 70, "CON?"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="not a name for a run"):
        runs.start(DistillConfig(), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_later_process_of_the_same_number_is_not_the_run(tmp_path):
    """Symptom: after a restart of the machine a run seemed to go on forever, and Stop would have ended a stranger."""
    here = os.getpid()
    same_process = written(tmp_path, "mine", state="running", pid=here, pid_started=started(here))
    later_process = written(tmp_path, "other", state="running", pid=here, pid_started=started(here) - 1)
    assert runs.alive(same_process) and runs.state(same_process).state == "running"
    assert not runs.alive(later_process) and runs.state(later_process).state == runs.INTERRUPTED
    with pytest.raises(UserError, match="not running"):
        runs.stop(later_process)


def test_a_killed_run_is_interrupted_even_before_its_parent_has_asked(tmp_path):
    process = sleeper()
    run = written(tmp_path, "killed", state="running", steps_per_second=2.0, seconds_left=9.0, **of(process))
    run.checkpoint(5).mkdir(parents=True)
    assert runs.alive(run)
    process.kill()
    wait_for(lambda: not runs.alive(run), 10)  # a zombie: nobody has waited for it
    result = runs.state(run)
    assert result.state == "interrupted" and "step 5" in result.message and result.seconds_left is None
    process.wait()
    assert runs.state(run).state == "interrupted"


def test_a_run_that_ended_by_itself_keeps_its_word(tmp_path):
    assert runs.state(written(tmp_path, "done", state="done", message="well")).message == "well"
    assert runs.state(written(tmp_path, "never")).state == "interrupted"


def test_a_live_run_is_neither_deleted_nor_begun_twice(tmp_path):
    process = sleeper()
    run = written(tmp_path, "live", state="running", **of(process))
    try:
        with pytest.raises(UserError, match="stop it first"):
            runs.delete(run)
        with pytest.raises(UserError, match="running already"):
            runs.resume(run)
        with pytest.raises(UserError, match="there is a run 'live' already"):
            runs.start(DistillConfig(), "live", tmp_path)
        runs.stop(run)
        assert process.wait(timeout=10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    runs.delete(run)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    run = written(tmp_path, "stopped", state="stopped")
    for step in (5, 10):
        run.checkpoint(step).mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint of step 7; it has 5, 10"):
        runs.resume(run, 7)


def test_where_runs_lie_is_the_users_to_say(tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    assert runs.runs_root() == tmp_path
    monkeypatch.delenv("KOALA_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs.runs_root() == tmp_path / "runs"


@pytest.mark.slow
def test_a_run_that_cannot_begin_says_why(tmp_path, monkeypatch):
    """Symptom: the app showed `preparing` forever, and the reason stood in a log alone."""
    monkeypatch.chdir(tmp_path)  # koala is found from any folder
    run = runs.start(dataclasses.replace(TINY, teacher="no-such-model"), "bad-1", tmp_path)
    wait_for(lambda: runs.state(run).state == "failed")
    assert "no-such-model" in runs.state(run).message
    assert run.status().message in (run.path / "log.txt").read_text()


def test_a_run_is_stopped_before_it_has_begun(tmp_path):
    run = runs.start(TINY, "early-1", tmp_path)
    assert runs.alive(run) and runs.state(run).state == "preparing"
    runs.stop(run)
    wait_for(lambda: runs.state(run).state == "stopped")
    runs.delete(run)


@pytest.mark.slow
def test_a_run_outlives_the_process_that_started_it(tmp_path):
    """Started by one process, stopped by another, resumed by a third, killed, and resumed again."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(dataclasses.replace(TINY, cache=str(tmp_path / "cache")).to_dict()))
    code = (
        "import sys, pathlib; from koala.distill import settings; from koala.distill.run import manager as runs; "
        "runs.start(settings.read(pathlib.Path(sys.argv[1])), 'long-1', pathlib.Path(sys.argv[2]))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(config), str(tmp_path)], check=True, cwd=root)
    run = RunFolder(path=tmp_path / "long-1")
    try:
        wait_for(lambda: run.checkpoints() or not runs.alive(run), 300)
        assert runs.alive(run), (run.path / "log.txt").read_text()
        assert runs.state(run).state == "running"
        runs.stop(run)
        wait_for(lambda: not runs.alive(run))
        stopped = runs.state(run)
        assert stopped.state == "stopped" and run.checkpoints()[-1] == stopped.step

        runs.resume(run)
        wait_for(lambda: runs.state(run).step > stopped.step, 300)
        os.kill(run.status().pid, signal.SIGKILL)
        wait_for(lambda: runs.state(run).state == "interrupted")

        checkpoints = run.checkpoints()[-2:]
        runs.resume(run, checkpoints[0])
        wait_for(lambda: any(e["kind"] == "train" and e["step"] > checkpoints[0] for e in run.metrics()), 300)
        steps = [e["step"] for e in run.metrics() if e["kind"] == "train"]
        assert steps == sorted(set(steps))
    finally:
        if runs.alive(run):
            os.kill(run.status().pid, signal.SIGKILL)
            wait_for(lambda: not runs.alive(run), 30)
    runs.delete(run)
    assert not run.path.exists()
    shutil.rmtree(tmp_path / "cache")
