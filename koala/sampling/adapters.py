"""A request's LoRA on a loaded U-Net, for the duration of a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from koala.lora.files import content
from koala.lora.formulas import Parts, bias_change, change, rows_at_once
from koala.lora.moving import has_weight, layers_for
from koala.lora.report import LoraReport
from koala.models.loaded import Fitted, LoadedModel
from koala.request import GenerationRequest
from koala.unet.specs import UNetSpec

_BY_ROWS = {"down", "up", "alpha", "up_bias"}  # of a format in which an output's change is of its own row of `up`


def changed(unet: torch.nn.Module, layers: Mapping[str, Parts], strength: float) -> Iterator[tuple[str, torch.Tensor]]:
    """(parameter, its weight with the LoRA in it): the sum in fp32, rounded once to the weight's own dtype."""
    for module, parts in layers.items():
        added = {}
        if "w_norm" in parts:
            added["weight"] = parts["w_norm"].float().flatten().clone()
        elif has_weight(parts):
            weight = unet.get_parameter(f"{module}.weight")
            yield f"{module}.weight", _adapted(weight.detach(), parts, strength)
        if (bias := bias_change(parts)) is not None:
            added["bias"] = bias.clone()  # of the file's own tensor, which stays as it is
        for name, delta in added.items():
            before = unet.get_parameter(f"{module}.{name}").detach()
            yield f"{module}.{name}", _sum(before, delta.to(before.device), strength)


def _sum(before: torch.Tensor, delta: torch.Tensor, strength: float) -> torch.Tensor:
    return torch.add(before.float(), delta, alpha=strength).to(before.dtype)


def _adapted(weight: torch.Tensor, parts: Parts, strength: float) -> torch.Tensor:
    """A layer's weight with the LoRA in it. On a CPU the rows of a plain product come a part at a time.

    So no tensor in fp32 of the size of the whole weight goes through memory, which takes longer than to compute it.
    """
    here = {role: tensor.to(weight.device) for role, tensor in parts.items()}
    if weight.device.type != "cpu" or not here.keys() <= _BY_ROWS:
        return _sum(weight, change(here, weight), strength)
    here["down"], rows = here["down"].float(), rows_at_once(weight)
    changed_rows = []
    for first in range(0, len(weight), rows):
        # copies, not views: a rehearsal's tensors in inference mode have no views
        before, up = (t.narrow_copy(0, first, min(rows, len(t) - first)) for t in (weight, here["up"]))
        changed_rows.append(_sum(before, change(here | {"up": up}, before), strength))
    return torch.cat(changed_rows)


@torch.no_grad()
def fuse(unet: torch.nn.Module, lora: Path, spec: UNetSpec, strength: float) -> LoraReport:
    """Fuse a LoRA into a U-Net's weights permanently. UserError for one that does not fit it."""
    layers, report = layers_for(lora, spec)
    if strength:
        for name, value in changed(unet, layers, strength):
            unet.get_parameter(name).data = value
    return report


@contextmanager
def adapted(model: LoadedModel, request: GenerationRequest) -> Iterator[LoraReport | None]:
    """Apply the LoRA; afterwards the U-Net is bit for bit what it was.

    The weights that it replaces wait in host memory. Those that it makes are kept there for the next run with the same
    file and strength, which then reads nothing. A strength of 0 changes nothing, to the bit as well.
    """
    if request.lora is None:
        yield None
        return
    unet, file, strength = model.pipeline.unet, Path(request.lora), float(request.lora_strength)
    key = (content(file), strength)
    known = model.adapted.get(key)
    layers, report = ({}, known.report) if known else layers_for(file, model.spec)
    new_weights = known.weights.items() if known else changed(unet, layers, strength) if strength else ()
    originals: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for name, value in new_weights:
                parameter = unet.get_parameter(name)
                originals[name] = parameter.data.cpu()  # on a CPU the tensor itself, not a copy
                parameter.data = value.to(parameter.device)
        if not known:
            model.adapted.clear()
            weights = {name: unet.get_parameter(name).data.cpu() for name in originals}
            model.adapted[key] = Fitted(report=report, weights=weights)
        yield report
    finally:
        for name, original in originals.items():
            parameter = unet.get_parameter(name)
            parameter.data = original.to(parameter.device)
