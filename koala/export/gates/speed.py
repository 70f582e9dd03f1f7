"""How fast the file is: one guided U-Net step in ONNX Runtime and in eager torch, in turns, on this machine's CPU."""

import time
from statistics import median

import torch

from koala.export.gates.case import Case, Finding
from koala.export.gates.numbers import Shape, inputs, onnx_call, torch_call

ROUNDS = 12
WARM = 2


def speed(case: Case) -> Finding:
    """Never fails, because speed depends on the machine. Times are medians over alternating rounds."""
    if case.large:
        return Finding(
            gate="speed", passed=None, text="a step of this size takes many seconds on a CPU; see --thorough"
        )
    size = case.exported.defaults
    shape = Shape(width=int(size["width"]), height=int(size["height"]), batch=2, tokens=77, timestep=500.0)
    given = inputs(case, shape)
    runners = {"torch": torch_call(case.source("unet", "float32")), "onnx": onnx_call(case.file("unet"))}
    took: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(WARM + ROUNDS):
        for name, call in runners.items():
            begun = time.perf_counter()
            call(given)
            if round_ >= WARM:
                took[name].append((time.perf_counter() - begun) * 1000)
    ms = {name: median(each) for name, each in took.items()}
    ratio = ms["torch"] / ms["onnx"]
    threads = torch.get_num_threads()
    return Finding(
        gate="speed",
        passed=True,
        text=f"one guided step at {shape.width}x{shape.height} px, {threads} CPU thread{'s' * (threads > 1)}: "
        f"{ratio:.2f}x eager torch's pace in fp32 ({ms['onnx']:.0f} against {ms['torch']:.0f} ms)",
        figures={"ratio": round(ratio, 2), "ms": {n: round(v, 1) for n, v in ms.items()}, "threads": threads},
    )
