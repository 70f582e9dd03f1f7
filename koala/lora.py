"""LoRAs of a teacher's U-Net, moved onto a student by the layer map that surgery follows.

A student's layer is cut from one of the teacher's, so what a LoRA adds to the one it adds to the other; a layer whose
block is gone takes its share with it. Files come in kohya's style (lora_unet_*, original or diffusers' numbers, alpha
beside the factors) and in the styles of diffusers and peft (unet.*); they keep theirs, with diffusers' names.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from koala.layer_map import layer_map, renamed
from koala.original_layout import original_names
from koala.outputs import check_space, new_file
from koala.request import RequestError
from koala.specs import SDXL, STAGES, TINY_SDXL, UNetSpec
from koala.specs import student as student_spec
from koala.tensorfiles import refuse_pickle, stored_tensors

Weights = Mapping[str, torch.Tensor]

_KOHYA = "lora_unet_"
_TEXT = ("lora_te", "text_encoder")  # how keys of the text encoders begin, in all styles
_SETTINGS = "lora_adapter_metadata"  # in a file's metadata: peft's settings, as JSON
_MOVED = "koala_student"  # in a file's metadata: the depths of the student that it was moved onto

# What a key's ending says that the tensor is; the first of each is what we write, kohya's and then peft's.
_ENDINGS = {
    "down": (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight"),  # (rank, inputs, ...)
    "up": (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight"),  # (outputs, rank, ...)
    "alpha": (".alpha", ".alpha"),  # the LoRA's scale times its rank
    "magnitude": (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
}

_NAME = re.compile(r"[\w.-]+", re.ASCII)  # of a tensor, in all styles
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)  # by hostile JSON


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What became of a LoRA's U-Net layers, by the teacher's module paths."""

    teacher: str
    student: str
    kept: tuple[str, ...]  # at the same place in the student
    moved: dict[str, str]  # to the student's module of another number
    dropped: tuple[str, ...]  # their block is gone
    text_keys: int  # of the text encoders, which stay as they are
    coverage: float  # share of the LoRA's layers that the student has
    reach: float  # share of the student's layers that are adapted, among those of the same kinds
    stages: dict[str, tuple[int, int]]  # stage -> layers that the student has, layers of the LoRA

    @property
    def summary(self) -> str:
        """One clause."""
        survivors = len(self.kept) + len(self.moved)
        return f"{survivors:,} of its {survivors + len(self.dropped):,} layers ({self.coverage:.0%})"

    def lines(self) -> list[str]:
        """For people."""
        total = len(self.kept) + len(self.moved) + len(self.dropped)
        return [
            f"{total:,} layers of {self.teacher}: {len(self.kept):,} kept, {len(self.moved):,} moved to another "
            f"number, {len(self.dropped):,} dropped because {self.student} lacks their block",
            ", ".join(f"{stage} {kept} of {all_}" for stage, (kept, all_) in self.stages.items()),
            f"coverage: {self.coverage:.1%} of the LoRA; it adapts {self.reach:.1%} of the student's layers of its "
            f"kinds; {self.text_keys:,} keys of the text encoders are as before",
        ]


def remap(weights: Weights, student: UNetSpec, teacher: UNetSpec) -> tuple[dict[str, torch.Tensor], LoraReport]:
    """The LoRA of a teacher as one of its student, for diffusers' load_lora_weights, and what became of it.

    Raises RequestError for a LoRA that does not fit the teacher, and for one of which nothing is left.
    """
    layers = _layers(weights, teacher)
    if student.channels != teacher.channels:
        raise RequestError(
            f"this LoRA is for {teacher.name}, {teacher.channels[0]} channels wide at DW-1, and {student.name} has "
            f"{student.channels[0]}; take one that was trained on its teacher"
        )
    table = layer_map(student, teacher)
    places = {renamed(module, table): module for module in _modules(student)}
    kohya = any(key.startswith(_KOHYA) for key in weights)
    found = {key: tensor for key, tensor in weights.items() if key.startswith(_TEXT)}
    for module, parts in layers.items():
        if module in places:
            found |= _written(places[module], parts, kohya)
    survivors = {module: places[module] for module in layers if module in places}
    if not survivors:
        raise RequestError(
            f"nothing of this LoRA is left on {student.name}: it adapts {len(layers)} layers of {teacher.name}, for "
            f"example {next(iter(layers))}, and {student.name} has none of their blocks; use it on a larger model"
        )
    kinds = {_kind(module) for module in survivors}
    return found, LoraReport(
        teacher=teacher.name,
        student=student.name,
        kept=tuple(its for its, own in survivors.items() if its == own),
        moved={its: own for its, own in survivors.items() if its != own},
        dropped=tuple(module for module in layers if module not in survivors),
        text_keys=sum(key.startswith(_TEXT) for key in weights),
        coverage=len(survivors) / len(layers),
        reach=len(survivors) / sum(_kind(module) in kinds for module in _modules(student)),
        stages={
            stage: (sum(m in survivors for m in inside), len(inside))
            for stage, block in STAGES.items()
            if (inside := [module for module in layers if module.startswith(f"{block}.")])
        },
    )


def teacher_of(weights: Weights) -> UNetSpec:
    """The teacher that a LoRA was made for, told by its layers' shapes: SDXL or the embedded one."""
    try:
        _layers(weights, TINY_SDXL)
    except RequestError:
        _layers(weights, SDXL)  # says what is wrong
        return SDXL
    return TINY_SDXL


def lora_for(path: Path, student: UNetSpec) -> tuple[dict[str, torch.Tensor], LoraReport]:
    """A LoRA file as `remap` gives it, whatever it was made for: the student's teacher, or the student itself."""
    weights = read_lora(path)
    return remap(weights, student, _origin(path, weights, student))


def _origin(path: Path, weights: Weights, student: UNetSpec) -> UNetSpec:
    """The U-Net that a LoRA file was made for: the student, or the teacher that its shapes tell."""
    moved = _metadata(path).get(_MOVED)
    if moved and moved != student.notation:
        raise RequestError(
            f"{path} was moved onto the depths {moved} already, and {student.name} has {student.notation}; "
            "take the original LoRA"
        )
    teacher = teacher_of(weights)
    layers = _layers(weights, teacher)
    kinds = {_kind(module) for module in layers}
    # One trained on the student adapts all of its layers of a kind and no other; the teacher has more of each kind.
    own = layers.keys() == {module for module in _modules(student) if _kind(module) in kinds}
    return student if moved or own and student.channels == teacher.channels else teacher


def read_lora(path: Path) -> dict[str, torch.Tensor]:
    """A LoRA's tensors; a scale that peft keeps in the file's metadata is in the upper factors here.

    Raises RequestError for a file that is no whole safetensors file, and for keys and scales that no LoRA has.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise RequestError(f"there is no file {path}")
    for key in stored_tensors(path):
        if not _NAME.fullmatch(key):  # peft takes the names of layers for regular expressions
            raise RequestError(f"the key {key[:80]!r} in {path} names no layer; take the LoRA from where it was made")
    weights = load_file(path)
    for key, tensor in weights.items():
        if key.endswith(_ENDINGS["alpha"]) and not (tensor.numel() == 1 and _is_scale(tensor.item())):
            raise RequestError(f"{key} in {path} is no scale: one number is, finite and not below 0; download it again")
    try:
        _scale(weights, json.loads(_metadata(path).get(_SETTINGS, "{}")))
    except (*_DAMAGED, re.error) as error:
        raise RequestError(f"the settings in {path} are damaged ({error}); download it again") from error
    return weights


def _scale(weights: dict[str, torch.Tensor], settings: Mapping) -> None:
    """Multiply peft's scales into the upper factors."""
    for key in [k for k in weights if k.endswith(".lora_A.weight")]:
        part, _, module = key.removesuffix(".lora_A.weight").partition(".")
        patterns = settings.get(f"{part}.alpha_pattern") or {}
        if tried := [pattern for pattern in patterns if re.search(r"[*+?{(]", pattern)]:
            raise ValueError(f"{tried[0][:80]!r} could be tried for hours; a pattern of a scale names its layers")
        special = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        rank = weights[key].shape[0]
        alpha = next(special, settings.get(f"{part}.lora_alpha", rank))
        if not _is_scale(alpha):
            raise ValueError(f"{str(alpha)[:80]!r} is no scale of {key}; one number is, finite and not below 0")
        scale = alpha / (rank**0.5 if settings.get(f"{part}.use_rslora") else rank)
        if scale != 1 and f"{part}.lora_alpha" in settings:
            weights[f"{part}.{module}.lora_B.weight"] *= scale


def _is_scale(alpha: object) -> bool:
    return isinstance(alpha, int | float) and 0 <= alpha < math.inf


def remap_file(lora: Path, spec: str, out: Path, teacher: UNetSpec | None = None) -> LoraReport:
    """Move a LoRA file onto a student's spec; the teacher is told by the LoRA's shapes where none is given."""
    weights = read_lora(lora)
    student = student_spec(spec, teacher or teacher_of(weights))
    found, report = remap(weights, student, teacher or _origin(lora, weights, student))
    check_space(out, sum(t.nbytes for t in found.values()))
    dropped = (_SETTINGS, "sshs_")  # what is no longer true of the file: peft's settings and kohya's hashes
    metadata = {k: v for k, v in _metadata(lora).items() if not k.startswith(dropped)}
    with new_file(out) as file:
        save_file(found, file, metadata=metadata | {"format": "pt", _MOVED: student.notation})
    return report


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


@lru_cache(maxsize=8)
def _modules(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    """Every layer of a U-Net that a LoRA can adapt, linear or convolution -> the shape of its weight."""
    with torch.device("meta"):
        weights = UNet2DConditionModel(**spec.config()).state_dict()
    return {
        key.removesuffix(".weight"): tuple(tensor.shape)
        for key, tensor in weights.items()
        if key.endswith(".weight") and tensor.ndim > 1
    }


def _kind(module: str) -> str:
    """What a layer is, wherever it stands: attn1.to_q, proj_in, conv1."""
    return re.split(r"\.\d+\.", module)[-1]


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _kohya_name(module: str) -> str:
    """The layer's name in kohya's style; diffusers knows add_embedding by its original name only."""
    return _KOHYA + _flat(module).replace("add_embedding_linear_1", "label_emb_0_0").replace(
        "add_embedding_linear_2", "label_emb_0_2"
    )


def _names(teacher: UNetSpec) -> dict[str, str]:
    """Every name under which a file may keep a teacher's layer, with underscores -> the layer's module path."""
    originals = original_names(teacher)
    own = {_flat(module): module for module in _modules(teacher)}
    return {_flat(renamed(module, originals)): module for module in own.values()} | own


def _split(weights: Weights) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(layer's name with underscores, what the tensor is, tensor) for every key of the U-Net."""
    for key, tensor in weights.items():
        if key.startswith(_TEXT):
            continue
        role, ending = next(
            ((role, e) for role, endings in _ENDINGS.items() for e in endings if key.endswith(e)), (None, "")
        )
        if role is None:
            raise RequestError(
                f"{key} is no part of a LoRA; a LoRA has two factors per layer, lora_down and lora_up or lora_A and "
                "lora_B. Other kinds of adapters (LoHa, LoKr) and whole models cannot be moved"
            )
        name = key.removesuffix(ending)
        for beginning in (_KOHYA, "unet.", "diffusion_model."):
            name = name.removeprefix(beginning)
        if ".processor." in name:  # diffusers' first style: attn1.processor.to_q_lora.down.weight
            name = name.replace(".processor.", ".")
            name += ".0" if name.endswith("to_out") else ""
        yield _flat(name), role, tensor


def _layers(weights: Weights, teacher: UNetSpec) -> dict[str, dict[str, torch.Tensor]]:
    """Teacher's module -> the LoRA's tensors for it; RequestError for a LoRA that is not the teacher's."""
    names, shapes = _names(teacher), _modules(teacher)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, role, tensor in _split(weights):
        found.setdefault(names.get(name, name), {})[role] = tensor
    if not found:
        raise RequestError("this LoRA adapts no layer of a U-Net; there is nothing to move")
    for module, parts in found.items():
        if absent := {"down", "up"} - parts.keys():
            raise RequestError(f"this LoRA is not whole: {module} lacks its {min(absent)} factor; download it again")
    foreign = [m for m, parts in found.items() if m not in shapes or not _fits(parts, shapes[m])]
    if foreign:
        raise RequestError(
            f"this LoRA is for another architecture: {len(foreign)} of its {len(found)} layers fit no layer of "
            f"{teacher.name}, for example {foreign[0]}; take one that was trained on SDXL"
        )
    return found


def _fits(parts: Weights, shape: tuple[int, ...]) -> bool:
    up, down = parts["up"].shape, parts["down"].shape
    if "magnitude" in parts and parts["magnitude"].numel() not in shape[:2]:  # one per output, or per input
        return False
    return len(up) == len(down) == len(shape) and (up[0], down[1], up[1]) == (shape[0], shape[1], down[0])


def _written(module: str, parts: Weights, kohya: bool) -> dict[str, torch.Tensor]:
    """A layer's tensors under their keys. Only kohya's style has alpha beside them; elsewhere it goes into `up`."""
    if kohya:
        return {f"{_kohya_name(module)}{_ENDINGS[role][0]}": tensor for role, tensor in parts.items()}
    parts = dict(parts)
    if "alpha" in parts:
        parts["up"] = parts["up"] * (parts.pop("alpha").item() / parts["down"].shape[0])
    return {f"unet.{module}{_ENDINGS[role][1]}": tensor for role, tensor in parts.items()}
