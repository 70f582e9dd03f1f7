"""Strips of the clean estimate: which steps they show, and that each picture is what the run's latents say."""

import json

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image

from koala.attention.denoising import PREVIEWS, denoising_strip
from koala.cli.main import main
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from koala.sampling.previews import preview_steps


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        (1, [1]),
        (2, [1, 2]),
        (4, [1, 2, 3, 4]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (25, [3, 6, 9, 12, 16, 19, 22, 25]),
    ],
)
def test_a_row_shows_every_step_of_a_short_run_and_eight_of_a_long_one(steps, shown):
    assert sorted(preview_steps(steps, PREVIEWS) | {steps}) == shown


def test_a_preview_is_the_estimate_that_diffusers_gives_for_the_same_step(embedded):
    """Euler's own pred_original_sample, decoded by diffusers: the first step among them."""
    folder = embedded / "tiny-koala-700m"
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    stock.scheduler = EulerDiscreteScheduler.from_config(stock.scheduler.config, timestep_spacing="trailing")
    stock.set_progress_bar_config(disable=True)
    estimates, step = [], stock.scheduler.step

    def keep(*args, **values):
        done = step(*args, **values)
        estimates.append(done[1])
        return done

    stock.scheduler.step = keep
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4))
    stock("a red circle", latents=noise, num_inference_steps=3, guidance_scale=2.0, width=64, height=64)
    with torch.no_grad():
        decoded = [stock.vae.decode(x / stock.vae.config.scaling_factor).sample for x in estimates]
    wanted = [stock.image_processor.postprocess(picture)[0] for picture in decoded]

    seen = {}
    settings = {"steps": 3, "guidance": 2.0, "width": 64, "height": 64, "scheduler": "euler-trailing"}
    asked = GenerationRequest(model="tiny-koala-700m", prompt="a red circle", seed=4, **settings)
    library = Library("cpu", dtype="float32")
    drawn = generate(
        asked,
        library.get("tiny-koala-700m"),
        on_step=lambda step: seen.update({step.index: step.preview}),
        num_previews=PREVIEWS,
    )
    for index, one in enumerate(wanted[:2], 1):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(seen[index])).max() <= 1
    assert np.abs(np.asarray(wanted[2]).astype(int) - np.asarray(drawn.images[0])).max() <= 1


def test_every_picture_stands_in_its_row_and_column():
    colours = {(0, 1): "red", (0, 2): "lime", (1, 3): "blue", (1, 8): "yellow"}
    picture = {place: Image.new("RGB", (64, 64), colour) for place, colour in colours.items()}
    runs = [
        GenerationRequest(model="a", prompt="p", steps=n, guidance=g, width=64, height=64, scheduler="euler-trailing")
        for n, g in ((2, 0.0), (8, 3.0))
    ]
    previews = [{1: picture[0, 1]}, {3: picture[1, 3], 5: None}]  # the fifth could not be decoded
    sheet = denoising_strip(runs, ["Few", "Many"], previews, [picture[0, 2], picture[1, 8]])
    pixels = np.asarray(sheet.convert("RGB"))
    corners = {}
    for place, colour in colours.items():
        value = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        ys, xs = np.nonzero((pixels == value).all(-1))
        assert len(ys) == 256 * 256  # each once, 256 px wide
        corners[place] = ys.min(), xs.min()
    assert corners[0, 1][0] == corners[0, 2][0] < corners[1, 3][0] == corners[1, 8][0]
    assert corners[0, 1][1] == corners[1, 3][1] < corners[0, 2][1] < corners[1, 8][1]
    assert corners[1, 8][1] - corners[1, 3][1] == 2 * (corners[0, 2][1] - corners[0, 1][1])  # the third of its row


def test_compare_writes_the_strip_beside_its_pictures(tmp_path, capsys):
    models = ["--models", "tiny-sdxl", "tiny-koala-700m", "--prompt", "a red circle"]
    models += ["--steps", "3", "2", "--guidance", "2", "0"]  # one for each
    size = ["--width", "64", "--height", "64", "--json"]
    strip = tmp_path / "strip.png"
    assert main(["compare", *models, *size, "--out", str(tmp_path / "a"), "--strip", str(strip)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["strip"] == str(strip)
    with Image.open(strip) as sheet:
        assert sheet.width == 10 + 3 * (256 + 10)
    drawn = [(m["request"]["steps"], m["request"]["guidance"], m["timing"]["unet_calls"]) for m in report["models"]]
    assert drawn == [(3, 2, 6), (2, 0, 2)]
    assert main(["compare", *models, "1.5", *size, "--out", str(tmp_path / "b")]) == 2
    assert "guidance has 3 values for 2 models; give one for all, or one for each" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", *models, *size, "--out", str(tmp_path / "b"), "--strip", "strip.jpg"])
    assert "does not end in .png" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
