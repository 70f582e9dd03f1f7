"""Modules that stay in fp32 inside an fp16 file: those in which activations leave fp16's range on a real run."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping

import torch

from koala.models.hooks import listen
from koala.models.loaded import LoadedModel
from koala.request import GenerationRequest
from koala.sampling.generate import generate

HALF_MAX = 65504.0
LOGITS = " logits"  # after the name of an attention layer
PROMPT = "a large red circle to the left of a small blue square on a light grey background"


def activations(model: LoadedModel, request: GenerationRequest) -> dict[str, float]:
    """Module -> its largest absolute output on a whole run, guided as usual; and a bound of attention's logits.

    The logits never appear as a module's output: |q . k| <= |q| |k|, with the scale that the graph puts on both.
    """
    unet = model.pipeline.unet
    peaks: dict[str, float] = defaultdict(float)
    longest: dict[str, float] = defaultdict(float)

    def record_peak(name: str, _, output: object) -> None:
        if not isinstance(output, torch.Tensor):
            return
        value = float(output.abs().max())
        peaks[name] = max(peaks[name], value if math.isfinite(value) else math.inf)
        layer, _, kind = name.rpartition(".")
        if kind in ("to_q", "to_k"):
            vectors = output.unflatten(-1, (unet.get_submodule(layer).heads, -1)).float()
            longest[name] = max(longest[name], float(vectors.norm(dim=-1).max()))

    with listen({name: module for name, module in unet.named_modules() if name}, record_peak):
        generate(request, model, num_previews=0)
    for name, queries in longest.items():
        layer, _, kind = name.rpartition(".")
        if kind == "to_q":
            peaks[layer + LOGITS] = queries * longest[f"{layer}.to_k"] * unet.get_submodule(layer).scale
    return dict(peaks)


def islands(peaks: Mapping[str, float], limit: float = HALF_MAX) -> tuple[str, ...]:
    """The smallest modules that contain every activation beyond `limit` and whose output is within it."""
    names = set()
    for name, peak in peaks.items():
        if peak <= limit:
            continue
        if name.endswith(LOGITS):
            names.add(name.removesuffix(LOGITS))
            continue
        while peaks.get(name, 0.0) > limit:  # blocks whose output was not recorded are assumed to be within it
            name = name.rpartition(".")[0]
        names.add(name)
    return tuple(sorted(n for n in names if not any(n.startswith(f"{other}.") for other in names)))


def float_islands(unet: torch.nn.Module, names: Collection[str]) -> None:
    """Compute these modules of an fp16 U-Net in fp32; their inputs and outputs stay fp16."""

    def widen(module, given, named):
        return _cast(given, torch.float32), _cast(named, torch.float32)

    def narrow(module, given, output):
        return _cast(output, torch.float16)

    for name in names:
        module = unet.get_submodule(name).float()
        module.register_forward_pre_hook(widen, with_kwargs=True)
        module.register_forward_hook(narrow)


def _cast(value, dtype: torch.dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_cast(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in value.items()}
    return value
