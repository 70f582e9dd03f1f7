"""Every tensor of a file is used, left out and said, or a reason to refuse it; the tables here are written by hand."""

import logging
from pathlib import Path

import pytest

from koala.errors import UserError
from koala.models.accounting import account, unwrapped

FOLDER = Path("mine/unet")
NETWORK = {
    "conv_in.weight": (16, 4, 3, 3),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight": (32, 32),
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.weight": (32, 32),
    "conv_out.bias": (4,),
}
TEXT = {"text_model.encoder.layers.0.layer_norm1.weight": (8,), "text_model.final_layer_norm.weight": (8,)}
VAE = {f"decoder.mid_block.attentions.0.{n}.weight": (8, 8) for n in ("to_q", "to_k", "to_v", "to_out.0")}


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("_orig_mod.conv_in.weight", "conv_in.weight"),
        ("module.conv_in.weight", "conv_in.weight"),
        ("module.module._orig_mod.conv_in.weight", "conv_in.weight"),
        ("_fsdp_wrapped_module.conv_in.weight", "conv_in.weight"),
        ("mid_block._orig_mod.norm._checkpoint_wrapped_module.bias", "mid_block.norm.bias"),
        ("my_module.conv.weight", "my_module.conv.weight"),
        ("a.module.b", "a.module.b"),
    ],
)
def test_what_wrapped_a_network_is_taken_off_its_names(key, own):
    assert unwrapped(key) == own


def test_wrapped_names_are_those_of_the_network_and_each_is_there_once():
    stored = {f"_orig_mod.{key}": shape for key, shape in NETWORK.items()}
    result = account("unet", FOLDER, NETWORK, stored)
    assert result.names == {key: f"_orig_mod.{key}" for key in NETWORK} and result.left_out == ()
    with pytest.raises(UserError, match=r"mine/unet holds conv_in.weight twice, as .*_orig_mod.conv_in.weight"):
        account("unet", FOLDER, NETWORK, NETWORK | {"_orig_mod.conv_in.weight": (16, 4, 3, 3)})


def test_older_and_newer_names_of_text_encoders_and_vaes_are_understood():
    bare = {key.removeprefix("text_model."): shape for key, shape in TEXT.items()}
    assert list(account("text_encoder", FOLDER, TEXT, bare).names.values()) == list(bare)
    old = [f"decoder.mid_block.attentions.0.{n}.weight" for n in ("query", "key", "value", "proj_attn")]
    assert list(account("vae", FOLDER, VAE, dict.fromkeys(old, (8, 8))).names.values()) == old


def without(*keys: str) -> dict:
    return {key: shape for key, shape in NETWORK.items() if key not in keys}


DEEPER = "down_blocks.1.attentions.0.transformer_blocks.2.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("part", "network", "stored", "says"),
    [
        ("unet", NETWORK, without("conv_in.weight"), "mine/unet lacks one tensor, conv_in.weight; copy or download"),
        ("unet", NETWORK, without("conv_in.weight", "conv_out.bias"), "lacks 2 tensors, for example conv_in.weight"),
        ("unet", NETWORK, {}, "has none of the tensors that its config.json describes, but nothing"),
        ("unet", NETWORK, {"lora.x": (2,)}, "has none of the tensors .* but one tensor, lora.x"),
        ("unet", NETWORK, NETWORK | {"conv_out.bias": (8,)}, r"another shape .*: \[8\] instead of \[4\]"),
        ("unet", NETWORK, NETWORK | {DEEPER: (32, 32)}, f"has one tensor, {DEEPER}, beyond what its config"),
        ("unet", NETWORK, NETWORK | {"mid_block.resnets.0.norm1.bias": (64,)}, "one tensor, mid_block.* beyond"),
        ("unet", NETWORK, NETWORK | {"time_embedding.cond_proj.weight": (16, 64)}, "cond_proj.* beyond"),
        ("unet", NETWORK, NETWORK | {"encoder_hid_proj.weight": (16, 64)}, "encoder_hid_proj.* beyond"),
        ("vae", VAE, VAE | {"quant_conv.weight": (8, 8, 1, 1)}, "quant_conv.weight, beyond"),
        ("text_encoder", TEXT, TEXT | {"encoder.layers.4.layer_norm1.weight": (8,)}, "text_model.encoder.layers.4"),
        *(
            ("unet", NETWORK, NETWORK | {key: ()}, "is quantised: it has one tensor, .*take a float16 or float32 file")
            for key in (
                "conv_in.scale_weight", "conv_in.weight_scale", "conv_in.weight_scale_2", "conv_in.input_scale",
                "scaled_fp8", "conv_in.weight.absmax", "conv_in.weight.quant_state.bitsandbytes__nf4", "conv_in.SCB",
            )
        ),
        ("unet", NETWORK, NETWORK | {"edm_mean": (4,), "edm_std": (4,)}, "is marked edm_mean: it learned with EDM"),
    ],
)  # fmt: skip
def test_files_of_another_network_are_refused_in_one_sentence(part, network, stored, says):
    with pytest.raises(UserError, match=says) as output:
        account(part, FOLDER, network, stored)
    assert "\n" not in str(output.value)


def test_leftovers_are_left_out_and_said_and_marks_are_kept(caplog):
    extra = ["ema.decay", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", "v_pred"]
    result = account("unet", FOLDER, NETWORK, NETWORK | dict.fromkeys(extra, (1,)))
    assert result.left_out == (extra[1], extra[0]) and result.markers == ("v_pred",)
    with caplog.at_level(logging.WARNING):
        result.say(FOLDER)
    assert f"mine/unet: left out, as the network has no place for it: 2 tensors, for example {extra[1]}" in caplog.text
    positions = {"text_model.embeddings.position_ids": (1, 77)}
    assert account("text_encoder", FOLDER, TEXT, TEXT | positions).left_out == ()
    whole_clip = {"vision_model.post_layernorm.bias": (8,), "logit_scale": ()}
    assert account("text_encoder", FOLDER, TEXT, TEXT | whole_clip).left_out == tuple(sorted(whole_clip))


def test_a_file_alone_is_not_told_of_a_config_that_it_does_not_have():
    with pytest.raises(UserError, match=r"one.safetensors lacks .*; copy or download the file again$"):
        account("unet", Path("one.safetensors"), NETWORK, without("conv_in.weight"))
