"""What needs an accelerator: 8-bit AdamW, half precision, and what a step takes at full size."""

import pytest
import torch
from safetensors.torch import load_file

from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
from koala.hardware.cuda import cards

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def accelerator():
    if not cards().available():
        pytest.skip("no CUDA GPU here")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(small, tmp_path, precision):
    run = RunFolder(path=tmp_path / "run")
    train(run, small(num_steps=20, precision=precision, teacher_precision=precision, learning_rate=1e-3))
    first, *_, last = (e["loss"] for e in run.metrics() if e["kind"] == "train")
    assert last < first


def test_eight_bit_adamw_learns_and_resumes(small, tmp_path):
    pytest.importorskip("bitsandbytes")
    run = RunFolder(path=tmp_path / "run")
    settings = dict(optimizer="adamw8bit", precision="bf16", teacher_precision="bf16")
    train(run, small(num_steps=2, **settings))
    train(run, small(num_steps=4, **settings), resume_from=2)
    states = load_file(run.checkpoint(4) / "optimizer.safetensors")
    assert {v.dtype for n, v in states.items() if n.endswith("|state1")} >= {torch.uint8}
