"""The options of all suites, each defined once, and which suites read them; an option that is not read is an error."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koala.errors import UserError
from koala.presets import PRESETS
from koala.request import SCHEDULERS, GenerationRequest

LAYOUTS = ("t2i-compbench", "geneval")
METRICS = ("shapes", "clip", "hpsv2")
MAX_PROMPTS = 100_000


def _option(help: str, kind: type = str, metavar: str = "N", **parse):
    parse |= {} if "choices" in parse else {"metavar": metavar}
    return field(default=None, metadata={"help": help, "parse": {"type": kind, **parse}})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the suites; None means the suite's own default."""

    num_prompts: int | None = _option(
        "number of prompts: the first N of a file (default: the suite's own number, or the whole file)", int
    )
    prompts: Path | None = _option(
        "file of prompts: one per line, GenEval's .jsonl or HPSv2's .json (default: prompts of the shapes world)",
        Path,
        "FILE",
    )
    steps: Sequence[int] | None = _option(
        "denoising steps; the suite steps takes a list (default: the model's own)", int, nargs="+"
    )
    guidance: float | None = _option("classifier-free guidance (default: the model's own)", float)
    scheduler: str | None = _option("sampler (default: the model's own)", choices=SCHEDULERS)
    seed: int | None = _option("seed of the first picture; each next picture adds one (default: 0)", int)
    width: int | None = _option("picture width in px (default: the model's own)", int)
    height: int | None = _option("picture height in px (default: the model's own)", int)
    preset: str | None = _option("what to trade for speed or memory (default: quality)", choices=tuple(PRESETS))
    batch_size: int | None = _option("pictures per batch (default: as many pixels as 25 pictures of 256 x 256 px)", int)
    teacher: str | None = _option(
        "agreement: the model to compare with (default: the teacher on the model's card); "
        "clip: compute CMMD against this model's pictures of the same prompts",
        metavar="MODEL",
    )
    reference: Path | None = _option("clip: compute CMMD against the pictures in this folder", Path, "DIR")
    clip: str | None = _option(
        "clip: CLIP model for both scores (default: ViT-L/14 for CLIPScore, ViT-L/14 at 336 px for CMMD)",
        metavar="MODEL",
    )
    layout: str | None = _option("prompts: the benchmark that will read the pictures", choices=LAYOUTS)
    images: int | None = _option("prompts: pictures per prompt (default: the benchmark's, 10 or 4)", int)
    also_unguided: bool | None = field(
        default=None,
        metadata={"help": "steps: score every model without guidance as well", "parse": {"action": "store_true"}},
    )
    metric: str | None = _option("steps: metric to plot over the number of steps (default: shapes)", choices=METRICS)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite as the command line knows it: its help and the settings it reads."""

    help: str
    reads: tuple[str, ...]
    many: bool = False  # takes several models


_SAMPLING = ("steps", "guidance", "scheduler", "preset", "width", "height", "batch_size")
_DRAWING = ("num_prompts", "prompts", "seed", *_SAMPLING)
_REFERENCES = ("teacher", "reference", "clip")
SUITES = {
    "shapes": Suite(
        help="which claims of the prompts hold in its pictures",
        reads=("num_prompts", *_SAMPLING),
    ),
    "judge": Suite(
        help="how accurate the judge of shapes is, before and after the model's VAE", reads=("num_prompts",)
    ),
    "agreement": Suite(
        help="how far its predicted noise and self-attention are from its teacher's",
        reads=("num_prompts", "prompts", "seed", "width", "height", "batch_size", "teacher"),
    ),
    "clip": Suite(help="CLIPScore, and CMMD against reference pictures", reads=(*_DRAWING, *_REFERENCES)),
    "hpsv2": Suite(help="human preference score v2.1", reads=_DRAWING),
    "prompts": Suite(
        help="no score: a folder of pictures for T2I-CompBench or GenEval", reads=(*_DRAWING, "layout", "images")
    ),
    "steps": Suite(
        help="a metric over the number of steps, with U-Net calls and times, as tables and a plot (KOALA, tables 5 and "
        "9, figure 4)",
        reads=(),
        many=True,
    ),
}


def reads(suite: str, settings: Settings) -> tuple[str, ...]:
    """The settings that this run reads; `steps` also reads its metric's."""
    if suite == "steps":
        return ("metric", "also_unguided", *SUITES[settings.metric or "shapes"].reads)
    return SUITES[suite].reads


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return f"--{name.replace('_', '-')}"


def check(suite: str, models: Sequence[str], settings: Settings) -> None:
    """UserError, with a remedy, for the first setting that cannot work or is not read by the suite."""
    if len(models) > 1 and not SUITES[suite].many:
        raise UserError(f"the suite {suite} scores one model at a time, not {len(models)}; run it once for each")
    known = reads(suite, settings)
    for name, value in dataclasses.asdict(settings).items():
        if value is not None and name not in known:
            what = f"the metric {settings.metric or 'shapes'}" if suite == "steps" else f"the suite {suite}"
            raise UserError(f"{flag(name)} is not read by {what}; it reads {', '.join(map(flag, known))}")
    for name, high in (("num_prompts", MAX_PROMPTS), ("batch_size", 1024), ("images", 1000)):
        value = getattr(settings, name)
        if value is not None and not 1 <= value <= high:
            raise UserError(f"{flag(name)} must lie between 1 and {high:,}, not {value:,}")
    if settings.steps and len(settings.steps) > 1 and suite != "steps":
        raise UserError(f"the suite {suite} takes one number of steps; --suite steps draws a metric over several")
    if settings.also_unguided and settings.guidance is not None and settings.guidance <= 1:
        raise UserError(
            f"--guidance {settings.guidance:g} means no guidance already; leave --also-unguided out, or --guidance"
        )
    if settings.teacher and settings.reference:
        raise UserError("--teacher and --reference both name the pictures of CMMD; give one of them")
    if suite == "prompts" and not settings.layout:
        raise UserError(f"name the benchmark that will read the pictures: --layout {' or '.join(LAYOUTS)}")
    for steps in settings.steps or (None,):
        request(models[0], "a prompt", settings, steps=steps)


def request(
    model: str, prompt: str, settings: Settings, *, steps: int | None = None, offset: int = 0
) -> GenerationRequest:
    """The request of one picture under these settings; what is None becomes the model's own default."""
    return GenerationRequest(
        model=model,
        prompt=prompt,
        seed=(settings.seed or 0) + offset,
        steps=steps or (settings.steps or (None,))[0],
        guidance=settings.guidance,
        scheduler=settings.scheduler,
        preset=settings.preset or "quality",
        width=settings.width,
        height=settings.height,
    )
