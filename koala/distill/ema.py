"""Exponential moving average of a student's weights."""

import torch


class Ema:
    """Starts from the student itself; its decay ramps up, so that the first steps are forgotten.

    Its tensors lie on the student's device, sharded as the student's are, or on the CPU to spare the GPU.
    """

    def __init__(self, student: torch.nn.Module, decay: float, device: str = "student"):
        self.decay, self.steps = decay, 0
        self.on_cpu = device == "cpu"
        self.weights = {
            name: (p.detach().cpu() if self.on_cpu else p.detach()).clone() for name, p in student.named_parameters()
        }

    @torch.no_grad()
    def update(self, student: torch.nn.Module) -> None:
        """Take the student's weights in; the decay grows over the first steps."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        new = [p.detach() for p in student.parameters()]
        if self.on_cpu:
            new = [p.cpu() for p in new]
        torch._foreach_lerp_(list(self.weights.values()), new, 1 - decay)
