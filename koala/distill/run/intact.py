"""Which parts of a run are intact: each checkpoint is compared with its manifest, and the config comes from one
where config.json is damaged. Only files and hashes are handled here; `snapshots` reads their content.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.distill.run.resuming import beginning, check_same, from_student, spelled, trains_lora
from koala.errors import UserError
from koala.files.hashing import sha256
from koala.files.reading import read_object
from koala.models.layout import SURGERY

STATE = "state.json"
FILES = ("student.safetensors", "ema.safetensors", "optimizer.safetensors", STATE)
MANIFEST = "manifest.json"


def write_manifest(folder: Path, config: DistillConfig) -> None:
    """The last file of a new checkpoint: its config and the hash of every file, of itself too."""
    listed = {"config": config.to_dict(), "files": {name: sha256(folder / name) for name in FILES}}
    (folder / MANIFEST).write_text(json.dumps(listed | {"sha256": _own_hash(listed)}, indent=1) + "\n")


def _own_hash(listed: dict) -> str:
    text = json.dumps({name: listed.get(name) for name in ("config", "files")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def manifest(run: RunFolder, step: int) -> tuple[DistillConfig, dict[str, str]]:
    """What a checkpoint was trained with, and the hashes of its files. UserError where its manifest is damaged."""
    try:
        listed = read_object(run.checkpoint(step) / MANIFEST)
        if listed.keys() - {"config", "files", "sha256"} or listed.get("sha256", _own_hash(listed)) != _own_hash(
            listed
        ):
            raise UserError("it is not what was written")
        return DistillConfig.from_dict(listed["config"]), dict(listed["files"])
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is damaged: its {MANIFEST} cannot be read ({error})") from error


def check_files(run: RunFolder, step: int) -> DistillConfig:
    """Read all of a checkpoint and return what it was trained with; UserError where it is damaged."""
    folder = run.checkpoint(step)
    config, hashes = manifest(run, step)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"is damaged: {name} is missing")
        try:
            digest = sha256(folder / name)
        except OSError as error:  # a sector that the disk gives up
            raise UserError(f"is damaged: {name} cannot be read ({error.strerror})") from error
        if digest != hashes.get(name):
            raise UserError(f"is damaged: {name} is not what was written")
    if (recorded := read_object(folder / STATE).get("step")) != step:
        raise UserError(f"is that of step {recorded} under another name")
    return config


def trained_with(run: RunFolder) -> DistillConfig | None:
    """What the newest checkpoint whose manifest can be read was trained with; None where there is none."""
    for step in reversed(run.checkpoints()):
        try:
            return manifest(run, step)[0]
        except UserError:
            continue
    return None


def good_checkpoints(run: RunFolder) -> dict[int, DistillConfig]:
    """Steps of the checkpoints that are as they were written, the oldest first, with what they were trained with."""
    good = {}
    for step in run.checkpoints():
        try:
            good[step] = check_files(run, step)
        except UserError:
            continue
    return good


def config_of(run: RunFolder) -> tuple[DistillConfig, str]:
    """The run's config, and what had to be done for it: out of its newest good checkpoint where config.json is damaged.

    UserError where neither can be read.
    """
    file = run.path / "config.json"
    try:
        if file.exists() or not run.checkpoints():
            return run.config(), ""
        why = f"{file} is missing"
    except UserError as error:
        if not run.checkpoints():
            raise
        why = str(error).partition(";")[0]
    good = good_checkpoints(run)
    if not good:
        raise UserError(f"{why}, and no checkpoint of {run.path} is good; {_from_student(run)}")
    step = max(good)
    return good[step], f"{why}; it is restored from checkpoint step-{step}"


def verify(run: RunFolder, step: int, config: DistillConfig, asked: Collection[str] = ()) -> DistillConfig:
    """What a checkpoint was trained with, once all of it is read.

    UserError with the reason where it is damaged or of another run, and with what to do instead. The fields of
    `asked` were set for going on.
    """
    try:
        trained = check_files(run, step)
    except UserError as error:
        good = [s for s in good_checkpoints(run) if s != step]
        remedy = (
            f"resume with --step {good[-1]}, the last good one"
            if good
            else f"no other checkpoint of this run is good; {_from_student(run)}"
        )
        raise UserError(f"checkpoint step-{step} of {run.path} {error}; {remedy}") from error
    check_same(run, step, config, trained, asked)
    return trained


def _from_student(run: RunFolder) -> str:
    """What to do where no checkpoint can be resumed."""
    if not (run.student / "unet").is_dir():
        return "start over with --out NEW"
    try:
        run.config()
        settings = ""
    except UserError:
        settings = "" if trains_lora(run) else _as_cut(run)
        if not settings:
            return "start over with --out NEW"
    more = " and what else its settings were" if settings else ""
    return f"start a new run {beginning(run)}: {from_student(run, settings)}{more}"


def _as_cut(run: RunFolder) -> str:
    """The settings recorded in a student's own folder."""
    try:
        cut = read_object(run.student / SURGERY)
    except UserError:
        return ""
    if not all(isinstance(cut.get(name), str) for name in ("teacher", "student_depths")):
        return ""
    return f"{spelled('teacher', cut['teacher'])} {spelled('student_spec', cut['student_depths'])}"
