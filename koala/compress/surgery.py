"""Teacher U-Net -> student U-Net: the KOALA cut, weights copied by the layer map.

`cut` works in memory; `compress` from files to files, where a tensor is a range of bytes and none is ever loaded.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from koala.errors import UserError
from koala.files.outputs import new_folder
from koala.files.tensorfiles import StoredTensor
from koala.models.checkpoints import UNetCheckpoint, open_unet
from koala.models.layout import DRAWING, SURGERY
from koala.models.pipeline_folder import folder_bytes, network_like, write_folder
from koala.models.registry import drawing_of, find, needs_drawing
from koala.unet.layer_map import kept_blocks, layer_map, renamed
from koala.unet.specs import STAGES, UNetSpec
from koala.unet.specs import student as student_spec
from koala.words import megabytes

Shapes = Mapping[str, tuple[int, ...]]  # parameter name -> shape


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The size of a part of a U-Net."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage: which of the teacher's residual blocks the student keeps, and how deep their transformers are."""

    stage: str
    kept: tuple[int, ...]  # counted from 0; empty for a stage that the student lacks
    depths: tuple[int, ...]  # of each kept block: the teacher's first ones
    teacher_depths: tuple[int, ...]
    parameters: int
    teacher_parameters: int

    def line(self) -> str:
        """The stage in words, blocks counted from 1."""
        if not self.kept:
            return f"{self.stage}  removed, {self.teacher_parameters:,} parameters"
        blocks = "all" if len(self.kept) == len(self.teacher_depths) else ", ".join(str(k + 1) for k in self.kept)
        text = f"residual blocks kept: {blocks} of {len(self.teacher_depths)}"
        if any(self.teacher_depths):
            own, of_teacher = ("+".join(map(str, depths)) for depths in (self.depths, self.teacher_depths))
            text += f", transformer blocks: {own} of {of_teacher}"
        return f"{self.stage}  {text}, parameters: {self.parameters:,} of {self.teacher_parameters:,}"


@dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """What `compress` did; also stored as surgery.json in the student's folder."""

    teacher: str
    revision: str
    teacher_spec: str
    teacher_depths: str  # in the notation that `koala.unet.specs.student` reads
    student_spec: str
    student_depths: str
    copied: Tally
    renumbered: int  # of the copied tensors: those whose block has another number in the student
    dropped: Tally
    new: int  # tensors of the student without a source in the teacher; a map that leaves any is refused
    dtypes: tuple[str, ...]  # of the student, in safetensors' names
    stages: tuple[StageReport, ...]
    pipeline: bool  # whether a whole pipeline came out, or a U-Net alone
    markers: tuple[str, ...] = ()  # what the teacher's file says that it predicts, carried into the student's

    def lines(self) -> list[str]:
        """As text: every stage, then the totals."""
        parameters, size = (getattr(self.copied, of) + getattr(self.dropped, of) for of in ("parameters", "bytes"))
        return [
            *(stage.line() for stage in self.stages),
            f"tensors copied: {self.copied.tensors:,} ({self.renumbered:,} of them renumbered), "
            f"dropped: {self.dropped.tensors:,}, new: {self.new}; dtype: {', '.join(self.dtypes)}",
            f"{self.student_spec}: {self.copied.parameters:,} of {parameters:,} parameters "
            f"({self.copied.parameters / parameters:.1%}), {self.copied.bytes / 1e6:,.0f} of {megabytes(size, 0)}",
            *([f"its file is marked {', '.join(self.markers)}, as the teacher's is"] if self.markers else []),
        ]


def sources(student: UNetSpec, teacher: UNetSpec, own: Shapes, theirs: Shapes) -> dict[str, str]:
    """Student's parameter -> the teacher's that it is a copy of (KOALA, section 4.1: "at the same block location").

    Raises UserError naming the parameters for which the map has no source of the right shape.
    """
    table = layer_map(student, teacher)
    origins = {key: renamed(key, table) for key in own}
    orphans = [key for key, source in origins.items() if tuple(theirs.get(source, ())) != tuple(own[key])]
    if orphans:
        raise UserError(
            f"{len(orphans)} tensors of {student.name} have no source in {teacher.name}: {', '.join(orphans[:5])}"
            + (", ..." if len(orphans) > 5 else "")
        )
    return origins


def cut(weights: Mapping[str, torch.Tensor], student: UNetSpec, teacher: UNetSpec) -> UNet2DConditionModel:
    """A student U-Net with its own copy of the teacher's tensors; UserError as `sources`."""
    unet = UNet2DConditionModel(**student.config())
    own = {key: tensor.shape for key, tensor in unet.state_dict().items()}
    origins = sources(student, teacher, own, {key: tensor.shape for key, tensor in weights.items()})
    unet.load_state_dict({key: weights[source] for key, source in origins.items()})
    return unet


def compress(teacher: str, spec: str, out: Path, *, replace: bool = False) -> SurgeryReport:
    """Cut the teacher (a name, hub id, folder or safetensors file) to a spec; `out` becomes a folder for diffusers.

    A pipeline gives a pipeline, a U-Net alone gives a U-Net. With `replace` what is in `out` goes when the new one is
    whole. Raises UserError, and leaves nothing then: for a teacher that does not fit before anything is written, for
    a weight that holds NaN or infinity when its bytes pass.
    """
    original = open_unet(teacher)
    student = student_spec(spec, original.spec)
    unet = network_like(student, original.config)
    own = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    origins = sources(student, original.spec, own, {key: t.shape for key, t in original.tensors.items()})
    copied = {key: original.tensors[source] for key, source in origins.items()}
    report = _report(original, student, origins, own)
    with new_folder(out, folder_bytes(original, copied), replace=replace) as folder:
        write_folder(folder, original, unet, copied)
        (folder / SURGERY).write_text(json.dumps(asdict(report), indent=1) + "\n")
        if original.pipeline and needs_drawing(folder, card := find(teacher)):
            (folder / DRAWING).write_text(json.dumps(drawing_of(card), indent=1) + "\n")
    return report


def _tally(tensors: Iterable[StoredTensor]) -> Tally:
    tensors = list(tensors)
    return Tally(
        tensors=len(tensors), parameters=sum(t.parameters for t in tensors), bytes=sum(t.size for t in tensors)
    )


def _report(teacher: UNetCheckpoint, student: UNetSpec, origins: Mapping[str, str], own: Shapes) -> SurgeryReport:
    theirs, used = teacher.tensors, set(origins.values())
    kept, depths = kept_blocks(student, teacher.spec), student.depths()

    def parameters(stage: str, keys: Iterable[str]) -> int:
        return sum(theirs[key].parameters for key in keys if key.startswith(f"{STAGES[stage]}."))

    return SurgeryReport(
        teacher=teacher.name,
        revision=teacher.revision,
        teacher_spec=teacher.spec.name,
        teacher_depths=teacher.spec.notation,
        student_spec=student.name,
        student_depths=student.notation,
        copied=_tally(theirs[key] for key in used),
        renumbered=sum(path != source for path, source in origins.items()),
        dropped=_tally(t for key, t in theirs.items() if key not in used),
        new=len(own.keys() - origins.keys()),
        dtypes=tuple(sorted({theirs[key].dtype for key in used})),
        stages=tuple(
            StageReport(
                stage=stage,
                kept=tuple(kept.get(stage, ())),
                depths=depths.get(stage, ()),
                teacher_depths=teacher_depths,
                parameters=parameters(stage, used),
                teacher_parameters=parameters(stage, theirs),
            )
            for stage, teacher_depths in teacher.spec.depths().items()
        ),
        pipeline=teacher.pipeline is not None,
        markers=tuple(teacher.markers),
    )
