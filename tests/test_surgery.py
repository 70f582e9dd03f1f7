"""The cut: every student tensor is the teacher's, and a saved student reloads in plain diffusers."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from koala.specs import TINY_KOALA_1B, TINY_KOALA_700M, TINY_SDXL
from koala.surgery import cut


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY_SDXL.config()).state_dict()


@pytest.mark.parametrize("spec", [TINY_KOALA_1B, TINY_KOALA_700M], ids=lambda s: s.name)
def test_student_tensors_are_the_teachers_own(teacher, spec, tmp_path):
    student = cut(teacher, spec, TINY_SDXL)
    weights = student.state_dict()
    assert torch.equal(weights["up_blocks.0.resnets.1.conv1.weight"], teacher["up_blocks.0.resnets.2.conv1.weight"])
    pool = {t.data_ptr() for t in teacher.values()}
    assert not pool & {t.data_ptr() for t in weights.values()}, "the student must not share memory with its teacher"
    student.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path).state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[k], weights[k]) for k in weights)


def test_a_teacher_with_a_missing_tensor_is_refused_by_its_name(teacher):
    broken = {k: v for k, v in teacher.items() if k != "conv_in.weight"}
    with pytest.raises(ValueError, match=r"1 tensors of tiny-koala-700m have no source in tiny-sdxl: conv_in.weight"):
        cut(broken, TINY_KOALA_700M, TINY_SDXL)
