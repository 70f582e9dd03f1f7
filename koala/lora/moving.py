"""Moves LoRAs of a teacher's U-Net onto a student, by the layer map that surgery follows.

A student's layer is a copy of one of the teacher's, so what a LoRA adds to the one it adds to the other; layers whose
block the student lacks are dropped. Files keep their format; their layers get kohya's names, which every program reads.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from koala.errors import UserError
from koala.files.outputs import check_space, new_file
from koala.lora.files import (
    ENDINGS,
    KOHYA,
    SETTINGS,
    assumed,
    flat,
    is_embedding,
    is_text,
    lacking,
    metadata,
    read_lora,
    split,
    stored_lora,
)
from koala.lora.formulas import Parts, bias_change, change
from koala.lora.report import LoraReport
from koala.unet.layer_map import layer_map, renamed
from koala.unet.original_layout import original_names
from koala.unet.specs import SDXL, SPECS, STAGES, TINY_SDXL, UNetSpec
from koala.unet.specs import student as student_spec

Weights = Mapping[str, torch.Tensor]

MOVED = "koala_student"  # in a file's metadata: the depths of the student that it was moved onto
_IN_PEFT = {"down", "up", "alpha", "magnitude"}  # what peft's style has a name for


def remap(
    weights: Weights, student: UNetSpec, teacher: UNetSpec, names: str = "kohya"
) -> tuple[dict[str, torch.Tensor], LoraReport]:
    """The LoRA of a teacher as one of its student, with the student's names (LORA_NAMES), and what became of it.

    Raises UserError for a LoRA that does not fit the teacher, for one of which nothing is left, and for one that
    the style cannot say.
    """
    layers, skipped = _layers(weights, teacher)
    if student.channels != teacher.channels:
        raise UserError(
            f"this LoRA is for {teacher.name}, {teacher.channels[0]} channels wide at DW-1, and {student.name} has "
            f"{student.channels[0]}; take one that was trained on its teacher"
        )
    table = layer_map(student, teacher)
    places = {renamed(module, table): module for module in _modules(student) | _norms(student)}
    for module, parts in layers.items():
        if names == "peft" and (reason := _only_kohya(parts)):
            raise UserError(f"peft's names cannot say what this LoRA does to {module}: {reason}; use --names kohya")
    moved = {key: tensor for key, tensor in weights.items() if is_text(key) or is_embedding(key)}
    for module, parts in layers.items():
        if module in places:
            moved |= _written(places[module], parts, names)
    survivors = {module: places[module] for module in layers if module in places}
    if not survivors:
        raise UserError(
            f"nothing of this LoRA is left on {student.name}: it adapts {len(layers)} layers of {teacher.name}, for "
            f"example {next(iter(layers))}, and {student.name} has none of their blocks; use it on a larger model"
        )
    kinds = {_kind(module) for module in survivors}
    return moved, LoraReport(
        teacher=teacher.name,
        student=student.name,
        kept=tuple(source for source, own in survivors.items() if source == own),
        moved={source: own for source, own in survivors.items() if source != own},
        dropped=tuple(module for module in layers if module not in survivors),
        text_keys=sum(map(is_text, weights)),
        skipped=skipped,
        coverage=len(survivors) / len(layers),
        reach=len(survivors) / sum(_kind(module) in kinds for module in _modules(student) | _norms(student)),
        stages={
            stage: (sum(m in survivors for m in inside), len(inside))
            for stage, block in STAGES.items()
            if (inside := [module for module in layers if module.startswith(f"{block}.")])
        },
    )


def teacher_of(weights: Weights) -> UNetSpec:
    """The teacher that a LoRA was made for, by its layers' shapes: SDXL or the embedded one."""
    try:
        _layers(weights, TINY_SDXL)
    except UserError:
        _layers(weights, SDXL)  # says what is wrong
        return SDXL
    return TINY_SDXL


def lora_for(path: Path, student: UNetSpec) -> tuple[dict[str, torch.Tensor], LoraReport]:
    """A LoRA file as `remap` gives it, whatever it was made for: the student's teacher, or the student itself."""
    weights = read_lora(path)
    teacher, notes = _origin(path, weights, student)
    moved, report = remap(weights, student, teacher)
    return moved, replace(report, notes=(*assumed(path, weights), *notes))


def layers_for(path: Path, student: UNetSpec) -> tuple[dict[str, Parts], LoraReport]:
    """The student's module path -> the LoRA's tensors for it by role (`koala.lora.formulas`), and what became of it."""
    weights = read_lora(path)
    teacher, notes = _origin(path, weights, student)
    _, report = remap(weights, student, teacher)
    places = {kept_path: kept_path for kept_path in report.kept} | report.moved
    layers, _ = _layers(weights, teacher)
    fitting, unused = {}, []
    biases = _biases(student)
    for module, parts in layers.items():
        if module in places:
            place = places[module]
            if place not in biases and bias_change(parts) is not None:
                unused.append(f"the bias of {place}, which has none")
                parts = {role: t for role, t in parts.items() if role not in ("diff_b", "up_bias")}
            fitting[place] = parts
    return fitting, replace(report, skipped=(*report.skipped, *unused), notes=(*assumed(path, weights), *notes))


def changed_parameters(path: Path, student: UNetSpec) -> int:
    """How many weights of a U-Net a LoRA file changes, without reading its tensors' values."""
    weights = {key: torch.empty(t.shape, device="meta") for key, t in stored_lora(path).items()}
    teacher, _ = _origin(path, weights, student)
    table, layers, shapes = layer_map(student, teacher), _layers(weights, teacher)[0], _modules(student)
    return sum(math.prod(shape) for module, shape in shapes.items() if renamed(module, table) in layers)


def _origin(path: Path, weights: Weights, student: UNetSpec) -> tuple[UNetSpec, tuple[str, ...]]:
    """The U-Net that a LoRA file was made for, by its shapes: the student or the teacher; and what was assumed."""
    moved = metadata(path).get(MOVED)
    if moved and moved != student.notation:
        raise UserError(
            f"{path} was moved onto the depths {moved} already, and {student.name} has {student.notation}; "
            "take the original LoRA"
        )
    if moved:
        return student, ()
    try:
        teacher = teacher_of(weights)
    except UserError:
        if _fits_all(weights, student):  # one whose names and shapes only the student has
            return student, ()
        raise
    if student.channels != teacher.channels or not _fits_all(weights, student):
        return teacher, ()
    layers, _ = _layers(weights, teacher)
    own, table = _layers(weights, student)[0].keys(), layer_map(student, teacher)
    if {renamed(module, table) for module in own} == layers.keys():
        return teacher, ()  # either way the same layers change
    alike = _alike(own, student)
    if own == alike:  # one trained on the student has all of its layers of a kind; the teacher's has more of each
        return student, ()
    inside = {module for module in alike if _stage(module) in set(map(_stage, own))}
    if own == inside and not _whole_transformers(layers, teacher):  # the same of the stages that it is in
        return student, ()
    note = f"taken for a LoRA of {teacher.name}, though {student.name} has layers of all its names too"
    if name := next((name for name, spec in SPECS.items() if replace(spec, name=student.name) == student), None):
        note += (
            f"; if it was trained on {student.name}, python -m koala lora --lora FILE.safetensors --spec {name} "
            f"--teacher-spec {name} --out NEW.safetensors says so in a new file"
        )
    return teacher, (note,)


def _alike(layers: Iterable[str], spec: UNetSpec) -> set[str]:
    """All of a U-Net's layers of the kinds of these."""
    kinds = set(map(_kind, layers))
    return {module for module in _modules(spec) if _kind(module) in kinds}


def _whole_transformers(layers: Iterable[str], spec: UNetSpec) -> bool:
    """Whether every transformer that these layers are in has all of its layers of their kinds among them."""
    blocks = set(map(_transformer, layers))
    return all(module in layers for module in _alike(layers, spec) if _transformer(module) in blocks)


def _stage(module: str) -> str:
    return next((stage for stage, block in STAGES.items() if module.startswith(f"{block}.")), "")


def _transformer(module: str) -> str:
    """The block that contains a module: up_blocks.0.attentions.1."""
    return module.partition(".transformer_blocks.")[0]


def _named(spec: str, weights: Weights, teacher: UNetSpec | None) -> UNetSpec:
    """The student of that name, in the widths of the LoRA, be it the teacher's or the student's own."""
    if teacher is None:
        try:
            teacher = teacher_of(weights)
        except UserError:
            own = (student_spec(spec, whole) for whole in (TINY_SDXL, SDXL))
            if like := next((student for student in own if _fits_all(weights, student)), None):
                return like
            raise
    return student_spec(spec, teacher)


def _fits_all(weights: Weights, spec: UNetSpec) -> bool:
    try:
        _layers(weights, spec)
    except UserError:
        return False
    return True


def remap_file(lora: Path, spec: str, out: Path, teacher: UNetSpec | None = None, names: str = "kohya") -> LoraReport:
    """Move a LoRA file onto a student's spec; without a teacher, the LoRA's shapes decide which it is."""
    weights = read_lora(lora)
    student = _named(spec, weights, teacher)
    origin, notes = (teacher, ()) if teacher else _origin(lora, weights, student)
    moved, report = remap(weights, student, origin, names)
    check_space(out, sum(t.nbytes for t in moved.values()))
    dropped = (SETTINGS, "sshs_")  # no longer true of the new file: peft's settings and kohya's hashes
    kept = {k: v for k, v in metadata(lora).items() if not k.startswith(dropped)}
    with new_file(out) as file:
        save_file(moved, file, metadata=kept | {"format": "pt", MOVED: student.notation})
    return replace(report, notes=(*assumed(lora, weights), *notes))


@lru_cache(maxsize=8)
def _shapes(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    """Every parameter of a U-Net -> its shape."""
    with torch.device("meta"):
        return {key: tuple(t.shape) for key, t in UNet2DConditionModel(**spec.config()).state_dict().items()}


@lru_cache(maxsize=8)
def _modules(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    """Every layer of a U-Net that a LoRA can adapt, linear or convolution -> the shape of its weight."""
    return {k.removesuffix(".weight"): s for k, s in _shapes(spec).items() if k.endswith(".weight") and len(s) > 1}


@lru_cache(maxsize=8)
def _norms(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    """Every norm, which LyCORIS can adapt too -> the shape of its weight."""
    return {k.removesuffix(".weight"): s for k, s in _shapes(spec).items() if k.endswith(".weight") and len(s) == 1}


def _biases(spec: UNetSpec) -> set[str]:
    return {k.removesuffix(".bias") for k in _shapes(spec) if k.endswith(".bias")}


def _kind(module: str) -> str:
    """The kind of a layer, wherever it is: attn1.to_q, proj_in, conv1."""
    return re.split(r"\.\d+\.", module)[-1]


def _kohya_name(module: str) -> str:
    """The layer's name in kohya's style; diffusers knows add_embedding by its original name only."""
    return KOHYA + flat(module).replace("add_embedding_linear_1", "label_emb_0_0").replace(
        "add_embedding_linear_2", "label_emb_0_2"
    )


@lru_cache(maxsize=8)
def _names(teacher: UNetSpec) -> dict[str, str]:
    """Every name under which a file may keep a teacher's layer, with underscores -> the layer's module path."""
    originals = original_names(teacher)
    own = {flat(module): module for module in _modules(teacher) | _norms(teacher)}
    return {flat(renamed(module, originals)): module for module in own.values()} | own


def _layers(weights: Weights, teacher: UNetSpec) -> tuple[dict[str, dict[str, torch.Tensor]], tuple[str, ...]]:
    """Teacher's module -> the LoRA's tensors for it, and the keys that change nothing.

    UserError for a LoRA that is not the teacher's.
    """
    names, shapes = _names(teacher), _modules(teacher) | _norms(teacher)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    skipped = [key for key in weights if is_embedding(key)]
    keys: dict[str, str] = {}
    for name, role, key in split(weights):
        module = names.get(name, name)
        if role in layers.setdefault(module, {}):
            raise UserError(f"this LoRA has two tensors for one place, one of them {key}; take a file with one LoRA")
        layers[module][role] = weights[key]
        keys[module] = key
    for module in [m for m, parts in layers.items() if parts.keys() == {"alpha"}]:
        skipped.append(keys[module])
        del layers[module]
    if not layers:
        raise UserError("this LoRA adapts no layer of a U-Net; there is nothing to move")
    for module in layers.keys() & _norms(teacher).keys():  # ComfyUI and LyCORIS write a norm's change in either way
        layers[module] = {
            {"diff": "w_norm", "diff_b": "b_norm"}.get(role, role): t for role, t in layers[module].items()
        }
    for module, parts in layers.items():
        if role := lacking(parts):
            raise UserError(f"this LoRA is not whole: {module} lacks its {role} factor; download it again")
    foreign = [m for m, parts in layers.items() if m not in shapes or not _fits(parts, shapes[m])]
    if foreign:
        raise UserError(
            f"this LoRA is for another architecture: {len(foreign)} of its {len(layers)} layers fit no layer of "
            f"{teacher.name}, for example {foreign[0]}; take one that was trained on SDXL"
        )
    return layers, tuple(skipped)


def _fits(parts: Parts, shape: tuple[int, ...]) -> bool:
    """By the formula itself, on tensors without data."""
    if any(tensor.numel() == 0 for tensor in parts.values()):
        return False
    if len(shape) == 1:
        return set(parts) <= {"w_norm", "b_norm"} and all(t.numel() == shape[0] for t in parts.values())
    bias = bias_change({role: t for role, t in parts.items() if role != "alpha"} | {"alpha": torch.ones(())})
    if bias is not None and bias.numel() != shape[0]:
        return False
    weight = torch.empty(shape, device="meta")
    given = {r: torch.ones(()) if r == "alpha" else torch.empty(t.shape, device="meta") for r, t in parts.items()}
    try:
        return not has_weight(parts) or change(given, weight).shape == weight.shape
    except (ValueError, RuntimeError, IndexError, LookupError):
        return False


def has_weight(parts: Parts) -> bool:
    """Whether there is a change of the layer's weight, and not of its bias alone."""
    return bool(parts.keys() - {"alpha", "diff_b", "b_norm", "w_norm"})


def _only_kohya(parts: Parts) -> str:
    """Why peft's style cannot say it: another format, or a scale that would round the factor it goes into; or empty."""
    if others := sorted(parts.keys() - _IN_PEFT):
        return f"it has {others[0]}"
    if "alpha" not in parts:
        return ""
    up, scale = parts["up"], _peft_scale(parts)
    exact = up.dtype == torch.float32 or torch.equal((up.float() * scale).to(up.dtype).float(), up.float() * scale)
    return "" if exact and up.element_size() > 1 else f"its scale of {scale:g} would be rounded"


def _peft_scale(parts: Parts) -> float:
    return parts["alpha"].float().item() / parts["down"].shape[0]


def kohya(module: str, parts: Parts) -> dict[str, torch.Tensor]:
    """A layer's tensors, by role, under kohya's keys."""
    return _written(module, parts, "kohya")


def _written(module: str, parts: Parts, names: str) -> dict[str, torch.Tensor]:
    """A layer's tensors under their keys. Only kohya's style has a separate alpha; in peft's it goes into `up`."""
    parts = dict(parts)
    if names == "kohya":
        if "down" in parts and "up" in parts:  # written even where it equals the rank, which not every program assumes
            parts.setdefault("alpha", torch.tensor(float(parts["down"].shape[0])))
        if "magnitude" in parts:  # one per output, which kohya's format expresses by its shape
            parts["magnitude"] = parts["magnitude"].reshape(-1, *[1] * (parts["down"].ndim - 1))
        return {f"{_kohya_name(module)}{ENDINGS[role][0]}": tensor for role, tensor in parts.items()}
    if "alpha" in parts:
        parts["up"] = parts["up"] * _peft_scale(parts)
        del parts["alpha"]
    return {f"unet.{module}{ENDINGS[role][1]}": tensor for role, tensor in parts.items()}
