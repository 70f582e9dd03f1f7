"""The layer-similarity figure: one small SVG panel per stage, and a sentence that sums up the curves."""

from collections.abc import Mapping, Sequence

from koala import charts
from koala.palette import COLOURS
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL
from koala.words import listed

FRAME = charts.Frame(width=220, height=176, left=34, right=10, top=30, bottom=34, foot=15)
SHAPES = {"first": "circle", "second": "square", "third": "triangle"}  # of the points, by transformer of a stage
ORDINALS = tuple(SHAPES)
CHANGE = 0.005  # a smaller difference of mean cosines is not mentioned

# For the file, which stands alone; the app colours the same classes with a stylesheet of its own.
_HUES = dict(zip(ORDINALS, (COLOURS[f"bar-{part}"][0] for part in ("unet", "vae", "text")), strict=True))
STYLE = (
    "".join(f".ks-{name} {{ stroke: {hue}; fill: {hue} }}\n" for name, hue in _HUES.items())
    + f".ks-kept {{ fill: {COLOURS['accent-soft'][0]} }} .ks-kept.ks-more {{ fill: {COLOURS['sunken'][0]} }}\n"
    + ".ks-second.chart-line { stroke-dasharray: 6 3 } .ks-third.chart-line { stroke-dasharray: 2 3 }\n"
    + ".chart-line.chart-line { fill: none }\n"
)


def _halves(curves: Sequence[Mapping]) -> tuple[float, float]:
    """Mean cosine of the earlier and of the later half of the blocks, over a stage's transformers."""
    half = len(curves[0]["mean"]) // 2
    early = [x for c in curves for x in c["mean"][:half]]
    late = [x for c in curves for x in c["mean"][-half:]]
    return sum(early) / len(early), sum(late) / len(late)


def sentence(report: Mapping) -> str:
    """What the curves show, and whether that speaks for keeping the first blocks."""
    deep = {stage: curves for stage, curves in report["stages"].items() if min(len(c["mean"]) for c in curves) >= 4}
    if not deep:
        return f"No stage of {report['title']} is deep enough to tell its first blocks from its last."
    halves = {stage: _halves(curves) for stage, curves in deep.items()}
    means = {
        s: f"{s} ({early:.2f} in the earlier half, {late:.2f} in the later)" for s, (early, late) in halves.items()
    }
    less = [means[s] for s, (early, late) in halves.items() if late - early > CHANGE]
    steady = [means[s] for s, (early, late) in halves.items() if late - early <= CHANGE]
    if not less:
        return (
            f"In {listed(steady)} the later blocks of {report['title']} change their input as much as the first ones "
            "or more: for this model the curves do not speak for keeping the first."
        )
    first = f"In {listed(less)} the later blocks of {report['title']} change their input less than the first ones"
    if not steady:
        return f"{first}: dropping the last ones loses the least, which is why KOALA keeps the first."
    return f"{first}, which speaks for keeping the first; in {listed(steady)} they do not."


def spoken(stage: str, curves: Sequence[Mapping]) -> str:
    """A stage's curves in words, for screen readers."""
    lines = (f"{ORDINALS[k % 3]} transformer {', '.join(f'{x:.2f}' for x in c['mean'])}" for k, c in enumerate(curves))
    return f"{stage}, cosine per block: {'; '.join(lines)}"


def floor(report: Mapping) -> float:
    """The lower end of the cosine axis that all panels share: a multiple of 0.2 below every point."""
    lowest = min(x for curves in report["stages"].values() for c in curves for x in c["mean"])
    return max(-1.0, (lowest * 5) // 1 / 5)


def _marker(kind: int, x: float, y: float, tip: str = "") -> charts.Markup:
    name = ORDINALS[kind % 3]
    return charts.marker(SHAPES[name], x, y, tip=tip, class_=f"ks-{name}")


def _kept(stage: str, depth: int, step: float) -> list[charts.Markup]:
    """The blocks that KOALA keeps, as areas behind the curves; only where a transformer is as deep as SDXL's."""
    if depth != max(SDXL.depths().get(stage, (0,))) or depth <= 2:
        return []
    parts, bottom = [], FRAME.height - FRAME.bottom
    for spec, more, anchor, gap in ((KOALA_1B, " ks-more", "start", 4), (KOALA_700M, "", "end", -4)):
        if kept := max(spec.depths().get(stage, (0,))):
            size = {"x": FRAME.left, "y": FRAME.top, "width": step * kept, "height": bottom - FRAME.top}
            label = f"{spec.name.rpartition('-')[2].upper()} keeps {kept}"
            parts.append(charts.element("rect", class_=f"ks-kept{more}", **size))
            parts.append(charts.text(label, FRAME.left + step * kept + gap, bottom - 6, anchor=anchor))
    return parts


def panel(stage: str, curves: Sequence[Mapping], low: float) -> charts.Markup:
    """One stage's panel: a line per transformer, a point per block; `low` is the lower end of the cosine axis."""
    depth = max(len(c["mean"]) for c in curves)
    x, y = FRAME.across(0, depth), FRAME.up(low, 1.0)
    centres = [x(k + 0.5) for k in range(depth)]
    parts = [FRAME.title(stage), *_kept(stage, depth, x(1) - x(0))]
    parts.append(FRAME.grid(y, (low, (1 + low) / 2, 1.0), "{:.1f}".format))
    parts += [FRAME.below(str(k + 1), at) for k, at in enumerate(centres)]
    for kind, curve in enumerate(curves):
        name = ORDINALS[kind % 3]
        points = [(at, y(mean)) for at, mean in zip(centres, curve["mean"], strict=False)]
        parts.append(charts.line(points, class_=f"ks-{name}"))
        for k, (point, mean, spread) in enumerate(zip(points, curve["mean"], curve["spread"], strict=True)):
            tip = f"{stage}, {name} transformer, block {k + 1}: {mean:.3f} ± {spread:.3f}"
            parts.append(_marker(kind, *point, tip))
    return charts.join(parts)


def figure(report: Mapping) -> str:
    """A similarity report as an SVG file."""
    stages, low = report["stages"], floor(report)
    width, height = 16 + FRAME.width * len(stages), FRAME.height + 62
    keys = [(_marker(k, 0, -4), f"{name} transformer", 140) for k, name in enumerate(ORDINALS)]
    note = f"block of the transformer; mean over {len(report['prompts'])} prompts and {report['steps']} steps"
    return FRAME.file(
        f"Cosine between each transformer block's output and its predecessor's: {report['title']}",
        [panel(stage, curves, low) for stage, curves in stages.items()],
        charts.text(note, 8 + FRAME.left, height - 12),
        charts.legend(keys, width - 420, height - 12, gap=9),
        label=sentence(report),
        style=STYLE,
        width=width,
        height=height,
    )
