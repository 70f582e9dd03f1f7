"""The steps plot: one small SVG panel per score, a line per model with the band of its 95 % interval."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from koala.evaluate.steps import value

WIDTH, HEIGHT = 300, 230  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 30, 40  # its margins
COLOURS = ("#3a7a64", "#7b6a8f", "#b98a2f", "#8c4a3c", "#3f6f9c", "#5e584f")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 2")
NARROW = 15  # px between two labels of the axis
NARROWEST = 480  # px of the whole figure, for its title

STYLE = """
text { font: 11px "IBM Plex Sans", system-ui, sans-serif; fill: #5e584f }
.paper { fill: #faf8f4 } .title { font-weight: 700; font-size: 13px; fill: #22211d }
.grid { stroke: #e3ded4 } .line { fill: none; stroke-width: 2; stroke-linejoin: round } .band { opacity: .14 }
"""


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold low and high between them."""
    span = (high - low) or 0.1 * abs(high) or 1.0
    rough = span / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _number(x: float, step: float, percent: bool) -> str:
    return f"{100 * x:.0f} %" if percent else f"{x:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def panel(title: str, path: Sequence[str], found: Mapping) -> str:
    """One score as the inside of an SVG of WIDTH x HEIGHT; steps on a logarithmic axis."""
    steps = found["steps"]
    curves = [[value(point["scores"], path) for point in model["points"]] for model in found["models"]]
    percent = found["metric"] == "shapes"
    reach = [x for curve in curves for point in curve for x in point]
    axis = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else ticks(min(reach), max(reach))
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    span = math.log(steps[-1] / steps[0]) or 1.0

    def x(n: int) -> float:
        return LEFT + wide * (math.log(n / steps[0]) / span if len(steps) > 1 else 0.5)

    def y(v: float) -> float:
        return TOP + tall * (1 - (v - axis[0]) / (axis[-1] - axis[0]))

    parts = [f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>']
    for tick in axis:
        parts.append(
            f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{_number(tick, axis[1] - axis[0], percent)}</text>'
        )
    labelled = -math.inf
    for n in steps:
        parts.append(f'<path class="grid" d="M{x(n):.1f} {HEIGHT - BOTTOM}v4"/>')
        if x(n) - labelled >= NARROW:
            labelled = x(n)
            parts.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{n}</text>')
    for k, (model, curve) in enumerate(zip(found["models"], curves, strict=True)):
        colour = COLOURS[k % len(COLOURS)]
        over = " ".join(f"{x(n):.1f},{y(high):.1f}" for n, (_, _, high) in zip(steps, curve, strict=True))
        under = " ".join(
            f"{x(n):.1f},{y(low):.1f}" for n, (_, low, _) in reversed(list(zip(steps, curve, strict=True)))
        )
        line = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, (v, _, _) in zip(steps, curve, strict=True))
        parts.append(f'<polygon class="band" fill="{colour}" points="{over} {under}"/>')
        parts.append(
            f'<polyline class="line" stroke="{colour}" stroke-dasharray="{DASHES[k % len(DASHES)]}" points="{line}"/>'
        )
        for n, (v, low, high) in zip(steps, curve, strict=True):
            shown = f"{100 * v:.1f} % ({100 * low:.1f} to {100 * high:.1f})" if percent else f"{v:.3f}"
            tip = f"{model['model']}, {n} steps: {shown}"
            parts.append(
                f'<circle fill="{colour}" cx="{x(n):.1f}" cy="{y(v):.1f}" r="3"><title>{escape(tip)}</title></circle>'
            )
    return "".join(parts)


def _keys(models: Sequence[Mapping], top: float) -> str:
    """The legend: a dash of each model's line, and its name."""
    found, left = [], float(LEFT)
    for k, model in enumerate(models):
        colour, dash = COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]
        name = model["model"].rstrip("/").rpartition("/")[2]
        found.append(
            f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" d="M{left:.0f} {top - 4:.0f}h26"/>'
            f'<text x="{left + 32:.0f}" y="{top:.0f}">{escape(name)}</text>'
        )
        left += 56 + 6.6 * len(name)
    return "".join(found)


def figure(found: Mapping) -> str:
    """The whole figure of a steps report, as one SVG that stands alone."""
    titles = {"shapes": "Prompts whose every claim holds", "clip": "CLIP scores", "hpsv2": "Human preference score"}
    title = f"{titles[found['metric']]}, by the number of steps"
    names = 60 + sum(56 + 6.6 * len(m["model"].rstrip("/").rpartition("/")[2]) for m in found["models"])
    wide, tall = max(16 + WIDTH * len(found["panels"]), round(names), NARROWEST), HEIGHT + 78
    panels = "".join(
        f'<g transform="translate({8 + WIDTH * k} 34)">{panel(name, path, found)}</g>'
        for k, (name, path) in enumerate(found["panels"].items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="paper" width="{wide}" height="{tall}"/>'
        f'<text class="title" x="{8 + LEFT}" y="22">{escape(title)}</text>{panels}'
        f'<text x="{8 + LEFT}" y="{HEIGHT + 38}">denoising steps; {found["num_prompts"]} prompts per point, '
        f"bands are 95 % intervals</text>"
        f'<g transform="translate(8 0)">{_keys(found["models"], HEIGHT + 62)}</g></svg>\n'
    )
