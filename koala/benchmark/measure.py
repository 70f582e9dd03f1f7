"""Latency and memory over models x sizes x batches x presets: measured, next to what is predicted.

The models of one cell take turns, so that a ratio between them is fair on a shared machine too. Every figure is a
median over the turns, after a warm-up that does not count.
"""

import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel

from koala.benchmark.calibration import Yardstick
from koala.benchmark.matrix import STOCK, Matrix
from koala.benchmark.stock import stock, stock_plan
from koala.errors import UserError
from koala.hardware.device import give_back
from koala.hardware.latency import Hardware, Prediction, named, predict
from koala.hardware.memory_plan import Plan
from koala.hardware.shortage import ran_out
from koala.hardware.timing import device_name
from koala.models.cards import ModelCard
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.models.registry import find, torch_only
from koala.request import GenerationRequest, Timing
from koala.sampling.generate import Cancelled, generate, resolve


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell, measured. Times are medians in ms, of the whole batch."""

    model: str
    preset: str
    size: int
    images: int
    steps: int
    guidance: float
    unet_calls: int
    parameters: int  # of the U-Net
    repeats: int
    text_ms: float
    unet_step_ms: float  # mean over the steps, of which some may run without guidance
    unet_ms: float
    vae_ms: float
    swap_ms: float  # moving parts to the device; not part of the other times
    total_ms: float
    total_range_ms: tuple[float, float]  # over the runs
    pictures_per_second: float
    peak_memory_bytes: int | None
    memory_of: str  # "GPU", or "process", which holds every model of the run; then the prediction counts them all
    predicted: dict[str, float]  # text_ms, unet_step_ms, unet_ms, vae_ms, total_ms, peak_memory_bytes
    hardware: str  # source of the speed that the prediction is based on
    plan: dict | None  # the memory plan; None for stock


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """One cell that was not measured."""

    model: str
    preset: str
    size: int
    images: int
    out_of_memory: bool
    reason: str


def _skipped(request: GenerationRequest, preset: str, reason: str, *, out_of_memory: bool) -> Skipped:
    return Skipped(
        model=request.model,
        preset=preset,
        size=request.width,
        images=request.images,
        out_of_memory=out_of_memory,
        reason=reason,
    )


@dataclass(kw_only=True)
class _Cell:
    model: LoadedModel
    request: GenerationRequest
    preset: str
    plan: Plan
    others: int  # bytes of other models that count as peak memory
    timings: list[Timing] = field(default_factory=list)

    def predict(self, hardware: Hardware) -> Prediction:
        return predict(
            self.model.spec,
            hardware,
            width=self.request.width,
            height=self.request.height,
            steps=self.request.steps,
            guided=self.request.guidance > 1,
            images=self.request.images,
            preset=self.request.preset,
            tiny_vae=self.plan.tiny_vae,
        )

    def skipped(self, reason: str, *, out_of_memory: bool) -> Skipped:
        return _skipped(self.request, self.preset, reason, out_of_memory=out_of_memory)

    def row(self, hardware: Hardware) -> Row:
        expected = self.predict(hardware)

        def median(name: str) -> float:
            return statistics.median(getattr(t, name) for t in self.timings)

        total = median("total_ms")
        peaks = [t.peak_memory_bytes for t in self.timings if t.peak_memory_bytes is not None]
        predicted = {
            "text_ms": expected.text_ms,
            "unet_step_ms": expected.unet_total_ms / self.request.steps,
            "unet_ms": expected.unet_total_ms,
            "vae_ms": expected.vae_ms,
            "total_ms": expected.total_ms,
            "peak_memory_bytes": self.plan.predicted_peak_bytes + self.others,
        }
        return Row(
            model=self.request.model,
            preset=self.preset,
            size=self.request.width,
            images=self.request.images,
            steps=self.request.steps,
            guidance=self.request.guidance,
            unet_calls=self.timings[0].unet_calls,
            parameters=self.model.parameters,
            repeats=len(self.timings),
            text_ms=median("text_ms"),
            unet_step_ms=median("unet_total_ms") / self.request.steps,
            unet_ms=median("unet_total_ms"),
            vae_ms=median("vae_ms"),
            swap_ms=median("swap_ms"),
            total_ms=total,
            total_range_ms=(min(t.total_ms for t in self.timings), max(t.total_ms for t in self.timings)),
            pictures_per_second=1000 * self.request.images / total,
            peak_memory_bytes=max(peaks, default=None),
            memory_of="GPU" if self.model.device.type == "cuda" else "process",
            predicted=predicted,
            plan=None if self.preset == STOCK else dataclasses.asdict(self.plan),
            hardware=hardware.source,
        )


def measure(
    matrix: Matrix,
    library: Library,
    *,
    cards: Sequence[ModelCard] | None = None,
    on_run: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Row | Skipped]:
    """Every cell of the matrix, measured or skipped, as soon as it is done. Setting `cancel` raises Cancelled.

    `cards` are those of the matrix's models; without them the names are looked up. `on_run` is called with a
    description of what starts now.
    """
    cards = cards or [find(name) for name in matrix.models]
    for card in cards:
        torch_only(card, "a benchmark")
    cancel = cancel or threading.Event()
    say = on_run or (lambda text: None)
    clock = _Clock(matrix.time_limit)
    say(f"loading {', '.join(matrix.models)}")
    for card in cards:
        if cancel.is_set():
            raise Cancelled
        if not library.loaded(card.name) and not clock.allows(0):
            raise UserError(f"the models were not loaded within {clock.limit:g} s; give a longer time limit")
        library.get(card, beside=cards)
    models = library.get_all(cards)
    widths = {m.spec.channels: m for m in models}  # one yardstick each
    yardsticks: dict[tuple, UNet2DConditionModel] = {}
    for size, images in matrix.groups(models[0].card.width):
        speeds = {width: _Speed(m, size, images, yardsticks) for width, m in widths.items()}
        unets = {id(m.pipeline.unet): m.pipeline.unet for m in models}  # several names may share one network
        everything = sum(map(_bytes, unets.values())) + sum(s.bytes for s in speeds.values())
        cells = []
        for preset, model in itertools.product(matrix.presets, models):
            request = matrix.request(model.card.name, size, images, "quality" if preset == STOCK else preset)
            try:
                request = resolve(request, model.card)
            except UserError as error:  # a preset that this model does not allow
                request = resolve(dataclasses.replace(request, preset="quality"), model.card)
                yield _skipped(request, preset, str(error), out_of_memory=False)
                continue
            try:
                plan = stock_plan(model, request) if preset == STOCK else model.place(request).plan
            except UserError as error:  # no plan fits
                yield _skipped(request, preset, str(error), out_of_memory=True)
                continue
            others = 0 if model.device.type == "cuda" else everything - _bytes(model.pipeline.unet)
            cells.append(_Cell(model=model, request=request, preset=preset, plan=plan, others=others))
        yield from _take_turns(cells, speeds, matrix.repeats, clock, say, cancel)


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


class _Clock:
    """The time left of a limit in seconds."""

    def __init__(self, limit: float | None):
        self.limit, self.started = limit, time.monotonic()

    def allows(self, seconds: float) -> bool:
        return self.limit is None or time.monotonic() - self.started + seconds <= self.limit


@dataclass(frozen=True, kw_only=True)
class _Stop:
    """What a run checks after each step: whether it was cancelled, or its time is up."""

    cancel: threading.Event
    clock: _Clock

    def is_set(self) -> bool:
        return self.cancel.is_set() or not self.clock.allows(0)


class _Speed:
    """The speed of the device at one size and batch: published, or measured again in every turn."""

    def __init__(self, model: LoadedModel, size: int, images: int, unets: dict[tuple, UNet2DConditionModel]):
        self.model, self.known = model, named(device_name(model.device))
        if not self.known:
            vae, width = model.pipeline.vae, model.spec.channels
            what = dict(device=model.device, width=size, height=size, images=images, unet=unets.get(width))
            self.yardstick = Yardstick(model.spec, vae, **what)
            unets[width] = self.yardstick.unet

    @property
    def bytes(self) -> int:
        return 0 if self.known else _bytes(self.yardstick.unet)

    def turn(self) -> None:
        if not self.known:
            with self.model.lock:
                self.model.library.residence.bring([self.model.pipeline.vae, self.yardstick.unet])
                self.yardstick.run()

    def hardware(self) -> Hardware:
        return self.known or self.yardstick.hardware()


def _take_turns(
    cells: list[_Cell],
    speeds: dict[tuple, _Speed],
    repeats: int,
    clock: _Clock,
    say: Callable[[str], None],
    cancel: threading.Event,
) -> Iterator[Row | Skipped]:
    """A warm-up and `repeats` rounds over the cells; a cell that fails or would end too late drops out."""
    running, stop = list(cells), _Stop(cancel=cancel, clock=clock)
    for turn in range(repeats + 1):
        for speed in speeds.values():
            if cancel.is_set():
                raise Cancelled
            if running and clock.allows(0):
                speed.turn()
        if not clock.allows(0):
            break
        for cell in tuple(running):
            expected = cell.predict(speeds[cell.model.spec.channels].hardware()).total_ms / 1000
            if not clock.allows(expected * (1 if turn else 2)):  # a warm-up needs time for a run after it
                running.remove(cell)
                continue
            request = cell.request
            run = f"run {turn} of {repeats}" if turn else "warm-up"
            say(f"{request.model}, {cell.preset}, {request.width} px, batch {request.images}: {run}")
            try:
                timing = _run(cell, stop, warm_up=turn == 0)
            except Cancelled:
                if cancel.is_set():
                    raise
                running.remove(cell)  # its time is up: earlier runs still count
                continue
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                give_back()
                running.remove(cell)
                cells.remove(cell)
                yield cell.skipped("out of memory", out_of_memory=True)
                continue
            if turn:
                cell.timings.append(timing)
    for cell in cells:
        if cell.timings:
            yield cell.row(speeds[cell.model.spec.channels].hardware())
        else:
            yield cell.skipped(f"not reached within {clock.limit:g} s", out_of_memory=False)


def _run(cell: _Cell, stop: _Stop, *, warm_up: bool) -> Timing:
    request = dataclasses.replace(cell.request, steps=2) if warm_up else cell.request
    if cell.preset != STOCK:
        return generate(request, cell.model, cancel=stop, num_previews=0).timing
    with cell.model.lock:
        return stock(cell.model, request, stop)
