"""How pictures fade into noise while a network learns: what it sees at a timestep, and what it has to predict."""

from collections.abc import Callable

import torch

from koala.models.cards import ModelCard

# latents and noise (B, 4, h, w), timesteps (B,), alphas_cumprod (1000,) -> what is seen, what is wanted, (B, 4, h, w)
Noising = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def ddpm(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """SDXL's own forward process (Ho et al. 2020); the noise is wanted, and the last step keeps 7 % of the picture."""
    signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise, noise


def straight(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The straight path from noise to picture, where the last timestep is noise alone.

    DDPM's own last step keeps 7 % of the picture, enough to see on which side an object is: a network that is
    trained on it never needs the caption for that, and then draws from pure noise (Lin et al. 2024). Here the latents
    fade in with 1 - sigma / sigma_max, the straight path from noise to picture (flow matching, Lipman et al. 2023).
    Euler's step on an epsilon prediction follows this path exactly when the prediction is noise - latents / sigma_max.
    """
    signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    sigma = ((1 - signal) / signal).sqrt()
    sigma_max = ((1 - alphas_cumprod[-1]) / alphas_cumprod[-1]).sqrt()
    noisy = signal.sqrt() * (1 - sigma / sigma_max) * latents + (1 - signal).sqrt() * noise
    return noisy, noise - latents / sigma_max


NOISINGS: dict[str, Noising] = {"ddpm": ddpm, "straight": straight}


def noising_of(teacher: ModelCard, chosen: str = "teacher") -> Noising:
    """The one that was chosen by name; "teacher" is the one that this teacher learned with."""
    return NOISINGS[teacher.noising if chosen == "teacher" else chosen]
