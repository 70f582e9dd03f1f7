"""The ZeroGPU path: what crosses to the fork is pickled, every step comes back, refusals are words."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from functools import partial

import gradio as gr
import numpy as np
import pytest

from koala.errors import Cancelled, UserError
from koala.models.cards import CARDS
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.ui import zerogpu
from koala.ui.attention.recording import Recording
from koala.ui.session import Session
from koala.ui.under_way import Life

PAIR = ("tiny-sdxl", "tiny-koala-700m")
# A fork of a process in which other tests left threads may wait for a lock that nobody gives back: run the file alone.
FORKS = pytest.mark.slow


class Lent:
    """What `spaces.GPU` makes of a generator: a fork runs it, arguments and values are pickled, closing it sets a flag
    that the fork sees after its next value."""

    def __init__(self, task):
        self.task, self.processes = task, []

    def __call__(self, *arguments):
        fork = multiprocessing.get_context("fork")
        values, stop = fork.Queue(), fork.Event()
        sent = pickle.dumps(arguments)

        def work():
            happened = self.task(*pickle.loads(sent))
            for value in happened:
                if stop.is_set():
                    happened.close()
                    break
                values.put(pickle.dumps((os.getpid(), value)))
            values.put(None)

        process = fork.Process(target=work, daemon=True)
        process.start()
        try:
            while (received := values.get(timeout=60)) is not None:
                worker, value = pickle.loads(received)
                self.processes.append(worker)
                yield value
        finally:
            stop.set()
            process.join(60)


@pytest.fixture(scope="module")
def lent():
    """A session whose runs happen in forks of this process, and what lends them."""
    library = Library("cpu")
    library.settle(PAIR)
    lent = Lent(lambda requests, draw: zerogpu.events(requests, draw, library))
    session = Session(PAIR, local=False, library=library, wrap=partial(zerogpu.drawing, lent)).start()
    return session, lent


def requests(steps=3, **change):
    return [GenerationRequest(model=m, prompt="a red circle", steps=steps, width=64, height=64) for m in PAIR]


def results(session, asked, draw=None):
    steps, result = [], {}
    for update in session.device.run(asked, draw=draw):
        steps += update.steps.values()
        result |= update.results
    return steps, [result[k] for k in sorted(result)]


@FORKS
def test_a_comparison_in_a_fork_is_the_same_comparison(lent):
    session, gpu = lent
    _, expected = results(Session(PAIR, local=False, library=session.loader.library()).start(), requests())
    steps, forked = results(session, requests())
    assert os.getpid() not in gpu.processes and len(gpu.processes) >= 2 * 3 + 2  # every step, and two results
    assert {s.index for s in steps} <= {1, 2, 3} and steps
    differences = [
        np.abs(np.asarray(a.images[0], int) - np.asarray(b.images[0], int))
        for a, b in zip(expected, forked, strict=True)
    ]
    print(f"fork against this process: max {max(d.max() for d in differences)}, mean {np.mean(differences):.4f}")
    assert max(d.max() for d in differences) == 0


@FORKS
def test_a_capture_of_attention_crosses_over(lent):
    session, _ = lent
    recording = Recording(stages=["UP-2"], public=True)
    _, ((captured, drawn),) = results(session, requests(steps=1), recording.draw)
    assert [r.request.model for r in drawn] == list(PAIR) and captured


@FORKS
def test_stop_ends_the_fork_and_the_next_run_works(lent):
    session, gpu = lent
    life = Life()
    with pytest.raises(Cancelled):
        for update in session.device.run(requests(steps=150), life):
            if update.steps:
                life.stop()
    begun = time.monotonic()
    while multiprocessing.active_children():
        assert time.monotonic() - begun < 20
        time.sleep(0.05)
    assert len(results(session, requests(steps=1))[1]) == 2


@FORKS
def test_an_error_in_the_fork_comes_back_as_words(lent):
    session, _ = lent
    with pytest.raises(UserError, match="the run failed with ZeroDivisionError"):
        results(session, requests(steps=1), broken)


def broken(requests, library, **_):
    return 1 / 0


def test_what_needs_the_gpu_for_longer_is_refused_in_words(lent):
    session, _ = lent
    with pytest.raises(UserError, match="at home"):
        session.device.model("tiny-sdxl")
    with pytest.raises(UserError, match="benchmark"):
        session.device.require_own("a benchmark")


@pytest.mark.parametrize("title", zerogpu.REFUSALS)
def test_every_refusal_says_what_happened_and_what_to_do(lent, title):
    session, _ = lent

    def refuse(requests, draw):
        raise gr.Error("240s requested vs. 30s left", title=title, print_exception=False)
        yield

    library, wrap = session.loader.library(), partial(zerogpu.drawing, refuse)
    refused = Session(PAIR, local=False, library=library, wrap=wrap).start()
    with pytest.raises(UserError, match=title) as output:
        results(refused, requests())
    assert "try again" in str(output.value).lower() or "ask for" in str(output.value).lower()


def test_a_refusal_that_we_do_not_know_is_told_as_it_came():
    assert str(zerogpu.explained(gr.Error("the moon is full", title="ZeroGPU"))) == "ZeroGPU: the moon is full"


def test_more_work_asks_for_more_time_within_what_a_visitor_may_have():
    one = GenerationRequest(model="koala-700m", prompt="a star")
    teacher = dataclasses.replace(one, model="sdxl-base")
    longer = [[one], [one, teacher], [dataclasses.replace(r, steps=100) for r in (one, teacher)]]
    result = [zerogpu.seconds(r, print, unknown=1) for r in longer]
    print(f"asked for: {result} s")
    assert result == sorted(set(result)) and zerogpu.LEAST <= result[0] < result[-1] <= zerogpu.MOST
    small = dataclasses.replace(teacher, width=512, height=512)
    assert zerogpu.seconds([small]) < zerogpu.seconds([teacher])
    assert all(zerogpu.seconds([dataclasses.replace(one, model=m)]) for m in CARDS)


# The package as the Space sees it before the page is served: it must come first, then it answers for CUDA and notes
# what is sent there.
PACKAGE = """
import sys
assert "torch" not in sys.modules and "gradio" not in sys.modules, "spaces comes first"
import torch
torch.cuda.is_available = lambda: True
sent, lent = [], []
torch.nn.Module.to = lambda module, device: sent.append(str(device)) or module

def GPU(duration):
    return lambda task: lent.append((task.__name__, duration.__name__)) or task
"""
# Repositories of the real checkpoints in the hub's cache -> what lies in them here.
CACHED = {
    "stabilityai/stable-diffusion-xl-base-1.0": "tiny-sdxl",
    "etri-vilab/koala-lightning-700m": "tiny-koala-700m",
    "etri-vilab/koala-1b": "tiny-koala-1b",
    "madebyollin/sdxl-vae-fp16-fix": "tiny-sdxl/vae",
}
LOOK = """
import json, spaces, app
library = app.session.start().loader.library()
print(json.dumps({"sent": spaces.sent, "lent": spaces.lent, "local": app.session.local, "models": app.session.models,
    "dtypes": sorted({library.get(n).precision for n in (*app.REAL, *app.EMBEDDED)})}))
"""


@pytest.mark.slow
def test_everything_is_on_the_gpu_before_the_page_is_served(bundle, embedded, tmp_path):
    for repo, folder in CACHED.items():
        place = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("c0ffee")
        (place / "snapshots").mkdir()
        (place / "snapshots" / "c0ffee").symlink_to(embedded / folder)
    (tmp_path / "spaces.py").write_text(PACKAGE)
    path = os.pathsep.join([str(tmp_path), str(bundle)])
    environment = os.environ | {"SPACES_ZERO_GPU": "true", "PYTHONPATH": path, "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=bundle, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["sent"]) == {"cuda"} and len(result["sent"]) >= 6 + 3  # U-Nets, and the parts that they share
    assert result["lent"] == [["drawn", "seconds"]] and result["local"] is False
    assert result["models"] == ["sdxl-base", "koala-lightning-700m"] and result["dtypes"] == ["float16"]
