"""CLIPScore as CLIP itself computes it, and reference folders with good and broken pictures."""

import random

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from koala.errors import UserError
from koala.evaluate import clip
from koala.evaluate.prompt_files import of_shapes
from koala.shapes.render import render
from koala.shapes.scene import random_scene

TEXTS = [p.text for p in of_shapes(5)]


@pytest.fixture(scope="module")
def pictures():
    rng = random.Random(0)
    return [render(random_scene(rng, 1, width=w, height=h)) for w, h in ((256, 256), (320, 192), (192, 320))]


def test_clip_score_is_what_the_whole_model_says(tiny_clip, pictures):
    """Against CLIPModel's own forward pass, whose logits are scaled cosines."""
    pictures, texts = pictures[::-1], TEXTS[:3]
    ours = clip.load(str(tiny_clip), torch.device("cpu"))
    seen, read = ours.embed_pictures(pictures), ours.embed_texts(texts)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokens = CLIPTokenizer.from_pretrained(tiny_clip)(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(tiny_clip)(pictures, return_tensors="pt")
    with torch.no_grad():
        cosines = model(**tokens, **pixels).logits_per_image / model.logit_scale.exp()
    print("max difference", (seen @ read.T - cosines).abs().max().item())
    assert torch.allclose(seen @ read.T, cosines, atol=1e-5)
    assert cosines.diagonal().max() > 0.01
    expected = 100 * cosines.diagonal().clamp(min=0)
    assert clip.clip_score(seen, read).tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_picture_against_its_prompt_never_scores_below_zero():
    unit = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert clip.clip_score(unit, torch.tensor([[-1.0, 0.0], [0.6, 0.8]])).tolist() == pytest.approx([0, 100])


def test_texts_longer_than_clip_reads_are_cut(tiny_clip):
    ours = clip.load(str(tiny_clip), torch.device("cpu"))
    long = " ".join(TEXTS * 20)
    assert torch.isfinite(ours.embed_texts([long])).all()


def test_a_reference_folder_counts_and_names_its_broken_pictures(tiny_clip, pictures, tmp_path):
    ours = clip.load(str(tiny_clip), torch.device("cpu"))
    (tmp_path / "sub").mkdir()
    for k, picture in enumerate(pictures):
        picture.save(tmp_path / "sub" / f"{k}.png")
    whole = (tmp_path / "sub" / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "notes.txt").write_text("not counted")
    reference = clip.read_reference(tmp_path, ours)
    assert reference.report() == {"source": str(tmp_path), "pictures": 3, "broken": ["cut.png", "text.jpg"]}
    assert torch.allclose(reference.embeddings, ours.embed_pictures(pictures))


def test_a_reference_folder_without_pictures_says_what_is_wrong(tiny_clip, tmp_path):
    ours = clip.load(str(tiny_clip), torch.device("cpu"))
    with pytest.raises(UserError, match="there is no folder"):
        clip.read_reference(tmp_path / "nowhere", ours)
    with pytest.raises(UserError, match="at least two pictures .* it has 0"):
        clip.read_reference(tmp_path, ours)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UserError, match="1 of its 1 cannot be read, such as a.png"):
        clip.read_reference(tmp_path, ours)


@pytest.mark.parametrize(
    ("name", "weights"), [(clip.SCORE_MODEL, "model.safetensors"), (clip.CMMD_MODEL, "pytorch_model.bin")]
)
def test_missing_weights_say_what_to_fetch(name, weights):
    with pytest.raises(UserError, match=f"hf download {name} --include .*'{weights}'.*--clip"):
        clip.load(name, torch.device("cpu"))


def test_a_folder_that_is_no_clip_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not a complete CLIP folder"):
        clip.load(str(tmp_path), torch.device("cpu"))
