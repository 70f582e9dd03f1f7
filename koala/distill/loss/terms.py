"""KOALA's loss (section 3.1.2): task, output and feature distillation, every term reduced in fp32.

B batch, C channels, H W latent size, N tokens.
"""

from collections.abc import Mapping, Sequence

import torch

from koala.distill.loss.pairs import Pair


def snr_weight(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, *, gamma: float, high_noise: float = 0.0
) -> torch.Tensor:
    """Weight of an epsilon loss per sample, (B,): min(SNR, gamma) / SNR (Hang et al. 2023), lifted at high noise.

    `gamma` = 0 is no such weight. `high_noise` = 0 is min-SNR itself; 1 is what equal weights on velocity would be
    there (Salimans and Ho 2022).
    """
    signal = alphas_cumprod[timesteps].float()
    snr = signal / (1 - signal)
    weight = snr.clamp(max=gamma) / snr if gamma else torch.ones_like(snr)
    return weight * (1 + 1 / snr) ** high_noise


def noise_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared error of noise (B, C, H, W), weight (B,). Task and output term alike (eq. A.5)."""
    squared = (predicted.float() - target.float()).square().mean((1, 2, 3))
    return (weight * squared).mean()


def pair_loss(student: torch.Tensor, teacher: torch.Tensor, normalisation: str = "per-kind") -> torch.Tensor:
    """|s - t|^2 of one feature as a mean over its elements, by each sample's own mean square of t, or raw.

    Raw sums are ruled by the few layers with the largest activations; the teacher's norm makes layers comparable
    (LAPTOP-Diff). By sample and not by batch, so that a batch may be split over passes and processes.
    """
    s, t = student.float().flatten(1), teacher.float().flatten(1)  # (B, N * C)
    squared = (s - t).square().mean(1)
    if normalisation != "raw":
        squared = squared / t.square().mean(1).clamp(min=1e-8)
    return squared.mean()


def feature_losses(
    student: Mapping[str, torch.Tensor],
    teacher: Mapping[str, torch.Tensor],
    pairs: Sequence[Pair],
    normalisation: str = "per-kind",
) -> dict[Pair, torch.Tensor]:
    """The term of every pair (KOALA, eq. 1); `student` and `teacher` hold outputs by module path."""
    return {p: pair_loss(student[p.student], teacher[p.teacher], normalisation) for p in pairs}


def by_kind(terms: Mapping[Pair, torch.Tensor], normalisation: str = "per-kind") -> dict[str, torch.Tensor]:
    """One term per kind of feature, to be added up: the mean over its layers where each kind has one vote.

    Where each layer has one, or features are raw, the sum over its layers, so that their sum is the plain sum over all
    layers, as in KOALA (eq. 1) and BK-SDM.
    """
    kinds: dict[str, list[torch.Tensor]] = {}
    for pair, term in terms.items():
        kinds.setdefault(pair.kind, []).append(term)
    stacked = {kind: torch.stack(values) for kind, values in kinds.items()}
    return {kind: values.mean() if normalisation == "per-kind" else values.sum() for kind, values in stacked.items()}
