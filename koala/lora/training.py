"""A LoRA in training: fp32 factors on the layers of a frozen U-Net. With the factors off, that U-Net is the teacher.

So one copy of the weights, in half precision, serves as teacher and student. The layers are those of the SDXL script
by the authors of phased consistency (Wang et al. 2024), the initial values those of LoRA (Hu et al. 2021): `down` is
random, `up` is 0, and training begins at the teacher itself.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional

from koala.lora.files import DRAWING
from koala.lora.formulas import change
from koala.lora.moving import MOVED, kohya
from koala.unet.specs import SDXL, TINY_SDXL, UNetSpec

TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
_DOWN, _UP = ".lora_down.weight", ".lora_up.weight"  # what a factor's name adds to its layer's


class _Switch:
    """Whether the factors of a U-Net act."""

    on = True


def targets(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers that are adapted, by module path: every linear layer and convolution of the blocks."""
    endings = tuple(f".{name}" for name in TARGETS)
    return {name: module for name, module in network.named_modules() if name.endswith(endings)}


def attach(network: torch.nn.Module, rank: int, alpha: float) -> None:
    """Give every target `lora_down` and `lora_up`, which alone learn; what they add is scaled by alpha / rank.

    The layers keep their own names, dtype and device; see `initialise` for the factors' values.
    """
    network.requires_grad_(False)
    switch = _Switch()
    for module in targets(network).values():
        here = dict(device=module.weight.device, dtype=torch.float32, bias=False)
        if isinstance(module, torch.nn.Linear):
            down = torch.nn.Linear(module.in_features, rank, **here)
            up = torch.nn.Linear(rank, module.out_features, **here)
        else:
            shape = dict(kernel_size=module.kernel_size, stride=module.stride, padding=module.padding)
            down = torch.nn.Conv2d(module.in_channels, rank, **shape, **here)
            up = torch.nn.Conv2d(rank, module.out_channels, 1, **here)
        module.lora_down, module.lora_up = down, up
        module.register_forward_pre_hook(_cast)
        module.register_forward_hook(partial(_add, switch, alpha / rank))
    network.lora_switch = switch


@torch.no_grad()
def initialise(network: torch.nn.Module, source: torch.Generator) -> None:
    """The factors' first values, the same on every device: `down` uniform within 1 / sqrt(inputs), `up` 0."""
    for module in targets(network).values():
        first = torch.empty(module.lora_down.weight.shape)
        torch.nn.init.kaiming_uniform_(first, a=5**0.5, generator=source)
        module.lora_down.weight.copy_(first)
        module.lora_up.weight.zero_()


def _cast(module: torch.nn.Module, inputs: tuple) -> tuple | None:
    """Under autocast the input is cast once, for the layer and for its factors."""
    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return (inputs[0].to(torch.get_autocast_dtype(kind)), *inputs[1:])


def _add(switch: _Switch, scale: float, module: torch.nn.Module, inputs: tuple, output: torch.Tensor):
    """The layer's output (B, ..., out) or (B, out, h, w) and what the factors make of its input.

    It is changed in place, since nothing else holds the output of a linear layer or a convolution. GEGLU's alone is
    42 MB per picture at 1024 px.
    """
    if not switch.on:
        return None
    given = inputs[0]
    down, up = (factor.weight.to(given.dtype) for factor in (module.lora_down, module.lora_up))
    if isinstance(module, torch.nn.Linear):
        return output.add_(functional.linear(functional.linear(given, down) * scale, up))
    between = functional.conv2d(given, down, stride=module.stride, padding=module.padding)
    return output.add_(functional.conv2d(between * scale, up))


@contextmanager
def without(network: torch.nn.Module) -> Iterator[None]:
    """The U-Net as it was before `attach`, for as long as the block lasts; nothing for one without factors.

    Only for passes without a gradient: gradient checkpointing runs a pass again later.
    """
    switch = getattr(network, "lora_switch", None)
    before = switch.on if switch else False
    try:
        if switch:
            switch.on = False
        yield
    finally:
        if switch:
            switch.on = before


def by_layer(factors: Mapping[str, torch.Tensor], alpha: float) -> dict[str, dict[str, torch.Tensor]]:
    """Module path -> its LoRA by role (`koala.lora.formulas`), of trained weights by parameter name."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in factors.items():
        role, ending = ("down", _DOWN) if name.endswith(_DOWN) else ("up", _UP)
        layers.setdefault(name.removesuffix(ending), {"alpha": torch.tensor(float(alpha))})[role] = tensor
    return layers


def merged(weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A layer's weight with the LoRA in it: the sum in fp32, rounded once to the weight's dtype."""
    return (weight.float() + change(parts, weight)).to(weight.dtype)


def as_file(
    factors: Mapping[str, torch.Tensor], alpha: float, spec: UNetSpec, drawing: Mapping[str, object]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors in kohya's names, which every program reads, and the file's metadata.

    `spec` is that of the U-Net that was trained, `drawing` how it is drawn with, as `koala.models.registry.drawing_of`
    gives it.
    """
    tensors = {}
    for module, parts in by_layer(factors, alpha).items():
        tensors |= kohya(module, parts)
    own = {} if spec.notation in (SDXL.notation, TINY_SDXL.notation) else {MOVED: spec.notation}
    return tensors, {"format": "pt", DRAWING: json.dumps(drawing), **own}
