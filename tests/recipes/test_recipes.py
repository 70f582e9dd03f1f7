"""The embedded models' chain from scratch: a few steps of each stage, then folders that plain diffusers runs."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.draws import draw
from koala.distill.settings import read
from koala.files.hashing import digest
from koala.models.cards import EMBEDDED
from koala.models.registry import find
from koala.shapes.captions import caption
from koala.shapes.render import render_array
from recipes.embedded import grid

pytestmark = pytest.mark.long

RECIPES = Path(__file__).parents[2] / "recipes" / "embedded"
NAMES = ("tiny-sdxl", "tiny-koala-700m")


# The stages' scripts with their arguments, one after another in one process, each as if it were begun alone.
STAGES = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
for script, *arguments in json.load(sys.stdin):
    sys.argv = [f"{sys.path[0]}/{script}", *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder in which every stage has run once."""
    folder = tmp_path_factory.mktemp("work")
    text, vae, white, latents, packed = (folder / n for n in ("text", "vae", "white", "latents/128x128-1", "packed"))
    teacher, student, sharp = folder / "teacher", folder / "student", folder / "sharp"
    redrawn, further, mean = folder / "redrawn" / latents.name, folder / "further", folder / "mean"
    rate = ("--learning-rate", 1e-3)
    train = ("--text", text, "--sets", f"{latents}=4*1", "--steps", 2, *rate)
    sharpen = ("--freeze-encoder", "--steps", 6, "--crop", 256, "--batch-size", 1, "--learning-rate", 2e-4)
    unets = (f"tiny-sdxl={teacher}", f"tiny-koala-700m={student}")
    stages = [
        ("text.py", "--out", text, "--steps", 2, "--batch-size", 4),
        ("vae.py", "--out", vae, "--steps", 2, "--crop", 64, "--batch-size", 2, *rate),
        ("whiten.py", "--vae", vae, "--out", white, "--count", 16),
        ("latents.py", "--vae", white, "--out", latents, "--count", 32, "--shard", 32),
        ("unet.py", "--name", "tiny-sdxl", "--out", teacher, *train),
        ("unet.py", "--name", NAMES[1], "--teacher", teacher, "--out", student, *train),
        ("unet.py", "--name", NAMES[1], "--teacher", teacher, "--init", student, "--out", further, *train),
        ("average.py", "--unets", student, further, "--out", mean),
        ("assemble.py", "--text", text, "--vae", white, "--unet", *unets, "--names", *NAMES, "--out", packed),
        ("redraw.py", "--models", packed, "--name", NAMES[1], "--set", latents, "--shards", "0000", "--out", redrawn),
        ("vae.py", "--init", white, "--out", sharp, *sharpen, "--redrawn", redrawn),
    ]
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(RECIPES)],
        input=json.dumps([list(map(str, stage)) for stage in stages]),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(RECIPES.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.json")), ids=lambda file: file.stem)
def test_the_trainers_configs_are_read_and_the_page_has_their_command(file):
    config = read(file)
    assert find(config.teacher).embedded
    page = " ".join((RECIPES / "README.md").read_text().split())
    assert f"python -m koala distill --config recipes/embedded/{file.name} --out" in page


@pytest.mark.slow
def test_the_packed_folders_draw_in_plain_diffusers_and_share_their_parts(work):
    for name in NAMES:
        pipeline = StableDiffusionXLPipeline.from_pretrained(work / "packed" / name)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("a red circle", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)
    files = [work / "packed" / name / "vae" / "diffusion_pytorch_model.safetensors" for name in NAMES]
    assert digest(files[0]) == digest(files[1])


@pytest.mark.slow
def test_distillation_starts_from_the_teachers_cut_and_moves_every_kind_of_layer(work):
    teacher = UNet2DConditionModel.from_pretrained(work / "teacher").state_dict()
    student = UNet2DConditionModel.from_pretrained(work / "student").state_dict()
    first, source = student["up_blocks.0.resnets.1.conv1.weight"], teacher["up_blocks.0.resnets.2.conv1.weight"]
    assert (first - source).abs().max() < 0.01  # two steps away from where it was cut
    attention = "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    for key in (attention, "conv_in.weight", "up_blocks.2.resnets.1.conv1.weight"):
        untrained = teacher[key.replace("resnets.1", "resnets.2")] if "up_blocks" in key else teacher[key]
        assert not torch.equal(student[key], untrained), f"{key} has not learned"


@pytest.mark.slow
def test_the_mean_of_two_unets_lies_between_them(work):
    first, second, mean = (UNet2DConditionModel.from_pretrained(work / n) for n in ("student", "further", "mean"))
    for a, b, between in zip(first.parameters(), second.parameters(), mean.parameters(), strict=True):
        assert torch.allclose(between, (a + b) / 2, atol=1e-7)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)


@pytest.mark.slow
def test_only_the_decoder_learns_of_redrawn_latents(work):
    before, after = (AutoencoderKL.from_pretrained(work / name) for name in ("white", "sharp"))
    for part in ("encoder", "quant_conv", "decoder"):
        old, new = (torch.nn.utils.parameters_to_vector(getattr(v, part).parameters()) for v in (before, after))
        assert torch.equal(old, new) is (part != "decoder")


def test_redrawn_latents_are_the_stored_ones_but_for_what_the_last_steps_do(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from latents import scene
    from redraw import Redrawing

    scenes = [scene("256x256-1", i, 1, 256, 256) for i in range(4)]
    pictures = torch.stack([torch.from_numpy(render_array(s)).permute(2, 0, 1) for s in scenes]) * 2 - 1
    folder = EMBEDDED / "tiny-koala-700m"
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    redraw = Redrawing(EMBEDDED, "tiny-koala-700m", folder / "unet")
    captions = [caption(s, "detailed", random.Random(0)) for s in scenes]
    with torch.inference_mode():
        latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor  # of variance 1
        errors = []
        for steps in (1, 7):
            redrawn = redraw(latents, captions, steps, torch.Generator().manual_seed(0))
            errors.append((redrawn - latents).square().mean().item())
    assert 0 < errors[0] < 0.006 < errors[1] < 0.03


def test_the_noise_that_decides_layout_or_edges_is_shown_as_often_as_asked(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from unet import shifted

    config = DistillConfig(timesteps="high-noise")
    plain = draw(config, range(20_000), (1, 1, 1)).timesteps
    for noisiest, cleanest in ((0, 0), (1, 0), (0, 1), (0.5, 0.5), (0.25, 0.25)):
        drawn = shifted(plain, torch.Generator().manual_seed(0), noisiest=noisiest, cleanest=cleanest)
        assert drawn.min() >= 0 and drawn.max() <= 999
        rest = 1 - noisiest - cleanest
        high, low = ((drawn >= 800).float().mean().item(), (drawn < 500).float().mean().item())
        assert abs(high - (noisiest + 0.26 * rest)) < 0.02, (noisiest, cleanest, high)
        assert abs(low - (cleanest + 0.36 * rest)) < 0.02, (noisiest, cleanest, low)


def test_what_is_said_of_the_relation_are_the_reports_figures():
    folder = EMBEDDED.parents[1] / "docs"
    errors = json.loads((folder / "measurements" / "embedded-relation.json").read_text())["clean_latent_error"]
    before, after = (round(100 * (errors[s]["999"]["reversed"] / errors[s]["999"]["caption"] - 1), 1) for s in errors)
    message = " ".join((RECIPES / "README.md").read_text().split())
    assert f"at t = 999 was {before} % larger after stage f, {after:.0f} % after stage g" in message
    message = (folder / "decisions.md").read_text()
    assert f"by {before} %; after 3,800 steps on the straight path from noise to picture by {after:.0f} %" in message


def test_what_is_said_of_ancestral_steps_are_the_reports_figures():
    folder = EMBEDDED.parents[1] / "docs"
    plain, ancestral = (
        json.loads((folder / "measurements" / f"embedded-{kind}-euler.json").read_text())
        for kind in ("plain", "ancestral")
    )
    assert (plain["scheduler"], ancestral["scheduler"]) == ("euler-trailing", "euler-ancestral-trailing")
    relation, whole = (
        [f"{100 * r['scores']['two_objects'][kind]['rate']:.1f} %" for r in (plain, ancestral)]
        for kind in ("relation", "all")
    )
    message = (folder / "decisions.md").read_text()
    assert f"the teacher's relations went from {relation[0]} right" in message and f"to {relation[1]}, whole" in message
    assert f"whole prompts with two objects from {whole[0]} to {whole[1]}" in message


@pytest.fixture
def rates(tmp_path, monkeypatch):
    """Runs a small grid and gives its report; a report given to it is what it finds there."""
    out = tmp_path / "grid.json"
    asked = ["--models", "tiny-koala-700m", "--num-prompts", "1", "--guidance", "1", "2", "--size", "160x192"]
    asked += ["--scheduler", "euler-trailing", "euler-ancestral-trailing", "--series", "choice", "--out", str(out)]

    def run(earlier: dict | None = None) -> dict:
        if earlier:
            out.write_text(json.dumps(earlier))
        monkeypatch.setattr(sys, "argv", ["grid.py", *asked])
        grid.main()
        return json.loads(out.read_text())

    return run


def test_a_grid_has_the_rates_of_every_combination_asked(rates):
    result = rates()
    assert result["series"] == "choice" and result["command"].startswith("python -m recipes.embedded.grid --models")
    rows = result["models"]["tiny-koala-700m"]
    asked = [("euler-trailing", 1), ("euler-trailing", 2), ("euler-ancestral-trailing", 1)]
    assert [(r["scheduler"], r["guidance"]) for r in rows] == [*asked, ("euler-ancestral-trailing", 2)]
    assert all((r["width"], r["height"]) == (160, 192) for r in rows)
    assert all(r["scores"]["two_objects"]["all"]["count"] == 1 for r in rows)


def test_a_grid_goes_on_where_it_was_stopped_unless_the_weights_have_changed(rates, monkeypatch):
    drawn = []
    scores = {"two_objects": {"all": {"rate": 1.0}}}
    monkeypatch.setattr(grid, "evaluate", lambda model, **asked: drawn.append(asked) or {"scores": scores})
    result = rates()
    rows = result["models"]["tiny-koala-700m"]
    assert len(drawn) == len(rows) == 4
    marked = rows[1] | {"scores": {"two_objects": {"all": {"rate": 0.5}}}}
    stopped = result | {"models": {"tiny-koala-700m": [marked]}}
    assert rates(stopped)["models"]["tiny-koala-700m"] == [rows[0], marked, *rows[2:]] and len(drawn) == 7
    stopped["weights"]["tiny-koala-700m"]["unet/diffusion_pytorch_model.safetensors"] = "of other weights"
    assert rates(stopped)["models"]["tiny-koala-700m"] == rows and len(drawn) == 11
