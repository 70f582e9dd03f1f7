"""Which device computes, how much memory it has, and which parts of the models are on it."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

from koala.errors import UserError
from koala.hardware.cuda import cards
from koala.hardware.torch_build import advice_here

# What a container may use, control groups version 2 and 1: less than the machine's memory, which psutil reports.
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
    """Return freed memory to the system; otherwise this process keeps it.

    glibc keeps blocks below 32 MB, which is most of a U-Net: 2 GB of a freed KOALA-700M.
    """
    gc.collect()
    if cards().available():
        cards().empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)


class Residence:
    """Moves parts between host memory and the device. `lock` is held by the one run that uses the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.lock = threading.Lock()
        self._here: dict[int, torch.nn.Module] = {}  # by id
        self._settled: set[int] = set()

    @property
    def here(self) -> tuple[torch.nn.Module, ...]:
        """The parts that are on the device now."""
        return tuple(self._here.values())

    def bring(self, working: Iterable[torch.nn.Module], keep: Iterable[torch.nn.Module] = ()) -> None:
        """Move `working` to the device, after moving off everything that is in neither `working` nor `keep`."""
        working = tuple(working)
        stays = {id(part) for part in (*working, *keep)} | self._settled
        for key in [k for k in self._here if k not in stays]:
            self._send(self._here[key], torch.device("cpu"))
            del self._here[key]
        for part in working:
            if id(part) not in self._here:
                self._here[id(part)] = part  # before it moves: if memory ends half-way, the next run moves it off again
                self._send(part, self.device)

    def settle(self, parts: Iterable[torch.nn.Module]) -> None:
        """Move these to the device and keep them there."""
        parts = tuple(parts)
        self._settled |= {id(part) for part in parts}
        self.bring(parts)

    def _send(self, part: torch.nn.Module, device: torch.device) -> None:
        if self.device.type != "cpu":  # on a CPU everything already is in host memory
            part.to(device)
