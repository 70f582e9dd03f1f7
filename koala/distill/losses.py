"""The three terms of KOALA's loss (section 3.1.2): task, output and self-attention feature distillation.

B batch, C channels, H W latent size, N tokens. Everything is reduced in fp32.
"""

from collections.abc import Mapping

import torch


def snr_weight(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, *, gamma: float, high_noise: float = 0.0
) -> torch.Tensor:
    """Weight of an epsilon loss per sample, (B,): min(SNR, gamma) / SNR (Hang et al. 2023), lifted at high noise.

    `high_noise` = 0 is min-SNR itself; 1 is what equal weights on velocity would be there (Salimans and Ho 2022).
    """
    signal = alphas_cumprod[timesteps].float()
    snr = signal / (1 - signal)
    return snr.clamp(max=gamma) / snr * (1 + 1 / snr) ** high_noise


def noise_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared error of noise (B, C, H, W), weight (B,). Task and output term alike (eq. A.5)."""
    squared = (predicted.float() - target.float()).square().mean((1, 2, 3))
    return (weight * squared).mean()


def feature_loss(
    student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], pairs: Mapping[str, str]
) -> torch.Tensor:
    """Mean over pairs {student layer: teacher layer} of |s - t|^2 / |t|^2 (KOALA, eq. 1, each term by its teacher).

    Raw sums are ruled by the few layers with the largest activations; dividing by the teacher's own norm gives
    every layer one vote (LAPTOP-Diff).
    """
    terms = []
    for mine, its in pairs.items():
        s, t = student[mine].float(), teacher[its].float()
        terms.append((s - t).square().mean() / t.square().mean().clamp(min=1e-8))
    return torch.stack(terms).mean()
