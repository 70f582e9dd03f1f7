"""Which layer learns from which, against the paper's tables."""

import pytest

from koala.distill.config import BK_LOSS, DistillConfig
from koala.distill.loss.pairs import feature_pairs, teaching_block
from koala.errors import UserError
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, STAGES


@pytest.mark.parametrize(("student", "count", "middle"), [(KOALA_1B, 30, 6), (KOALA_700M, 21, 0)])
def test_self_attention_pairs_are_the_papers(student, count, middle):
    pairs = feature_pairs(DistillConfig(lf_at_ends=False), student, SDXL)
    assert len(pairs) == count
    by_stage = {s: sum(p.stage == s for p in pairs) for s in STAGES}
    assert by_stage["MID"] == middle
    second = [p for p in pairs if p.student.startswith("up_blocks.0.attentions.1.")]
    assert {p.teacher.rsplit(".transformer_blocks", 1)[0] for p in second} == {"up_blocks.0.attentions.2"}


def test_last_features_of_the_stages_without_attention_are_a_switch():
    with_ends = feature_pairs(DistillConfig(), KOALA_700M, SDXL)
    assert [(p.kind, p.stage) for p in with_ends if p.kind != "SA"] == [("LF", "DW-1"), ("LF", "UP-3")]


@pytest.mark.parametrize(
    ("mapping", "depth", "blocks"),
    [
        ("bottom", 6, [1, 2, 3, 4, 5, 6]),
        ("interleave", 6, [1, 3, 5, 7, 9, 10]),
        ("interleave", 5, [1, 3, 5, 7, 9]),
        ("up", 5, [6, 7, 8, 9, 10]),
    ],
)
def test_mappings_are_those_of_table_11c(mapping, depth, blocks):
    assert [teaching_block(j, depth, 10, mapping) + 1 for j in range(depth)] == blocks
    student = {5: KOALA_700M, 6: KOALA_1B}[depth]
    pairs = feature_pairs(DistillConfig(sa_mapping=mapping), student, SDXL)
    first = [p.teacher for p in pairs if p.student.startswith("down_blocks.2.attentions.0.")]
    assert [int(t.split(".")[5]) + 1 for t in first] == blocks


def test_the_loss_of_bk_sdm_matches_six_blocks_and_never_mid():
    pairs = feature_pairs(DistillConfig(**BK_LOSS), KOALA_1B, SDXL)
    assert [p.student for p in pairs] == [STAGES[s] for s in STAGES if s != "MID"]


def test_a_feature_at_one_stage_alone():
    pairs = feature_pairs(DistillConfig(features=("SA@UP-1", "Res@DW-1"), lf_at_ends=False), KOALA_700M, SDXL)
    assert {(p.kind, p.stage) for p in pairs} == {("SA", "UP-1"), ("Res", "DW-1")}


def test_a_feature_that_is_nowhere_names_the_stages_that_have_it():
    with pytest.raises(UserError, match="koala-700m has no SA in DW-1; it has it in DW-2, DW-3, UP-1, UP-2"):
        feature_pairs(DistillConfig(features=("SA@DW-1",)), KOALA_700M, SDXL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ("SAA",)}, "unknown feature 'SAA'; the features are SA, CA, FFN, Res, LF"),
        ({"features": ("SA@UP-9",)}, "unknown stage 'UP-9'"),
        ({"stages": ("UP-4",)}, "unknown stage 'UP-4'; the stages are DW-1"),
    ],
)
def test_unknown_features_and_stages_are_refused_with_the_list(settings, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**settings)
