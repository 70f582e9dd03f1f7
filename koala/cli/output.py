"""What the commands print: one JSON object or text on stdout, progress on stderr."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping

from koala.models.registry import find
from koala.request import GenerationRequest
from koala.words import duration, gigabytes


def say(text: str) -> None:
    """One line of progress or an error, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(args: argparse.Namespace, values: object, text: str) -> None:
    """One JSON object with --json, otherwise `text`."""
    print(json.dumps(values, indent=1) if args.json else text)


def pixel_bytes(requests: Iterable[GenerationRequest]) -> int:
    """The most bytes that the pictures of these requests take on disk."""

    def pixels(request: GenerationRequest) -> int:
        card = find(request.model)
        return request.images * (request.width or card.width) * (request.height or card.height)

    return sum(3 * pixels(request) for request in requests)


def timing_line(entry: dict) -> str:
    """The times of one picture's parts."""
    t = entry["timing"]
    unet = sum(t["unet_ms"])
    memory = f", peak memory {t['peak_memory_bytes'] / 1e6:.0f} MB" if t["peak_memory_bytes"] else ""
    swap = f"; {duration(t['swap_ms'])} more for moving parts" if t["swap_ms"] >= 1 else ""
    lora = f"; LoRA on {entry['lora']}" if entry["lora"] else ""
    return (
        f"text {duration(t['text_ms'])}, U-Net {t['unet_calls']} calls x {unet / t['unet_calls']:.1f} ms"
        f" = {duration(unet)}, VAE {duration(t['vae_ms'])}, total {duration(t['total_ms'])}{memory}{swap}{lora}"
    )


def plan_lines(entry: dict) -> list[str]:
    """The memory plan: predicted peak and budget, then every choice with its reason."""
    plan = entry["plan"]
    if plan is None:
        return ["memory plan: ONNX Runtime's own"]
    room = f" of {gigabytes(plan['budget_bytes'])}" if plan["budget_bytes"] else ""
    head = f"memory plan: peak of {gigabytes(plan['predicted_peak_bytes'])}{room} predicted"
    return [head, *(f"  {c['what']}: {c['value']} ({c['reason']})" for c in plan["choices"])]


def claims_line(entry: dict) -> str:
    """Which claims of the prompt hold, what was seen instead, and which claims the model never read."""
    if entry["claims"] is None:
        return f"no verdict: {entry['no_verdict']}"
    sentences = [
        f"{'holds' if c['holds'] else 'FAILS'}: {c['claim']}" + ("" if c["holds"] else f" (seen: {c['seen']})")
        for c in entry["claims"]
    ]
    return "; ".join([*sentences, *(f"not asked, as the model did not read it: {text}" for text in entry["not_asked"])])


def say_unread(request: GenerationRequest, unread: Mapping[str, str]) -> None:
    """Report on stderr the words of the prompts that the model did not read."""
    for name, text in unread.items():
        if not text:
            continue
        what = name.replace("_", " ")
        if name == "negative_prompt" and not request.guidance > 1:
            say(f"{request.model} does not read the {what}: it needs --guidance above 1, not {request.guidance:g}")
        else:
            say(f"{request.model} does not read the end of the {what}, which is too long: {text.strip()}")


def progress(name: str):
    """Reports a picture's progress every five steps and at its end."""

    def on_step(step) -> None:
        if step.index == step.total or step.index % 5 == 0:
            say(f"{name}: step {step.index} of {step.total}")

    return on_step


def fetching(name: str):
    """Reports a download's progress at most every five seconds and at its end."""
    printed_at = 0.0

    def on_progress(done: int, total: int, file: str) -> None:
        nonlocal printed_at
        if done == total or time.monotonic() - printed_at > 5:
            printed_at = time.monotonic()
            say(f"{name}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB ({file})")

    return on_progress
