"""Agreement: layers by the layer map, steps by their timesteps, and absent stages, named as such."""

import dataclasses

import pytest
import torch

from koala.attention.agreement import agreement, divergence
from koala.attention.recorded import beside
from koala.errors import UserError
from koala.unet.specs import SSD_1B, TINY_KOALA_1B, TINY_KOALA_700M, TINY_SDXL


def test_jensen_shannon_is_nought_for_the_same_and_one_for_nothing_in_common():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    q = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.2, 0.8], [0.5, 0.5, 0.0, 0.0]])
    # by hand: 1 bit is split as H(3/4, 1/4) - H(1/2, 1/2) / 2
    assert torch.allclose(divergence(p, q), torch.tensor([0.0, 1.0, 0.311278]), atol=1e-6)


def test_a_model_agrees_with_itself(record_of):
    record = record_of(TINY_SDXL, (900.0, 300.0))
    stages = {s.stage: s for s in agreement(record, record)}
    for stage in record.stages:
        assert stages[stage].divergence == (0.0, 0.0) and stages[stage].cosine == pytest.approx((1.0, 1.0))
        assert stages[stage].layers == 1 and stages[stage].timesteps == (900.0, 300.0)


def test_steps_pair_by_their_nearest_timestep(record_of):
    """The teacher's second and fourth step are put into the student's place: its steps agree with those."""
    teacher = record_of(TINY_SDXL, (990.0, 740.0, 490.0, 240.0))
    student = dataclasses.replace(teacher, timesteps=(700.0, 200.0), frames=(teacher.frames[1], teacher.frames[3]))
    up = next(s for s in agreement(student, teacher) if s.stage == "UP-1")
    assert up.divergence == (0.0, 0.0)
    swapped = dataclasses.replace(student, frames=student.frames[::-1])
    assert min(next(s for s in agreement(swapped, teacher) if s.stage == "UP-1").divergence) > 0.01


@pytest.mark.parametrize("swapped", [False, True])
def test_absent_stages_are_named_and_no_error(record_of, swapped):
    student, teacher = record_of(TINY_KOALA_700M, (900.0,)), record_of(TINY_SDXL, (900.0,), layers="all")
    stages = {s.stage: s for s in agreement(*((teacher, student) if swapped else (student, teacher)))}
    assert list(stages) == ["DW-1", "DW-2", "DW-3", "MID", "UP-1", "UP-2", "UP-3"]
    assert stages["MID"].absent == "tiny-koala-700m has no MID" and stages["MID"].divergence == ()
    assert stages["DW-1"].absent == f"{'tiny-sdxl' if swapped else 'tiny-koala-700m'} has no attention in DW-1"
    assert all(not stages[s].absent and 0 < stages[s].divergence[0] < 1 for s in ("DW-2", "DW-3", "UP-1", "UP-2"))
    together = beside((teacher, student) if swapped else (student, teacher))
    student_layer, teacher_layer = together["UP-1"][0][:: -1 if swapped else 1]
    assert (
        teacher_layer.path == "up_blocks.0.attentions.2.transformer_blocks.4.attn1"
        and student_layer.path.startswith("up_blocks.0.att")
    )
    assert len(together["MID"]) == 10 and all(pair[1 if swapped else 0] is None for pair in together["MID"])


def test_layers_whose_partner_was_not_recorded_are_said_to_be_missing(record_of):
    student, teacher = record_of(TINY_KOALA_1B, (900.0,)), record_of(TINY_SDXL, (900.0,), layers="last")
    stages = {s.stage: s.absent for s in agreement(student, teacher)}
    assert stages["UP-1"] == "UP-1 was not recorded in both", "the teacher's last block has no counterpart"


def test_models_that_are_no_cuts_of_each_other_are_compared_by_their_last_layers(record_of):
    small_ssd = dataclasses.replace(SSD_1B, channels=(16, 32, 64), heads=(1, 2, 4))
    stages = {s.stage: s for s in agreement(record_of(small_ssd, (9.0,)), record_of(TINY_KOALA_1B, (9.0,)))}
    assert stages["UP-2"].layers == 1 and stages["MID"].absent == "ssd-1b has no attention in MID"


def test_captures_of_two_sizes_are_refused(record_of):
    with pytest.raises(UserError, match="64x64 and 32x64 px; capture both in one size"):
        agreement(record_of(TINY_SDXL, (9.0,)), dataclasses.replace(record_of(TINY_SDXL, (9.0,)), width=32))
