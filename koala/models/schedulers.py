"""Scheduler names -> diffusers schedulers on a pipeline's own noise schedule."""

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    TCDScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_tcd import TCDSchedulerOutput

from koala.errors import UserError
from koala.finite import everywhere

Sources = torch.Generator | list[torch.Generator] | None  # of fresh noise: one for all pictures or one for each


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
        generator: Sources = None,
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


# The others as diffusers has them, and each step's estimate of the picture is kept. A pipeline reads the names of the
# arguments of `step`, so they are written out.


class DDIM(DDIMScheduler):
    """DDIM (Song et al. 2021) that keeps its estimate of the picture, `clean` (B, C, h, w)."""

    clean: torch.Tensor | None = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: Sources = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step; `eta` is the share of fresh noise."""
        done = super().step(model_output, timestep, sample, eta=eta, generator=generator)
        self.clean = done.pred_original_sample
        return done if return_dict else (done.prev_sample, done.pred_original_sample)


class LCM(LCMScheduler):
    """Latent consistency models (Luo et al. 2023): each step estimates the picture, `clean`, and noises it anew."""

    clean: torch.Tensor | None = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: Sources = None,
        return_dict: bool = True,
    ) -> LCMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step; fresh noise comes from `generator`, one for all pictures or one for each."""
        done = super().step(model_output, timestep, sample, generator=generator)
        self.clean = done.denoised
        return done if return_dict else (done.prev_sample, done.denoised)


class TCD(TCDScheduler):
    """Trajectory consistency distillation (Zheng et al. 2024): jumps along the path, with `eta` as its fresh noise.

    diffusers' pipeline passes eta 0, which needs no noise. `clean` is the last step's estimate of the picture.
    """

    clean: torch.Tensor | None = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.3,
        generator: Sources = None,
        return_dict: bool = True,
    ) -> TCDSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step; `eta` is the share of fresh noise, called gamma in the paper."""
        signal = self.alphas_cumprod[timestep]
        noise, left = (1 - signal).sqrt(), signal.sqrt()
        self.clean = {
            "epsilon": lambda: (sample - noise * model_output) / left,
            "v_prediction": lambda: left * sample - noise * model_output,
            "sample": lambda: model_output,
        }[self.config.prediction_type]()
        done = super().step(model_output, timestep, sample, eta=eta, generator=generator)
        return done if return_dict else (done.prev_sample, done.pred_noised_sample)


class DPMSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++ (Lu et al. 2022); its second order computes with the estimates of the picture, `clean`."""

    @property
    def clean(self) -> torch.Tensor | None:
        """The last step's estimate (B, C, h, w), None before the first step."""
        return self.model_outputs[-1]


_KINDS = {
    "euler-trailing": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler-leading": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    "euler-linspace": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "euler-ancestral-trailing": (EulerAncestral, {"timestep_spacing": "trailing"}),
    "ddim-trailing": (DDIM, {"timestep_spacing": "trailing", "clip_sample": False}),
    "dpmpp-2m-trailing": (DPMSolver, {"timestep_spacing": "trailing"}),
    "lcm": (LCM, {}),
    "tcd": (TCD, {}),
}
ON_OWN_GRID = ("lcm", "tcd")  # as many of the steps that a model was distilled on as are asked for
_FROM_NOISE = (DDIMScheduler, LCMScheduler, TCDScheduler)  # can begin where nothing of the picture is left


def build(name: str, config: dict) -> SchedulerMixin:
    """A fresh scheduler of this name (request.SCHEDULERS) on the noise schedule of `config`."""
    kind, settings = _KINDS[name]
    if settings.get("timestep_spacing") == "leading" != config.get("timestep_spacing"):
        settings = settings | {"steps_offset": 1}  # SDXL's, where the pipeline's config does not set it
    if name in ON_OWN_GRID and "original_inference_steps" not in config:
        settings = settings | {"original_inference_steps": min(50, config.get("num_train_timesteps", 1000))}
    clean = kind is EulerAncestral and config.get("prediction_type") == "sample"
    scheduler = kind.from_config(config, **settings, **({"prediction_type": "epsilon"} if clean else {}))
    if clean:
        scheduler.predicts_clean = True
    return scheduler


def clean_estimate(
    scheduler: SchedulerMixin, before: torch.Tensor, after: torch.Tensor, index: int
) -> torch.Tensor | None:
    """What the picture would be without its remaining noise (B, C, h, w), after the step `index` from 0.

    `before` and `after` are the noisy latents around the step. Euler's step is a line, followed to sigma 0; the other
    schedulers keep theirs themselves.
    """
    if isinstance(scheduler, EulerDiscreteScheduler):
        high, low = scheduler.sigmas[index : index + 2].tolist()
        return (high * after - low * before) / (high - low)
    return scheduler.clean


def noise_left(scheduler: SchedulerMixin, index: int) -> float:
    """The noise left in the latents after the step `index` from 0, as a share of their standard deviation, 0 to 1.

    That is sqrt(1 - alphas_cumprod) (Ho et al. 2020) at the timestep of the next step; nothing is left after the last.
    """
    if index + 1 >= len(scheduler.timesteps):
        return 0.0
    signal = scheduler.alphas_cumprod[round(float(scheduler.timesteps[index + 1]))]
    return float((1 - signal).sqrt())


def build_for_run(name: str, config: dict, steps: int | None = None) -> SchedulerMixin:
    """The same; UserError for a noise schedule on which it would compute NaN, or for `steps` that it does not have."""
    scheduler = build(name, config)
    if name in ON_OWN_GRID and steps and steps > scheduler.config.original_inference_steps:
        most = scheduler.config.original_inference_steps
        raise UserError(
            f"the scheduler {name} chooses its steps out of the {most} on which the model was distilled, so it has no "
            f"{steps}; ask for at most {most}, or choose another scheduler, --scheduler euler-trailing"
        )
    signal = scheduler.alphas_cumprod  # the share of the picture's variance that is left at each timestep
    # These can take their first step without any signal; the others keep a trace of it.
    silent = bool(scheduler.config.get("rescale_betas_zero_snr")) and isinstance(scheduler, _FROM_NOISE)
    if not everywhere(((signal > 0) | (silent & (signal == 0))) & (signal <= 1)):  # NaN is neither
        raise UserError(
            "the noise schedule in scheduler/scheduler_config.json leaves nothing of the picture, or more than all; "
            "betas lie between 0 and 1, those of SDXL from 0.00085 to 0.012. Copy the file again"
        )
    if silent and scheduler.config.prediction_type == "epsilon":
        others = ", ".join(other for other, (kind, _) in _KINDS.items() if not issubclass(kind, _FROM_NOISE))
        raise UserError(
            f"{name} cannot draw with this model: its scheduler_config.json says rescale_betas_zero_snr, so that the "
            "first step has no signal, and a prediction of noise (epsilon) cannot separate the picture from that. "
            f"Choose another scheduler ({others}); or, where the model was trained to predict the velocity, write "
            '"prediction_type": "v_prediction" there'
        )
    return scheduler
