"""How often a training step runs both networks on each picture, on average.

A backward pass counts as two; as one where a LoRA learns, for the network's own weights have no gradients then.
"""

from dataclasses import dataclass

from koala.distill.config import DistillConfig
from koala.distill.timesteps import NUM_TIMESTEPS, shares


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
    walks = config.teacher_steps
    drawn = _levels(config)
    steps = sum(share * min(walks, level) for level, share in enumerate(drawn, 1))
    goes_on = sum(share for level, share in enumerate(drawn, 1) if level > walks)
    return Passes(student=student + goes_on, teacher=guided * steps, guided=guided)


def _levels(config: DistillConfig) -> list[float]:
    """How often a picture is drawn at each of the solver's steps that a phase has, from its end on."""
    cells = config.solver_steps // config.phases
    levels = [0.0] * cells
    for timestep, share in enumerate(shares(config)):
        levels[timestep * config.solver_steps // NUM_TIMESTEPS % cells] += share
    return levels
