"""One notation for both noisings, in which every sampler's step is Euler's.

z = x / sqrt(abar) with the noise sigma = sqrt((1 - abar) / abar): the U-Net sees x = z / sqrt(1 + sigma^2), and what it
predicts gives the velocity dz/dsigma. SDXL's noising is z = x0 + sigma eps, so the velocity is the noise; the straight
one is z = (1 - sigma / sigma_max) x0 + sigma eps, so it is eps - x0 / sigma_max. DDIM's step is z + (sigma' - sigma)
times the velocity, as Euler's is in diffusers. All of it is in fp32: z is 15 times as large as x at pure noise.
"""

from dataclasses import dataclass

import torch

from koala.lora.training import without


def column(values: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def sigmas_of(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The noise at each timestep, (1000,)."""
    alphas = alphas_cumprod.double()
    return ((1 - alphas) / alphas).sqrt().float()


def to_input(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What the U-Net sees of z (B, C, h, w) at the noise sigma (B,)."""
    return z / (1 + column(sigma) ** 2).sqrt()


def to_velocity(output: torch.Tensor, z: torch.Tensor, sigma: torch.Tensor, prediction: str) -> torch.Tensor:
    """dz/dsigma from a U-Net's output; `prediction` is a scheduler's prediction_type."""
    output, sigma = output.float(), column(sigma)
    if prediction == "epsilon":
        return output
    if prediction == "v_prediction":
        return (z * sigma / (1 + sigma**2).sqrt() + output) / (1 + sigma**2).sqrt()
    assert prediction == "sample", prediction  # koala.models.semantics refuses others
    return (z - output) / sigma


def pseudo_huber(difference: torch.Tensor, width: float) -> torch.Tensor:
    """Mean of sqrt(d^2 + width^2) - width, without the cancellation where d is small."""
    squared = difference**2
    return (squared / ((squared + width**2).sqrt() + width)).mean()


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the U-Net is given for B pictures."""

    context: torch.Tensor  # (B, 77, C)
    pooled: torch.Tensor  # (B, P)
    time_ids: torch.Tensor  # (B, 6)

    def at(self, rows: torch.Tensor) -> "Conditions":
        """Those of these pictures alone."""
        return Conditions(context=self.context[rows], pooled=self.pooled[rows], time_ids=self.time_ids[rows])

    @property
    def added(self) -> dict[str, torch.Tensor]:
        """As diffusers' U-Net takes it."""
        return {"text_embeds": self.pooled, "time_ids": self.time_ids}


class GuidedTeacher:
    """The frozen teacher's velocity with classifier-free guidance, in its own precision."""

    def __init__(
        self,
        network: torch.nn.Module,
        empty: tuple[torch.Tensor, torch.Tensor],
        guidance: tuple[float, float],
        prediction: str = "epsilon",
    ):
        """`empty` is the context and the pooled output of the empty prompt; a range of guidance up to 1 is none."""
        self.network, self.empty, self.prediction = network, empty, prediction
        self.low, self.high = guidance

    @torch.no_grad()
    def velocity(
        self,
        z: torch.Tensor,
        sigma: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
        strengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, C, h, w) -> the same; `strengths` in [0, 1) choose from the range of guidance, by default its middle."""
        noisy = to_input(z, sigma)
        if self.high <= 1:
            return to_velocity(self._call(noisy, timesteps, conditions), z, sigma, self.prediction)
        context, pooled = (e.to(z.device).float().expand(len(z), *e.shape[1:]) for e in self.empty)
        both = Conditions(
            context=torch.cat([context, conditions.context]),
            pooled=torch.cat([pooled, conditions.pooled]),
            time_ids=conditions.time_ids.repeat(2, 1),
        )
        output = self._call(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
        free, bound = (to_velocity(half, z, sigma, self.prediction) for half in output.chunk(2))
        share = column(strengths) if strengths is not None else 0.5
        return free + (self.low + (self.high - self.low) * share) * (bound - free)

    def _call(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        dtype = self.network.dtype
        with without(self.network), torch.autocast(noisy.device.type, enabled=False):  # of the student
            added = conditions.added | {"text_embeds": conditions.pooled.to(dtype)}  # sizes stay exact
            return self.network(
                noisy.to(dtype), timesteps, conditions.context.to(dtype), added_cond_kwargs=added
            ).sample
