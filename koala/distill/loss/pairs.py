"""Which feature of the student learns from which of the teacher: pairs of module paths, from the layer map."""

import math
from dataclasses import dataclass

from koala.distill.config import DistillConfig, feature_stages
from koala.errors import UserError
from koala.unet.layer_map import layer_map, renamed
from koala.unet.specs import STAGES, UNetSpec

_MODULES = {"SA": "attn1", "CA": "attn2", "FFN": "ff"}  # of a transformer block in diffusers


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One term of the feature loss: diffusers module paths whose outputs have one shape, (B, N, C) or (B, C, H, W)."""

    kind: str
    stage: str
    student: str
    teacher: str


def teaching_block(block: int, student_depth: int, teacher_depth: int, mapping: str) -> int:
    """The teacher's transformer block that teaches the student's (KOALA, table 11c), all counted from 0.

    bottom: the teacher's first ones; up: its last ones; interleave: every other one and the last, {1, 3, 5, 7, 9, 10}
    for six of ten.
    """
    last = teacher_depth - student_depth + block
    if mapping == "interleave":
        return min(math.ceil(teacher_depth / student_depth) * block, last)
    return last if mapping == "up" else block


def _in_stage(kind: str, stage: str, student: UNetSpec, teacher: UNetSpec, mapping: str) -> list[Pair]:
    depths, block = student.depths().get(stage), STAGES[stage]
    if depths is None:
        return []
    if kind == "LF":
        return [Pair(kind=kind, stage=stage, student=block, teacher=block)]
    table = layer_map(student, teacher)
    if kind == "Res":
        resnets = [p for p in table if p.startswith(f"{block}.resnets.")]
        return [Pair(kind=kind, stage=stage, student=p, teacher=table[p]) for p in resnets]
    pairs = []
    for layer, depth in enumerate(depths):
        if not depth:
            continue
        path = f"{block}.attentions.{layer}"
        teacher_path = renamed(path, table)
        teacher_depth = teacher.depths()[stage][int(teacher_path.rsplit(".", 1)[1])]
        for j in range(depth):
            k = teaching_block(j, depth, teacher_depth, mapping)
            module = f"transformer_blocks.{{}}.{_MODULES[kind]}"
            pairs.append(
                Pair(
                    kind=kind,
                    stage=stage,
                    student=f"{path}.{module.format(j)}",
                    teacher=f"{teacher_path}.{module.format(k)}",
                )
            )
    return pairs


def feature_pairs(config: DistillConfig, student: UNetSpec, teacher: UNetSpec) -> list[Pair]:
    """Every term of the feature loss in the config's order, none twice: 30 of SA for KOALA-1B, 21 for KOALA-700M.

    UserError for a feature that is nowhere in the chosen stages; a stage that the student lacks, as KOALA-700M
    lacks MID, gives no term. Other methods than KOALA's have none.
    """
    if config.method != "koala":
        return []
    chosen: dict[Pair, None] = {}
    for kind, only in feature_stages(config):
        stages = [only] if only else config.stages
        pairs = [p for stage in stages for p in _in_stage(kind, stage, student, teacher, config.sa_mapping)]
        if not pairs:
            having = [s for s in STAGES if _in_stage(kind, s, student, teacher, config.sa_mapping)]
            raise UserError(
                f"{student.name} has no {kind} in {', '.join(stages) or 'no stage'}; it has it in {', '.join(having)}"
            )
        chosen |= dict.fromkeys(pairs)
    return list(chosen)
