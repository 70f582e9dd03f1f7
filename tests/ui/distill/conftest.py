"""The Distill tab without a browser, and runs as the trainer leaves them."""

import json
import os
import shutil
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.run_folder import RunFolder, Status, process_started
from koala.registry import EMBEDDED
from koala.ui.session import Session
from koala.ui.tabs.distill import Distill

QUICK = PRESETS["2-minutes"].config


class Visitor:
    """What a handler knows of who sent an event."""

    session_hash = "one"


class Sent:
    """An event of the list of runs, or of the row of tabs."""

    def __init__(self, value: str = "", **data):
        self.value, self._data = value, data


def written(root: Path, name: str, config: DistillConfig = QUICK, **status) -> RunFolder:
    """A run's folder as the trainer leaves it: config, status, metrics, and nothing else yet."""
    run = RunFolder(path=root / name)
    run.path.mkdir(parents=True)
    run.write_config(config)
    run.write_status(Status(**{"state": "done", "step": 20, "num_steps": 20, "started": 1e9} | status))
    for step in range(1, 21):
        terms = {"task": 1 / step, "output": 2 / step, "SA": 0.5, "LF": 0.25}
        run.log({"kind": "train", "step": step, "loss": sum(terms.values()), **terms, "seconds": float(step)})
    return run


def with_student(run: RunFolder, step: int = 20) -> RunFolder:
    shutil.copytree(EMBEDDED / "tiny-koala-700m", run.student)
    run.checkpoint(step).mkdir(parents=True)
    return run


def with_samples(run: RunFolder, prompt: str = "a red circle") -> RunFolder:
    run.samples.mkdir()
    (run.samples / "prompts.json").write_text(json.dumps([prompt]))
    for stem, colour in (("teacher", "red"), ("before", "grey"), ("step-10", "pink"), ("step-20", "orange")):
        Image.new("RGB", (64, 64), colour).save(run.samples / f"{stem}-0.png")
    return run


def living() -> dict:
    """The status of a run whose process is this one."""
    return {"state": "running", "pid": os.getpid(), "pid_started": process_started(os.getpid())}


@pytest.fixture
def session():
    return Session(device="cpu")


@pytest.fixture
def public():
    return Session(device="cpu", local=False)


@pytest.fixture
def tab(session, tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    with gr.Blocks():
        return Distill(session)


def named(tab, update: dict) -> dict:
    return {name: update[c] for name, c in vars(tab).items() if isinstance(c, gr.blocks.Block) and c in update}


def look(tab, chosen: str = "", beside: str = "", sent: dict | None = None) -> dict:
    return named(tab, tab.look(chosen, beside, sent or {}))
