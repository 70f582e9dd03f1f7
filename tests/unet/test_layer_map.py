"""The one table: which teacher module every student module comes from."""

from dataclasses import replace

import pytest

from koala.unet.layer_map import layer_map, renamed, self_attention_pairs
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, koala


def test_decoder_keeps_the_first_and_the_last_pair_and_the_encoder_the_first():
    table = layer_map(KOALA_700M, SDXL)
    assert renamed("up_blocks.0.resnets.1.conv1.weight", table) == "up_blocks.0.resnets.2.conv1.weight"
    assert renamed("up_blocks.1.attentions.1.norm.bias", table) == "up_blocks.1.attentions.2.norm.bias"
    assert renamed("up_blocks.0.resnets.0.conv1.weight", table) == "up_blocks.0.resnets.0.conv1.weight"
    assert renamed("down_blocks.2.attentions.0.norm.bias", table) == "down_blocks.2.attentions.0.norm.bias"


@pytest.mark.parametrize(
    ("spec", "per_stage"),
    [
        (KOALA_1B, {"DW-2": 2, "DW-3": 6, "MID": 6, "UP-1": 12, "UP-2": 4}),
        (KOALA_700M, {"DW-2": 2, "DW-3": 5, "UP-1": 10, "UP-2": 4}),
    ],
    ids=["koala-1b", "koala-700m"],
)
def test_pairs_are_sa_bottom_thirty_and_twenty_one(spec, per_stage):
    pairs = self_attention_pairs(spec, SDXL)
    result = {}
    for stage, student_path, teacher_path in pairs:
        result[stage] = result.get(stage, 0) + 1
        assert (
            student_path.split("transformer_blocks.")[1] == teacher_path.split("transformer_blocks.")[1]
        )  # block j <- block j
    assert result == per_stage


def test_no_source_for_a_module_that_the_map_does_not_know():
    assert renamed("up_blocks.0.resnets.2.conv1.weight", layer_map(KOALA_700M, SDXL)) is None


def test_a_student_deeper_than_its_teacher_is_refused():
    deeper = koala("deep", SDXL, depth=12, mid=True)
    with pytest.raises(ValueError, match="12 transformer blocks, sdxl only 10"):
        layer_map(deeper, SDXL)
    with pytest.raises(ValueError, match="mid has a stage MID that its teacher koala-700m lacks"):
        layer_map(replace(KOALA_700M, name="mid", mid_depth=5), KOALA_700M)
