"""Torch against ONNX in the Compare tab: which exports it offers, and to whom."""

import gradio as gr
import pytest

from koala.errors import UserError
from koala.export.gates.pictures import psnr
from koala.models.export_manifest import MANIFEST, find_export
from koala.request import GenerationRequest
from koala.ui.compare.tab import Compare
from koala.ui.session import Session

TORCH = "tiny-koala-700m"


@pytest.fixture
def shelf(exported_700m, monkeypatch, tmp_path):
    """A folder of exports: a whole one, and one whose manifest was cut off."""
    (tmp_path / TORCH).symlink_to(exported_700m, target_is_directory=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text('{"format": 1')
    monkeypatch.setenv("KOALA_EXPORTS", str(tmp_path))
    return tmp_path


def test_exports_stand_beside_the_models_that_they_were_made_of(shelf):
    session = Session()
    before, result = session.catalogue.choices(), session.catalogue.choices(exports=True)
    ((label, name),) = set(result) - set(before)
    assert label == "Tiny KOALA-700M (ONNX)"
    labels = [label for label, _ in result]
    assert labels.index("Tiny KOALA-700M") < labels.index(label)
    assert session.catalogue.card(name).runtime == "onnx"
    with gr.Blocks():
        tab = Compare(session)
    assert all((label, name) in [tuple(c) for c in one.choices] for one in tab.choices())


@pytest.mark.slow
def test_torch_and_onnx_draw_in_one_run(shelf):
    session = Session().start()
    (name,) = [n for label, n in session.catalogue.choices(exports=True) if "ONNX" in label]
    asked = [
        GenerationRequest(model=m, prompt="a red circle", steps=2, width=64, height=64, seed=4) for m in (TORCH, name)
    ]
    results = {}
    for update in session.device.run(asked):
        results |= update.results
    assert [results[k].runtime for k in range(2)] == ["torch", "onnx"]
    assert psnr(results[0].images[0], results[1].images[0]) > 40
    assert session.loader.state(name).state == "ready"


def test_visitors_of_a_public_app_see_and_name_no_export(shelf, exported_700m):
    public = Session(local=False)
    assert not any("ONNX" in label for label, _ in public.catalogue.choices(exports=True))
    with pytest.raises(UserError, match="unknown model"):
        public.catalogue.card(str(shelf / TORCH))
    named = Session([TORCH, str(exported_700m)], local=False)  # unless the app was started with it
    assert "Tiny KOALA-700M (ONNX)" in [label for label, _ in named.catalogue.choices(exports=True)]


def test_a_damaged_export_keeps_nobody_from_its_neighbours(shelf):
    """Symptom: `--runtime onnx` failed over another export's manifest."""
    assert find_export(TORCH) == shelf / TORCH
    with pytest.raises(UserError, match="no export of tiny-sdxl .*broken.* is damaged"):
        find_export("tiny-sdxl")
