"""The shipped models: whole, small, shared byte for byte, and loadable by plain diffusers."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from koala.files.hashing import digest
from koala.models.cards import CARDS, EMBEDDED
from koala.models.library import Library

NAMES = [c.name for c in CARDS.values() if c.embedded]
SHARED = ("text_encoder/model", "text_encoder_2/model", "vae/diffusion_pytorch_model")

# Each model in its own precision and in fp16; what it says are the dtypes of the U-Nets.
PLAIN = """
import json, sys
import torch
from diffusers import StableDiffusionXLPipeline
dtypes = {}
for folder in sys.argv[1:]:
    for settings in ({}, {"torch_dtype": torch.float16}):
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, **settings)
        pipe.set_progress_bar_config(disable=True)
        picture = pipe("a red circle and an aardvark", num_inference_steps=2, height=64, width=64).images[0]
        assert picture.size == (64, 64)
        assert len(set(picture.getdata())) > 1, f"{folder}: one flat colour: the decode overflowed"
        dtypes.setdefault(folder, []).append(str(pipe.unet.dtype))
assert not [m for m in sys.modules if m.split(".")[0] == "koala"]
print(json.dumps(dtypes))
"""


@pytest.mark.parametrize("names", [NAMES[-1:], pytest.param(NAMES, marks=pytest.mark.slow)], ids=["one", "all"])
def test_plain_diffusers_loads_and_draws_without_our_code(names, tmp_path):
    folders = [str(EMBEDDED / name) for name in names]
    done = subprocess.run([sys.executable, "-c", PLAIN, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {folder: ["torch.float32", "torch.float16"] for folder in folders}


def test_files_are_small_and_the_folder_fits():
    sizes = {p: p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file()}
    assert max(sizes.values()) < 16 * 2**20
    assert sum(sizes.values()) < 75e6  # of the 80 MB of the whole repository


@pytest.mark.parametrize("part", SHARED)
def test_text_encoders_and_vae_are_byte_identical_copies(part):
    assert len({digest(EMBEDDED / name / f"{part}.safetensors") for name in NAMES}) == 1


def test_models_share_text_encoders_and_vae_in_memory_and_nothing_else():
    library = Library("cpu")
    first, second = (library.get(n).pipeline for n in ("tiny-sdxl", "tiny-koala-700m"))
    assert first.vae is second.vae
    assert first.text_encoder is second.text_encoder
    assert first.text_encoder_2 is second.text_encoder_2
    assert first.unet is not second.unet
    assert library.get("tiny-sdxl") is library.get("tiny-sdxl")


@pytest.mark.parametrize("name", NAMES)
def test_registered_parameters_are_the_networks_own(name):
    assert Library("cpu").get(name).parameters == CARDS[name].parameters


def test_trainers_conditioning_is_the_pipelines_bit_for_bit(monkeypatch):
    monkeypatch.syspath_prepend(str(EMBEDDED.parents[1] / "recipes" / "embedded"))
    from unet import text_encoders

    prompts = ["a red circle left of a blue square", "an aardvark, unseen 🐨"]
    encoders = text_encoders(EMBEDDED / "tiny-sdxl")
    pipeline = Library("cpu").get("tiny-sdxl").pipeline
    with torch.no_grad():
        theirs, empty, their_pooled, empty_pooled = pipeline.encode_prompt(prompt=prompts, device="cpu")
    context, pooled = encoders.captions(prompts)
    assert torch.equal(context, theirs), (context - theirs).abs().max()
    assert torch.equal(pooled, their_pooled), (pooled - their_pooled).abs().max()
    context, pooled = encoders.captions(["", ""])
    assert torch.equal(context, empty)  # no negative prompt: zeros
    assert torch.equal(pooled, empty_pooled)
    assert not context.any()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_text_encoders_have_the_names_that_every_transformers_reads(part):
    """transformers 5 saves some without their prefix; 4 then leaves them at random and only warns."""
    with safe_open(EMBEDDED / "tiny-sdxl" / part / "model.safetensors", framework="pt") as file:
        names = set(file.keys()) - {"text_projection.weight"}
    assert names and all(name.startswith("text_model.") for name in names)


def test_end_of_text_is_not_the_id_that_makes_clip_pool_elsewhere():
    pipeline = Library("cpu").get("tiny-sdxl").pipeline
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        assert encoder.config.eos_token_id == tokenizer.eos_token_id != 2
        assert tokenizer.model_max_length == 77
