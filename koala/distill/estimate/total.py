"""What a distillation takes, before it starts: memory by part and moment, the batch that fits, work and time.

Arithmetic on specs. Memory is that of the busiest process, as StageTimer measures it: of the allocator on a GPU, of
the process on a CPU.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from koala.distill.config import DistillConfig
from koala.distill.estimate.lora import lora_flops
from koala.distill.estimate.memory import RunMemory
from koala.distill.estimate.passes import passes_of
from koala.errors import UserError
from koala.hardware.memory_plan import GB
from koala.unet.costs import flops
from koala.unet.parts import parts_of
from koala.unet.specs import UNetSpec
from koala.words import gigabytes, many, size, up_to_days


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes are those of one process, the main one; `passes` is how often it runs the networks in one step."""

    device: str
    processes: int
    passes: int
    pictures_per_pass: int
    checkpointing: bool
    always: Mapping[str, int]  # bytes on the device for the whole run, by part
    at_times: Mapping[str, int]  # bytes that come and go within a step, by part
    host: Mapping[str, int]  # bytes in host memory, where there is a GPU
    moments: Mapping[str, int]  # bytes on the device at each busy moment
    checkpointed_activations: int  # what `at_times` has of activations, with checkpointing and without
    plain_activations: int
    budget_bytes: int | None  # None: unknown
    batch_that_fits: int | None  # pictures per pass; 0 when not even one fits
    remedies: tuple[str, ...]  # settings with which it fits
    flops_per_picture: int  # all passes of teacher and student
    encoding_flops_per_picture: int  # once per picture, because it is cached; a loop without caches does it every time
    num_samples: int  # pictures times how often each is seen
    total_flops: int  # of training
    uncached_flops: int  # the same with encoding in every step
    seconds: float | None  # of training; None where no rate is known

    @property
    def predicted_peak_bytes(self) -> int:
        """On the device, at the busiest moment."""
        return max(self.moments.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget; true where none is known."""
        return self.budget_bytes is None or self.predicted_peak_bytes <= self.budget_bytes

    def to_dict(self) -> dict:
        """Every field and what follows from them, for `--json`."""
        return dataclasses.asdict(self) | {"predicted_peak_bytes": self.predicted_peak_bytes, "fits": self.fits}

    def check(self) -> None:
        """UserError for a run that does not fit, with what would."""
        if not self.fits:
            remedy = " ".join(self.remedies)
            raise UserError(
                f"{self.shortage()}; "
                + (f"it fits with {remedy}" if remedy else "no setting makes it fit; choose a smaller teacher")
            )

    def shortage(self) -> str:
        """What the run takes, and what there is."""
        return (
            f"this run takes {gigabytes(self.predicted_peak_bytes)} per process, of which "
            f"{gigabytes(self.budget_bytes)} are free"
        )

    def lines(self) -> list[str]:
        """The estimate as text, line by line."""

        shown = partial(size, mb=1, gb=1, first_gb=GB / 10)

        def listed(parts: Mapping[str, int]) -> str:
            return ", ".join(f"{name} {shown(count)}" for name, count in parts.items() if count)

        busiest = max(self.moments, key=self.moments.__getitem__)
        free = "" if self.budget_bytes is None else f" of {gigabytes(self.budget_bytes)}"
        pictures = f"{many(self.pictures_per_pass, 'picture')} per pass"
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        lines = [
            f"memory: {shown(self.predicted_peak_bytes)}{free}{each}, highest in the {busiest}, with {pictures}",
            f"  all the time: {listed(self.always)}",
            f"  at times: {listed(self.at_times)}",
        ]
        if not self.checkpointing:
            lines.append(f"  gradient_checkpointing would keep {shown(self.checkpointed_activations)} of activations")
        if self.host:
            lines.append(f"  in host memory: {listed(self.host)}")
        if self.batch_that_fits is not None:
            lines.append(f"  {self.batch_that_fits} pictures per pass fit")
        if self.remedies:
            lines.append(f"  it fits with {' '.join(self.remedies)}")
        lines.append(
            f"work: {self.flops_per_picture / 1e12:.3g} TFLOP per picture, {self.total_flops:.2e} FLOP for "
            f"{self.num_samples:,} ({self.uncached_flops:.2e} if latents and embeddings were not cached)"
        )
        if self.seconds is not None:
            lines.append(f"time: about {up_to_days(self.seconds)}, and encoding before it")
        return lines


def estimate(
    config: DistillConfig,
    student: UNetSpec,
    teacher: UNetSpec,
    *,
    resolution: int,
    device: str,
    memory_bytes: int | None,
    world: int = 1,
    sharded: bool = False,
    flops_per_second: float | None = None,
) -> Estimate:
    """Of a run at `resolution` px on `world` devices (cuda, cpu or mps) of so much memory and such a rate each."""
    run = RunMemory(
        config=config,
        student=student,
        teacher=teacher,
        resolution=resolution,
        device=device,
        memory=memory_bytes,
        world=world,
        sharded=sharded,
    )
    passes = passes_of(config)
    per_picture = int(passes.student * flops(student, **run.side) + passes.teacher * flops(teacher, **run.side))
    if config.lora_rank:  # whose factors have gradients
        per_picture += int((passes.student + 1) * lora_flops(student, config.lora_rank, **run.side))
    parts = parts_of(teacher)
    encoding = parts.vae.encoder(**run.side)[1] + parts.text_cost[1]
    samples = config.num_steps * config.batch_size
    total, pictures = samples * per_picture, run.pictures_per_pass
    return Estimate(
        device=device,
        processes=world,
        passes=run.passes,
        pictures_per_pass=pictures,
        checkpointing=config.gradient_checkpointing,
        always=run.always,
        at_times=run.at_times(pictures),
        host=run.host,
        moments=run.moments(pictures),
        checkpointed_activations=run.saved(True) * pictures,
        plain_activations=run.saved(False) * pictures,
        budget_bytes=run.budget,
        batch_that_fits=run.batch_that_fits(),
        remedies=run.remedies(),
        flops_per_picture=per_picture,
        encoding_flops_per_picture=encoding,
        num_samples=samples,
        total_flops=total,
        uncached_flops=total + samples * encoding,
        seconds=None if flops_per_second is None else total / (flops_per_second * world),
    )
