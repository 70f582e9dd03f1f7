"""How large activations get on a real run. A CPU computes fp16 files in fp32 and would hide what overflows on a GPU."""

import math
from collections import defaultdict

import torch

from export.gates.case import Case, Finding
from koala.generate import generate
from koala.hooks import listen
from koala.loading import Library, LoadedModel
from koala.request import GenerationRequest

HALF_MAX = 65504.0
WARN = 8192.0
WORST = 10
PROMPT = "a large red circle to the left of a small blue square on a light grey background"


def activations(model: LoadedModel, request: GenerationRequest) -> dict[str, float]:
    """Module -> its largest absolute output on a whole run, guided as usual; attention's logits as a bound.

    The logits never appear as a module's output: |q . k| <= |q| |k|, with the scale that the graph puts on both.
    """
    unet = model.pipeline.unet
    leaves = {name: m for name, m in unet.named_modules() if name and not any(m.children())}
    peaks: dict[str, float] = defaultdict(float)
    norms: dict[str, float] = defaultdict(float)

    def heard(name: str, _, output: torch.Tensor) -> None:
        value = float(output.abs().max())
        peaks[name] = max(peaks[name], value if math.isfinite(value) else math.inf)
        layer, _, kind = name.rpartition(".")
        if kind in ("to_q", "to_k"):
            heads = unet.get_submodule(layer).heads
            longest = float(output.unflatten(-1, (heads, -1)).float().norm(dim=-1).max())
            norms[name] = max(norms[name], longest)

    with listen(leaves, heard):
        generate(request, model, num_previews=0)
    for name, queries in list(norms.items()):
        layer, _, kind = name.rpartition(".")
        if kind == "to_q":
            peaks[f"{layer} logits"] = queries * norms[f"{layer}.to_k"] * unet.get_submodule(layer).scale
    return dict(peaks)


def census(case: Case) -> Finding:
    """The ten largest activations of the U-Net; beyond fp16's range the export is refused."""
    if case.exported.stored_dtype != "float16":
        return Finding(gate="range", passed=None, text="the file computes in fp32, which nothing here overflows")
    if case.large:
        return Finding(
            gate="range",
            passed=None,
            text="a run of this size takes many minutes on a CPU; do it with --thorough, or on a GPU",
        )
    model = Library(dtype="float32").get(case.exported.model)
    found = activations(model, GenerationRequest(model=case.exported.model, prompt=PROMPT))
    worst = dict(sorted(found.items(), key=lambda item: -item[1])[:WORST])
    name, peak = next(iter(worst.items()))
    words = f"{len(found)} modules over a whole run, at most {peak:,.0f} ({name})"
    if peak > HALF_MAX:
        words += f": fp16 ends at {HALF_MAX:,.0f}, keep these modules in fp32"
    elif peak > WARN:
        words += f": within a factor of {HALF_MAX / peak:.0f} of fp16's end"
    figures = {"modules": len(found), "worst": {n: float(f"{v:.3g}") for n, v in worst.items()}}
    return Finding(gate="range", passed=peak <= HALF_MAX, text=words, figures=figures)
