"""A metric over the number of denoising steps, for several models (KOALA, figure 4): report and SVG plot."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from koala import charts
from koala.evaluate.metrics import METRICS
from koala.evaluate.settings import Settings
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.palette import COLOURS

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
    for k, (model, curve) in enumerate(zip(report["models"], curves, strict=True)):
        style = _style(k)
        points, under, over = ([(x(n), y(v[i])) for n, v in zip(steps, curve, strict=True)] for i in range(3))
        parts += [charts.band(over, under, fill=style["stroke"]), charts.line(points, **style)]
        for n, (v, low, high), (a, b) in zip(steps, curve, points, strict=True):
            shown = f"{100 * v:.1f} % ({100 * low:.1f} to {100 * high:.1f})" if percent else f"{v:.3f}"
            tip = f"{model['model']}, {n} steps: {shown}"
            parts.append(charts.marker("circle", a, b, tip=tip, fill=style["stroke"]))
    return charts.join(parts)


def figure(report: Mapping) -> str:
    """A steps report as an SVG file."""
    titles = {"shapes": "Prompts whose every claim holds", "clip": "CLIP scores", "hpsv2": "Human preference score"}
    title = f"{titles[report['metric']]}, by the number of steps"
    names = [model["model"].rstrip("/").rpartition("/")[2] for model in report["models"]]
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
