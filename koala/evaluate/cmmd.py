"""CMMD: the maximum mean discrepancy between the CLIP embeddings of two sets of pictures (arXiv 2401.09603).

n, m pictures, D embedding width. Everything is in fp64: kernel values of unit vectors lie between 0.98 and 1.
"""

from dataclasses import dataclass

import torch

SIGMA = 10.0
SCALE = 1000.0
ROWS = 1024  # of the kernel matrix at a time, to bound memory


@dataclass(frozen=True, kw_only=True)
class CMMD:
    """`minimum_variance` is the paper's estimate: never negative, but biased upwards for few pictures."""

    minimum_variance: float
    unbiased: float


def _kernel_sum(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum of exp(-|x_i - y_j|^2 / (2 sigma^2)) over all pairs, (n, D) and (m, D)."""
    squares = (rows.square().sum(1)[:, None] + y.square().sum(1) - 2 * rows @ y.T for rows in x.split(ROWS))  # (r, m)
    return sum(float(torch.exp(-s / (2 * SIGMA**2)).sum()) for s in squares)


def cmmd(x: torch.Tensor, y: torch.Tensor) -> CMMD:
    """Of two sets of unit embeddings (n, D) and (m, D), times 1000 (Gretton et al. 2012, eq. 5 and eq. 3)."""
    x, y = x.double().cpu(), y.double().cpu()
    n, m = len(x), len(y)
    xx, yy, xy = _kernel_sum(x, x), _kernel_sum(y, y), _kernel_sum(x, y)
    across = 2 * xy / (n * m)
    return CMMD(
        minimum_variance=SCALE * (xx / n**2 + yy / m**2 - across),
        unbiased=SCALE * ((xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - across),
    )
