"""The path from noise to picture, cut into phases: where a few-step student starts and lands.

Phased consistency models (Wang et al. 2024). Level 0 is the picture, level k the k-th of the solver's timesteps counted
from it. Each phase ends at a level that `euler-trailing` visits in as many steps as there are phases.
"""

import torch

from koala.distill.loss.velocity import sigmas_of
from koala.distill.timesteps import NUM_TIMESTEPS


class Phases:
    """`solver_steps` levels above the picture, in `phases` phases of equal length."""

    def __init__(self, alphas_cumprod: torch.Tensor, phases: int, solver_steps: int):
        self.steps, self.cells = solver_steps, solver_steps // phases
        grid = torch.arange(1, solver_steps + 1) * (NUM_TIMESTEPS // solver_steps) - 1
        self.timesteps = torch.cat([torch.zeros(1, dtype=grid.dtype), grid])  # by level; level 0 is not run
        self.sigmas = torch.cat([torch.zeros(1), sigmas_of(alphas_cumprod.cpu())[grid]])

    def level(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The level of each drawn timestep: each of them is drawn as often."""
        return timesteps * self.steps // NUM_TIMESTEPS + 1

    def end(self, level: torch.Tensor) -> torch.Tensor:
        """The level at which each one's phase ends, below it."""
        return (level - 1) // self.cells * self.cells
