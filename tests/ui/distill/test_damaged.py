"""A damaged run is listed with its reason; the app starts, and the other runs are what they were."""

import html
import json

import gradio as gr
import pytest

from koala.ui.distill.panel import UNREADABLE
from koala.ui.distill.tab import Distill
from koala.ui.session import Session
from tests.ui.distill.conftest import look, with_samples, with_student, written

SENTENCES = {  # what is done to a run -> what the app says of it
    "config": "config.json is damaged: it holds a list",
    "status": "status.json is damaged",
    "metrics": "2 damaged lines of metrics.jsonl left out",
    "stray": "not checkpoints, and left out: step-7.bak, step-x",
    "student": "its student cannot be loaded",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Runs of every kind of damage, each by its name, and one that is whole."""
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    (written(tmp_path, "config").path / "config.json").write_text("[]")
    (written(tmp_path, "status").path / "status.json").write_text('{"state": "running", "step": "x", "num_steps": 1}')
    with written(tmp_path, "metrics").metrics_file.open("ab") as file:
        file.write(b'[1,2]\n{"kind": "train", "step": 1e999, "loss": "x"}\n')
    stray = written(tmp_path, "stray")
    for name in ("step-7.bak", "step-x"):
        (stray.path / "checkpoints" / name).mkdir(parents=True)
    (with_student(written(tmp_path, "student")).student / "unet" / "config.json").write_text("")
    samples = with_samples(written(tmp_path, "samples"))
    (samples.samples / "prompts.json").write_text("{}")
    picture = with_samples(written(tmp_path, "picture"))
    (picture.samples / "teacher-0.png").write_bytes(b"\x89PNG, and no more")
    (picture.samples / "step-x-0.png").write_bytes(b"")
    with_student(written(tmp_path, "whole"))
    return tmp_path


@pytest.mark.parametrize("local", [True, False], ids=["own machine", "public"])
def test_the_app_starts_with_damaged_runs_and_says_what_each_has(root, local, monkeypatch):
    """Symptom: one folder step-7.bak, one empty config.json of a student, and no tab of the app was there any more."""
    session = Session(device="cpu", local=local)
    if not local:
        monkeypatch.setenv("KOALA_RUNS", str(root.parent))
        root = root.rename(root.parent / ".public")
    with gr.Blocks():
        tab = Distill(session)
    shown = {s.name: s for s in tab.runs.all()}
    assert set(shown) == {*SENTENCES, "samples", "picture", "whole"}
    assert shown["whole"].model == "distilled-whole" and not shown["whole"].notes
    for name, words in SENTENCES.items():
        standing = look(tab, name)["standing"]
        assert words.lower() in html.unescape(standing).lower(), name
        assert (str(root) in standing) <= local  # strangers learn nothing of the machine's folders
    assert [n for n, s in shown.items() if s.status.state == UNREADABLE] == [
        n for n in shown if n in ("config", "status")
    ]
    assert "samples cannot be shown" in look(tab, "samples")["pictures"]
    pictures = look(tab, "picture")["pictures"]
    assert "samples/teacher-0.png is damaged" in pictures and pictures.count("<img") == 2


def test_a_run_whose_config_is_damaged_can_be_resumed_where_a_checkpoint_knows_it(root):
    with gr.Blocks():
        tab = Distill(Session(device="cpu"))
    assert look(tab, "config")["resume"]["visible"] is False
    (root / "config" / "checkpoints" / "step-5").mkdir(parents=True)
    assert look(tab, "config")["resume"]["visible"] is True
    tab.runs.delete("config")
    assert not (root / "config").exists()
    assert json.loads((root / "whole" / "config.json").read_text())
