"""The files that other programs are given, against what those programs were seen to expect."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from koala.unet.costs import parameters
from koala.unet.specs import KOALA_700M, SDXL
from recipes.clients.files import shapes_of, write_loras, write_small

REPORTS = Path(__file__).parents[2] / "docs" / "measurements"
PREFIX = "model.diffusion_model."


@pytest.mark.parametrize(("spec", "count"), [(SDXL, 2513), (KOALA_700M, 1427)], ids=["sdxl", "koala-700m"])
def test_a_skeleton_has_every_tensor_of_a_whole_file(spec, count):
    """2,513 is what SDXL's published file has without its buffers; of KOALA-700M ten are the identity's."""
    shapes = shapes_of(spec)
    unet = {name: torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(PREFIX)}
    identity = sum(n for name, n in unet.items() if name.startswith(f"{PREFIX}middle_block.0.")) * (
        spec.mid_depth is None
    )
    assert (len(shapes), sum(unet.values()) - identity) == (count, parameters(spec))


def test_the_small_network_has_an_identity_and_its_numbers(tmp_path):
    write_small(tmp_path)
    weights, call = load_file(tmp_path / "small.safetensors"), load_file(tmp_path / "small-call.safetensors")
    assert not weights[f"{PREFIX}middle_block.0.out_layers.3.weight"].any()
    assert call["out"].shape == call["sample"].shape and call["out"].std() > 0.1


def test_a_lora_of_all_attention_layers_is_moved_in_both_styles(tmp_path):
    write_loras(tmp_path)
    counts = [len(load_file(tmp_path / f"lora-{names}.safetensors")) for names in ("kohya", "peft")]
    assert counts == [3 * 222, 2 * 222]  # as ComfyUI was seen to count the layers of KOALA-700M; kohya's have alpha


def test_the_reports_say_what_the_page_says():
    comfyui, forge = (
        json.loads((REPORTS / f"clients-{name}.json").read_text())["files"] for name in ("comfyui", "forge")
    )
    assert comfyui["loras"] == {"kohya": {"layers": 222, "read": 222}, "peft": {"layers": 222, "read": 54}}
    assert [comfyui[name]["detected"] for name in ("koala-700m", "koala-1b", "sdxl")] == [
        "KOALA_700M",
        "KOALA_1B",
        "SDXL",
    ]
    for report in (comfyui, forge):
        for name in ("koala-700m", "koala-1b", "sdxl"):
            assert [report[name][key] for key in ("missing", "unexpected", "wrong_shapes")] == [[], [], []]
    errors = forge["small"]["relative_error"]
    assert errors["with the middle block"] < 1e-6 and round(errors["without it"], 1) == 0.2
