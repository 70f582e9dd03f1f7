"""What the gates check: an exported folder, and the model that it was made from."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import onnxruntime
import torch

from koala.errors import UserError
from koala.export.folder import COMPONENTS, Job, Lora, load, plan, source_hashes
from koala.export.targets import DTYPES
from koala.files.hashing import digest
from koala.models.export_manifest import Exported
from koala.models.registry import find


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One gate's result. `passed` is None if it was not run, and `text` says why."""

    gate: str
    passed: bool | None
    text: str
    figures: dict = field(default_factory=dict)

    @property
    def word(self) -> str:
        """pass, FAIL or skip."""
        return {True: "pass", False: "FAIL", None: "skip"}[self.passed]

    def line(self) -> str:
        """As text."""
        return f"{self.word}  {self.gate:9}  {self.text}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One folder under test. `thorough` runs what takes minutes on a large model as well."""

    folder: Path
    exported: Exported
    job: Job
    prompts: int  # pictures to compare
    thorough: bool

    @property
    def large(self) -> bool:
        """Whether a whole denoising run would take too long here."""
        return self.job.large and not self.thorough

    def file(self, component: str) -> Path:
        """The ONNX file of a component."""
        return self.folder / component / "model.onnx"

    def source(self, component: str, dtype: str | None = None) -> torch.nn.Module:
        """torch's own module with the weights that the file should have, computed in `dtype`."""
        job = replace(self.job, islands=()) if dtype == "float32" else self.job
        module = load(job, COMPONENTS[component])
        return module.to(getattr(torch, dtype)) if dtype else module


def open_case(
    folder: Path,
    *,
    model: str | None = None,
    lora: Path | None = None,
    prompts: int = 8,
    thorough: bool = False,
) -> Case:
    """UserError if the folder is not an export, or its model is missing or has changed.

    `model` says where it is, if the manifest has no name for it.
    """
    exported = Exported.read(folder)
    fused = exported.lora
    if fused and lora is None:
        raise UserError(
            f"{folder} has the LoRA {fused['name']} in its weights; name its file, so that torch can use it too: "
            f"--lora {fused['name']}"
        )
    if fused and digest(lora) != fused["sha256"]:
        raise UserError(f"{lora} is not the LoRA {fused['name']} that {folder} has in its weights; give that file")
    short = next(name for name, dtype in DTYPES.items() if dtype == exported.stored_dtype)
    job = plan(
        model or _name(exported),
        target=exported.target,
        dtype=short,
        components="all" if exported.whole else "unet",
        lora=Lora(file=lora, strength=float(fused["strength"])) if fused else None,
    )
    if source_hashes(job) != dict(exported.source):
        raise UserError(
            f"{exported.model} on this machine differs from the weights that {folder} was made from; export it again"
        )
    job = replace(job, islands=tuple(exported.islands))
    return Case(folder=folder, exported=exported, job=job, prompts=prompts, thorough=thorough)


def _name(exported: Exported) -> str:
    """The model that the manifest names, if it is a name."""
    try:
        return find(exported.model).name
    except UserError as error:
        raise UserError(
            f"this export was made from a folder called {exported.model}; name its place: --model FOLDER"
        ) from error


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU, the reference that every machine has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
