"""A metric over the number of denoising steps, for several models (KOALA, figure 4): report and SVG plot."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from koala import charts
from koala.evaluate.metrics import METRICS
from koala.evaluate.settings import Settings, request
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.palette import COLOURS
from koala.request import Timing
from koala.sampling.generate import generate
from koala.sampling.resolve import resolve

STEPS = (1, 2, 4, 8, 10, 15, 25)
PROMPTS = 100  # of the shapes world, per kind
NONE = 1.0  # the guidance that is none
PROMPT, RUNS = "a red circle left of a blue square", 3  # of the timed picture


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


def value(scores: Mapping, path: Sequence[str]) -> tuple[float, float, float]:
    """A number of the scores with its interval; without one both ends are the number itself."""
    number = scores
    for key in path:
        number = number[key]
    if not isinstance(number, Mapping):
        return (number,) * 3
    return number["rate"] if "rate" in number else number["mean"], *number["interval"]


def names(report: Mapping) -> list[str]:
    """A short name for every curve's model: as many of the last parts of a path as tell it from the others."""
    full = [model["model"].rstrip("/").split("/") for model in report["models"]]

    def short(parts: list[str]) -> str:
        others = [other for other in full if other != parts]
        lengths = range(1, len(parts) + 1)
        fits = (n for n in lengths if all(other[-n:] != parts[-n:] for other in others))
        return "/".join(parts[-next(fits, len(parts)) :])

    return [short(parts) for parts in full]


def labels(report: Mapping) -> list[str]:
    """A name for every curve: its model's, with the guidance where the model has several curves."""
    short = names(report)
    return [
        f"{name}, {guided(model['guidance'])}" if short.count(name) > 1 else name
        for name, model in zip(short, report["models"], strict=True)
    ]


def guided(guidance: float) -> str:
    """A guidance in words."""
    return f"guidance {guidance:g}" if guidance > NONE else "no guidance"


FRAME = charts.Frame(width=300, height=230, left=44, right=14, top=30, bottom=40)
LINES = (*(COLOURS[f"bar-{part}"][0] for part in ("unet", "vae", "text")), "#8c4a3c", "#3f6f9c", "#5e584f")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 2")
NARROW = 15  # px between two labels of the x axis
NARROWEST = 480  # px of the whole figure, for its title


def _style(k: int) -> dict[str, str]:
    """The stroke of the k-th model's line."""
    return {"stroke": LINES[k % len(LINES)], "stroke_dasharray": DASHES[k % len(DASHES)]}


def _number(x: float, step: float, percent: bool) -> str:
    return f"{100 * x:.0f} %" if percent else f"{x:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _steps_axis(steps: Sequence[int], x: charts.Scale) -> charts.Markup:
    """A tick for every number of steps, and a label where it does not run into the one before."""
    parts, labelled = [], -math.inf
    for n in steps:
        at = x(n)
        parts.append(charts.element("path", class_="chart-grid", d=f"M{at:.1f} {FRAME.height - FRAME.bottom}v4"))
        if at - labelled >= NARROW:
            labelled = at
            parts.append(FRAME.below(str(n), at))
    return charts.join(parts)


def panel(title: str, path: Sequence[str], report: Mapping) -> charts.Markup:
    """The panel of one score; the steps are on a logarithmic axis."""
    steps, percent = report["steps"], report["metric"] == "shapes"
    curves = [[value(point["scores"], path) for point in model["points"]] for model in report["models"]]
    values = [x for curve in curves for point in curve for x in point]
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else charts.ticks_around(min(values), max(values))
    x, y = FRAME.across(steps[0], steps[-1], log=True), FRAME.up(ticks[0], ticks[-1])
    grid = FRAME.grid(y, ticks, lambda tick: _number(tick, ticks[1] - ticks[0], percent))
    parts = [FRAME.title(title), grid, _steps_axis(steps, x)]
    for k, (name, curve) in enumerate(zip(labels(report), curves, strict=True)):
        style = _style(k)
        points, under, over = ([(x(n), y(v[i])) for n, v in zip(steps, curve, strict=True)] for i in range(3))
        parts += [charts.band(over, under, fill=style["stroke"]), charts.line(points, **style)]
        for n, (v, low, high), (a, b) in zip(steps, curve, points, strict=True):
            shown = f"{100 * v:.1f} % ({100 * low:.1f} to {100 * high:.1f})" if percent else f"{v:.3f}"
            tip = f"{name}, {n} steps: {shown}"
            parts.append(charts.marker("circle", a, b, tip=tip, fill=style["stroke"]))
    return charts.join(parts)


def figure(report: Mapping) -> str:
    """A steps report as an SVG file."""
    titles = {"shapes": "Prompts whose every claim holds", "clip": "CLIP scores", "hpsv2": "Human preference score"}
    title = f"{titles[report['metric']]}, by the number of steps"
    names = labels(report)
    keys = [
        (charts.element("path", class_="chart-line", **_style(k), d="M0 -4h26"), name, 56 + 6.6 * len(name))
        for k, name in enumerate(names)
    ]
    note = f"denoising steps; {report['num_prompts']} prompts per point, bands are 95 % intervals"
    panels = [panel(name, path, report) for name, path in report["panels"].items()]
    left = 8 + FRAME.left
    return FRAME.file(
        title,
        panels,
        charts.text(note, left, FRAME.height + 38),
        charts.legend(keys, left, FRAME.height + 62, gap=32),
        label=title,
        style="",
        width=max(16 + FRAME.width * len(panels), round(60 + sum(width for *_, width in keys)), NARROWEST),
        height=FRAME.height + 78,
    )
