"""Memory, disk and time of an export, predicted before it begins, and the remaining time while it runs."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from koala.errors import UserError
from koala.files.outputs import check_new_folder
from koala.hardware.device import device_memory
from koala.hardware.memory_plan import BYTES
from koala.unet.costs import parameters
from koala.unet.parts import parts_of
from koala.unet.specs import UNetSpec
from koala.words import gigabytes, seconds_or_minutes

GRAPH = 10_000_000  # bytes of a U-Net's graph and tables without its weights, at most
PROGRAM = 650_000_000  # bytes of the interpreter, torch and the exporter's own work on the smallest model
COPIES = 3.2  # of a part's weights at the peak: as loaded, as protobuf's tensors, as the file's bytes

# Seconds on one core of a desktop; the first stage calibrates this machine's speed.
PER_BLOCK = {"trace": 0.7, "convert": 0.7}  # of a transformer block
PER_PART = {"trace": 2.0, "convert": 2.0}  # of a text encoder or half a VAE
PER_BYTE = 8e-9  # to write and to hash


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of memory and disk, and seconds; the gates are not among the seconds."""

    memory: int
    disk: int
    seconds: float

    def line(self) -> str:
        """As the end of a sentence."""
        return (
            f"will take about {gigabytes(self.memory)} of memory, {gigabytes(self.disk, 2)} of disk and "
            f"{seconds_or_minutes(self.seconds)}, gates not counted"
        )

    def check(self, out: Path) -> None:
        """UserError if this machine lacks the memory, or `out` cannot become a folder of that size."""
        free = device_memory(torch.device("cpu"))
        if free is not None and free < self.memory:
            raise UserError(
                f"the export needs about {gigabytes(self.memory)} of memory and {gigabytes(free)} are free; close "
                "other programs, take --components unet, or a smaller model"
            )
        check_new_folder(out, self.disk)


def part_bytes(spec: UNetSpec, names: Collection[str], dtype: str) -> dict[str, int]:
    """Bytes of each component's weights; the VAE stays in fp32."""
    parts = parts_of(spec) if set(names) != {"unet"} else None
    width = BYTES[dtype]
    sizes = {"unet": lambda: parameters(spec) * width}
    if parts:
        sizes |= {
            "text_encoder": lambda: parts.text.cost[0] * width,
            "text_encoder_2": lambda: parts.text_2.cost[0] * width,
            "vae_decoder": lambda: parts.vae.decoder(width=0, height=0)[0] * 4,
            "vae_encoder": lambda: parts.vae.encoder(width=0, height=0)[0] * 4,
        }
    return {name: sizes[name]() for name in names}


def stage_seconds(spec: UNetSpec, name: str, size: int) -> dict[str, float]:
    """Stage -> seconds, for one component of `size` bytes."""
    blocks = sum(1 for _ in spec.self_attentions())
    each = {s: PER_PART[s] + (PER_BLOCK[s] * blocks if name == "unet" else 0) for s in PER_BLOCK}
    return each | {"write": 0.5 + PER_BYTE * size}


def estimate(spec: UNetSpec, names: Collection[str], dtype: str) -> Estimate:
    """For these components of a model; they are exported one after the other, so the largest sets the memory."""
    sizes = part_bytes(spec, names, dtype)
    return Estimate(
        memory=round(PROGRAM + COPIES * max(sizes.values())),
        disk=sum(sizes.values()) + GRAPH * len(sizes),
        seconds=sum(sum(stage_seconds(spec, name, size).values()) for name, size in sizes.items()),
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The current stage; `left` in seconds, by this machine's speed so far."""

    text: str
    done: float  # 0 .. 1
    left: float | None

    def line(self) -> str:
        """As text."""
        left = f", about {seconds_or_minutes(self.left)} left" if self.left is not None else ""
        return f"{self.done:4.0%}  {self.text}{left}"


class Clock:
    """Reports progress: stages have expected durations, and finished ones calibrate this machine's speed."""

    def __init__(self, stages: dict[str, float], tell: Callable[[Progress], None] | None):
        self._left, self._total = dict(stages), sum(stages.values())
        self._tell, self._expected, self._taken = tell or (lambda _: None), 0.0, 0.0
        self._name, self._begun = "", time.monotonic()

    def begin(self, name: str) -> None:
        """Begin a stage and end the one before."""
        now = time.monotonic()
        if self._name:
            self._expected += self._left.pop(self._name)
            self._taken += now - self._begun
        self._name, self._begun = name, now
        pace = self._taken / self._expected if self._expected else None
        left = sum(self._left.values())
        self._tell(Progress(text=name, done=1 - left / self._total, left=left * pace if pace else None))
