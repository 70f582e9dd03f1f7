"""Which parts of the models are on the device: all of them, or only what a memory plan keeps and what works now."""

import threading
from collections.abc import Iterable

import torch


class Residence:
    """Parts wait in host memory until they work. `lock` is held by the one run that uses the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.lock = threading.Lock()
        self._here: dict[int, torch.nn.Module] = {}  # by id: a module is no key
        self._settled: set[int] = set()

    @property
    def here(self) -> tuple[torch.nn.Module, ...]:
        """The parts that are on the device now."""
        return tuple(self._here.values())

    def bring(self, working: Iterable[torch.nn.Module], keep: Iterable[torch.nn.Module] = ()) -> None:
        """Move `working` to the device, after everything that is neither there to work nor to keep has left it."""
        working = tuple(working)
        stays = {id(part) for part in (*working, *keep)} | self._settled
        for key in [k for k in self._here if k not in stays]:
            self._send(self._here[key], torch.device("cpu"))
            del self._here[key]
        for part in working:
            if id(part) not in self._here:
                self._here[id(part)] = part  # also where memory ends half-way: then the next run sends it away again
                self._send(part, self.device)

    def settle(self, parts: Iterable[torch.nn.Module]) -> None:
        """Move these to the device for good."""
        parts = tuple(parts)
        self._settled |= {id(part) for part in parts}
        self.bring(parts)

    def _send(self, part: torch.nn.Module, device: torch.device) -> None:
        if self.device.type != "cpu":  # there is nowhere to go from host memory
            part.to(device)
