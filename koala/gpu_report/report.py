"""The whole report: its sections in order of importance, the facts about the card, and both files."""

import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.gpu_report.budget import MINUTES, Limit, Outcome, Say, Section, measure
from koala.gpu_report.distillation import distillation, precision
from koala.gpu_report.drawing import attention, latencies, presets
from koala.gpu_report.exports import Exports, onnx_runtime, tensorrt_rtx
from koala.gpu_report.memory import plans
from koala.gpu_report.scale import Scale
from koala.gpu_report.tables import FORMAT, markdown
from koala.hardware.cuda import cards
from koala.hardware.device import device_memory, give_back
from koala.hardware.timing import device_name
from koala.hardware.torch_build import find_card
from koala.models.measured import RANDOM
from koala.models.random_weights import SEED, random_library

_SPARE = 40.0  # seconds to start a report, and to end what cannot be interrupted
_SHARES = 500.0  # seconds of all sections, in nine minutes
_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


def sections(scale: Scale, device: torch.device, exports: Exports, minutes: float = MINUTES) -> list[Section]:
    """Every section with its share of the time and a library of its own: sections share no state.

    The shares are of nine minutes; with more or less time all of them scale alike.
    """
    stretch = (60 * minutes - _SPARE) / _SHARES

    def own(work: Callable, dtype: str | None = None, **more) -> Callable[[dict, Limit, Say], None]:
        def run(results: dict, limit: Limit, say: Say) -> None:
            work(scale, random_library(str(device), dtype=dtype), **more, results=results, limit=limit, say=say)

        return run

    trained = _NAMES[precision(device)]
    chosen = [
        Section(name="latencies", title="Latency and memory", share=150, least=20, work=own(latencies)),
        Section(name="presets", title="Presets against stock diffusers", share=100, least=20, work=own(presets)),
        Section(name="plans", title="Memory plans", share=60, least=15, work=own(plans)),
        Section(name="distillation", title="Distillation", share=50, least=30, work=own(distillation, dtype=trained)),
        Section(name="attention", title="Attention", share=25, least=10, work=own(attention)),
        Section(
            name="onnx-runtime",
            title="ONNX Runtime",
            share=70,
            least=55,
            work=own(onnx_runtime, exports=exports),
        ),
        Section(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            share=45,
            least=40,
            work=own(tensorrt_rtx, exports=exports),
        ),
    ]
    return [dataclasses.replace(section, share=section.share * stretch) for section in chosen]


def card(device: torch.device) -> dict:
    """The device and its driver; without a CUDA card, what is known."""
    facts = {"name": device_name(device), "capability": None, "driver": None, "cuda": cards().build()}
    facts |= {"system": f"{platform.system()} {platform.machine()}", "free_bytes": device_memory(device)}
    facts["memory_bytes"] = facts["free_bytes"]
    if device.type == "cuda":
        known = find_card()
        facts["memory_bytes"] = cards().memory(device)[1]
        facts["capability"] = ".".join(map(str, cards().capability(device)))
        facts["driver"] = known and known.driver
    return facts


def run(
    scale: Scale,
    device: torch.device,
    out: Path,
    *,
    exports: Callable[[Path], Exports],
    say: Say,
    explain: Callable[[Exception], str] = str,
    arguments: Sequence[str] = (),
    minutes: float = MINUTES,
    clock: Callable[[], float] = time.monotonic,
) -> dict:
    """Measure every section, and write `out` and the same as .md after each of them. Returns the report."""
    begun = clock()
    report = {"format": FORMAT} | circumstances(list(arguments), device, weights=RANDOM)
    report |= {"seed": SEED, "card": card(device), "scale": dataclasses.asdict(scale)}
    with tempfile.TemporaryDirectory(prefix="koala-gpu-report-", ignore_cleanup_errors=True) as work:
        chosen = sections(scale, device, exports(Path(work)), minutes)
        report["budget_seconds"] = sum(section.share for section in chosen)

        def after(outcomes: dict[str, Outcome]) -> None:
            give_back()  # nothing holds the section's models any more
            report["seconds"] = round(clock() - begun, 1)
            report["sections"] = {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}
            for file, text in ((out, json.dumps(report, indent=1)), (out.with_suffix(".md"), markdown(report))):
                with new_file(file) as partial:
                    partial.write_text(text + "\n", encoding="utf-8")

        measure(chosen, say=say, explain=explain, after=after, clock=clock)
    return report
