"""Plans: layers, grids and bytes by arithmetic, compared with tensors; refusals that name what fits."""

import dataclasses

import pytest
import torch

from koala.attention.pairing import paired, plans
from koala.attention.plan import attention_stages, grid, ordered, plan
from koala.errors import UserError
from koala.unet.layer_map import self_attention_pairs
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, SSD_1B, TINY_KOALA_1B, TINY_KOALA_700M, TINY_SDXL


def test_one_layer_per_stage_of_koala_700m_is_about_0_3_gib():
    recorded = plan(KOALA_700M, 1024, 1024, 10, cross=False)
    print(f"{recorded.bytes / 2**30:.3f} GiB")
    assert recorded.bytes == 10 * (2 * 10 + 2 * 5) * 2**20, "10 MiB at 64x64, 5 MiB at 32x32"
    assert [(x.stage, x.grid, x.heads, x.dim) for x in recorded.layers] == [
        ("DW-2", (64, 64), 10, 64),
        ("DW-3", (32, 32), 20, 64),
        ("UP-1", (32, 32), 20, 64),
        ("UP-2", (64, 64), 10, 64),
    ]


def test_the_arithmetic_is_a_real_allocations():
    """Every tensor that a full-size run would keep of one step is made, and its bytes are counted."""
    recorded = plan(KOALA_700M, 1024, 768, 1)
    tensors = [
        torch.empty(x.heads, tokens, x.dim, dtype=torch.float16)
        for x in recorded.layers
        for tokens in (x.queries, x.keys)
    ]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == recorded.bytes
    assert recorded.layers[0].grid == (48, 64) and recorded.layers[1].keys == 77


@pytest.mark.parametrize(("spec", "count"), [(SDXL, 70), (KOALA_1B, 30), (KOALA_700M, 21)])
def test_all_layers_are_all_self_attentions(spec, count):
    recorded = plan(spec, 1024, 1024, 1, layers="all", cross=False)
    assert [(x.stage, x.path) for x in recorded.layers] == list(spec.self_attentions()) and len(
        recorded.layers
    ) == count


def test_the_embedded_models_see_16x16_patches_at_up_2_and_8x8_at_up_1():
    assert (grid("UP-2", 256, 256), grid("UP-1", 256, 256), grid("DW-1", 256, 128)) == ((16, 16), (8, 8), (16, 32))


def test_cross_attention_stands_beside_its_block():
    recorded = plan(TINY_SDXL, 256, 256, 1, stages=["UP-2"])
    assert [x.path.rsplit(".", 1) for x in recorded.layers] == [
        ["up_blocks.1.attentions.2.transformer_blocks.1", "attn1"],
        ["up_blocks.1.attentions.2.transformer_blocks.1", "attn2"],
    ]
    assert recorded.layers[0].label == recorded.layers[1].label == "UP-2, transformer 3, block 2"
    assert plan(TINY_SDXL, 256, 256, 1, stages=["MID"]).layers[0].label == "MID, transformer 1, block 10"


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (KOALA_700M, {"stages": ["MID"]}, "koala-700m has no MID; it has attention in DW-2, DW-3, UP-1, UP-2"),
        (SSD_1B, {"stages": ["MID"]}, "ssd-1b has no attention in MID"),
        (SDXL, {"stages": ["DW-1"]}, "sdxl has no attention in DW-1"),
        (SDXL, {"stages": ["UP-4"]}, "no stage 'UP-4'"),
        (SDXL, {"layers": "first"}, "'last', 'all' or a list"),
        (
            KOALA_700M,
            {"layers": ["up_blocks.0.attentions.2.transformer_blocks.0.attn1"]},
            "did you mean up_blocks.0.att",
        ),
    ],
)
def test_what_the_model_lacks_is_said(spec, settings, message):
    with pytest.raises(UserError, match=message):
        plan(spec, 1024, 1024, 10, **settings)


@pytest.mark.parametrize(
    ("settings", "budget", "message"),
    [
        (
            {"layers": "all"},
            12 * 10**9,
            "takes 16.05 GB, the budget is 12.00 GB; the same without words takes 10.49 GB",
        ),
        ({"layers": "all"}, 2 * 10**9, "the last layer of each stage takes 1.40 GB"),
        ({}, 10**9, "the same without words takes 0.92 GB"),
        ({}, 5 * 10**8, "the last layer of DW-3 and MID and UP-1 alone, without words, takes 0.39 GB"),
        ({}, 5 * 10**7, "9 steps of the last layer of DW-3, without words, fit"),
        ({"stages": ["UP-2"], "cross": False}, 5 * 10**7, "4 steps of the last layer of UP-2, without words, fit"),
        ({}, 10**6, "the least, one step of one layer of DW-3, takes 5.24 MB"),
    ],
)
def test_a_plan_above_the_budget_names_one_that_fits(settings, budget, message):
    with pytest.raises(UserError, match=message):
        plan(SDXL, 1024, 1024, 25, budget_bytes=budget, **settings)


def both(*specs, stages=None, every=False, steps=(2, 2), size=256, **settings):
    return plans(specs, paired(specs, stages=stages, every=every), size, size, steps, **settings)


def test_the_layers_beside_a_students_are_those_it_was_cut_from():
    teacher_plan, student_plan = both(TINY_SDXL, TINY_KOALA_700M, steps=(25, 10))
    table = {path: teacher_path for _, path, teacher_path in self_attention_pairs(TINY_KOALA_700M, TINY_SDXL)}
    own = [x.path for x in student_plan.layers if x.kind == "self"]
    theirs = [x.path for x in teacher_plan.layers if x.kind == "self"]
    assert student_plan.stages == ("DW-2", "DW-3", "UP-1", "UP-2") and teacher_plan.stages == attention_stages(
        TINY_SDXL
    )
    assert [table[path] for path in own] == [p for p in theirs if not p.startswith("mid_block")]
    assert "up_blocks.0.attentions.2.transformer_blocks.4.attn1" in theirs, "not the teacher's own last block, 9"
    assert (teacher_plan.steps, student_plan.steps) == (25, 10)


def test_every_layer_of_the_smallest_model_has_its_row():
    three = TINY_SDXL, TINY_KOALA_1B, TINY_KOALA_700M
    rows = paired(three, every=True)
    assert {s: len(r) for s, r in rows.items()} == {"DW-2": 2, "DW-3": 5, "MID": 6, "UP-1": 10, "UP-2": 4}
    assert rows["MID"][5] == (*["mid_block.attentions.0.transformer_blocks.5.attn1"] * 2, None)
    assert paired(three)["MID"] == rows["MID"][-1:]


def test_models_that_are_no_cuts_of_each_other_pair_by_their_last_layers():
    rows = paired([SSD_1B, KOALA_1B])
    last = [[p for s, p in spec.self_attentions() if s == "UP-2"][-1] for spec in (SSD_1B, KOALA_1B)]
    assert rows["UP-2"] == (tuple(last),) and rows["MID"][0][0] is None


def test_stages_that_a_model_lacks_and_a_budget_that_the_first_one_took():
    assert list(paired([TINY_KOALA_700M, TINY_SDXL], stages=["MID", "UP-2"])) == ["MID", "UP-2"]
    with pytest.raises(UserError, match="tiny-koala-700m has no attention in MID; it has it in DW-2"):
        both(TINY_KOALA_700M, TINY_SDXL, stages=["MID"])
    with pytest.raises(UserError, match="tiny-koala-700m has no attention in UP-3"):
        both(TINY_KOALA_700M, TINY_SDXL, stages=["UP-3"])
    alone = plan(KOALA_700M, 1024, 1024, 2).bytes
    with pytest.raises(UserError, match="of sdxl over 2 steps"):
        both(KOALA_700M, SDXL, size=1024, budget_bytes=alone + 10**6)


def test_which_of_two_models_is_the_student():
    assert ordered(SDXL, KOALA_1B) == ordered(KOALA_1B, SDXL) == (KOALA_1B, SDXL)
    assert ordered(KOALA_1B, KOALA_700M) == (KOALA_700M, KOALA_1B)
    with pytest.raises(UserError, match="neither of ssd-1b and koala-1b"):
        ordered(SSD_1B, dataclasses.replace(KOALA_1B, mid_depth=6))
