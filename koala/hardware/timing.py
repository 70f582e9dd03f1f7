"""StageTimer: wall time of the stages of a generation, synchronised with the device, and peak memory."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from koala.hardware.cuda import cards
from koala.words import many

log = logging.getLogger(__name__)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work, so that a clock read now is correct."""
    if device.type == "cuda":
        cards().synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """The device's usual name: the GPU's, or the CPU's with its thread count."""
    if device.type == "cuda":
        return cards().name(device)
    if device.type == "mps":
        return "Apple GPU"
    model = "CPU"
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as lines:  # psutil knows their number, not their name
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    threads = torch.get_num_threads()
    return f"{model}, {many(threads, 'thread')}"


def _reset_process_peak() -> bool:
    """Reset the process's peak, where Linux allows it: proc(5), clear_refs, 5. Returns whether a peak can be measured.

    psutil neither resets a peak nor, on Linux, reports it.
    """
    if sys.platform != "linux":
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:  # a hardened container: the peak since the process began would be wrong
        log.info("peak memory is not measured: %s", error)
        return False
    return True


def _process_peak() -> int | None:
    """Peak resident bytes of this process; on Linux since the last reset, elsewhere since its start."""
    if sys.platform == "linux":
        with open("/proc/self/status") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return psutil.Process().memory_info().peak_wset if sys.platform == "win32" else None


class StageTimer:
    """Milliseconds per named stage; a stage measured more than once keeps every measurement."""

    def __init__(self, device: torch.device):
        self.device = device
        self.ms: dict[str, list[float]] = {}
        self.restart_peak()

    def restart_peak(self) -> None:
        """Reset the peak, which so far includes what is not measured."""
        if self.device.type == "cuda":
            cards().reset_peak(self.device)
        self._has_peak = self.device.type == "cuda" or _reset_process_peak()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is inside, to the end of the device's work, as the stage `name`."""
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.ms.setdefault(name, []).append((time.perf_counter() - start) * 1000)

    @contextmanager
    def calls(self, name: str, module: torch.nn.Module) -> Iterator[None]:
        """Measure every forward pass of `module` as the stage `name`."""
        running: list = []

        def before(*_):
            running.append(self.stage(name))
            running[-1].__enter__()

        def after(*_):
            running.pop().__exit__(None, None, None)

        hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def total(self, name: str) -> float:
        """All that was measured as the stage `name`, in ms."""
        return sum(self.ms.get(name, ()))

    def peak_memory(self) -> int | None:
        """Peak bytes since this timer began, or its peak was restarted: of the GPU, or of the process on a CPU."""
        if self.device.type == "cuda":
            return cards().peak(self.device)
        return _process_peak() if self._has_peak else None
