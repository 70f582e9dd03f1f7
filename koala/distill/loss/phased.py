"""Steps that teach a student to draw in a few steps, or without guidance; `loss/velocity.py` has the notation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch.func import functional_call

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.draws import Draws
from koala.distill.loss.phases import Phases
from koala.distill.loss.step import Losses
from koala.distill.loss.velocity import (
    Conditions,
    GuidedTeacher,
    column,
    pseudo_huber,
    sigmas_of,
    to_input,
    to_velocity,
)
from koala.sampling.noising import Noising, ddpm

# z (B, C, h, w), sigma (B,), timesteps (B,), conditions, strengths (B,) or None -> dz/dsigma (B, C, h, w)
_Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Conditions, torch.Tensor | None], torch.Tensor]


class _VelocityStep(ABC):
    """What both methods share: the guided teacher, the noise, and the student's own velocity."""

    def __init__(self, config: DistillConfig, teacher: GuidedTeacher, alphas: torch.Tensor, noising: Noising = ddpm):
        self.config, self.guided, self.alphas, self.noising = config, teacher, alphas, noising
        self.teacher = teacher.network

    @contextmanager
    def hooked(
        self, bare: torch.nn.Module, average: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[Callable[[torch.nn.Module, Batch, Draws], Losses]]:
        """See `koala.distill.loss.step.Step`."""

        def averaged(*args: object, **kwargs: object) -> object:
            return functional_call(bare, average, args, kwargs)

        yield partial(self._losses, averaged if average and self.config.target == "ema" else None)

    @abstractmethod
    def _losses(self, averaged: Callable | None, student: torch.nn.Module, batch: Batch, draws: Draws) -> Losses:
        """The loss of one batch; `averaged` calls the student on its moving average, None where the goal does not."""

    def _noised(self, batch: Batch, draws: Draws, timesteps: torch.Tensor, sigma: torch.Tensor, device: torch.device):
        """z and what the U-Net is given."""
        latents, noise = batch.latents.to(device), draws.noise.to(device)
        noisy, _ = self.noising(latents, noise, timesteps, self.alphas.to(device))
        z = noisy.float() * (1 + column(sigma) ** 2).sqrt()
        given = (each.to(device) for each in (batch.context, batch.pooled, batch.time_ids))
        return z, Conditions(**dict(zip(("context", "pooled", "time_ids"), given, strict=True)))

    def _own(self, call: Callable, z, sigma, timesteps, conditions: Conditions, strengths=None) -> torch.Tensor:
        """The student's velocity."""
        output = call(to_input(z, sigma), timesteps, conditions.context, added_cond_kwargs=conditions.added).sample
        return to_velocity(output, z, sigma, self.guided.prediction)


class PhasedStep(_VelocityStep):
    """Phased consistency (Wang et al. 2024): from two neighbouring levels the student must land at the same point.

    The teacher takes the solver's step between them; the student's own prediction from there, without a gradient, is
    what its prediction from the noisier one is compared with, at the end of their phase. The paper's adversarial loss
    is left out.
    """

    def __init__(self, config: DistillConfig, teacher: GuidedTeacher, alphas: torch.Tensor, noising: Noising = ddpm):
        super().__init__(config, teacher, alphas, noising)
        self.phases = Phases(alphas, config.phases, config.solver_steps)

    def _losses(self, averaged: Callable | None, student: torch.nn.Module, batch: Batch, draws: Draws) -> Losses:
        device, phases = next(student.parameters()).device, self.phases
        level = phases.level(draws.timesteps.cpu())
        end = phases.end(level)
        sigma, last = phases.sigmas[level].to(device), phases.sigmas[end].to(device)
        z, conditions = self._noised(batch, draws, phases.timesteps[level].to(device), sigma, device)
        strengths = None if draws.strengths is None else draws.strengths.to(device)
        # The goal first: nothing of it is kept for the backward pass, and the student's activations are not there yet.
        with torch.no_grad():
            goal, at = z, level
            for _ in range(self.config.teacher_steps):
                after = (at - 1).maximum(end)
                goal = self._moved(goal, at, after, conditions, strengths, self.guided.velocity)
                at = after
            if self.config.teacher_steps < phases.cells:
                own = partial(self._own, averaged or student)
                goal = self._moved(goal, at, end, conditions, strengths, own, together=True)
        velocity = self._own(student, z, sigma, phases.timesteps[level].to(device), conditions)
        predicted = z + column(last - sigma) * velocity
        loss = pseudo_huber((predicted - goal) / (1 + column(last) ** 2).sqrt(), self.config.huber)
        return Losses(total=loss, terms={"consistency": loss}, pairs={})

    def _moved(
        self,
        z: torch.Tensor,
        at: torch.Tensor,
        to: torch.Tensor,
        conditions: Conditions,
        strengths: torch.Tensor | None,
        velocity: _Velocity,
        *,
        together: bool = False,
    ) -> torch.Tensor:
        """z carried from level `at` to level `to` by one Euler step.

        A picture that is there already is not computed again. `together`: every process of a run makes the call, as a
        student whose weights are sharded needs it, even where none of its own pictures has to move.
        """
        rows = torch.nonzero(at > to).flatten()  # on the CPU, so that no device is waited for
        if not len(rows):
            if not together or not torch.distributed.is_initialized():
                return z
            rows = torch.zeros(1, dtype=torch.long)  # it is moved by 0
        moves = (self.phases.sigmas[to] - self.phases.sigmas[at])[rows].to(z.device)
        level = at[rows].clamp(min=1)
        sigma, timesteps = self.phases.sigmas[level].to(z.device), self.phases.timesteps[level].to(z.device)
        if len(rows) == len(z):
            return z + column(moves) * velocity(z, sigma, timesteps, conditions, strengths)
        rows = rows.to(z.device)
        old, strengths = z[rows], None if strengths is None else strengths[rows]
        return z.index_copy(
            0, rows, old + column(moves) * velocity(old, sigma, timesteps, conditions.at(rows), strengths)
        )


class GuidanceStep(_VelocityStep):
    """Distils classifier-free guidance away (Meng et al. 2023): the student predicts what the guided teacher does."""

    def _losses(self, averaged: Callable | None, student: torch.nn.Module, batch: Batch, draws: Draws) -> Losses:
        device = next(student.parameters()).device
        timesteps = draws.timesteps.to(device)
        sigma = sigmas_of(self.alphas).to(device)[timesteps]
        z, conditions = self._noised(batch, draws, timesteps, sigma, device)
        strengths = None if draws.strengths is None else draws.strengths.to(device)
        wanted = self.guided.velocity(z, sigma, timesteps, conditions, strengths)
        loss = pseudo_huber(self._own(student, z, sigma, timesteps, conditions) - wanted, self.config.huber)
        return Losses(total=loss, terms={"guidance": loss}, pairs={})
