"""A capture is saved as a file and opened again; a file that is none changes nothing."""

import shutil
from pathlib import Path

import gradio as gr
import pytest

from koala.sampling.result import read_png
from koala.ui.attention import tab as attention
from koala.ui.attention.recording import Store
from koala.ui.attention.tab import Attention
from koala.ui.session import Session


@pytest.fixture
def file(tab, drawn, asked) -> Path:
    """What the button downloads."""
    result = tab.take({"id": drawn["capture"], "file": "capture"} | asked)
    assert result["name"].endswith("-capture.zip") and drawn["capture"] in result["path"]
    return Path(result["path"])


@pytest.fixture
def warnings(monkeypatch):
    """What the page warns of."""
    message: list[str] = []
    monkeypatch.setattr(attention, "warn", lambda text, title: message.append(f"{title}: {text}"))
    return message


def test_a_saved_capture_opens_and_answers_as_before(tab, drawn, capture, asked, file, warnings):
    opened = tab.open(str(file), "")
    value, key = opened[tab.viewer], opened[tab.capture]
    assert not warnings and opened[tab.file] is None and key != drawn["capture"]
    assert value == drawn["viewer"] | {"id": key}
    assert tab.look({"id": key} | asked) == tab.look({"id": drawn["capture"]} | asked)
    for again, one in zip(tab.store.get(key).files, capture.files, strict=True):
        assert again == one and read_png(again)["request"].prompt == capture.prompt


def test_saving_twice_writes_once(tab, drawn, asked, file):
    written = file.stat().st_mtime_ns
    assert tab.take({"id": drawn["capture"], "file": "capture"} | asked)["path"] == str(file)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and then nothing", b"\x89PNG"], ids=str)
def test_a_file_that_is_no_capture_leaves_what_is_shown(tab, drawn, warnings, tmp_path, content):
    (tmp_path / "some.zip").write_bytes(content)
    assert tab.open(str(tmp_path / "some.zip"), drawn["capture"]) == {tab.file: None}
    assert len(warnings) == 1 and "not a complete capture" in warnings[0]
    assert tab.store.get(drawn["capture"])


def test_an_upload_without_a_file_says_so(tab, drawn, warnings):
    assert tab.open(None, drawn["capture"]) == {tab.file: None}
    assert "no file was sent" in warnings[0]


def test_strangers_open_what_they_could_have_made(file, warnings, tmp_path, monkeypatch):
    with gr.Blocks():
        tab = Attention(Session(device="cpu", local=False), Store())
    monkeypatch.setattr("koala.ui.attention.recording.PUBLIC_BUDGET", 1000)
    shutil.copy(file, tmp_path / "mine.zip")
    assert tab.open(str(tmp_path / "mine.zip"), "") == {tab.file: None} and "read here" in warnings[0]
