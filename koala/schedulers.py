"""Scheduler names -> diffusers schedulers on a pipeline's own noise schedule."""

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin

_KINDS = {
    "euler-trailing": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler-leading": (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "ddim-trailing": (DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": False}),
    "dpmpp-2m-trailing": (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
}


def build(name: str, config: dict) -> SchedulerMixin:
    """A fresh scheduler of this name (request.SCHEDULERS) on the noise schedule of `config`."""
    kind, settings = _KINDS[name]
    return kind.from_config(config, **settings)
