"""What each way to a faster U-Net could save on a card, by arithmetic, and what it costs in pictures, by the judge.

    python -m recipes.measure.options --out docs/measurements/options.json

The arithmetic is of the full-size networks at 1024 px with guidance; the pictures are of the embedded ones, the same
prompts and noise for every option. A difference is claimed where its 95 % interval, bootstrapped over the prompts,
leaves out zero. Whether an option is faster only a card can say: `koala gpu-report`. With --arithmetic a report that
is there keeps its pictures, and its arithmetic is done anew.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image

from koala.evaluate import drawing
from koala.evaluate.reports import circumstances
from koala.evaluate.shapes import draw, prompts
from koala.files.outputs import new_file
from koala.hardware.latency import COMPILED, GPUS
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.shapes.captions import parse
from koala.shapes.judge import verdict
from koala.unet.costs import blocks, parameters
from koala.unet.specs import KOALA_700M, SDXL, UNetSpec

MODELS = ("tiny-sdxl", "tiny-koala-700m")
SUITE = "two_objects"  # the harder one: what is lost is lost here first
CARD = GPUS["rtx-4090"]
RESAMPLES = 2000
E4M3_MAX = 448.0  # the largest number of float8_e4m3fn
Option = Callable[[torch.nn.Module], AbstractContextManager]


@contextmanager
def fused_qkv(unet: torch.nn.Module) -> Iterator[None]:
    """One product for q, k and v of self-attention, and one for k and v of the text."""
    unet.fuse_qkv_projections()
    try:
        yield
    finally:
        unet.unfuse_qkv_projections()


@contextmanager
def channels_last(unet: torch.nn.Module) -> Iterator[None]:
    """Weights of convolutions and what flows through them with the channels innermost."""
    unet.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        unet.to(memory_format=torch.contiguous_format)


@contextmanager
def float8_weights(unet: torch.nn.Module) -> Iterator[None]:
    """Weights as float8_e4m3fn with one scale per output row, widened before they are used."""
    layers = [m for m in unet.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    own = [layer.weight.data for layer in layers]
    for layer, weight in zip(layers, own, strict=True):
        layer.weight.data = rounded_to_float8(weight)
    try:
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight.data = weight


def rounded_to_float8(weight: torch.Tensor) -> torch.Tensor:
    """The nearest weights (rows, ...) that float8_e4m3fn has at one scale per row, in the weight's own type."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / E4M3_MAX
    return ((rows / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale).view_as(weight)


@contextmanager
def compiled_blocks(unet: torch.nn.Module) -> Iterator[None]:
    """Transformer blocks through torch.compile, as the preset fast runs them on a card."""
    blocks_of = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    for block in blocks_of:
        block.forward = _compiled(block.forward)
    try:
        yield
    finally:
        for block in blocks_of:
            del block.forward  # the class's own is found again


def _compiled(forward: Callable) -> Callable:
    """Compiled even where the run around it asks for eager blocks, as it does on a CPU."""
    inside = torch.compile(forward, dynamic=True)

    def call(*arguments, **named):
        with torch.compiler.set_stance("default"):
            return inside(*arguments, **named)

    return call


def reused(interval: int) -> Option:
    """Everything below the finest resolution computed at every `interval`-th call only (DeepCache, Ma et al. 2023)."""

    @contextmanager
    def option(unet: torch.nn.Module) -> Iterator[None]:
        calls = -1

        def count(*_) -> None:
            nonlocal calls
            calls += 1

        def remember(block: torch.nn.Module) -> None:
            own, kept = block.forward, None

            def forward(*arguments, **named):
                nonlocal kept
                if calls % interval == 0:
                    kept = own(*arguments, **named)
                return kept

            block.forward = forward

        deep = [*unet.down_blocks[1:], *([unet.mid_block] if unet.mid_block else []), *unet.up_blocks[:-1]]
        hook = unet.register_forward_pre_hook(count)
        for block in deep:
            remember(block)
        try:
            yield
        finally:
            hook.remove()
            for block in deep:
                del block.forward  # the class's own is found again

    return option


def _plain(unet: torch.nn.Module) -> AbstractContextManager:
    return nullcontext()


# Name: what is changed for one batch of pictures, and the settings of the run.
OPTIONS: dict[str, tuple[Option, dict]] = {
    "fused QKV": (fused_qkv, {}),
    "channels last": (channels_last, {}),
    "compiled blocks": (compiled_blocks, {}),
    "FP8 weights": (float8_weights, {}),
    "deep features every 2nd step": (reused(2), {}),
    "deep features every 3rd step": (reused(3), {}),
    "guidance in half of the steps": (_plain, {"preset": "fast"}),  # the embedded models have no small decoder
    "no guidance": (_plain, {"guidance": 1.0}),
}
UNDRAWN = {
    "CUDA graphs": "the same kernels in the same order: the same bits",
}


def arithmetic(spec: UNetSpec) -> dict[str, dict]:
    """What each option could save at most of a guided step at 1024 px on CARD: shares of the step's predicted time.

    None where FLOPs and blocks do not bound it.
    """
    parts = list(blocks(spec, width=1024, height=1024))
    flops = sum(b.flops for b in parts)
    num_blocks = sum(b.depth for b in parts)
    work, launches = 2 * flops / CARD.unet / 1e9, num_blocks * CARD.block_ms
    step = work + launches
    fine = sum(b.flops for b in parts if b.stage in ("in", "out", "DW-1", "UP-3"))
    convolutions = sum(b.flops for b in parts if b.kind in ("convolution", "resnet", "downsampler", "upsampler"))

    def share(ms: float | None) -> float | None:
        return ms if ms is None else round(ms / step, 3)

    saved = {
        "fused QKV": (None, f"no FLOPs; {3 * num_blocks} fewer kernel launches a call"),
        "channels last": (
            work * convolutions / flops,
            f"convolutions are {convolutions / flops:.0%} of the FLOPs, and cannot gain more than all of their time",
        ),
        "compiled blocks": (step * (1 - 1 / COMPILED), f"{COMPILED:g} times faster as published for SDXL"),
        "CUDA graphs": (launches, "at most what blocks wait for launches and memory; less where it is memory"),
        "FP8 weights": (
            None,
            f"{parameters(spec) / 1e9:.1f} GB less memory than FP16; time only where products are FP8 too",
        ),
        "deep features every 2nd step": (
            (1 - fine / flops) * step / 2,
            "all below the finest resolution, half the steps",
        ),
        "deep features every 3rd step": ((1 - fine / flops) * step * 2 / 3, "the same, two steps of three"),
        "guidance in half of the steps": (step / 4, "half of the steps on half the batch"),
        "no guidance": (step / 2, "every step on half the batch"),
    }
    return {name: {"saves_at_most": share(ms), "why": why} for name, (ms, why) in saved.items()}


def bootstrapped(differences: Sequence[int]) -> list[float]:
    """95 % interval of the mean of paired differences, by resampling the prompts."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return [round(means[int(RESAMPLES * share)], 4) for share in (0.025, 0.975)]


def pictures(model: LoadedModel, texts: list[str], option: Option, settings: dict) -> Iterator[Image.Image]:
    """One picture per prompt, drawn under the option."""
    own = dict(steps=model.card.steps, guidance=model.card.guidance) | settings
    size = drawing.fitting(model.card.width, model.card.height)
    for start in range(0, len(texts), size):
        with option(model.pipeline.unet):
            yield from draw(model, texts[start : start + size], start, **own)


def judged(model: LoadedModel, texts: list[str], names: Sequence[str], say: Callable[[str], None]) -> dict:
    """The share of prompts of which every claim holds: as it is, and under each option."""

    def holding(drawn: list[Image.Image]) -> list[bool]:
        return [verdict(p, parse(t)).all for p, t in zip(drawn, texts, strict=True)]

    plain = list(pictures(model, texts, _plain, {}))
    held = holding(plain)
    rows: dict[str, dict] = {}
    for name in names:
        say(f"{model.card.name}: {name}")
        drawn = list(pictures(model, texts, *OPTIONS[name]))
        differences = [int(now) - int(before) for now, before in zip(holding(drawn), held, strict=True)]
        apart = [np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)) for a, b in zip(drawn, plain, strict=True)]
        rows[name] = {
            "difference": round(statistics.fmean(differences), 4),
            "interval": bootstrapped(differences),
            "largest_pixel_difference": int(max(a.max() for a in apart)),
            "mean_pixel_difference": round(float(np.mean(apart)), 3),
        }
    return {"rate": round(statistics.fmean(held), 4), "options": rows}


def main() -> None:
    """Draw, judge, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS), metavar="NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--arithmetic", action="store_true", help="draw nothing: renew this part of a report")
    args = parser.parse_args()
    reckoned = {spec.name: arithmetic(spec) for spec in (SDXL, KOALA_700M)}
    if args.arithmetic:
        _write(args.out, json.loads(args.out.read_text()) | {"arithmetic": reckoned})
        return
    names = list(args.options)
    if "compiled blocks" in names and not (shutil.which("g++") or shutil.which("c++")):
        sys.exit('"compiled blocks" needs a C++ compiler on a CPU; install one, or leave the option out with --options')
    library, texts = Library("cpu"), prompts(SUITE, args.num_prompts, series="options")
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    report = {
        "suite": SUITE,
        "num_prompts": args.num_prompts,
        "card": CARD.name,
        "arithmetic": reckoned,
        "models": {name: judged(library.get(name), texts, names, say) for name in MODELS},
        "undrawn": UNDRAWN,
    } | circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.options", weights=MODELS)
    _write(args.out, report)


def _write(out: Path, report: dict) -> None:
    with new_file(out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
