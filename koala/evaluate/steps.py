"""A metric over the number of denoising steps, for several models (KOALA, figure 4): report and SVG plot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from koala.evaluate.metrics import METRICS
from koala.evaluate.settings import Settings
from koala.models.library import Library
from koala.models.loaded import LoadedModel

STEPS = (1, 2, 4, 8, 10, 15, 25)
PROMPTS = 100  # of the shapes world, per kind


def evaluate(models: Sequence[LoadedModel], settings: Settings, library: Library, say: Callable[[str], None]) -> dict:
    """Every model at every number of steps: the same prompts and noise for all; guidance is each model's own."""
    if not settings.prompts:
        settings = replace(settings, num_prompts=settings.num_prompts or PROMPTS)
    name, steps = settings.metric or "shapes", sorted(set(settings.steps or STEPS))
    metric = METRICS[name](settings, library, say)
    reports = [[metric.score(model, n) for n in steps] for model in models]
    return {
        "suite": "steps",
        "metric": name,
        "num_prompts": reports[0][0]["num_prompts"],
        "steps": steps,
        "panels": {title: list(path) for title, path in metric.panels.items()},
        "models": [
            {
                "model": model.card.name,
                "guidance": scored[0]["guidance"],
                "scheduler": scored[0]["scheduler"],
                "points": [{"steps": n, "scores": one["scores"]} for n, one in zip(steps, scored, strict=True)],
            }
            for model, scored in zip(models, reports, strict=True)
        ],
    }


def value(scores: Mapping, path: Sequence[str]) -> tuple[float, float, float]:
    """A number of the scores with its interval; without one both ends are the number itself."""
    number = scores
    for key in path:
        number = number[key]
    if not isinstance(number, Mapping):
        return (number,) * 3
    return number["rate"] if "rate" in number else number["mean"], *number["interval"]
