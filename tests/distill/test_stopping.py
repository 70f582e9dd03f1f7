"""A run hears the wish to stop wherever it is: while it looks through a folder, draws first pictures, or validates."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status
from koala.distill.run.stopping import Stopped
from koala.distill.trainer import train
from koala.errors import UserError

ROOT = Path(__file__).parents[2]


def saying(words: str, act: Callable[[], object]) -> Callable[[str], None]:
    """A listener to a run's words that acts on these."""

    def say(text: str) -> None:
        if words in text:
            act()

    return say


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(path=tmp_path / "run")


def test_a_run_that_looks_through_a_folder_stops(small, run, tmp_path):
    """Symptom: with a million pictures Ctrl-C did nothing for minutes."""
    pictures, cache = tmp_path / "pictures", tmp_path / "cache"
    pictures.mkdir()
    for k in range(3):
        Image.new("RGB", (64, 64)).save(pictures / f"{k}.png")
        (pictures / f"{k}.txt").write_text("a red circle")
    config = small(data=str(pictures), captions="short", short_caption="txt", cache=str(cache))
    with pytest.raises(Stopped, match="stopped by SIGTERM while looking through the pictures"):
        train(run, config, say=saying("looking through the pictures", interrupt))
    assert run.status().state == "stopped" and not cache.exists()


def test_a_run_that_draws_its_first_pictures_stops_by_a_word_alone(small, run):
    """What the Stop button does where there are no signals, as on Windows."""
    config = small(num_steps=1, validation_prompts=("a red circle",))
    say = saying("drawing the teacher's pictures", lambda: run.ask_to_stop(run.status()))
    with pytest.raises(Stopped, match="stopped on request before step 1"):
        train(run, config, say=say)
    assert run.status().state == "stopped" and run.checkpoints() == [] and list(run.metrics()) == []
    assert [p.name for p in run.samples.iterdir()] == ["prompts.json"]
    assert not (run.path / ".stop").exists()


def test_a_run_that_validates_saves_its_step_and_stops(small, run):
    config = small(num_steps=5, validate_every=1)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 1"):
        train(run, config, say=saying("step 1 of 5", interrupt))
    assert run.checkpoints() == [1] and run.status().message.endswith("after step 1")
    assert [(e["kind"], e["step"]) for e in run.metrics()] == [("validation", 0), ("train", 1)]


def test_the_word_to_another_process_is_not_heard(run):
    run.path.mkdir()
    status = Status(state="running", step=1, num_steps=2, pid=os.getpid(), pid_started=7.0)
    run.ask_to_stop(status)
    assert run.is_asked_to_stop(os.getpid(), 7.0)
    assert not run.is_asked_to_stop(os.getpid(), 8.0) and not run.is_asked_to_stop(os.getpid() + 1, 7.0)


def test_a_refused_second_trainer_leaves_the_status_of_the_first_alone(run, small):
    """Symptom: `--resume` in a second terminal was refused, and the app showed the run that was going on as failed."""
    run.path.mkdir()
    status = Status(state="running", step=7, num_steps=10, pid=os.getpid(), pid_started=1.0, updated=2.0)
    run.write_status(status)
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    with FileLock(run.lock_file), pytest.raises(UserError, match="is being trained by another process"):
        train(run, small(num_steps=1))
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p != run.lock_file} == before


LISTENS = """
import time
from koala.distill.run.stopping import StopSignal
with StopSignal(0, alone=ALONE).listening() as asked:
    print("listening", flush=True)
    while True:
        if asked():
            print("asked", flush=True)
        time.sleep(0.02)
"""


def listener(alone: bool) -> subprocess.Popen:
    code = LISTENS.replace("ALONE", str(alone))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)


@pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C as POSIX has it")
def test_a_second_ctrl_c_ends_a_run_at_once():
    with listener(alone=True) as run:
        assert run.stdout.readline() == "listening\n"
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGINT)  # by the terminal and by a launcher: one press
        assert run.stdout.readline() == "asked\n" and "Ctrl-C again to quit at once" in run.stderr.readline()
        time.sleep(0.5)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        assert run.wait(5) == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C as POSIX has it")
def test_under_a_launcher_the_second_signal_is_the_launchers():
    """torchrun passes on the terminal's Ctrl-C, which each process has got already; saving must go on."""
    with listener(alone=False) as run:
        assert run.stdout.readline() == "listening\n"
        for _ in range(2):
            run.send_signal(signal.SIGINT)
            assert run.stdout.readline() == "asked\n"
            time.sleep(0.4)
        assert run.poll() is None
        run.kill()
        run.wait()
