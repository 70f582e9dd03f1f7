"""Scheduler names -> diffusers schedulers on a pipeline's own noise schedule."""

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput

from koala.errors import UserError
from koala.finite import everywhere


class EulerAncestral(EulerAncestralDiscreteScheduler):
    """Euler ancestral: each step goes a little too far and adds fresh noise, so early errors can still be corrected.

    k-diffusion's `sample_euler_ancestral` with eta 1, as diffusers has it. `clean` is the last step's estimate of the
    picture (B, C, h, w), None before the first step.
    """

    clean: torch.Tensor | None = None
    predicts_clean: bool = False  # the network predicts the picture itself, which diffusers' class does not support

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step; fresh noise comes from `generator`, one for all pictures or one for each."""
        if self.predicts_clean:  # noise = (sample - picture) / sigma
            if self.step_index is None:
                self._init_step_index(timestep)
            wide = sample.float()
            model_output = (wide - model_output.float()) / self.sigmas[self.step_index].to(wide.device)
        done = super().step(model_output, timestep, sample, generator=generator)
        self.clean = done.pred_original_sample
        return done if return_dict else (done.prev_sample, done.pred_original_sample)


_KINDS = {
    "euler-trailing": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler-leading": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    "euler-linspace": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "euler-ancestral-trailing": (EulerAncestral, {"timestep_spacing": "trailing"}),
    "ddim-trailing": (DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": False}),
    "dpmpp-2m-trailing": (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
}


def build(name: str, config: dict) -> SchedulerMixin:
    """A fresh scheduler of this name (request.SCHEDULERS) on the noise schedule of `config`."""
    kind, settings = _KINDS[name]
    if settings["timestep_spacing"] == "leading" != config.get("timestep_spacing"):
        settings = settings | {"steps_offset": 1}  # SDXL's, where the pipeline's config does not set it
    clean = kind is EulerAncestral and config.get("prediction_type") == "sample"
    made = kind.from_config(config, **settings, **({"prediction_type": "epsilon"} if clean else {}))
    if clean:
        made.predicts_clean = True
    return made


def build_for_run(name: str, config: dict) -> SchedulerMixin:
    """The same; UserError for a noise schedule on which it would compute NaN."""
    made = build(name, config)
    signal = made.alphas_cumprod  # the share of the picture's variance that is left at each timestep
    # Of these only DDIM can take its first step without any signal; the others keep a trace of it.
    silent = bool(made.config.get("rescale_betas_zero_snr")) and isinstance(made, DDIMScheduler)
    if not everywhere(((signal > 0) | (silent & (signal == 0))) & (signal <= 1)):  # NaN is neither
        raise UserError(
            "the noise schedule in scheduler/scheduler_config.json leaves nothing of the picture, or more than all; "
            "betas lie between 0 and 1, those of SDXL from 0.00085 to 0.012. Copy the file again"
        )
    if silent and made.config.prediction_type == "epsilon":
        others = ", ".join(other for other in _KINDS if other != name)
        raise UserError(
            f"{name} cannot draw with this model: its scheduler_config.json says rescale_betas_zero_snr, so that the "
            "first step has no signal, and a prediction of noise (epsilon) cannot separate the picture from that. "
            f"Choose another scheduler ({others}); or, where the model was trained to predict the velocity, write "
            '"prediction_type": "v_prediction" there'
        )
    return made
