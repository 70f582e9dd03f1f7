"""The Distill tab without a browser, and runs as the trainer leaves them."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status
from koala.models.cards import EMBEDDED
from koala.models.layout import SURGERY
from koala.process import started
from koala.ui.distill.tab import Distill
from koala.ui.session import Session
from tests.ui.handlers import named

QUICK = PRESETS["2-minutes"].config
WATCHED = dataclasses.replace(PRESETS["10-minutes"].config, num_steps=200)


class Trainer:
    """What a trainer does to its folder, by hand; this process stands for its own."""

    def __init__(self, root: Path, name: str, state: str = "running", step: int = 0):
        self.run = RunFolder(path=root / name)
        self.run.path.mkdir(parents=True)
        self.run.write_config(WATCHED)
        self.status = Status(
            state=state,
            step=0,
            num_steps=WATCHED.num_steps,
            pid=os.getpid(),
            pid_started=started(os.getpid()),
            started=time.time(),
            steps_per_second=0.5,
        )
        self.step(step)

    def step(self, to: int, **status) -> None:
        for step in range(self.status.step + 1, to + 1):
            terms = {"task": 1 / step, "output": 2 / step, "SA": 0.5, "LF": 0.25}
            self.run.log({"kind": "train", "step": step, "loss": sum(terms.values()), **terms, "seconds": step * 2.0})
        left = (WATCHED.num_steps - to) / 0.5
        self.status = dataclasses.replace(self.status, step=to, seconds_left=left, **status)
        self.run.write_status(self.status)

    def validate(self, rate: float) -> None:
        step = self.status.step
        terms = {"loss": 1.0, "task": 0.5, "output": 0.5}
        self.run.log({"kind": "validation", "step": step, **terms, "timesteps": {"0-499": terms, "500-999": terms}})
        self.run.log({"kind": "score", "step": step, "one_object": rate, "two_objects": 0.0})

    def draw(self, stem: str, colour: str) -> None:
        self.run.samples.mkdir(exist_ok=True)
        (self.run.samples / "prompts.json").write_text(json.dumps(WATCHED.validation_prompts))
        for k in range(len(WATCHED.validation_prompts)):
            Image.new("RGB", (64, 64), colour).save(self.run.samples / f"{stem}-{k}.png")

    def keep(self) -> None:
        if not self.run.student.exists():
            a_student(self.run.student)
        self.run.checkpoint(self.status.step).mkdir(parents=True)


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


def a_student(folder: Path) -> None:
    """A student as surgery and training leave it."""
    shutil.copytree(EMBEDDED / "tiny-koala-700m", folder)
    (folder / SURGERY).write_text(json.dumps({"teacher": "tiny-sdxl"}))


def with_student(run: RunFolder, step: int = 20) -> RunFolder:
    a_student(run.student)
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
    return {"state": "running", "pid": os.getpid(), "pid_started": started(os.getpid())}


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


def look(tab, chosen: str = "", compared: str = "", sent: dict | None = None) -> dict:
    return named(tab, tab.look(chosen, compared, sent or {}))
