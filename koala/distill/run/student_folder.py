"""A run's student as a pipeline that plain diffusers loads: made by surgery, its weights replaced as it learns."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from koala.compress.surgery import compress
from koala.distill.config import DistillConfig
from koala.distill.loss.pairs import feature_pairs
from koala.distill.methods import check_own_spec
from koala.distill.run.adapter import merge, write_lora
from koala.distill.run.folder import RunFolder
from koala.distill.sampling import guidance_range, write_sampling
from koala.errors import UserError
from koala.files.hashing import sha256
from koala.files.outputs import new_file, new_folder
from koala.files.reading import read_object
from koala.files.tensorfiles import save_tensors, stored_tensors, write_tensors
from koala.models.checkpoints import open_unet
from koala.models.layout import STEMS
from koala.models.registry import find
from koala.unet.specs import student as student_spec

log = logging.getLogger(__name__)


def _weights(run: RunFolder) -> Path:
    return run.student / "unet" / f"{STEMS['unet']}.safetensors"


def _record(run: RunFolder) -> Path:
    return run.path / "student.json"


def _made(run: RunFolder) -> dict[str, str]:
    """A fingerprint of a student's folder: each file's hash; of the U-Net's weights, only names and shapes."""
    weights = _weights(run)
    files = {p.relative_to(run.student).as_posix(): p for p in sorted(run.student.rglob("*")) if p.is_file()}
    layout = [(name, t.dtype, t.shape) for name, t in sorted(stored_tensors(weights).items())]
    return {name: sha256(file) for name, file in files.items() if file != weights} | {
        weights.relative_to(run.student).as_posix(): hashlib.sha256(repr(layout).encode()).hexdigest()
    }


def _fault(run: RunFolder) -> str | None:
    """Why the student's folder is not as it was made, or None; its weights are rewritten with every checkpoint."""
    try:
        recorded, present = read_object(_record(run)), _made(run)
    except (UserError, OSError) as error:
        return str(error).partition(";")[0]
    wrong = next((name for name, value in recorded.items() if present.get(name) != value), None)
    if wrong is None:
        return None
    return f"{run.student / wrong} {'is not what was written' if wrong in present else 'is missing'}"


def repair_student(run: RunFolder, config: DistillConfig, weights: Path | None = None) -> str | None:
    """Recreate student/ where anything but its weights is damaged; returns why, or None where all of it is intact.

    The weights are then those of a checkpoint's file, or the teacher's where none is given.
    """
    fault = _fault(run)
    if fault:
        names = _cut(run, config)
        if weights:
            with safe_open(weights, "pt") as file:
                update_student(run, config, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)
        _write_record(run, names)
    return fault


def _cut(run: RunFolder, config: DistillConfig) -> list[str]:
    """Replace student/ by what surgery makes; files that others put there are kept.

    Returns the names of its files.
    """
    if not run.student.is_dir():
        compress(config.teacher, config.student_spec, run.student)
        write_sampling(config, run.student)
        return list(_files(run.student))
    cut = run.path / ".cut"
    compress(config.teacher, config.student_spec, cut, replace=True)  # one that was killed may have left it
    write_sampling(config, cut)
    files, present = _files(cut), _files(run.student)
    others = {name: file for name, file in present.items() if name not in files and not file.name.startswith(".")}
    size = sum(file.lstat().st_size for file in (*files.values(), *others.values()))
    with new_folder(run.student, size, replace=True) as new:
        for name, file in (files | others).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, new / name, follow_symlinks=False)
    shutil.rmtree(cut)
    return list(files)


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()}


def _write_record(run: RunFolder, names: list[str]) -> None:
    own = {name: value for name, value in _made(run).items() if name in names}
    with new_file(_record(run)) as partial:
        partial.write_text(json.dumps(own, indent=1) + "\n")


def check_student(config: DistillConfig) -> None:
    """UserError for a teacher, a spec or an initial model that cannot make a student; nothing is written."""
    teacher = open_unet(config.teacher)
    if teacher.pipeline is None:
        raise UserError(f"{config.teacher} is a U-Net alone; a teacher needs its text encoders and VAE as well")
    wanted = student_spec(config.student_spec, teacher.spec)
    check_own_spec(config.to_dict(), wanted, teacher.spec)
    feature_pairs(config, wanted, teacher.spec)
    guidance_range(config, find(config.teacher))
    if config.student_init:
        initial = open_unet(config.student_init)
        if initial.spec.notation != wanted.notation:
            raise UserError(
                f"student_init={config.student_init} has the depths {initial.spec.notation}, "
                f"{config.student_spec} has {wanted.notation}; choose a model of the same spec, or "
                f"student_spec={initial.spec.notation}"
            )
        _check_prediction(config, initial.predicts, teacher.predicts)


def _check_prediction(config: DistillConfig, own: str | None, wanted: str) -> None:
    """UserError where the initial model and the teacher do not predict the same; a warning where nothing says so."""
    if own is None and wanted != "epsilon":
        log.warning(
            "student_init=%s does not say what it predicts; it is taken for %s, as the teacher predicts",
            config.student_init,
            wanted,
        )
    if own and own != wanted:
        raise UserError(
            f"student_init={config.student_init} predicts {own}, the teacher {config.teacher} predicts {wanted}; "
            "choose a model that predicts what the teacher does, or leave student_init empty"
        )


def create_student(run: RunFolder, config: DistillConfig) -> None:
    """Cut student/ out of the teacher; `student_init` then gives it that model's weights. See `check_student`."""
    names = _cut(run, config)
    if config.student_init:
        initial = open_unet(config.student_init)
        with new_file(_weights(run)) as partial:
            write_tensors(partial, initial.tensors | initial.markers | open_unet(config.teacher).markers)
    _write_record(run, names)


def update_student(run: RunFolder, config: DistillConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace its U-Net's weights, in the precision that its file has; those of a LoRA are merged into them."""
    target = _weights(run)
    if config.lora_rank:
        write_lora(run, config, weights)
        merge(run, config, weights, target)
        return
    with safe_open(target, "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118  (not a dict)
    tensors = {name: weights[name].to(dtype).contiguous() for name, dtype in dtypes.items() if name in weights}
    with new_file(target) as partial:
        save_tensors(partial, tensors)
