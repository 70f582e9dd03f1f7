"""Conditioning bit for bit as the pipeline makes it, and latents as its VAE does."""

import json
import shutil

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from koala.distill.data.encoders import encoder_files

TEXTS = ["a red circle on a cream background", "", "a small blue star left of a big green ring"]


def test_captions_are_what_the_pipeline_makes_of_prompts_bit_for_bit(embedded):
    pipeline = StableDiffusionXLPipeline.from_pretrained(embedded / "tiny-sdxl")
    context, pooled = encoder_files("tiny-sdxl", "cpu").load("cpu").captions(TEXTS)
    with torch.no_grad():
        expected, negative, expected_pooled, negative_pooled = pipeline.encode_prompt(TEXTS, device="cpu")
    for what, ours, theirs, none in (
        ("context", context, expected, negative),
        ("pooled", pooled, expected_pooled, negative_pooled),
    ):
        theirs = torch.stack([theirs[0], none[1], theirs[2]])  # "" is what guidance subtracts
        difference = (ours - theirs).abs()
        print(f"{what}: max {difference.max():.1e}, mean {difference.mean():.1e}")
        assert torch.equal(ours, theirs)
    assert not context[1].any() and context[0].any()


def test_the_empty_text_is_encoded_where_the_pipeline_encodes_it(embedded, tmp_path):
    """Some models say force_zeros_for_empty_prompt false."""
    folder = tmp_path / "model"
    shutil.copytree(embedded / "tiny-sdxl", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    context, pooled = encoder_files(str(folder), "cpu").load("cpu").captions([""])
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    with torch.no_grad():
        _, negative, _, negative_pooled = pipeline.encode_prompt(["a red circle"], device="cpu")
    assert torch.equal(context, negative) and torch.equal(pooled, negative_pooled) and context.any()


def test_latents_are_the_posteriors_mode_in_the_unets_scale(embedded):
    pipeline = StableDiffusionXLPipeline.from_pretrained(embedded / "tiny-sdxl")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    latents = encoder_files("tiny-sdxl", "cpu").load("cpu").pictures(pixels)
    prepared = pipeline.image_processor.preprocess(pixels.astype(np.float32) / 255)
    with torch.no_grad():
        expected = pipeline.vae.encode(prepared).latent_dist.mode() * pipeline.vae.config.scaling_factor
    difference = (latents - expected).abs()
    print(f"latents: max {difference.max():.1e}, mean {difference.mean():.1e}")
    assert latents.shape == (2, 4, 8, 12) and difference.max() < 1e-5
