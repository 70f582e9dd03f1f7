"""GenerationRequest and Timing: shared by the CLI, the app, evaluation, benchmarks and runtimes."""

import dataclasses
import re
from dataclasses import dataclass, field

from koala.errors import UserError
from koala.presets import PRESETS

MAX_PROMPT = 2000  # characters; CLIP reads 77 tokens, far less than this
MAX_STEPS = 200
MAX_IMAGES = 16
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 64, 2048, 32  # px; the U-Net halves the eight-fold latents twice
MAX_SEED = 2**32 - 1
MAX_LORA_STRENGTH = 4.0
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can say it, no encoder of text takes it
SCHEDULERS = (
    "euler-trailing",
    "euler-leading",
    "euler-linspace",
    "euler-ancestral-trailing",
    "ddim-trailing",
    "dpmpp-2m-trailing",
    "lcm",  # of consistency models, on a grid of their own
    "tcd",
)


def _doc(text: str, **settings):
    return field(metadata={"help": text}, **settings)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One call of one model. None means the model's own default, filled in from its card by `resolve`."""

    model: str = _doc("model name, folder or hub id")
    prompt: str = _doc("what the picture shows")
    negative_prompt: str = _doc("what the picture should not show; needs guidance above 1", default="")
    seed: int = _doc("the noise; the same request gives the same pixels on the same machine", default=0)
    steps: int | None = _doc("denoising steps", default=None)
    guidance: float | None = _doc("classifier-free guidance; 1 or less runs the U-Net once per step", default=None)
    scheduler: str | None = _doc(f"one of {', '.join(SCHEDULERS)}", default=None)
    width: int | None = _doc("picture width in px", default=None)
    height: int | None = _doc("picture height in px", default=None)
    images: int = _doc("how many pictures, drawn as one batch", default=1)
    preset: str = _doc("; ".join(f"{p.name}: {p.label}" for p in PRESETS.values()), default="quality")
    lora: str | None = _doc(
        "a LoRA of the teacher's U-Net, a .safetensors file; moved onto a KOALA automatically", default=None
    )
    lora_strength: float = _doc("strength of the LoRA; 0 turns it off", default=1.0)

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict:
        """The request as JSON has it; `from_dict` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "GenerationRequest":
        """A request from JSON; unknown fields are refused by name."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown request field {unknown[0]!r}; the fields are {', '.join(sorted(known))}")
        if missing := sorted({"model", "prompt"} - set(values)):
            raise UserError(f"the request lacks {' and '.join(missing)}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time went, in ms, warm-up never counted; memory in bytes (None where it cannot be measured)."""

    text_ms: float
    unet_ms: tuple[float, ...]  # one entry per step, all U-Net calls of the step together
    unet_calls: int  # guidance counts twice: two predictions, even when they run as one batch
    vae_ms: float
    total_ms: float
    peak_memory_bytes: int | None
    swap_ms: float = 0.0  # moving parts on and off the device; in none of the other times

    @property
    def unet_total_ms(self) -> float:
        """The sum over all steps."""
        return sum(self.unet_ms)


def _whole(name: str, value: object, low: int, high: int, advice: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {value!r}; {advice}")
    if not low <= value <= high:
        raise UserError(f"{name} must lie between {low} and {high}, not {value}; {advice}")


def check(request: GenerationRequest) -> None:
    """Raise UserError with a remedy for the first field that cannot work."""
    for name in ("model", "prompt", "negative_prompt"):
        if not isinstance(getattr(request, name), str):
            raise UserError(f"the {name.replace('_', ' ')} must be text, not {getattr(request, name)!r}")
        if _HALF.search(getattr(request, name)):
            raise UserError(f"the {name.replace('_', ' ')} holds half a character, which is not text; type it again")
    if not request.model.strip():
        raise UserError("no model was named; `python -m koala models` lists them")
    if not request.prompt.strip():
        raise UserError("the prompt is empty; describe a picture, for example: a red circle left of a blue square")
    for name in ("prompt", "negative_prompt"):
        length = len(getattr(request, name))
        if length > MAX_PROMPT:
            raise UserError(
                f"the {name.replace('_', ' ')} has {length:,} characters; shorten it to {MAX_PROMPT:,} "
                "(the text encoders read about the first 77 words anyway)"
            )
    _whole("seed", request.seed, 0, MAX_SEED, "leave it out for seed 0, or choose any number in that range")
    if request.steps is not None:
        _whole("steps", request.steps, 1, MAX_STEPS, "10 to 50 is usual")
    if request.guidance is not None:
        value = request.guidance
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 30:
            raise UserError(f"guidance must be a number from 0 to 30, not {value!r}; 3.5 to 7.5 is usual")
    for name in ("width", "height"):
        value = getattr(request, name)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not MIN_SIDE <= value <= MAX_SIDE or value % SIDE_MULTIPLE:
            near = ""
            if whole:
                near = round(min(max(value, MIN_SIDE), MAX_SIDE) / SIDE_MULTIPLE) * SIDE_MULTIPLE
                near = f"; {near} is the nearest"
            raise UserError(
                f"{name} must be a multiple of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE} px, not {value!r}{near}"
            )
    _whole("images", request.images, 1, MAX_IMAGES, "run again with the next seed for more")
    if request.seed + request.images - 1 > MAX_SEED:
        raise UserError(
            f"{request.images} images have the seeds {request.seed} to {request.seed + request.images - 1}, "
            f"and the largest is {MAX_SEED}; choose a seed of at most {MAX_SEED - request.images + 1}, or fewer images"
        )
    if request.scheduler is not None and request.scheduler not in SCHEDULERS:
        raise UserError(f"unknown scheduler {request.scheduler!r}; choose one of {', '.join(SCHEDULERS)}")
    if not isinstance(request.preset, str) or request.preset not in PRESETS:
        raise UserError(f"unknown preset {request.preset!r}; choose one of {', '.join(PRESETS)}")
    if request.lora is not None and not (
        isinstance(request.lora, str) and request.lora.lower().endswith(".safetensors")
    ):
        raise UserError(
            f"a LoRA must be a .safetensors file, not {request.lora!r}; other formats can run code when they are read"
        )
    if request.lora is not None and _HALF.search(request.lora):
        raise UserError(
            f"the name of the LoRA {request.lora!r} is not text, so no picture could carry it; rename the file"
        )
    strength = request.lora_strength
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not abs(strength) <= MAX_LORA_STRENGTH:  # NaN is within no bounds
        raise UserError(
            f"the LoRA strength must be a number from -{MAX_LORA_STRENGTH:g} to {MAX_LORA_STRENGTH:g}, "
            f"not {strength!r}; 0.5 to 1 is usual"
        )
