"""Muon (Jordan et al. 2024) with one batched Newton-Schulz iteration per matrix shape.

`torch.optim.Muon` is the same update, one matrix at a time: on a U-Net of 743 matrices of 64 rows that costs a third
of a training step on one core, the batched iteration a tenth.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

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
