"""The compositional score: draw prompts of the shapes world, judge every claim, and report rates with intervals."""

import random
from collections.abc import Callable

from PIL import Image
from scipy.stats import binomtest

from koala.errors import UserError
from koala.evaluate import drawing
from koala.models.loaded import LoadedModel
from koala.request import GenerationRequest
from koala.sampling.generate import resolve
from koala.shapes.captions import CLAIM_KINDS, STYLES, caption, parse
from koala.shapes.judge import verdict
from koala.shapes.scene import HELD_OUT, TRAINING_PAIRS, random_scene

SUITES = ("one_object", "two_objects", "held_out")
_HELD_OUT = tuple(sorted(HELD_OUT))
_SETTING = {"one_object": (1, TRAINING_PAIRS), "two_objects": (2, TRAINING_PAIRS), "held_out": (1, _HELD_OUT)}
STEPS = 25


def prompts(suite: str, count: int, *, width: int = 256, height: int = 256, series: str = "suite") -> list[str]:
    """The fixed prompts of a suite: short and detailed captions in turn, of scenes that fit this canvas in px.

    Another series has other prompts of the same kind, for choices that must not be made on the score itself. UserError
    if the canvas cannot hold the suite's objects.
    """
    num_objects, pairs = _SETTING[suite]
    rng = random.Random(f"{series}/{suite}")
    try:
        scenes = (random_scene(rng, num_objects, width=width, height=height, pairs=pairs) for _ in range(count))
        return [caption(scene, STYLES[i % len(STYLES)], rng) for i, scene in enumerate(scenes)]
    except ValueError as error:
        raise UserError(f"the suite {suite} cannot be drawn: {error}") from error


def draw(
    model: LoadedModel,
    texts: list[str],
    first_seed: int,
    *,
    steps: int,
    guidance: float,
    scheduler: str | None = None,
    preset: str = "quality",
    width: int | None = None,
    height: int | None = None,
) -> list[Image.Image]:
    """One picture per prompt as a single batch; prompt k starts from the noise of seed `first_seed + k`."""
    same = dict(steps=steps, guidance=guidance, scheduler=scheduler, preset=preset, width=width, height=height)
    name = model.card.name
    requests = [GenerationRequest(model=name, prompt=t, seed=first_seed + k, **same) for k, t in enumerate(texts)]
    return [result.images[0] for result in drawing.draw(model, [resolve(r, model.card) for r in requests])]


def interval(held: int, count: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927); its width is above zero even if all hold or none does."""
    bounds = binomtest(held, count).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def _rate(outcomes: list[bool]) -> dict:
    held, count = sum(outcomes), len(outcomes)
    return {
        "rate": round(held / count, 4),
        "interval": [round(x, 4) for x in interval(held, count)],
        "count": count,
    }


def _rates(verdicts: list) -> dict:
    """Rate, interval and count per claim kind and of whole prompts; attributes also by what they describe."""
    by_kind = {"all": [v.all for v in verdicts]}
    results = [r for v in verdicts for r in v.results]
    for kind in CLAIM_KINDS:
        by_kind[kind] = [r.holds for r in results if r.claim.kind == kind]
    rates = {kind: _rate(outcomes) for kind, outcomes in by_kind.items() if outcomes}
    by: dict[str, list[bool]] = {}
    for r in results:
        if r.claim.kind == "attribute":
            by.setdefault(r.claim.subject[0], []).append(r.holds)
    if by:
        rates["attribute"]["by"] = {what: _rate(outcomes) for what, outcomes in by.items()}
    return rates


def evaluate(
    model: LoadedModel,
    *,
    count: int = 500,
    suites: tuple[str, ...] = SUITES,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | None = None,
    preset: str = "quality",
    width: int | None = None,
    height: int | None = None,
    batch_size: int | None = None,
    series: str = "suite",
    on_batch: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Score a model with its own settings: `count` prompts a suite, prompt k from the same noise for all models.

    A size in px other than the model's own has its own prompts, of scenes that fit it. UserError if none fit.
    """
    steps = steps or model.card.steps
    guidance = model.card.guidance if guidance is None else guidance
    scheduler = scheduler or model.card.scheduler
    own = width is None and height is None
    width, height = width or model.card.width, height or model.card.height
    canvas = {} if own else {"width": width, "height": height}
    batch_size = batch_size or drawing.fitting(width, height)
    scores = {}
    for suite, texts in [(suite, prompts(suite, count, series=series, **canvas)) for suite in suites]:
        verdicts = []
        for start in range(0, count, batch_size):
            batch = texts[start : start + batch_size]
            settings = dict(steps=steps, guidance=guidance, scheduler=scheduler, preset=preset)
            pictures = draw(model, batch, start, **settings, width=width, height=height)
            verdicts += [verdict(p, parse(t)) for p, t in zip(pictures, batch, strict=True)]
            if on_batch:
                on_batch(suite, len(verdicts), count)
        scores[suite] = _rates(verdicts)
    return {
        "model": model.card.name,
        "suite": "shapes",
        "num_prompts": count,
        "steps": steps,
        "guidance": guidance,
        "scheduler": scheduler,
        "preset": preset,
        "width": width,
        "height": height,
        "scores": scores,
    }
