"""Classifier-free guidance on an interval of the steps, for any batch (Kynkaanniemi et al. 2024).

diffusers' SDXLCFGCutoffCallback keeps one row whatever the batch; this one drops and restores whole halves.
"""

import torch
from diffusers import StableDiffusionXLPipeline

from koala.presets import PRESETS
from koala.request import GenerationRequest

# What the pipeline's loop hands to its callback and takes back: [negative; positive] rows while it guides.
TENSORS = ("prompt_embeds", "add_text_embeds", "add_time_ids")


def guided_steps(request: GenerationRequest) -> range:
    """Indices of the steps that call the U-Net twice; none without guidance."""
    return PRESETS[request.preset].guided_steps(request.steps) if request.guidance > 1 else range(0)


def unet_calls(request: GenerationRequest) -> int:
    """Predictions of the U-Net in a run whose defaults are filled in: one a step, two where the step is guided."""
    return request.steps + len(guided_steps(request))


class GuidanceInterval:
    """Switches a running pipeline's guidance on and off between steps; `embeds` are those of `encode_prompt`."""

    def __init__(self, request: GenerationRequest, embeds: dict[str, torch.Tensor | None]):
        self.guidance = request.guidance
        self.guided = guided_steps(request)
        self._negative = {
            "prompt_embeds": embeds["negative_prompt_embeds"],
            "add_text_embeds": embeds["negative_pooled_prompt_embeds"],
        }

    @property
    def scale(self) -> float:
        """The guidance to start the pipeline with."""
        return self.guidance if 0 in self.guided else min(self.guidance, 1.0)

    def step_end(self, pipeline: StableDiffusionXLPipeline, index: int, values: dict) -> dict:
        """What changes for the step after `index`: nothing, or the tensors with or without their negative half."""
        now, then = index in self.guided, index + 1 in self.guided
        if now == then:
            return {}
        pipeline._guidance_scale = self.guidance if then else 1.0  # the loop reads it at every step
        if now:
            return {name: values[name].chunk(2)[1] for name in TENSORS}
        negative = self._negative | {"add_time_ids": values["add_time_ids"]}  # size and crop are the same for both
        return {name: torch.cat([negative[name], values[name]]) for name in TENSORS}
