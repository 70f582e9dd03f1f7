"""A LoRA in a request: it changes the picture on teacher and student, and leaves no trace behind."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from koala.errors import UserError
from koala.models import library as loading
from koala.request import GenerationRequest
from koala.sampling import adapters
from koala.sampling.generate import generate


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
    ("name", "layers"),
    [
        ("tiny-sdxl", "70 of its 70"),
        pytest.param("tiny-koala-1b", "30 of its 70", marks=pytest.mark.slow),
        ("tiny-koala-700m", "21 of"),
    ],
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


def test_a_file_may_be_named_in_capitals(library, lora, tmp_path):
    shutil.copy(lora, tmp_path / "STYLE.SAFETENSORS")
    drawn = generate(
        request("tiny-koala-700m", lora=str(tmp_path / "STYLE.SAFETENSORS")), library.get("tiny-koala-700m")
    )
    assert drawn.lora_layers.startswith("21 of its 70")


class Reads:
    """How often a LoRA's file was read and fitted."""

    def __init__(self, monkeypatch):
        self.count = 0

        def counted(read):
            def reading(*args):
                self.count += 1
                return read(*args)

            return reading

        monkeypatch.setattr(adapters, "layers_for", counted(adapters.layers_for))
        monkeypatch.setattr(adapters, "changed", counted(adapters.changed))
        monkeypatch.setattr(loading, "changed_parameters", counted(loading.changed_parameters))


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_the_same_lora_once_more_is_neither_read_nor_fitted(library, lora, monkeypatch, tmp_path, strength):
    """Symptom: 1.2 s of every run on SDXL went into a LoRA that was on it a moment before."""
    model = library.get("tiny-koala-700m")
    model.adapted.clear()

    def asked(file, strength):
        return request("tiny-koala-700m", lora=str(file), lora_strength=strength, steps=1, width=64, height=64)

    reads = Reads(monkeypatch)
    first = generate(asked(lora, strength), model)
    assert reads.count > 0
    reads.count = 0
    copy = shutil.copy(lora, tmp_path / "another name.safetensors")
    for file in (lora, copy):
        again = generate(asked(file, strength), model)
        assert np.array_equal(pixels(again), pixels(first))
        assert (again.lora_layers, again.lora_sha256) == (first.lora_layers, first.lora_sha256)
    assert reads.count == 0
    generate(asked(lora, 0.5), model)
    assert reads.count > 0


def weight_during(model, file):
    """One weight of a U-Net while a LoRA is on it."""
    with adapters.adapted(model, request("tiny-sdxl", lora=str(file))):
        return model.pipeline.unet.get_parameter(f"{LAYER}.weight").clone()


LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def test_a_file_that_was_replaced_is_read_again(library, tmp_path):
    """By its content: the same name, size and time of change tell nothing of it."""
    model, file = library.get("tiny-sdxl"), tmp_path / "style.safetensors"
    plain = model.pipeline.unet.get_parameter(f"{LAYER}.weight")
    for scale in (1.0, 2.0, 3.0):
        changes = {"lora_down.weight": torch.ones(1, plain.shape[1]), "lora_up.weight": torch.ones(plain.shape[0], 1)}
        changes["lora_up.weight"] *= scale
        save_file({f"lora_unet_{LAYER.replace('.', '_')}.{k}": t for k, t in changes.items()}, tmp_path / "new")
        os.utime(tmp_path / "new", ns=(10**18, 10**18))
        if scale < 3:
            (tmp_path / "new").replace(file)
        else:  # into the very file
            file.write_bytes((tmp_path / "new").read_bytes())
            os.utime(file, ns=(10**18, 10**18))
        assert torch.allclose(weight_during(model, file), plain + scale)


def test_peft_s_settings_beside_a_file_are_part_of_it(library, tmp_path):
    """Symptom: a corrected alpha did not reach a model that had drawn with the wrong one."""
    model, file = library.get("tiny-sdxl"), tmp_path / "adapter_model.safetensors"
    plain = model.pipeline.unet.get_parameter(f"{LAYER}.weight")
    both = {"lora_A": torch.ones(1, plain.shape[1]), "lora_B": torch.ones(plain.shape[0], 1)}
    save_file({f"base_model.model.{LAYER}.{name}.weight": t for name, t in both.items()}, file)
    for alpha in (1, 3):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": alpha}))
        assert torch.allclose(weight_during(model, file), plain + alpha)


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
    with pytest.raises(UserError, match="no file"):
        generate(asked, model)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(UserError, match="safetensors"):
        generate(dataclasses.replace(asked, lora=str(broken)), model)
    assert generate(request("tiny-koala-700m"), model).images
