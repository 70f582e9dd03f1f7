"""Everything that the project asks of torch.cuda. A rehearsal replaces the machine's cards with described ones.

tests/hardware/test_cuda.py holds that no other module names torch.cuda.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


class Cards:
    """The CUDA cards that this process sees, as torch.cuda reports them; None means the current one.

    They are numbered from 0, whatever their numbers in the machine: CUDA_VISIBLE_DEVICES=1 makes the second one cuda:0.
    """

    def available(self) -> bool:
        """Whether there is one that this build of torch can use."""
        return torch.cuda.is_available()

    def count(self) -> int:
        """How many there are."""
        return torch.cuda.device_count()

    def build(self) -> str | None:
        """The CUDA version that torch was built for; None for a CPU build, which sees no card."""
        return torch.version.cuda

    def name(self, device: torch.device | None = None) -> str:
        """What its driver calls it."""
        return torch.cuda.get_device_name(device)

    def capability(self, device: torch.device | None = None) -> tuple[int, int]:
        """Compute capability: (8, 9) is Ada."""
        return torch.cuda.get_device_capability(device)

    def memory(self, device: torch.device | None = None) -> tuple[int, int]:
        """(free, total) bytes; on a MIG instance those of the instance."""
        return torch.cuda.mem_get_info(device)

    def synchronize(self, device: torch.device | None = None) -> None:
        """Wait until it has finished all queued work."""
        torch.cuda.synchronize(device)

    def empty_cache(self) -> None:
        """Return memory that torch's allocator caches but does not use to the driver."""
        torch.cuda.empty_cache()

    def reset_peak(self, device: torch.device | None = None) -> None:
        """Count `peak` from now on."""
        torch.cuda.reset_peak_memory_stats(device)

    def peak(self, device: torch.device | None = None) -> int:
        """Most bytes that tensors held at once since the last reset."""
        return torch.cuda.max_memory_allocated(device)

    def reserved_peak(self, device: torch.device | None = None) -> int:
        """Most bytes that torch's allocator had from the driver since the last reset, in use or kept."""
        return torch.cuda.max_memory_reserved(device)

    def cap(self, count: int | None, device: torch.device | None = None) -> None:
        """Limit torch's allocator to this many bytes of the card; None removes the limit."""
        number = device.index if device and device.index is not None else torch.cuda.current_device()
        share = 1.0 if count is None else min(count / self.memory(device)[1], 1.0)
        torch.cuda.set_per_process_memory_fraction(share, number)  # which knows no device without a number

    def current_stream(self, device: torch.device | None = None) -> torch.Stream:
        """The queue that torch's kernels are put in."""
        return torch.cuda.current_stream(device)

    def new_stream(self, device: torch.device | None = None) -> torch.Stream:
        """A second queue, parallel to it."""
        return torch.cuda.Stream(device)

    def new_event(self) -> torch.Event:
        """A mark in a stream that notes its time in ms."""
        return torch.cuda.Event(enable_timing=True)


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card as its data sheet has it. `free_bytes` is what other programs and the display leave."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]


class DescribedCards(Cards):
    """Cards that are only described. Nothing runs on them, so `peak` is what whoever rehearses has counted."""

    def __init__(self, cards: Sequence[Card], *, peak: Callable[[], int], reset_peak: Callable[[], None]):
        self.cards, self._peak, self._reset_peak = tuple(cards), peak, reset_peak

    def _card(self, device: torch.device | None) -> Card:
        return self.cards[(device.index or 0) if device else 0]

    def available(self) -> bool:
        """Whether any was described."""
        return bool(self.cards)

    def count(self) -> int:
        """How many were."""
        return len(self.cards)

    def build(self) -> str | None:
        """Not a version: it only distinguishes a CUDA build from a CPU build."""
        return "described"

    def name(self, device: torch.device | None = None) -> str:
        """As described."""
        return self._card(device).name

    def capability(self, device: torch.device | None = None) -> tuple[int, int]:
        """As described."""
        return self._card(device).capability

    def memory(self, device: torch.device | None = None) -> tuple[int, int]:
        """(free, total) bytes, as described."""
        return self._card(device).free_bytes, self._card(device).total_bytes

    def synchronize(self, device: torch.device | None = None) -> None:
        """Nothing is ever under way."""

    def empty_cache(self) -> None:
        """Nothing is kept."""

    def reset_peak(self, device: torch.device | None = None) -> None:
        """As the caller of this class counts."""
        self._reset_peak()

    def peak(self, device: torch.device | None = None) -> int:
        """As the caller of this class counts."""
        return self._peak()

    def reserved_peak(self, device: torch.device | None = None) -> int:
        """As the caller of this class counts: nothing is kept for later."""
        return self._peak()

    def cap(self, count: int | None, device: torch.device | None = None) -> None:
        """Nothing is given, so nothing is held back."""

    def current_stream(self, device: torch.device | None = None) -> torch.Stream:
        """NotImplementedError: only ONNX Runtime asks, and it needs a real one."""
        raise NotImplementedError("a described card has no streams")

    def new_stream(self, device: torch.device | None = None) -> torch.Stream:
        """NotImplementedError: only engines ask, and they need a real one."""
        raise NotImplementedError("a described card has no streams")

    def new_event(self) -> torch.Event:
        """NotImplementedError: nothing runs, so nothing takes any time."""
        raise NotImplementedError("a described card has no clock")


_asked: list[Cards] = [Cards()]


def cards() -> Cards:
    """The cards of this process: the machine's, or within `in_place` those that were put in their place."""
    return _asked[-1]


@contextmanager
def in_place(cards: Cards) -> Iterator[None]:
    """Have `cards()` answer with these, in every thread, until the block ends."""
    _asked.append(cards)
    try:
        yield
    finally:
        _asked.pop()
