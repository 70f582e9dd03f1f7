"""Folders as others keep them draw the picture that stock diffusers draws from them, or their original."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

from koala.compress.surgery import compress
from koala.errors import UserError
from koala.files.tensorfiles import stored_in
from koala.models.cards import EMBEDDED
from koala.models.library import Library
from koala.models.locate import locate
from koala.models.networks import read_network
from koala.models.registry import find
from koala.models.schedulers import build
from koala.request import GenerationRequest
from koala.sampling.decoding import scaled, unscaled
from koala.sampling.generate import generate, run_pipeline

STUDENT = EMBEDDED / "tiny-koala-700m"
STEMS = {p: "diffusion_pytorch_model" if p in ("unet", "vae") else "model" for p in ("unet", "vae", "text_encoder_2")}
SIZE = {"steps": 2, "guidance": 2.0, "width": 64, "height": 64}


@pytest.fixture
def copy(tmp_path) -> Path:
    return shutil.copytree(STUDENT, tmp_path / "mine")


def say(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pixels(folder, library=None) -> np.ndarray:
    """Ours, of a folder."""
    asked = GenerationRequest(model=str(folder), prompt="a red circle", **SIZE)
    drawn = generate(asked, (library or Library("cpu", dtype="float32")).get(str(folder)), num_previews=0)
    return np.asarray(drawn.images[0], np.int16)


def stock(folder) -> np.ndarray:
    """diffusers' own pipeline, with the scheduler that the folder's card says and the noise of seed 0."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build(find(str(folder)).scheduler, pipeline.scheduler.config)
    source = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 4, 8, 8), generator=source)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "width": 64, "height": 64}
    return np.asarray(pipeline("a red circle", latents=noise, generator=[source], **settings).images[0], np.int16)


def shard(folder, part, index, name, count=2):
    """Cut a component's file into several."""
    file = folder / part / f"{STEMS[part]}.safetensors"
    tensors, table = load_file(file), {}
    file.unlink()
    for k in range(count):
        own = dict(list(tensors.items())[k::count])
        save_file(own, folder / part / name.format(k + 1), metadata={"format": "pt"})
        table |= dict.fromkeys(own, name.format(k + 1))
    (folder / part / index).write_text(json.dumps({"metadata": {}, "weight_map": table}))


def in_many_ways(folder: Path) -> Path:
    """The same model as others save it: shards of two old namings, torch.compile's names, no tokenizer_config.json."""
    name = "diffusion_pytorch_model-{:05}-of-00002.fp16.safetensors"
    shard(folder, "unet", "diffusion_pytorch_model.fp16.safetensors.index.json", name)
    shard(folder, "text_encoder_2", "model.safetensors.index.json", "model-{:05}-of-00002.safetensors")
    vae = folder / "vae" / f"{STEMS['vae']}.safetensors"
    save_file({f"module._orig_mod.{k}": v for k, v in load_file(vae).items()}, vae, metadata={"format": "pt"})
    text = folder / "text_encoder" / "model.safetensors"
    save_file({k.removeprefix("text_model."): v for k, v in load_file(text).items()}, text, metadata={"format": "pt"})
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (folder / tokenizer / "tokenizer_config.json").unlink()
    say(folder, "unet/config.json", sample_size=[24, 32])
    return folder


def test_a_folder_in_many_ways_of_others_draws_its_originals_picture_and_gives_a_student_for_all(
    copy, tmp_path, caplog
):
    in_many_ways(copy)
    card = find(str(copy))
    assert (card.width, card.height) == (256, 192) and locate(card).variant == "fp16"
    assert (pixels(copy) == pixels(STUDENT)).all()
    assert "tokenizer_2 does not say all of its tokenizer's settings; SDXL's are assumed" in caplog.text
    assert "pad_token '!'" in caplog.text
    compress(str(copy), "0,2,5/-/5+5,2+2,0+0", tmp_path / "student")
    say(tmp_path / "student", "unet/config.json", sample_size=32)
    assert (stock(tmp_path / "student") == stock(STUDENT)).all()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (
            "vae/config.json",
            {"latents_mean": [-1.6, 1.8, -1.3, 2.5], "latents_std": [8.4, 5.9, 6.5, 5.2], "scaling_factor": 0.5},
        ),
        ("model_index.json", {"force_zeros_for_empty_prompt": False}),
    ],
    ids=["latents by channel", "empty prompts are text"],
)
def test_what_a_folder_says_is_drawn_as_stock_diffusers_draws_it(copy, file, values):
    say(copy, file, **values)
    own = pixels(copy)
    assert np.abs(own - stock(copy)).max() <= 1
    assert (own != pixels(STUDENT)).any()


def test_two_models_of_the_same_encoders_keep_their_own_empty_prompts(copy):
    """Symptom: embeddings were remembered by the encoders alone, which both models share."""
    say(copy, "model_index.json", force_zeros_for_empty_prompt=False)
    library = Library("cpu", dtype="float32")
    asked = GenerationRequest(model="m", prompt="a red circle", scheduler="euler-trailing", **SIZE | {"steps": 1})
    models = [library.get(str(STUDENT)), library.get(str(copy))]
    assert models[0].pipeline.text_encoder is models[1].pipeline.text_encoder
    for model in models:
        place = model.place(asked)
        run_pipeline(model, asked, placement=replace(place, plan=replace(place.plan, text="released")))
    zeros, text = (result["negative_prompt_embeds"] for result, _ in library.embeddings.values())
    assert not zeros.any() and text.any()


def test_latents_are_whitened_by_channel_and_back(library):
    vae = library.get("tiny-koala-700m").pipeline.vae
    latents = torch.arange(16.0).view(1, 4, 2, 2)

    class Told(dict):
        __getattr__ = dict.__getitem__

    class OneVAE:
        config = Told(scaling_factor=0.5, latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0, 4.0, 5.0, 8.0])

    by_hand = (
        (latents - torch.tensor([1.0, 2, 3, 4])[:, None, None]) * 0.5 / torch.tensor([2.0, 4, 5, 8])[:, None, None]
    )
    torch.testing.assert_close(scaled(OneVAE, latents), by_hand)
    torch.testing.assert_close(unscaled(OneVAE, by_hand), latents)
    assert torch.equal(unscaled(vae, latents), latents / vae.config.scaling_factor)


def test_the_ancestral_sampler_takes_a_predicted_picture_by_its_formula():
    """k-diffusion's sample_euler_ancestral with a denoiser that says the picture itself."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = build("euler-ancestral-trailing", betas | {"prediction_type": "sample"})
    scheduler.set_timesteps(4)
    x, picture = torch.full((1, 4, 2, 2), 9.0), torch.full((1, 4, 2, 2), 0.5)
    for k, t in enumerate(scheduler.timesteps[:2]):
        high, low = scheduler.sigmas[k].item(), scheduler.sigmas[k + 1].item()
        up = low * (1 - (low / high) ** 2) ** 0.5
        down = (low**2 - up**2) ** 0.5
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        expected = x + (x - picture) / high * (down - high) + noise * up
        result = scheduler.step(picture, t, x, generator=torch.Generator().manual_seed(k)).prev_sample
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(scheduler.clean, picture)
        x = result


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shift_factor": 0.1159}, "shift_factor, which SDXL's pipelines do not apply"),
        ({"latents_mean": [0.1] * 4}, "latents_mean, which"),
        ({"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, ""),
    ],
)
def test_what_of_a_vaes_config_no_pipeline_applies_is_said(copy, caplog, values, says):
    say(copy, "vae/config.json", **values)
    read_network("vae", copy / "vae", stored_in((copy / "vae").glob("*.safetensors")), torch.float32)
    assert says in caplog.text and bool(caplog.text) == bool(says)


def test_a_tensor_that_two_shards_hold_is_refused(copy):
    shard(copy, "vae", "diffusion_pytorch_model.safetensors.index.json", "part-{:05}-of-00002.safetensors")
    files = sorted((copy / "vae").glob("*.safetensors"))
    for file, value in zip(files, (0.0, 1.0), strict=True):
        save_file(load_file(file) | {"quant_conv.bias": torch.full((8,), value)}, file)
    with pytest.raises(UserError, match="both hold quant_conv.bias, and only one can be right"):
        read_network("vae", copy / "vae", stored_in(files), torch.float32)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_network_is_what_the_libraries_read_from_the_same_file(part):
    """To the bit, buffers too, whatever they do between file and memory."""
    import diffusers
    import transformers

    kinds = ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection")
    kind = dict(zip(["unet", "vae", "text_encoder", "text_encoder_2"], kinds, strict=True))[part]
    folder = STUDENT / part
    reference = getattr(diffusers, kind, None) or getattr(transformers, kind)
    reference = reference.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    network = read_network(part, folder, stored_in(folder.glob("*.safetensors")), torch.bfloat16)
    for one, other in (
        (network.state_dict(), reference.state_dict()),
        (dict(network.named_buffers()), dict(reference.named_buffers())),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_a_student_without_a_tensor_is_not_filled_up_by_training(copy):
    """Symptom: a run's student was read without a look at what its file lacks, and went on from random weights."""
    diffusers_logging.set_verbosity_error()
    file = copy / "unet" / f"{STEMS['unet']}.safetensors"
    weights = load_file(file)
    del weights["conv_in.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{copy}/unet lacks one tensor, conv_in.bias; copy or download"):
        read_network("unet", copy / "unet", stored_in([file]), torch.float32)
