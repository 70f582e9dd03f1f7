"""A folder is drawn by default as diffusers draws it, or what is drawn instead is told."""

import inspect
import json
import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from koala.models.library import Library
from koala.models.reading import load_noising
from koala.models.registry import find
from koala.models.schedulers import build_for_run
from koala.models.semantics import SAME_NOISE, with_class_defaults
from koala.request import SCHEDULERS, GenerationRequest
from koala.sampling.generate import generate

CONFIG = "scheduler/scheduler_config.json"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EULER = {"_class_name": "EulerDiscreteScheduler"} | BETAS


@pytest.fixture
def folder(embedded, tmp_path):
    """A pipeline with this scheduler's config, the rest of it an embedded model's."""

    def make(config: dict):
        place = tmp_path / "mine"
        place.mkdir()
        for part in (embedded / "tiny-koala-700m").iterdir():
            if part.name not in ("scheduler", "model_index.json"):
                (place / part.name).symlink_to(part)
        index = json.loads((embedded / "tiny-koala-700m" / "model_index.json").read_text())
        index |= {"scheduler": ["diffusers", config["_class_name"]]}  # the class that diffusers takes
        (place / "model_index.json").write_text(json.dumps(index))
        (place / "scheduler").mkdir()
        (place / CONFIG).write_text(json.dumps(config))
        return place

    return make


@pytest.mark.parametrize("kind", [k for k in SAME_NOISE if k != "DPMSolverSDEScheduler"])
def test_what_a_class_takes_for_granted_is_as_diffusers_says(kind):
    """By the signatures of diffusers; DPMSolverSDE's can be read with torchsde alone."""
    given = inspect.signature(getattr(diffusers, kind).__init__).parameters
    ours = with_class_defaults({"_class_name": kind})
    for name in ("timestep_spacing", "beta_start", "beta_end"):
        if name in given and name in ours:
            assert ours[name] == given[name].default
    if "beta_start" not in ours:  # Euler's
        assert (given["beta_start"].default, given["beta_end"].default) == (0.0001, 0.02)
    assert with_class_defaults({"_class_name": kind, "timestep_spacing": "trailing"})["timestep_spacing"] == "trailing"


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize(
    "config",
    [
        EULER,
        EULER | {"timestep_spacing": "leading"},
        EULER | {"timestep_spacing": "leading", "steps_offset": 1},
        EULER | {"timestep_spacing": "trailing"},
        EULER | {"use_karras_sigmas": True},
        {"_class_name": "LMSDiscreteScheduler"} | BETAS,
        {"_class_name": "EulerAncestralDiscreteScheduler"} | BETAS,
        {"_class_name": "DDIMScheduler", "steps_offset": 1} | BETAS,
        {"_class_name": "DDPMScheduler"} | BETAS,
    ],
)
def test_a_folders_own_timesteps_are_those_of_its_class(folder, config, steps):
    """Symptom: a config without timestep_spacing was drawn with trailing timesteps, diffusers draws linspace."""
    place = folder(config)
    stock = getattr(diffusers, config["_class_name"]).from_pretrained(place / "scheduler")
    ours = build_for_run(find(str(place)).scheduler, load_noising(place / "scheduler").config)
    stock.set_timesteps(steps)
    ours.set_timesteps(steps)
    assert torch.allclose(ours.timesteps.double(), stock.timesteps.double())


def test_leading_timesteps_of_a_pipeline_that_has_others_are_sdxls(folder):
    noising = load_noising(folder(EULER | {"timestep_spacing": "trailing"}) / "scheduler").config
    scheduler = build_for_run("euler-leading", noising)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == [float(40 * k + 1) for k in range(24, -1, -1)]


@pytest.mark.parametrize("config", [EULER, EULER | {"timestep_spacing": "leading"}], ids=["nothing said", "leading"])
def test_the_picture_by_default_is_the_one_that_diffusers_draws(folder, config, caplog):
    place = folder(config)
    stock = StableDiffusionXLPipeline.from_pretrained(place, torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4))
    settings = {"guidance_scale": 3.0, "width": 64, "height": 64, "num_inference_steps": 3}
    wanted = stock("a red circle", latents=noise, **settings).images[0]
    request = GenerationRequest(
        model=str(place), prompt="a red circle", seed=4, steps=3, guidance=3.0, width=64, height=64
    )
    result = generate(request, Library("cpu", dtype="float32").get(str(place))).images[0]
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(result)).max() <= 1
    assert not caplog.text


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler with leading timesteps; .* drawn with euler-leading here"),
        ({"_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler with linspace .* with euler-linspace"),
        (
            {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "leading"},
            "EulerAncestralDiscreteScheduler with leading timesteps; .* drawn with euler-leading here",
        ),
    ],
)
def test_a_scheduler_that_is_not_followed_is_told_once_with_the_names_of_all(folder, config, says, caplog):
    place, library = folder(config | BETAS), Library("cpu")
    for _ in range(2):
        library.get(str(place))
    (output,) = [record.getMessage() for record in caplog.records]
    assert re.search(says, output) and output.endswith(", ".join(SCHEDULERS)) and str(place / CONFIG) in output


def test_settings_of_known_models_are_their_authors_and_are_not_told(library, caplog):
    for name in ("tiny-sdxl", "tiny-koala-700m"):
        library.get(name)
    assert not caplog.text
