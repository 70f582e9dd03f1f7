"""The plot of a report over the number of steps (KOALA, figure 4), and what its curves are called."""

import math
from collections.abc import Mapping, Sequence

from koala import charts
from koala.palette import COLOURS

NONE = 1.0  # the guidance that is none
RUNS = 3  # of the timed picture
FRAME = charts.Frame(width=300, height=230, left=44, right=14, top=30, bottom=40)
LINES = (*(COLOURS[f"bar-{part}"][0] for part in ("unet", "vae", "text")), "#8c4a3c", "#3f6f9c", "#5e584f")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 2")
NARROW = 15  # px between two labels of the x axis
NARROWEST = 480  # px of the whole figure, for its title


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


def style(k: int) -> dict[str, str]:
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
        own = style(k)
        points, under, over = ([(x(n), y(v[i])) for n, v in zip(steps, curve, strict=True)] for i in range(3))
        parts += [charts.band(over, under, fill=own["stroke"]), charts.line(points, **own)]
        for n, (v, low, high), (a, b) in zip(steps, curve, points, strict=True):
            shown = f"{100 * v:.1f} % ({100 * low:.1f} to {100 * high:.1f})" if percent else f"{v:.3f}"
            tip = f"{name}, {n} steps: {shown}"
            parts.append(charts.marker("circle", a, b, tip=tip, fill=own["stroke"]))
    return charts.join(parts)


def spoken(title: str, path: Sequence[str], report: Mapping) -> str:
    """A panel in words, for screen readers."""
    percent = report["metric"] == "shapes"
    curves = []
    for name, model in zip(labels(report), report["models"], strict=True):
        scores = ((point["steps"], value(point["scores"], path)[0]) for point in model["points"])
        curves.append(f"{name} {', '.join(f'{n}: {_number(x, 0.001, percent)}' for n, x in scores)}")
    return f"{title}, by the number of steps: {'; '.join(curves)}"


def figure(report: Mapping) -> str:
    """A steps report as an SVG file."""
    titles = {"shapes": "Prompts whose every claim holds", "clip": "CLIP scores", "hpsv2": "Human preference score"}
    title = f"{titles[report['metric']]}, by the number of steps"
    names = labels(report)
    keys = [
        (charts.element("path", class_="chart-line", **style(k), d="M0 -4h26"), name, 56 + 6.6 * len(name))
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
