"""A run waits while the app draws on its processor, and goes on however the app ends."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gradio as gr
import pytest

from koala.distill.run.folder import RunFolder
from koala.distill.run.turns import Drawing, give_way
from koala.distill.trainer import train
from koala.ui.distill.tab import Distill
from koala.ui.session import Session


class Waiter(threading.Thread):
    """A run that gives way; `waited` in seconds, None as long as it does."""

    def __init__(self, root: Path):
        super().__init__(daemon=True)
        self.root, self.waits, self.stop, self.waited = root, threading.Event(), threading.Event(), None
        self.start()

    def run(self) -> None:
        self.waited = give_way(self.root, self.stop.is_set, self.waits.set)

    def ended(self) -> bool:
        self.join(10)
        return self.waited is not None


def test_nobody_draws_and_nothing_is_waited_for_or_written(tmp_path):
    assert Waiter(tmp_path).ended()
    with Drawing(tmp_path)():
        pass
    waiter = Waiter(tmp_path)
    assert waiter.ended() and waiter.waited < 1 and not waiter.waits.is_set()
    with Drawing(tmp_path / "no-runs")():
        assert not (tmp_path / "no-runs").exists()


def test_a_run_waits_until_the_last_picture_is_drawn(tmp_path):
    drawing = Drawing(tmp_path)
    first, second = drawing(), drawing()
    first.__enter__()
    threading.Thread(target=second.__enter__).start()  # by another visitor, in a thread of its own
    waiter = Waiter(tmp_path)
    assert waiter.waits.wait(10)
    first.__exit__(None, None, None)
    waiter.join(0.3)
    assert waiter.waited is None
    second.__exit__(None, None, None)
    assert waiter.ended() and waiter.waited >= 0.3


def test_a_run_that_is_to_stop_waits_no_longer(tmp_path):
    with Drawing(tmp_path)():
        waiter = Waiter(tmp_path)
        assert waiter.waits.wait(10)
        waiter.stop.set()
        assert waiter.ended()


def test_two_apps_on_one_folder_both_draw(tmp_path):
    begun = time.monotonic()
    with Drawing(tmp_path)(), Drawing(tmp_path)():
        assert time.monotonic() - begun < 5


def test_a_lock_that_cannot_be_had_keeps_nobody(tmp_path):
    (tmp_path / ".drawing").mkdir()  # as good as a folder where nobody may write, which root may
    with Drawing(tmp_path)():
        assert Waiter(tmp_path).ended()


def test_an_app_that_was_killed_holds_nobody(tmp_path):
    code = "import sys, time; from pathlib import Path; from koala.distill.run.turns import Drawing\n"
    code += "with Drawing(Path(sys.argv[1]))():\n    print('drawing', flush=True)\n    time.sleep(60)"
    app = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert app.stdout.readline() == "drawing\n"
    waiter = Waiter(tmp_path)
    assert waiter.waits.wait(10)
    app.send_signal(signal.SIGKILL)
    app.communicate()
    assert waiter.ended()


@pytest.mark.long
def test_the_app_draws_and_a_run_of_its_folder_waits_and_says_so(small, tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    session = Session()
    with gr.Blocks():
        Distill(session)
    run = RunFolder(path=tmp_path / "run")
    trainer = threading.Thread(target=train, args=(run, small(num_steps=1)))
    with session.device.using("tiny-sdxl"):
        trainer.start()
        begun = time.monotonic()
        while not (status := run.status()) or status.message != "waits while the app draws":
            assert time.monotonic() - begun < 60
            time.sleep(0.05)
        assert (status.state, status.step) == ("preparing", 0)
        trainer.join(0.5)
        assert trainer.is_alive()
    trainer.join(60)
    assert run.status().state == "done"
