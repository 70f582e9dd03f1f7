"""Half precision on the CPU: passes, and the validation of a student that is held in the teacher's precision."""

import math

import pytest
from accelerate.state import AcceleratorState

from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "teacher_precision"),
    [
        ("bf16", "bf16"),
        pytest.param("fp32", "bf16", marks=pytest.mark.slow),
        pytest.param("bf16", "fp32", marks=pytest.mark.slow),
    ],
)
def test_training_and_validation_run_in_half_precision(tmp_path, small, precision, teacher_precision):
    AcceleratorState._reset_state(reset_partial_state=True)  # it allows one precision per process
    run = RunFolder(path=tmp_path / "run")
    train(run, small(precision=precision, teacher_precision=teacher_precision, gradient_checkpointing=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    result = list(run.metrics())
    assert [e["step"] for e in result if e["kind"] == "validation"] == [0, 2]
    assert all(math.isfinite(e[term]) for e in result for term in ("loss", "task", "output", "SA"))
