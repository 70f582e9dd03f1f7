"""A run's student as a pipeline that plain diffusers loads: made by surgery, its weights replaced as it learns."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from koala.checkpoints import open_unet
from koala.distill.config import DistillConfig
from koala.distill.run_folder import RunFolder
from koala.layout import STEMS
from koala.outputs import new_file
from koala.request import RequestError
from koala.surgery import compress
from koala.tensorfiles import save_tensors, write_tensors


def _weights(run: RunFolder) -> Path:
    return run.student / "unet" / f"{STEMS['unet']}.safetensors"


def create_student(run: RunFolder, config: DistillConfig) -> None:
    """Cut student/ out of the teacher if it is not there yet; `student_init` then gives it that model's weights.

    RequestError for a spec that is no part of the teacher, or an initial model of another spec.
    """
    teacher = open_unet(config.teacher)
    if teacher.pipeline is None:
        raise RequestError(f"{config.teacher} is a U-Net alone; a teacher needs its text encoders and VAE beside it")
    if not run.student.exists():
        compress(config.teacher, config.student_spec, run.student)
    if config.student_init:
        initial, wanted = open_unet(config.student_init), open_unet(str(run.student / "unet"))
        if initial.spec.notation != wanted.spec.notation:
            raise RequestError(
                f"student_init={config.student_init} has the depths {initial.spec.notation}, "
                f"{config.student_spec} has {wanted.spec.notation}; choose a model of the same spec"
            )
        with new_file(_weights(run)) as partial:
            write_tensors(partial, initial.tensors)


def update_student(run: RunFolder, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace its U-Net's weights, in the precision that its file has."""
    target = _weights(run)
    with safe_open(target, "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118  (not a dict)
    tensors = {name: weights[name].to(dtype).contiguous() for name, dtype in dtypes.items()}
    with new_file(target) as partial:
        save_tensors(partial, tensors)
