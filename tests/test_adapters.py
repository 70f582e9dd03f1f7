"""A LoRA in a request: it changes the picture on teacher and student, and leaves no trace behind."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from koala.generate import generate
from koala.request import GenerationRequest, RequestError


@pytest.fixture(scope="module")
def lora(tmp_path_factory, library):
    """A LoRA of every self-attention's to_q of the embedded teacher, in kohya's style."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, module in library.get("tiny-sdxl").pipeline.unet.named_modules():
        if name.endswith("attn1.to_q"):
            key = "lora_unet_" + name.replace(".", "_")
            weights[f"{key}.lora_down.weight"] = 0.2 * torch.randn(2, module.in_features, generator=generator)
            weights[f"{key}.lora_up.weight"] = 0.2 * torch.randn(module.out_features, 2, generator=generator)
            weights[f"{key}.alpha"] = torch.tensor(2.0)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(weights, path)
    return path


def request(name, **change):
    return GenerationRequest(**dict(model=name, prompt="a red circle", steps=2, seed=1) | change)


def pixels(result):
    return np.asarray(result.images[0]).astype(int)


@pytest.mark.parametrize(
    ("name", "layers"), [("tiny-sdxl", "70 of its 70"), ("tiny-koala-1b", "30 of its 70"), ("tiny-koala-700m", "21 of")]
)
def test_a_lora_changes_the_picture_and_only_while_it_is_asked_for(library, lora, name, layers):
    model = library.get(name)
    before = {k: v.clone() for k, v in model.pipeline.unet.state_dict().items()}
    plain = generate(request(name), model)
    styled = generate(request(name, lora=str(lora)), model)
    half = generate(request(name, lora=str(lora), lora_strength=0.5), model)
    none = generate(request(name, lora=str(lora), lora_strength=0), model)
    after = model.pipeline.unet.state_dict()
    assert styled.lora_layers.startswith(layers)
    assert len(styled.lora_sha256) == 64 and plain.lora_sha256 is None
    assert np.abs(pixels(styled) - pixels(plain)).mean() > np.abs(pixels(half) - pixels(plain)).mean() > 0
    assert np.array_equal(pixels(none), pixels(plain))
    again = generate(request(name, lora=str(lora)), model)  # from the weights that were kept
    assert np.array_equal(pixels(again), pixels(styled)) and len(model.adapted) == 1
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert np.array_equal(pixels(plain), pixels(generate(request(name), model)))


def test_a_failed_run_takes_the_lora_off_again(library, lora):
    model = library.get("tiny-koala-700m")
    before = {k: v.clone() for k, v in model.pipeline.unet.state_dict().items()}

    def stop(step):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(request("tiny-koala-700m", lora=str(lora)), model, on_step=stop)
    after = model.pipeline.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_lora_that_is_not_there_or_not_whole_is_said(library, tmp_path):
    model = library.get("tiny-koala-700m")
    asked = request("tiny-koala-700m", lora=str(tmp_path / "none.safetensors"))
    with pytest.raises(RequestError, match="no file"):
        generate(asked, model)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(RequestError, match="safetensors"):
        generate(dataclasses.replace(asked, lora=str(broken)), model)
    assert generate(request("tiny-koala-700m"), model).images
