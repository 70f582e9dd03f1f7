"""A moved LoRA does to the student what the original does to the teacher, in every style of key."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from koala.cli.main import main
from koala.errors import UserError
from koala.lora.moving import lora_for, remap, remap_file, teacher_of
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from koala.unet.layer_map import layer_map, renamed
from koala.unet.original_layout import original_names
from koala.unet.specs import KOALA_700M, SDXL, TINY_KOALA_1B, TINY_KOALA_700M, TINY_SDXL

RANK, ALPHA = 2, 0.5


def modules(spec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**spec.config())
    return {n: tuple(m.weight.shape) for n, m in unet.named_modules() if getattr(m, "weight", None) is not None}


def factors(spec, pattern: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random (down, up) for every layer of a U-Net whose path the pattern finds."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for path, shape in modules(spec).items():
        if len(shape) > 1 and re.search(pattern, path):
            down = torch.randn(RANK, *shape[1:], generator=generator)
            up = torch.randn(shape[0], RANK, *[1] * len(shape[2:]), generator=generator)
            result[path] = down, up
    return result


def kohya(layers, rename=lambda path: path, alpha=ALPHA):
    keys = {}
    for path, (down, up) in layers.items():
        name = f"lora_unet_{rename(path).replace('.', '_')}"
        keys |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        keys[f"{name}.alpha"] = torch.tensor(alpha)
    return keys


def kohya_original(layers):
    return kohya(layers, lambda path: renamed(path, original_names(TINY_SDXL)))


def peft(layers):
    return {
        f"unet.{path}.{name}.weight": tensor
        for path, both in layers.items()
        for name, tensor in zip(("lora_A", "lora_B"), both, strict=True)
    }


def diffusers_older(layers):
    return {
        re.sub(r"lora_([AB])", lambda m: f"lora.{'down' if m[1] == 'A' else 'up'}", k): v
        for k, v in peft(layers).items()
    }


def processors(layers):
    """diffusers' first style: attn1.processor.to_out_lora.down.weight."""
    return {
        re.sub(r"(attn\d)\.(to_[qkv]|to_out)(\.0)?\.lora\.", r"\1.processor.\2_lora.", k): v
        for k, v in diffusers_older(layers).items()
    }


# The first and the sixth transformer block of each ten: the student has one of them.
ATTENTION = r"blocks\.[05]\.(attn[12]\.to_|ff\.net)|proj_(in|out)$"
STYLES = {
    "kohya, original numbers": (kohya_original, ATTENTION),
    "kohya, diffusers' numbers": (kohya, ATTENTION),
    "kohya with convolutions, original numbers": (
        kohya_original,
        ATTENTION + "|resnets|samplers|conv_in|conv_out|embedding",
    ),
    "kohya with convolutions, diffusers' numbers": (kohya, ATTENTION + "|resnets|samplers|time_embedding"),
    "peft": (peft, ATTENTION + "|resnets|samplers|conv_in|conv_out|embedding"),
    "diffusers, older": (diffusers_older, ATTENTION),
    "diffusers, processors": (processors, r"blocks\.[05]\.attn[12]\.to_"),
}


def by_hand(file) -> dict[str, torch.Tensor]:
    """Module path -> up @ down times alpha / rank, for a file of factors with diffusers' names."""
    weights = load_file(file)
    names = {path.replace(".", "_"): path for path in modules(TINY_SDXL)}
    names |= {"label_emb_0_0": "add_embedding.linear_1", "label_emb_0_2": "add_embedding.linear_2"}
    result = {}
    for key in weights:
        if key.startswith("lora_unet_") and key.endswith(".lora_up.weight"):
            name = key.removesuffix(".lora_up.weight")
            down, alpha = weights[f"{name}.lora_down.weight"], weights[f"{name}.alpha"].item()
            result[names[name.removeprefix("lora_unet_")]] = product(down, weights[key], alpha / len(down))
        elif key.endswith(".lora_B.weight"):
            down = weights[key.replace("lora_B", "lora_A")]
            result[key.removeprefix("unet.").removesuffix(".lora_B.weight")] = product(down, weights[key], 1.0)
    return result


def product(down, up, scale):
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:]) * scale


@pytest.mark.parametrize("style", STYLES)
def test_a_students_layer_changes_as_its_teachers_does(tmp_path, style):
    write, pattern = STYLES[style]
    layers = factors(TINY_SDXL, pattern)
    save_file(write(layers), tmp_path / "lora.safetensors")
    report = remap_file(tmp_path / "lora.safetensors", "koala-700m", tmp_path / "moved.safetensors")
    scale = ALPHA / RANK if write in (kohya, kohya_original) else 1.0
    theirs = {path: product(*both, scale) for path, both in layers.items()}
    own = by_hand(tmp_path / "moved.safetensors")
    table = layer_map(TINY_KOALA_700M, TINY_SDXL)
    expected = {path for path in modules(TINY_KOALA_700M) if renamed(path, table) in layers}
    assert own.keys() == expected
    differences = [(own[path] - theirs[renamed(path, table)]).abs().max() for path in own]
    print(f"{style}: {len(own)} layers, max difference {max(differences):.2e}, mean {sum(differences) / len(own):.2e}")
    assert max(differences) == 0
    assert len(report.kept) + len(report.moved) == len(own)
    assert len(report.dropped) == len(layers) - len(own)


def test_a_moved_lora_does_to_a_picture_what_the_original_does(tmp_path, library):
    original, moved = tmp_path / "lora.safetensors", tmp_path / "moved.safetensors"
    save_file(kohya_original(factors(TINY_SDXL, ATTENTION)), original)
    remap_file(original, "koala-700m", moved)
    model = library.get("tiny-koala-700m")

    def draw(file, strength):  # beyond 0.05, every pixel is black or white
        asked = dict(model=model.card.name, prompt="a red circle", steps=2, seed=3, lora=str(file))
        return np.asarray(generate(GenerationRequest(**asked, lora_strength=strength), model).images[0]).astype(int)

    plain, some, more = (draw(moved, strength) for strength in (0, 0.01, 0.05))
    assert 0.2 < np.abs(some - plain).mean() < np.abs(more - plain).mean()
    assert np.array_equal(more, draw(original, 0.05))


def test_what_was_moved_is_told_by_name_and_by_stage():
    layers = factors(TINY_SDXL, r"attn1\.to_q$")
    _, report = remap(peft(layers), TINY_KOALA_700M, TINY_SDXL)
    path = "up_blocks.0.attentions.{}.transformer_blocks.{}.attn1.to_q"
    assert report.moved[path.format(2, 4)] == path.format(1, 4)
    assert path.format(0, 4) in report.kept
    assert path.format(0, 5) in report.dropped
    assert path.format(1, 0) in report.dropped
    assert report.stages == {"DW-2": (2, 4), "DW-3": (5, 20), "MID": (0, 10), "UP-1": (10, 30), "UP-2": (4, 6)}
    assert (report.coverage, report.reach) == (21 / 70, 1)
    lines = "\n".join(report.lines())
    assert "70 layers of tiny-sdxl: 14 kept, 7 moved to another number, 49 dropped" in lines
    assert "coverage: 30.0% of the LoRA" in lines


def test_a_lora_of_one_block_reaches_a_part_of_the_student():
    layers = factors(TINY_SDXL, r"up_blocks\.0\.attentions\.[01]\..*attn1\.to_q$")
    _, report = remap(peft(layers), TINY_KOALA_1B, TINY_SDXL)
    assert (report.coverage, report.reach) == (6 / 20, 6 / 30)


def test_text_encoders_keep_their_part():
    text = {}
    for encoder, width in (("te1", 32), ("te2", 64)):
        for projection in ("q", "k", "v", "out"):
            name = f"lora_{encoder}_text_model_encoder_layers_0_self_attn_{projection}_proj"
            text[f"{name}.lora_down.weight"] = torch.randn(RANK, width)
            text[f"{name}.lora_up.weight"] = torch.randn(width, RANK)
            text[f"{name}.alpha"] = torch.tensor(ALPHA)
    result, report = remap(kohya(factors(TINY_SDXL, "attn1.to_q")) | text, TINY_KOALA_700M, TINY_SDXL)
    assert report.text_keys == 24
    assert all(result[key] is tensor for key, tensor in text.items())


def comfyuis_table() -> set[str]:
    """The layers that ComfyUI finds by diffusers' paths in a LoRA's keys; its rules, restated.

    It knows lora_unet_ with underscores for every layer. Behind unet. it has an attention's projections as parts of a
    processor, and their output without its number.
    """
    paths = modules(TINY_KOALA_700M)
    dotted = {f"unet.{path.replace('.to_', '.processor.to_')}" for path in paths}
    without = {path.removesuffix(".0") for path in dotted if path.endswith(".to_out.0")}
    return {f"lora_unet_{path.replace('.', '_')}" for path in paths} | dotted | without


def comfyui_reads(key: str, table: set[str]) -> bool:
    return re.sub(r"\.(lora_down|lora_up|lora_A|lora_B)\.weight$|\.alpha$", "", key) in table


def test_comfyui_reads_every_layer_of_a_moved_lora_unless_pefts_names_are_asked_for(tmp_path):
    """Symptom: a moved LoRA worked in ComfyUI on 54 of its 222 layers, without a word."""
    save_file(peft(factors(TINY_SDXL, r"attn[12]\.to_|proj_in$")), tmp_path / "lora.safetensors")
    table = comfyuis_table()
    for names, share in (("kohya", 1.0), ("peft", 0.1)):
        remap_file(tmp_path / "lora.safetensors", "koala-700m", tmp_path / f"{names}.safetensors", names=names)
        keys = load_file(tmp_path / f"{names}.safetensors").keys()
        read = [key for key in keys if comfyui_reads(key, table)]
        assert len(read) == len(keys) if share == 1 else 0 < len(read) <= share * len(keys)
    by_kohya, by_peft = (by_hand(tmp_path / f"{names}.safetensors") for names in ("kohya", "peft"))
    assert by_kohya.keys() == by_peft.keys() and all(torch.equal(by_kohya[path], by_peft[path]) for path in by_kohya)


def test_what_pefts_names_cannot_say_is_refused_with_what_can(tmp_path):
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    layers = {path: (torch.randn(RANK, 32), torch.randn(32, RANK))}
    save_file(
        kohya(layers) | {f"lora_unet_{path.replace('.', '_')}.dora_scale": torch.ones(1, 32)},
        tmp_path / "d.safetensors",
    )
    with pytest.raises(
        UserError, match=f"cannot say what this LoRA does to {path}: it has dora_scale; use --names kohya"
    ):
        remap_file(tmp_path / "d.safetensors", "koala-700m", tmp_path / "out.safetensors", names="peft")
    assert not (tmp_path / "out.safetensors").exists()
    arguments = ["--lora", str(tmp_path / "d.safetensors"), "--spec", "koala-700m", "--names", "kohya"]
    assert main(["lora", *arguments, "--out", str(tmp_path / "out.safetensors")]) == 0


def test_pefts_scale_in_the_metadata_is_not_lost(tmp_path):
    """A file that diffusers' trainers write has alpha in its metadata, and layer names that change."""
    layers = factors(TINY_SDXL, r"attn1\.to_q$")
    special = "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q"
    settings = {
        "unet.r": RANK,
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {special: 3},
        "unet.target_modules": sorted(layers),
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings), "trigger": "koala"}
    save_file(peft(layers), tmp_path / "lora.safetensors", metadata=metadata)
    remap_file(tmp_path / "lora.safetensors", "koala-700m", tmp_path / "moved.safetensors")
    theirs = {path: product(*both, (3 if path == special else 6) / RANK) for path, both in layers.items()}
    own = by_hand(tmp_path / "moved.safetensors")
    table = layer_map(TINY_KOALA_700M, TINY_SDXL)
    difference = max((own[path] - theirs[renamed(path, table)]).abs().max() for path in own)
    print(f"max difference {difference:.2e}")
    assert difference <= 1e-6 * max(delta.abs().max() for delta in own.values())
    with safe_open(tmp_path / "moved.safetensors", framework="pt") as file:
        assert file.metadata()["trigger"] == "koala"
        assert file.metadata()["koala_student"] == TINY_KOALA_700M.notation
        assert "lora_adapter_metadata" not in file.metadata()


def test_alpha_beside_pefts_factors_goes_into_them():
    """Some tools write it so; diffusers refuses such a file."""
    layers = factors(TINY_SDXL, r"attn1\.to_q$")
    keys = peft(layers) | {f"unet.{path}.alpha": torch.tensor(ALPHA) for path in layers}
    result, _ = remap(keys, TINY_KOALA_700M, TINY_SDXL, "peft")
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(result[f"unet.{path}.lora_B.weight"], layers[path][1] * ALPHA / RANK)
    assert not any(key.endswith("alpha") for key in result)


def test_dtype_and_values_are_the_files_own(tmp_path):
    keys = {k: v.bfloat16() for k, v in kohya_original(factors(TINY_SDXL, "attn2")).items()}
    save_file(keys, tmp_path / "lora.safetensors")
    remap_file(tmp_path / "lora.safetensors", "koala-1b", tmp_path / "moved.safetensors")
    result = load_file(tmp_path / "moved.safetensors")
    name = "lora_unet_{}_transformer_blocks_1_attn2_to_k.lora_up.weight"
    assert torch.equal(result[name.format("up_blocks_1_attentions_1")], keys[name.format("output_blocks_5_1")])
    assert {t.dtype for t in result.values()} == {torch.bfloat16}


def test_a_full_size_lora_is_known_by_its_shapes():
    path = "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k"
    keys = kohya({path: (torch.zeros(1, 2048), torch.zeros(1280, 1))})
    assert teacher_of(keys) == SDXL
    assert teacher_of(kohya(factors(TINY_SDXL, "attn2"))) == TINY_SDXL
    result, report = remap(keys, KOALA_700M, SDXL)
    assert report.moved == {path: path.replace("attentions.2", "attentions.1")}
    assert set(result) == {k.replace("attentions_2", "attentions_1") for k in keys}


def test_a_lora_on_its_own_teacher_is_the_same_lora():
    keys = peft(factors(TINY_SDXL, "attn1"))
    result, report = remap(keys, TINY_SDXL, TINY_SDXL, "peft")
    assert result.keys() == keys.keys()
    assert all(torch.equal(result[k], keys[k]) for k in keys)
    assert (report.moved, report.dropped, report.coverage) == ({}, (), 1)


def test_a_lora_that_was_moved_already_is_not_moved_twice(tmp_path):
    """attentions.1 of a moved one is the teacher's attentions.2; moved again it would be dropped."""
    original, moved = tmp_path / "lora.safetensors", tmp_path / "moved.safetensors"
    save_file(peft(factors(TINY_SDXL, r"up_blocks\.0\.attentions\.2.*attn1\.to_q$")), original)
    remap_file(original, "koala-700m", moved)
    result, report = lora_for(moved, TINY_KOALA_700M)
    assert (report.moved, report.dropped) == ({}, ())
    assert all("up_blocks_0_attentions_1" in key for key in result)
    first, _ = lora_for(original, TINY_KOALA_700M)
    assert first.keys() == result.keys()
    assert all(torch.equal(first[key], result[key]) for key in result)
    with pytest.raises(UserError, match="was moved onto the depths 0,2,5/-/5.5,2.2,0.0 already"):
        lora_for(moved, TINY_KOALA_1B)


def test_a_lora_trained_on_the_student_stays_as_it_is(tmp_path):
    keys = peft(factors(TINY_KOALA_700M, "attn1"))
    save_file(keys, tmp_path / "lora.safetensors")
    result, report = lora_for(tmp_path / "lora.safetensors", TINY_KOALA_700M)
    own = {f"lora_unet_{key.removeprefix('unet.').rpartition('.lora_')[0].replace('.', '_')}" for key in keys}
    assert {key.partition(".")[0] for key in result} == own
    assert (report.teacher, report.coverage) == ("tiny-koala-700m", 1)
