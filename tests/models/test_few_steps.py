"""A few-step model is sampled as it was distilled for: recognised by its koala.json, its scheduler or its name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from koala.compress.surgery import compress
from koala.convert.to_folder import unpack
from koala.convert.to_single_file import _SAMPLERS, write_single_file
from koala.errors import UserError
from koala.models.layout import DRAWING, SURGERY
from koala.models.library import Library
from koala.models.registry import find
from koala.models.schedulers import build, build_for_run, clean_estimate
from koala.request import SCHEDULERS, GenerationRequest
from koala.sampling.generate import generate, run_pipeline
from koala.sampling.resolve import resolve
from koala.unet.specs import KOALA_700M, SDXL

SCHEDULER = "scheduler/scheduler_config.json"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"} | BETAS
TRAILING = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"} | BETAS
TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"} | BETAS
CUT = "0,1,1/-/1+1,1+1,0+0"


def write(file: Path, values: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def a_copy(embedded: Path, folder: Path, scheduler: dict) -> Path:
    """An embedded model's folder with another scheduler, as diffusers reads it."""
    shutil.copytree(embedded / "tiny-koala-700m", folder)
    index = json.loads((folder / "model_index.json").read_text())
    write(folder / "model_index.json", index | {"scheduler": ["diffusers", scheduler["_class_name"]]})
    write(folder / SCHEDULER, scheduler)
    return folder


def described(folder: Path, spec, scheduler: dict, *, index: dict | None = None, **unet) -> Path:
    """A folder of configs without weights."""
    write(folder / "unet" / "config.json", spec.config() | {"sample_size": 128} | unet)
    write(folder / SCHEDULER, scheduler)
    write(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"} | (index or {}))
    return folder


def sampled(card) -> tuple:
    return card.scheduler, card.noising, card.steps, card.guidance, card.negative_prompt, card.width, card.height


# --- LCM and TCD


@pytest.mark.parametrize("bare", [False, True], ids=["betas written", "its class's own betas"])
@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler"])
def test_a_consistency_models_latents_are_those_of_diffusers_own_pipeline(embedded, tmp_path, kind, bare, caplog):
    folder = a_copy(embedded, tmp_path / "mine", {"_class_name": kind} | ({} if bare else BETAS))
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    assert type(stock.scheduler).__name__ == kind
    stock.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(4)
    noise = torch.randn((1, 4, 8, 8), generator=source)
    settings = {"num_inference_steps": 4, "guidance_scale": 0.0, "width": 64, "height": 64}
    wanted = stock("a red circle", latents=noise, generator=source, output_type="latent", **settings).images

    model = Library("cpu", dtype="float32").get(str(folder))
    asked = GenerationRequest(model=str(folder), prompt="a red circle", seed=4, width=64, height=64)
    with torch.inference_mode(), model.lock:
        pipeline, latents = run_pipeline(model, resolve(asked, model.card))
    assert pipeline.scheduler.timesteps.tolist() == [999, 759, 499, 259]  # the grid of 50, not trailing's 749 and 249
    assert torch.equal(latents, wanted)
    torch.testing.assert_close(model.pipeline.scheduler.alphas_cumprod, stock.scheduler.alphas_cumprod)
    assert not caplog.text


def test_a_consistency_model_shows_its_previews_and_is_timed_by_its_calls(embedded, tmp_path):
    folder = a_copy(embedded, tmp_path / "mine", {"_class_name": "LCMScheduler"} | BETAS)
    asked, seen = GenerationRequest(model=str(folder), prompt="a red circle", width=64, height=64), []
    result = generate(asked, Library("cpu").get(str(folder)), on_step=seen.append, num_previews=3)
    assert [step.index for step in seen] == [1, 2, 3, 4] and result.timing.unet_calls == 4
    assert [step.preview is not None for step in seen] == [True, True, True, False]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_clean_estimate_of_a_network_that_knows_the_picture_is_the_picture(name):
    """The noise that a known picture's state holds, by DDPM's formula, at every step of every scheduler."""
    scheduler = build(name, LEADING)
    scheduler.set_timesteps(4)
    sources = torch.Generator().manual_seed(0)
    picture, state = torch.randn(2, 4, 8, 8, generator=sources), torch.randn(2, 4, 8, 8, generator=sources)
    signal = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    state = state * scheduler.init_noise_sigma
    extra = {} if name.startswith(("euler-trailing", "euler-leading", "euler-lin", "ddim")) else {"generator": sources}
    for index, t in enumerate(scheduler.timesteps):
        seen, left = scheduler.scale_model_input(state, t), signal[int(t)]
        noise = ((seen - left.sqrt() * picture) / (1 - left).sqrt()).float()
        after = scheduler.step(noise, t, state, return_dict=False, **extra)[0]
        clean = clean_estimate(scheduler, state, after, index)
        torch.testing.assert_close(clean, picture, rtol=0, atol=2e-3)
        state = after


def test_lcm_is_refused_on_the_straight_path_and_the_remedy_works():
    card = find("tiny-koala-700m")
    assert card.noising == "straight"
    asked = GenerationRequest(model=card.name, prompt="a red circle", scheduler="lcm")
    with pytest.raises(UserError, match="lcm cannot draw with Tiny KOALA-700M: .*--scheduler euler-trailing$"):
        resolve(asked, card)
    assert resolve(replace(asked, scheduler="euler-trailing"), card).scheduler == "euler-trailing"


def test_tcd_without_fresh_noise_goes_eulers_way_on_its_own_grid():
    """So it may draw on the straight path: z + (sigma' - sigma) F, with z the state divided by the root of abar."""
    scheduler = build("tcd", LEADING)
    scheduler.set_timesteps(4)
    state = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal = scheduler.alphas_cumprod.double()
    sigma = ((1 - signal) / signal).sqrt()
    z = state / signal[999].sqrt()
    for t, then in zip((999, 759, 499, 259), (759, 499, 259, 0), strict=True):
        predicted = torch.sin(3 * z / (1 + sigma[t] ** 2).sqrt())
        state = scheduler.step(predicted, torch.tensor(t), state, eta=0.0, return_dict=False)[0]
        z = z + (sigma[then] - sigma[t]) * predicted
        torch.testing.assert_close(state / signal[then].sqrt(), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "most"), [(LEADING, 50), (LEADING | {"original_inference_steps": 8}, 8)])
@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_more_steps_than_were_distilled_are_refused(name, config, most):
    build_for_run(name, config, most).set_timesteps(most)
    with pytest.raises(UserError, match=f"out of the {most} on .* at most {most}, or .* --scheduler euler-trailing"):
        build_for_run(name, config, most + 1)


def test_a_schedule_that_ends_in_pure_noise_is_refused_where_noise_is_predicted():
    silent = LEADING | {"rescale_betas_zero_snr": True}
    for name in ("lcm", "tcd", "ddim-trailing"):
        with pytest.raises(UserError, match=r"scheduler \(euler-trailing, .*\); or, where") as output:
            build_for_run(name, silent)
        assert "lcm," not in str(output.value) and "tcd" not in str(output.value).partition("(euler")[2]
        build_for_run(name, silent | {"prediction_type": "v_prediction"})
    build_for_run("euler-trailing", silent)


@pytest.mark.parametrize("steps", [0, 1, 1001, "50", 4.5])
def test_a_grid_that_cannot_be_is_damage(embedded, tmp_path, steps):
    config = {"_class_name": "LCMScheduler", "original_inference_steps": steps} | BETAS
    folder = a_copy(embedded, tmp_path / "mine", config)
    with pytest.raises(UserError, match="original_inference_steps"):
        Library("cpu").get(str(folder))


# --- who says how a model is sampled


@pytest.mark.parametrize(
    ("name", "spec", "scheduler", "expected"),
    [
        ("sdxl_lightning_4step", SDXL, LEADING, ("euler-trailing", 4, 0.0)),
        ("SDXL-Lightning-8-Steps", SDXL, TRAILING, ("euler-trailing", 8, 0.0)),
        ("my sdxl lightning 2step", SDXL, LEADING, ("euler-trailing", 2, 0.0)),
        ("sdxl-turbo", SDXL, TURBO, ("euler-ancestral-trailing", 4, 0.0)),
        ("sdxl-turbo-copy", SDXL, LEADING, ("euler-trailing", 4, 0.0)),
        ("koala-lightning-700m", KOALA_700M, LEADING, ("euler-trailing", 10, 3.5)),
        ("LCM-SDXL", SDXL, {"_class_name": "LCMScheduler"}, ("lcm", 4, 0.0)),
        ("pcm", SDXL, {"_class_name": "TCDScheduler"}, ("tcd", 4, 0.0)),
        ("sdxl-lightning-8step", SDXL, {"_class_name": "LCMScheduler"}, ("lcm", 8, 0.0)),
        # not told apart from a model of many steps, which is what they are taken for
        ("dreamer-turbo", SDXL, LEADING, ("euler-leading", 25, 7.5)),
        ("lightning", SDXL, TRAILING, ("euler-trailing", 25, 7.5)),
        ("sdxl-lightning-4step", KOALA_700M, LEADING, ("euler-leading", 25, 7.5)),  # another network
    ],
)
def test_a_folder_that_somebody_brings(tmp_path, name, spec, scheduler, expected, caplog):
    card = find(str(described(tmp_path / name, spec, scheduler)))
    assert (card.scheduler, card.steps, card.guidance) == expected
    warned = expected[1] < 25 and "LCM-SDXL" not in name and name != "pcm"
    assert ("is taken for" in caplog.text) is warned
    assert ("give --steps and --guidance" in caplog.text) is warned


def test_a_name_in_the_configs_counts_too(tmp_path):
    folder = described(
        tmp_path / "mine", SDXL, TURBO, index={"_name_or_path": "stabilityai/sdxl-turbo"}, sample_size=64
    )
    assert sampled(find(str(folder))) == ("euler-ancestral-trailing", "ddpm", 4, 0.0, "", 512, 512)
    other = described(tmp_path / "student", KOALA_700M, LEADING, _name_or_path="runs/sdxl_lightning_4step_laion")
    assert find(str(other)).steps == 25


def test_trailing_timesteps_alone_are_told(embedded, tmp_path, caplog):
    Library("cpu").get(str(a_copy(embedded, tmp_path / "mine", TRAILING)))
    assert "has trailing timesteps, as few-step models have" in caplog.text
    caplog.clear()
    silent = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}  # which need them
    Library("cpu").get(str(a_copy(embedded, tmp_path / "silent", TRAILING | silent)))
    assert not caplog.text


def test_a_consistency_models_scheduler_is_stronger_than_the_cut_before_it(tmp_path):
    folder = described(tmp_path / "mine", KOALA_700M, {"_class_name": "LCMScheduler"})
    write(folder / SURGERY, {"teacher": "sdxl-lightning-4step"})
    card = find(str(folder))
    assert (card.scheduler, card.steps, card.guidance) == ("lcm", 4, 0.0)
    assert (card.teacher, card.draws_unguided) == ("sdxl-lightning-4step", True)
    write(folder / SCHEDULER, LEADING)
    card = find(str(folder))
    assert (card.scheduler, card.steps, card.guidance) == ("euler-trailing", 10, 3.5)  # KOALA-Lightning-700M's


def test_every_scheduler_has_words_for_a_files_header():
    """Symptom: a koala.json with DDIM could not become a single file."""
    assert _SAMPLERS.keys() == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", ["ddim-trailing", "tcd"])
def test_settings_go_through_a_cut_a_single_file_and_back(embedded, tmp_path, scheduler):
    folder = a_copy(embedded, tmp_path / "mine", LEADING)
    defaults = {"scheduler": scheduler, "steps": 3, "guidance": 0, "width": 128, "height": 192}
    write(
        folder / DRAWING, {"defaults": defaults, "noising": "straight", "negative_prompt": "", "teacher": "tiny-sdxl"}
    )
    expected = scheduler, "straight", 3, 0, "", 128, 192
    assert sampled(find(str(folder))) == expected
    compress(str(folder), CUT, tmp_path / "student")
    write_single_file(str(tmp_path / "student"), tmp_path / "one.safetensors")
    unpack(tmp_path / "one.safetensors", tmp_path / "again")
    compress(str(tmp_path / "again"), CUT, tmp_path / "last")
    for written in ("student", "one.safetensors", "again", "last"):
        card = find(str(tmp_path / written))
        assert sampled(card) == expected and card.draws_unguided and card.teacher == "tiny-sdxl"


def test_a_consistency_models_scheduler_goes_through_a_cut_a_single_file_and_back(embedded, tmp_path):
    config = {"_class_name": "LCMScheduler", "original_inference_steps": 25} | BETAS
    folder = a_copy(embedded, tmp_path / "mine", config)
    compress(str(folder), CUT, tmp_path / "student")
    assert not (tmp_path / "student" / DRAWING).exists()  # its scheduler says it
    write_single_file(str(tmp_path / "student"), tmp_path / "one.safetensors")
    unpack(tmp_path / "one.safetensors", tmp_path / "again")
    pictures = []
    for written in ("student", "one.safetensors", "again"):
        card = find(str(tmp_path / written))
        assert (card.scheduler, card.steps, card.guidance) == ("lcm", 4, 0.0)
        asked = GenerationRequest(model=card.name, prompt="a red circle", width=64, height=64)
        model = Library("cpu", dtype="float32").get(card.name)
        assert model.pipeline.scheduler.config["original_inference_steps"] == 25
        pictures.append(np.asarray(generate(asked, model).images[0]))
    assert all(np.array_equal(pictures[0], other) for other in pictures)


def test_a_student_of_a_student_is_sampled_as_both(tmp_path):
    """Symptom: its teacher has no name here, so it was drawn as a plain SDXL, without the straight path."""
    compress("tiny-sdxl", "koala-1b", tmp_path / "one")
    compress(str(tmp_path / "one"), "koala-700m", tmp_path / "two")
    compress(str(tmp_path / "two"), CUT, tmp_path / "three")
    expected = sampled(find("tiny-sdxl"))
    assert expected[:4] == ("euler-ancestral-trailing", "straight", 25, 2.0)
    assert [sampled(find(str(tmp_path / name))) for name in ("one", "two", "three")] == [expected] * 3
    assert (tmp_path / "three" / DRAWING).is_file()


def test_the_student_of_a_copy_that_was_known_by_its_name(embedded, tmp_path, monkeypatch):
    """The student's own name and shape say nothing, so it gets a koala.json."""
    tiny = find("tiny-koala-700m")
    few = replace(tiny, name="tiny-few", steps=2, guidance=0.0, noising="ddpm", scheduler="euler-trailing")
    monkeypatch.setitem(find.__globals__["CARDS"], "tiny-few", few)
    folder = a_copy(embedded, tmp_path / "Tiny_Few copy", LEADING)
    compress(str(folder), CUT, tmp_path / "student")
    card = find(str(tmp_path / "student"))
    assert (card.scheduler, card.steps, card.guidance) == ("euler-trailing", 2, 0.0)


def test_an_export_keeps_its_settings_and_its_noising(exported_700m, tmp_path):
    folder = shutil.copytree(exported_700m, tmp_path / "export")
    manifest = json.loads((folder / "export.json").read_text())
    manifest["defaults"] |= {"scheduler": "tcd", "steps": 2, "guidance": 0.0}
    write(folder / "export.json", manifest)
    card = find(str(folder))
    assert (card.scheduler, card.steps, card.guidance, card.noising) == ("tcd", 2, 0.0, "straight")
    with pytest.raises(UserError, match="lcm cannot draw"):
        resolve(GenerationRequest(model=str(folder), prompt="a", scheduler="lcm"), card)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_hub_id_is_sampled_as_its_files_say_once_they_are_here(tmp_path, monkeypatch, revision):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert sampled(find("someone/consistent"))[:4] == ("euler-trailing", "ddpm", 25, 7.5)
    place = tmp_path / "models--someone--consistent"
    described(place / "snapshots" / "abc", SDXL, {"_class_name": "LCMScheduler"}, sample_size=64)
    (place / "refs").mkdir()
    (place / "refs" / (revision or "main")).write_text("abc")
    name = f"someone/consistent@{revision}" if revision else "someone/consistent"
    card = find(name)
    assert sampled(card) == ("lcm", "ddpm", 4, 0.0, "", 512, 512)
    assert (card.name, card.source, card.revision, card.on_hub) == (name, "someone/consistent", revision, True)


def test_pixels_of_trailing_euler_are_diffusers_for_a_student_of_few_steps(embedded, tmp_path):
    """What a phased student's folder says, drawn by both without a word on how."""
    folder = a_copy(embedded, tmp_path / "mine", TRAILING)
    defaults = {"scheduler": "euler-trailing", "steps": 2, "guidance": 0, "width": 64, "height": 64}
    write(folder / DRAWING, {"defaults": defaults})
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    assert isinstance(stock.scheduler, EulerDiscreteScheduler)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4))
    wanted = stock("a red circle", latents=noise, num_inference_steps=2, guidance_scale=0, width=64, height=64).images[
        0
    ]
    asked = GenerationRequest(model=str(folder), prompt="a red circle", seed=4)
    drawn = generate(asked, Library("cpu", dtype="float32").get(str(folder))).images[0]
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(drawn)).max() <= 1
