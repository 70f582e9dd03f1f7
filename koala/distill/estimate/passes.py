"""How often a training step runs both networks on each picture, on average.

A backward pass counts as two; as one where a LoRA learns, for the network's own weights have no gradients then.
"""

from dataclasses import dataclass

from koala.distill.config import DistillConfig


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Forward passes for one picture; `guided` is how many of the teacher's run at once."""

    student: float
    teacher: float
    guided: int


def passes_of(config: DistillConfig) -> Passes:
    """Of a config; where it leaves guidance to the teacher, the teacher is taken to be guided."""
    student = 4.0 if config.gradient_checkpointing else 3.0
    if config.lora_rank:
        student -= 1
    if config.method == "koala":
        return Passes(student=student, teacher=float(bool(config.output_weight or config.feature_weight)), guided=1)
    guided = 1 if config.guidance_max == 1 else 2
    if config.method == "guidance":
        return Passes(student=student, teacher=float(guided), guided=guided)
    cells = config.solver_steps // config.phases  # of a phase: a picture is drawn at each of them alike
    steps = [min(config.teacher_steps, level) for level in range(1, cells + 1)]
    goes_on = sum(level > config.teacher_steps for level in range(1, cells + 1))
    return Passes(student=student + goes_on / cells, teacher=guided * sum(steps) / cells, guided=guided)
