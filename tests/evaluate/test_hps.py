"""HPSv2.1: what is missing is named; with open_clip installed, scores are its own cosines."""

import importlib.util
import random

import pytest
import torch

from koala.errors import UserError
from koala.evaluate import hps
from koala.shapes.render import render
from koala.shapes.scene import random_scene

HAS_OPEN_CLIP = importlib.util.find_spec("open_clip") is not None


@pytest.mark.skipif(HAS_OPEN_CLIP, reason="open_clip is installed")
def test_without_open_clip_the_pip_line_is_named():
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        hps.load(torch.device("cpu"))


@pytest.mark.skipif(not HAS_OPEN_CLIP, reason="needs the extra hpsv2")
def test_without_weights_the_download_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download xswu/HPSv2 HPS_v2.1_compressed.pt"):
        hps.load(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_OPEN_CLIP, reason="needs the extra hpsv2")
def test_scores_are_the_cosines_of_the_checkpoint_in_the_cache(tmp_path, monkeypatch):
    """A smaller architecture with random weights, in the form of HPSv2's checkpoint and the hub's cache."""
    import open_clip

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hps, "ARCHITECTURE", "ViT-S-32-alt")
    model, _, picture = open_clip.create_model_and_transforms(hps.ARCHITECTURE, image_resize_mode="longest")
    snapshot = tmp_path / "models--xswu--HPSv2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--xswu--HPSv2" / "refs").mkdir()
    (tmp_path / "models--xswu--HPSv2" / "refs" / "main").write_text("abc")
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, snapshot / hps.FILE)
    rng = random.Random(0)
    pictures = [render(random_scene(rng, 1, width=w, height=h)) for w, h in ((256, 256), (320, 192))]
    texts = ["a red circle", "two blue stars"]
    scores = hps.load(torch.device("cpu")).score(pictures, texts)
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(torch.stack([picture(p) for p in pictures]), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer(hps.ARCHITECTURE)(texts), normalize=True)
    expected = 100 * (seen @ read.T).diagonal()
    print("max difference", (scores - expected).abs().max().item())
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
