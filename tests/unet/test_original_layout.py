"""The original layout's names are those that diffusers' own converter reads."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint

from koala.unet.layer_map import renamed
from koala.unet.original_layout import PREFIX, original_names
from koala.unet.specs import SPECS


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_name_is_the_one_that_diffusers_converts(spec):
    with torch.device("meta"):
        keys = UNet2DConditionModel(**spec.config()).state_dict()
    names = original_names(spec)
    original = {key: renamed(key, names) for key in keys}
    assert len(set(original.values())) == len(keys)
    config = {"layers_per_block": len(spec.down_depths[0]), "addition_embed_type": "text_time"}
    assert PREFIX == LDM_UNET_KEY
    assert convert_ldm_unet_checkpoint({PREFIX + name: name for name in original.values()}, config) == original
