"""LoRAs that cannot be moved, and files that are none: each is refused with the reason."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from koala.errors import UserError
from koala.lora.moving import lora_for, read_lora, remap, remap_file
from koala.unet.specs import SDXL, SPECS, TINY_KOALA_700M, TINY_SDXL
from tests.files.test_tensorfiles import Bomb
from tests.lora.test_lora import RANK, factors, kohya, peft


def test_a_real_lora_on_an_embedded_model_is_refused(tmp_path):
    path = "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k"
    save_file(kohya({path: (torch.zeros(1, 2048), torch.zeros(1280, 1))}), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="for sdxl, 320 channels wide .+ and tiny-koala-700m has 16"):
        lora_for(tmp_path / "lora.safetensors", TINY_KOALA_700M)


def stable_diffusion_1():
    """Its names are those of SDXL's U-Net, its widths and stages are not."""
    shapes = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 768)}
    shapes |= {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)}
    return kohya({path: (torch.zeros(RANK, i), torch.zeros(o, RANK)) for path, (o, i) in shapes.items()})


def flux():
    path = "transformer.single_transformer_blocks.0.attn.to_q"
    return {f"{path}.lora_A.weight": torch.zeros(4, 3072), f"{path}.lora_B.weight": torch.zeros(3072, 4)}


def half():
    keys = kohya(factors(TINY_SDXL, "attn1"))
    return {
        k: v for k, v in keys.items() if not k.endswith("attentions_0_transformer_blocks_1_attn1_to_k.lora_up.weight")
    }


def text_only():
    return {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 32)}


def only_mid():
    return kohya(factors(TINY_SDXL, "^mid_block.*attn1"))


def loha():
    return {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.zeros(2, 2)}


def whole_model():
    return {"unet.mid_block.attentions.0.proj_in.weight": torch.zeros(64, 64)}


def twice():
    layers = factors(TINY_SDXL, r"mid_block.*attn1\.to_q$")
    return kohya(layers) | {k: v.clone() for k, v in peft(layers).items()}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            stable_diffusion_1,
            "for another architecture: 2 of its 2 layers fit no layer of sdxl, for example down_blocks",
        ),
        (flux, "for another architecture: 1 of its 1 layers fit no layer of sdxl, for example transformer_single"),
        (half, "not whole: .+attn1.to_k lacks its up factor"),
        (text_only, "adapts no layer of a U-Net"),
        (dict, "adapts no layer of a U-Net"),
        (only_mid, "nothing of this LoRA is left on tiny-koala-700m: it adapts 40 layers of tiny-sdxl"),
        (loha, "not whole: mid_block.attentions.0.proj_in lacks its hada_w1_b factor"),
        (whole_model, "proj_in.weight is not part of a LoRA that is known here"),
        (twice, "two tensors for one place"),
    ],
)
def test_what_cannot_be_moved_is_refused(tmp_path, make, says):
    save_file(make(), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=says):
        remap_file(tmp_path / "lora.safetensors", "koala-700m", tmp_path / "moved.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]


def test_a_lora_of_a_named_other_teacher_is_refused():
    with pytest.raises(UserError, match="fit no layer of sdxl"):
        remap(kohya(factors(TINY_SDXL, "attn1")), SPECS["koala-700m"], SDXL)


def test_broken_and_unsafe_files_are_refused(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file(kohya(factors(TINY_SDXL, "attn1")), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "lora.pt").write_bytes(pickle.dumps(Bomb()))
    for name, says in {
        "cut.safetensors": "not a whole safetensors file",
        "empty.safetensors": "not a whole safetensors file",
        "lora.pt": "is a pickle, which can run any code",
        "nowhere.safetensors": "there is no file",
    }.items():
        with pytest.raises(UserError, match=says):
            read_lora(tmp_path / name)
