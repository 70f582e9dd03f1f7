"""What changes the weights: the optimizers of a config, its learning rate, Muon, and the moving average."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch

from koala.distill.config import DistillConfig
from koala.errors import UserError

_ENDS = ("conv_in.", "conv_out.", "time_embedding.linear_1.", "add_embedding.linear_1.")  # no hidden matrices


def learning(student: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that training changes, by name: all of them, or those of a LoRA."""
    return [(name, p) for name, p in student.named_parameters() if p.requires_grad]


def build_optimizers(student: torch.nn.Module, config: DistillConfig) -> list[torch.optim.Optimizer]:
    """AdamW, AdamW with 8-bit states, or Muon for the hidden matrices with AdamW for both ends, norms and biases."""
    lr, decay = config.learning_rate, config.weight_decay
    named = learning(student)
    if config.optimizer == "adamw8bit":
        every = [p for _, p in named]
        return [_eight_bit()(every, lr=lr, betas=(0.9, config.beta2), weight_decay=decay)]
    hidden = [p for n, p in named if config.optimizer == "muon" and p.ndim > 1 and not n.startswith(_ENDS)]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    betas = (0.9, 0.99) if hidden else (0.9, config.beta2)
    adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=decay, fused=True)
    return [Muon(hidden, lr, weight_decay=decay), adamw] if hidden else [adamw]


def _eight_bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimizer=adamw8bit needs bitsandbytes, which is not installed: pip install bitsandbytes; "
            "or choose optimizer=adamw"
        ) from error
    return AdamW8bit


def learning_rate(config: DistillConfig, step: int) -> float:
    """Of optimizer step `step`, counted from 0: a linear warm-up, then the schedule, whose cosine comes down to 2 %."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * warm
    done = step / config.num_steps
    if config.schedule == "cosine-tail":
        done = max(0.0, 2 * done - 1)
    share = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * min(warm, share)


_STEPS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315  # quintic that carries singular values from (0, 1] to about 1


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, cols) -> the nearest semi-orthogonal matrices, about; in bf16, as Muon does."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT  # (n, rows, rows)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x if wide is matrices else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, scaled to the RMS of an AdamW step, so that both take one learning rate.

    For weights of two or more dimensions; a convolution counts as (out, in * kernel).
    """

    def __init__(self, weights: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; `closure` is only there because wrapped optimizers pass None."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape = defaultdict(list)
            for weight in (w for w in group["params"] if w.grad is not None):
                by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():
                gradients = [w.grad for w in weights]
                for weight in weights:
                    if not self.state[weight]:
                        self.state[weight]["velocity"] = torch.zeros_like(weight)
                velocities = [self.state[w]["velocity"] for w in weights]
                torch._foreach_lerp_(velocities, gradients, 1 - momentum)
                ahead = torch._foreach_lerp(gradients, velocities, momentum)  # Nesterov
                updates = orthogonalised(torch.stack(ahead).flatten(2))
                scale = 0.2 * max(updates.shape[1:]) ** 0.5
                torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
                torch._foreach_add_(weights, list(updates.view(-1, *shape).unbind()), alpha=-lr * scale)


class Ema:
    """Starts from the student itself; its decay ramps up, so that the first steps are forgotten.

    Its tensors are on the student's device, sharded as the student's are, or on the CPU to spare the GPU.
    """

    def __init__(self, student: torch.nn.Module, decay: float, device: str = "student"):
        self.decay, self.steps = decay, 0
        self.on_cpu = device == "cpu"
        self.weights = {
            name: (p.detach().cpu() if self.on_cpu else p.detach()).clone() for name, p in learning(student)
        }

    @torch.no_grad()
    def update(self, student: torch.nn.Module) -> None:
        """Average the student's weights in; the decay grows over the first steps."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        new = [p.detach() for _, p in learning(student)]
        if self.on_cpu:
            new = [p.cpu() for p in new]
        torch._foreach_lerp_(list(self.weights.values()), new, 1 - decay)
