"""What a run tells of its steps: means of every term, and the speed."""

import torch

from koala.distill.config import DistillConfig
from koala.distill.loss.step import Losses
from koala.distill.processes import Processes


class Means:
    """Means of every term since they were last taken, over passes and processes."""

    def __init__(self, processes: Processes, config: DistillConfig, since: float):
        self.processes, self.config, self.since = processes, config, since
        self.names: list[str] = []
        self.sums: list[torch.Tensor] = []

    def add(self, losses: Losses) -> None:
        """One pass; nothing is waited for."""
        self.names = ["loss", *losses.terms]
        self.sums.append(torch.stack([losses.total.detach(), *(v.detach() for v in losses.terms.values())]))

    def take(self, seconds: float) -> dict[str, float]:
        """Means by name, and the pictures per second; `seconds` is the time of training so far."""
        mean = self.processes.mean(torch.stack(self.sums).mean(0))
        steps = len(self.sums) / self.config.accumulation
        took = seconds - self.since
        self.sums, self.since = [], seconds
        means = dict(zip(self.names, mean.tolist(), strict=True))
        return means | {
            "pictures_per_second": steps * self.config.batch_size / took if took > 0 else 0.0,
            "seconds": round(seconds, 3),
        }
