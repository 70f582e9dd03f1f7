"""Which device computes, and how much memory it has."""

import sys

import torch

from koala.request import RequestError


def best_device(name: str | None = None) -> torch.device:
    """The device by name, or the best one here: CUDA, Apple's GPU, CPU."""
    if name:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise RequestError(f"unknown device {name!r}; use cpu, cuda, cuda:1 or mps") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RequestError(f"device {name} was asked for, but no CUDA GPU is visible; use --device cpu")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_memory(device: torch.device) -> int | None:
    """Bytes that this process may use of the device now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if sys.platform == "linux":
        with open("/proc/meminfo") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    return None
