"""The optimizers and the learning rate of a config."""

import math

import torch

from koala.distill.config import DistillConfig
from koala.distill.muon import Muon
from koala.errors import UserError

_ENDS = ("conv_in.", "conv_out.", "time_embedding.linear_1.", "add_embedding.linear_1.")  # no hidden matrices


def build_optimizers(student: torch.nn.Module, config: DistillConfig) -> list[torch.optim.Optimizer]:
    """AdamW, AdamW with 8-bit states, or Muon for the hidden matrices with AdamW for both ends, norms and biases."""
    lr, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw8bit":
        return [_eight_bit()(student.parameters(), lr=lr, weight_decay=decay)]
    named = list(student.named_parameters())
    hidden = [p for n, p in named if config.optimizer == "muon" and p.ndim > 1 and not n.startswith(_ENDS)]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    betas = (0.9, 0.99) if hidden else (0.9, 0.999)
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
    """Of optimizer step `step`, counted from 0: a linear warm-up, then constant or a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * warm
    share = 0.02 + 0.98 * (1 + math.cos(math.pi * step / config.num_steps)) / 2
    return config.learning_rate * min(warm, share)
