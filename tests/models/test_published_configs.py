"""The published U-Nets' config.json pass the strict check, and give the networks that their papers and cards state.

The fields are those that diffusers 0.19 to 0.27 wrote for SDXL-Base and the models cut from it (its
UNet2DConditionModel registers every argument); depths, blocks and sizes are the published ones: SDXL's paper (table 1),
KOALA's (table 2: 1,161 M and 782 M), Segmind's cards (1.3 B and 745 M). The files themselves are not copied here.
"""

import pytest

from koala.models.cards import CARDS
from koala.unet.config import from_config, native_size
from koala.unet.costs import parameters
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, SSD_1B, VEGA

SDXL_BASE = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
LATER = {"_diffusers_version": "0.27.2", "attention_type": "default", "dropout": 0.0}  # fields since 0.21 and 0.24
# A config that went through a training script keeps where it came from.
TRAINED = LATER | {"_name_or_path": "/home/somebody/checkpoint-500000", "upcast_attention": False}

PUBLISHED = {
    "sdxl-base": (SDXL_BASE, SDXL),
    "koala-700m": (
        SDXL_BASE
        | TRAINED
        | {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 5], "mid_block_type": None}
        | {"reverse_transformer_layers_per_block": None},
        KOALA_700M,
    ),
    "koala-1b": (
        SDXL_BASE
        | TRAINED
        | {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]}
        | {"reverse_transformer_layers_per_block": None},
        KOALA_1B,
    ),
    "ssd-1b": (
        SDXL_BASE
        | LATER
        | {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [0, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        },
        SSD_1B,
    ),
    "segmind-vega": (
        SDXL_BASE
        | LATER
        | {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [0, [1, 1], [2, 2]],
            "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
        },
        VEGA,
    ),
}
MILLIONS = {"sdxl-base": 2567, "koala-700m": 783, "koala-1b": 1161, "ssd-1b": 1331, "segmind-vega": 745}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_its_network(name):
    config, spec = PUBLISHED[name]
    assert from_config(config, name) == spec == CARDS[name].spec
    assert round(parameters(from_config(config, name)) / 1e6) == MILLIONS[name]
    assert native_size(config, name) == (1024, 1024)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("first", [0, 1, [1, 1]], ids=str)
def test_what_a_config_says_of_a_stage_without_attention_is_nothing(name, first):
    """Both 0 and 1 were published for DW-1, which has none, as a number or a list."""
    config, spec = PUBLISHED[name]
    depths = [first, *config["transformer_layers_per_block"][1:]]
    assert from_config(config | {"transformer_layers_per_block": depths}, name) == spec


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_without_the_fields_of_later_versions_is_the_same_network(name):
    config, spec = PUBLISHED[name]
    needed = {"cross_attention_dim", "block_out_channels", "attention_head_dim", "down_block_types", "up_block_types",
              "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim", "in_channels",
              "out_channels", "layers_per_block", "transformer_layers_per_block", "use_linear_projection",
              "norm_num_groups", "mid_block_type", "reverse_transformer_layers_per_block"}  # fmt: skip
    assert from_config({k: v for k, v in config.items() if k in needed}, name) == spec
