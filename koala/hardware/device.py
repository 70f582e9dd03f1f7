"""Which device computes, and how much memory it has."""

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

from koala.errors import UserError
from koala.hardware.cuda import cards
from koala.hardware.torch_build import advice_here

# What a container may use, control groups version 2 and 1: less than what the machine has, which psutil tells.
_CONTAINER = tuple(Path("/sys/fs/cgroup") / n for n in ("memory.max", "memory/memory.limit_in_bytes"))


def best_device(name: str | None = None) -> torch.device:
    """The device by name, or the best one here: CUDA, Apple's GPU, CPU."""
    if name:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"unknown device {name!r}; use cpu, cuda, cuda:1 or mps") from error
        if device.type == "cuda":
            _check_visible(device)
        return device
    if cards().available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check_visible(device: torch.device) -> None:
    if not cards().available():
        unused = advice_here()
        why = f"no CUDA GPU is visible ({unused})" if unused else "no CUDA GPU is visible"
        raise UserError(f"device {device} was asked for, but {why}; use --device cpu")
    if device.index and device.index >= cards().count():
        raise UserError(
            f"device {device} was asked for, but the last of the CUDA GPUs that are visible is "
            f"cuda:{cards().count() - 1}: they are numbered from 0, also where CUDA_VISIBLE_DEVICES names some of "
            f"them. Use --device cuda:{cards().count() - 1}"
        )


def device_memory(device: torch.device) -> int:
    """Bytes that this process may use of the device now."""
    if device.type == "cuda":
        return cards().memory(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [int(f.read_text()) for f in _CONTAINER if f.is_file() and f.read_text().strip().isdigit()]
    return min(psutil.virtual_memory().available, *limits) if limits else psutil.virtual_memory().available


def give_back() -> None:
    """What was freed goes back to the machine, which else stays this process's own.

    glibc keeps blocks below 32 MB, which is most of a U-Net: 2 GB of a freed KOALA-700M.
    """
    gc.collect()
    if cards().available():
        cards().empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)
