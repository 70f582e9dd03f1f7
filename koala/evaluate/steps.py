"""A metric over the number of denoising steps, for several models (KOALA, figure 4): the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from koala.evaluate.metrics import METRICS
from koala.evaluate.settings import Settings, request
from koala.evaluate.steps_figure import NONE, RUNS
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.request import Timing
from koala.sampling.generate import generate
from koala.sampling.resolve import resolve

STEPS = (1, 2, 4, 8, 10, 15, 25)
PROMPTS = 100  # of the shapes world, per kind
PROMPT = "a red circle left of a blue square"  # of the timed picture


def evaluate(models: Sequence[LoadedModel], settings: Settings, library: Library, say: Callable[[str], None]) -> dict:
    """Every model at every number of steps: the same prompts and noise for all; guidance is each model's own.

    With `also_unguided` a model that has guidance is scored a second time, without. Every point has the U-Net's calls
    and the time of one picture, the median of some runs.
    """
    if not settings.prompts:
        settings = replace(settings, num_prompts=settings.num_prompts or PROMPTS)
    name, steps = settings.metric or "shapes", sorted(set(settings.steps or STEPS))
    metric = METRICS[name](settings, library, say)
    curves = [(model, guidance) for model in models for guidance in _guidances(model, settings)]
    reports = [[metric.score(model, n, guidance) for n in steps] for model, guidance in curves]
    say(f"timing one picture of every point, {RUNS} times")
    timings = [
        [[_timing(model, settings, n, guidance) for n in steps] for model, guidance in curves] for _ in range(RUNS)
    ]  # in turn, so that a machine that slows down does so for all
    return {
        "suite": "steps",
        "metric": name,
        "num_prompts": reports[0][0]["num_prompts"],
        "steps": steps,
        "panels": {title: list(path) for title, path in metric.panels.items()},
        "models": [
            {
                "model": model.card.name,
                "teacher": model.card.teacher,
                "parameters": model.parameters,
                "guidance": scored[0]["guidance"],
                "scheduler": scored[0]["scheduler"],
                "points": [
                    {
                        "steps": n,
                        "unet_calls": timings[0][row][column].unet_calls,
                        "picture_ms": round(median(run[row][column].total_ms for run in timings), 3),
                        "scores": one["scores"],
                    }
                    for column, (n, one) in enumerate(zip(steps, scored, strict=True))
                ],
            }
            for row, ((model, _), scored) in enumerate(zip(curves, reports, strict=True))
        ],
    }


def _guidances(model: LoadedModel, settings: Settings) -> list[float | None]:
    """What a model is scored with; None is its own, or the one that was asked for."""
    own = resolve(request(model.card.name, PROMPT, settings), model.card).guidance
    return [None, NONE] if settings.also_unguided and own > NONE else [None]


def _timing(model: LoadedModel, settings: Settings, steps: int, guidance: float | None) -> Timing:
    """The times of one picture, after a warm-up."""
    asked = request(model.card.name, PROMPT, settings, steps=steps)
    asked = asked if guidance is None else replace(asked, guidance=guidance)
    return generate(asked, model, num_previews=0).timing
