"""The JSON description in a capture: validated, within the bounds of a request, before it is used."""

import math
from collections.abc import Mapping

from koala.attention.plan import LEVELS, MOST_PATCHES, Layer, attention_stages, grid
from koala.request import MAX_IMAGES, MAX_PROMPT, MAX_SEED, MAX_SIDE, MAX_STEPS
from koala.unet.costs import TOKENS
from koala.unet.specs import UNetSpec

MOST_LAYERS = 1000  # of a network in a file from elsewhere; SDXL has 70
LEAST_DIM = 4  # of one head: smaller ones would fit more patches into a file than a computer can process
SHORT, LONG = 200, 5000  # characters: of a token, of any other text


def spec_of(given: object) -> UNetSpec:
    """The network; ValueError or TypeError for an invalid one, or one of too many layers."""
    if not isinstance(given, dict):
        raise ValueError("its spec is not a network")
    spec = UNetSpec(**{name: tuples(value) for name, value in given.items()})
    _text("its spec's name", spec.name, SHORT)
    for name, numbers, low in (("channels", spec.channels, 1), ("heads", spec.heads, 1)):
        if len(numbers) != 3:
            raise ValueError(f"its spec has {len(numbers)} {name}, not one for each of 3 levels")
        for number in numbers:
            whole(name, number, low, 10**5)
    depths = [depth for each in spec.depths().values() for depth in each]
    if len(depths) > MOST_LAYERS or sum(whole("a depth", depth, 0, 10**12) for depth in depths) > MOST_LAYERS:
        raise ValueError(f"a network of more than {MOST_LAYERS} layers")
    return spec


def layers_of(given: object, spec: UNetSpec, width: int, height: int) -> tuple[Layer, ...]:
    """The recorded layers; ValueError for one that such a network does not have for a picture of this size."""
    if not isinstance(given, list) or len(given) > 2 * MOST_LAYERS:
        raise ValueError("its layers are not a list, or more than a network has")
    layers = tuple(Layer(**layer | {"grid": tuples(layer["grid"])}) for layer in given)
    if len({layer.path for layer in layers}) < len(layers):
        raise ValueError("a layer is named twice")
    paths = dict((path, stage) for stage, path in spec.self_attentions())
    for x in layers:
        own = _text("a path", x.path, SHORT).replace("attn2", "attn1")
        if own not in paths or ("attn1" in x.path) != (x.kind == "self") or x.kind not in ("self", "cross"):
            raise ValueError(f"{x.path} is not a layer of {spec.name}")
        if x.stage not in attention_stages(spec) or x.stage != paths[own] or x.grid != grid(x.stage, width, height):
            raise ValueError(f"{x.path} is not a layer of this run")
        heads = spec.heads[LEVELS[x.stage]]
        if (x.heads, x.dim) != (heads, spec.channels[LEVELS[x.stage]] // heads) or x.dim < LEAST_DIM:
            raise ValueError(f"{x.path} has other heads than {spec.name}, or heads of fewer than {LEAST_DIM} numbers")
        if not 1 <= x.queries <= MOST_PATCHES:
            raise ValueError(f"{x.path} has {x.queries:,} patches, 1 to {MOST_PATCHES:,} are read")
    return layers


def check_run(about: Mapping) -> None:
    """ValueError for a size, count or text outside the bounds of a request; KeyError for a missing one."""
    for name, low, most in (
        ("width", 1, MAX_SIDE),
        ("height", 1, MAX_SIDE),
        ("images", 1, MAX_IMAGES),
        ("steps", 1, MAX_STEPS),
    ):
        whole(name, about[name], low, most)
    if about["seed"] is not None:
        whole("seed", about["seed"], 0, MAX_SEED)
    numbers = [about["overhead_ms"], *([] if about["guidance"] is None else [about["guidance"]])]
    timesteps = about["timesteps"]
    if not isinstance(timesteps, list) or len(timesteps) != about["steps"]:
        raise ValueError(f"not one timestep for each of {about['steps']} steps")
    for number in (*numbers, *timesteps):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError("guidance, timesteps and the recording time must be numbers")
    tokens = about["tokens"]
    if not isinstance(tokens, list) or len(tokens) > TOKENS:
        raise ValueError(f"its tokens are not a list of at most {TOKENS}")
    for token in tokens:
        _text("a token", token, SHORT)
    _text("prompt", about["prompt"], max(MAX_PROMPT, LONG))
    for name in ("model", "revision", "half"):
        _text(name, about[name], LONG)


def whole(name: str, value: object, low: int, most: int) -> int:
    """The number; ValueError unless it is a whole number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}, not a whole number from {low} to {most}")
    return value


def _text(name: str, value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name} is not a text of at most {most} characters")
    return value


def tuples(value: object) -> object:
    """Lists from JSON back to tuples."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value
