"""Smallest, usual and largest shapes of a U-Net's inputs: what an engine is built for."""

from collections.abc import Mapping

from koala.errors import UserError
from koala.request import MAX_SIDE
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS
from koala.unet.specs import UNetSpec

STEP = LATENT_FACTOR  # px: the sides that one file serves
SMALLEST = 64  # px: the U-Net halves its 8 latents twice
LONGEST = 3 * TOKENS  # tokens of a long prompt, in chunks of 77 as other UIs send them


def check_side(name: str, side: int) -> None:
    """UserError for a side that the U-Net cannot have."""
    if side % STEP or not SMALLEST <= side <= MAX_SIDE:
        near = min(max(round(side / STEP) * STEP, SMALLEST), MAX_SIDE)
        raise UserError(
            f"{name} must be a multiple of {STEP} from {SMALLEST} to {MAX_SIDE} px, not {side}; {near} is the nearest"
        )


def shapes(spec: UNetSpec, *, batch: int, height: int, width: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs at one size in px; `batch` counts a guided picture twice. The timestep is a scalar."""
    return {
        "sample": (batch, LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR),
        "encoder_hidden_states": (batch, tokens, spec.cross_attention_dim),
        "text_embeds": (batch, spec.pooled_dim),
        "time_ids": (batch, 6),
    }


def profile(
    spec: UNetSpec,
    *,
    sides: tuple[int, int, int],
    batch: tuple[int, int, int] = (1, 2, 4),
    tokens: tuple[int, int, int] = (TOKENS, TOKENS, LONGEST),
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Input -> {"min", "opt", "max"}, for sides in px, U-Net batch and tokens: each smallest, usual, largest."""
    for name, values in (("side", sides), ("batch", batch), ("tokens", tokens)):
        if list(values) != sorted(values):
            raise UserError(f"the {name} must go from the smallest over the usual to the largest, not {values}")
    for side in sides:
        check_side("the side", side)
    each = [shapes(spec, batch=b, height=s, width=s, tokens=t) for s, b, t in zip(sides, batch, tokens, strict=True)]
    return {name: dict(zip(("min", "opt", "max"), (e[name] for e in each), strict=True)) for name in each[0]}


def usual(spec: UNetSpec, sides: Mapping[str, object]) -> dict[str, dict[str, tuple[int, ...]]]:
    """From half the model's own size to one and a half times it; `sides` are its width and height."""
    side = max(int(sides["width"]), int(sides["height"]))
    least, most = (max(SMALLEST, round(side * f / STEP) * STEP) for f in (0.5, 1.5))
    return profile(spec, sides=(least, side, min(most, MAX_SIDE)))
