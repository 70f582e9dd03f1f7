"""Whole pictures from the same noise: ONNX Runtime compared with torch, and torch's own fp16 with its fp32."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from koala.evaluate.drawing import fitting
from koala.evaluate.shapes import draw, prompts
from koala.export.folder import Lora
from koala.export.gates.case import Case, Finding
from koala.export.gates.numbers import INT8, error, onnx_call
from koala.hardware.device import give_back
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.request import GenerationRequest
from koala.sampling.adapters import adapted
from koala.shapes.judge import judge, no_verdict

FLOOR = 8  # pictures that torch draws in fp16, which takes a CPU three times as long as fp32
BELOW_FLOOR = 3.0  # dB that a file may be further from torch's fp32 than torch's fp16 is
ALLOWED = 0.01  # of the verdicts may differ; of an 8-bit model the share of right pictures may fall by ...
ALLOWED_INT8 = 0.05
LEAST_INT8 = 35.0  # dB of the worst picture
SIX = 6  # pictures at least, of an 8-bit model
STRAY = 50  # one picture in so many may be another: a run at a fork, which torch's own fp16 changes as well


def _draw(model: LoadedModel, texts: Sequence[str], lora: Lora | None = None) -> list[Image.Image]:
    """One picture per prompt, prompt k from the noise of seed k, with the model's own steps and guidance.

    `lora` is put on torch's model; a file has it in its weights.
    """
    card, drawn = model.card, []
    settings = {"lora": str(lora.file), "lora_strength": lora.strength} if lora else {}
    size = fitting(card.width, card.height)
    with adapted(model, GenerationRequest(model=card.name, prompt=texts[0], **settings)):
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            drawn += draw(model, batch, start, steps=card.steps, guidance=card.guidance)
    return drawn


def pictures(case: Case) -> Finding:
    """PSNR, SSIM and the judge's verdicts over prompts of the shapes world."""
    if not case.exported.whole:
        return Finding(gate="pictures", passed=None, text="the export is of the U-Net alone")
    if case.large:
        return Finding(
            gate="pictures",
            passed=None,
            text="pictures of this size take many minutes on a CPU; draw them with --thorough, or on a GPU"
            + (f": whether the worst of them is at {LEAST_INT8:g} dB is NOT known" if quantised(case) else ""),
        )
    count = max(case.prompts, SIX) if quantised(case) else case.prompts
    texts = [*prompts("one_object", count - count // 2), *prompts("two_objects", count // 2)]
    name, lora = case.job.card.name, case.job.lora
    model = Library("cpu", dtype="float32").get(name)
    with _overheard(model) as calls:
        wanted = _draw(model, texts, lora)
    del model
    give_back()
    from_file = _draw(Library("cpu").get(str(case.folder)), texts)
    give_back()
    drawn = {"file": from_file}
    if case.exported.stored_dtype == "float16":
        drawn["torch fp16"] = _draw(Library("cpu", dtype="float16").get(name), texts[:FLOOR], lora)
    figures = {who: _compared(images, wanted[: len(images)], texts[: len(images)]) for who, images in drawn.items()}
    return _verdict(case, figures, _along(case, calls))


@contextmanager
def _overheard(model: LoadedModel) -> Iterator[list[tuple[dict[str, torch.Tensor], torch.Tensor]]]:
    """The U-Net's inputs and outputs in every step of the first batch of pictures."""
    calls: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []

    def keep(_module, given, named, output):
        if len(calls) < model.card.steps:
            texts = {"encoder_hidden_states": named["encoder_hidden_states"]} | named["added_cond_kwargs"]
            fixed = {name: value.float() for name, value in texts.items()}
            calls.append(({"sample": given[0], "timestep": torch.as_tensor(given[1]).float()} | fixed, output[0]))

    handle = model.pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _along(case: Case, calls: Sequence[tuple[dict[str, torch.Tensor], torch.Tensor]]) -> dict[str, float]:
    """The file's relative error on torch's own latents in the first, the middle and the last step of a run."""
    call = onnx_call(case.file("unet"))
    steps = {"first": calls[0], "middle": calls[len(calls) // 2], "last": calls[-1]}
    return {name: float(f"{error(call(given), output.numpy()):.2g}") for name, (given, output) in steps.items()}


def quantised(case: Case) -> bool:
    """Whether the U-Net's weights have 8 bits."""
    return case.exported.dtype.endswith("int8")


def _compared(images: Sequence[Image.Image], wanted: Sequence[Image.Image], texts: Sequence[str]) -> dict:
    decibels = [psnr(a, b) for a, b in zip(images, wanted, strict=True)]
    alike = [ssim(a, b) for a, b in zip(images, wanted, strict=True)]
    right = [
        [judge(p, t).all for p, t in zip(which, texts, strict=True) if not no_verdict(t)] for which in (images, wanted)
    ]
    return {
        "pictures": len(texts),
        "psnr_mean": round(mean(decibels), 1),
        "psnr_least": round(min(decibels), 1),
        "psnr_below_35": sum(value < LEAST_INT8 for value in decibels),
        "ssim_mean": round(mean(alike), 4),
        "ssim_least": round(min(alike), 4),
        "verdicts_differ": sum(a != b for a, b in zip(*right, strict=True)),
        "right": sum(right[0]),
        "right_torch_fp32": sum(right[1]),
    }


def _verdict(case: Case, figures: dict[str, dict], along: dict[str, float]) -> Finding:
    result, count = figures["file"], figures["file"]["pictures"]
    problems = []
    if quantised(case):
        step, most = max(along.items(), key=lambda item: item[1])
        if not most <= INT8["dynamic-int8"]:
            problems.append(f"the U-Net is {100 * most:.2g} % off torch's in the {step} step of a run, above 0.5 %")
        if result["right_torch_fp32"] - result["right"] > max(1, ALLOWED_INT8 * count):
            problems.append(f"{result['right']} pictures right, {result['right_torch_fp32']} with torch")
        if result["psnr_below_35"] > count // STRAY:
            problems.append(
                f"{result['psnr_below_35']} of {count} pictures are less than {LEAST_INT8:g} dB like torch's, the "
                f"worst {result['psnr_least']} dB; {count // STRAY or 'none'} may be"
            )
    else:
        if result["verdicts_differ"] > max(1, ALLOWED * count):
            problems.append(f"{result['verdicts_differ']} of {count} verdicts differ from torch's")
        floor = figures.get("torch fp16", {"psnr_mean": 45.0})["psnr_mean"]
        if result["psnr_mean"] < floor - BELOW_FLOOR:
            problems.append(f"PSNR {result['psnr_mean']} dB, torch's own fp16 has {floor} dB")
    summary = (
        f"{count} pictures against torch in fp32: PSNR {result['psnr_mean']} dB (worst {result['psnr_least']}), "
        f"SSIM {result['ssim_mean']}, "
        f"{result['verdicts_differ']} verdicts differ"
    )
    if floor := figures.get("torch fp16"):
        summary += f" (torch's own fp16: {floor['psnr_mean']} dB, {floor['ssim_mean']}, {floor['verdicts_differ']})"
    return Finding(
        gate="pictures",
        passed=not problems,
        text="; ".join([*problems, summary]),
        figures=figures | {"error_along_a_run": along},
    )


_LEVELS = 255.0
_C1, _C2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
_SIGMA = 1.5  # of the window of 11 px
IDENTICAL = 100.0  # dB reported for equal pictures, so that a mean exists


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, over all channels; at most 100."""
    error = float(np.mean((np.asarray(picture, float) - np.asarray(reference, float)) ** 2))
    return min(IDENTICAL, 10 * math.log10(_LEVELS**2 / error)) if error else IDENTICAL


def ssim(picture: Image.Image, reference: Image.Image) -> float:
    """Structural similarity of luminance, 1 for equal pictures (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    x, y = (np.asarray(p.convert("L"), float) for p in (picture, reference))

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, _SIGMA, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similarity = (2 * mx * my + _C1) * (2 * both + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return float(similarity.mean())
