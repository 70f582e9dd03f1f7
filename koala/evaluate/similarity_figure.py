"""The layer-similarity figure: one small SVG panel per stage, and the sentence that says what the curves show."""

from collections.abc import Mapping, Sequence
from html import escape

from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL
from koala.words import listed

WIDTH, HEIGHT = 220, 176  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 30, 34  # its margins
ORDINALS = ("first", "second", "third")
CHANGE = 0.005  # of the mean cosine; less is no difference worth a word

# For the file, which stands alone; the app has a stylesheet of its own for the same classes.
STYLE = """
text { font: 11px "IBM Plex Sans", system-ui, sans-serif; fill: #5e584f }
.ks-paper { fill: #faf8f4 } .ks-title { font-weight: 700; font-size: 13px; fill: #22211d }
.ks-grid { stroke: #e3ded4 } .ks-kept { fill: #e2efe8 } .ks-kept.ks-more { fill: #f2efe8 }
.ks-line { fill: none; stroke-width: 2; stroke-linejoin: round }
.ks-first { stroke: #3a7a64; fill: #3a7a64 } .ks-second { stroke: #7b6a8f; fill: #7b6a8f }
.ks-third { stroke: #b98a2f; fill: #b98a2f } .ks-second.ks-line { stroke-dasharray: 6 3 }
.ks-third.ks-line { stroke-dasharray: 2 3 } .ks-line { fill: none }
"""


def _halves(curves: Sequence[Mapping]) -> tuple[float, float]:
    """Mean cosine of the earlier and of the later half of the blocks, over a stage's transformers."""
    half = len(curves[0]["mean"]) // 2
    early = [x for c in curves for x in c["mean"][:half]]
    late = [x for c in curves for x in c["mean"][-half:]]
    return sum(early) / len(early), sum(late) / len(late)


def sentence(found: Mapping) -> str:
    """What these curves show, whether it speaks for keeping the first blocks or not."""
    deep = {stage: curves for stage, curves in found["stages"].items() if min(len(c["mean"]) for c in curves) >= 4}
    if not deep:
        return f"No stage of {found['title']} is deep enough to tell its first blocks from its last."
    halves = {stage: _halves(curves) for stage, curves in deep.items()}
    said = {s: f"{s} ({early:.2f} in the earlier half, {late:.2f} in the later)" for s, (early, late) in halves.items()}
    less = [said[s] for s, (early, late) in halves.items() if late - early > CHANGE]
    other = [said[s] for s, (early, late) in halves.items() if late - early <= CHANGE]
    if not less:
        return (
            f"In {listed(other)} the later blocks of {found['title']} change their input as much as the first ones "
            "or more: for this model the curves do not speak for keeping the first."
        )
    first = f"In {listed(less)} the later blocks of {found['title']} change their input less than the first ones"
    if not other:
        return f"{first}: dropping the last ones loses the least, which is why KOALA keeps the first."
    return f"{first}, which speaks for keeping the first; in {listed(other)} they do not."


def spoken(stage: str, curves: Sequence[Mapping]) -> str:
    """A stage's curves for those who do not see them."""
    lines = (f"{ORDINALS[k % 3]} transformer {', '.join(f'{x:.2f}' for x in c['mean'])}" for k, c in enumerate(curves))
    return f"{stage}, cosine per block: {'; '.join(lines)}"


def floor(found: Mapping) -> float:
    """The lower end of the cosine axis that all panels share: a multiple of 0.2 below every point."""
    lowest = min(x for curves in found["stages"].values() for c in curves for x in c["mean"])
    return max(-1.0, (lowest * 5) // 1 / 5)


def _marker(kind: int, x: float, y: float, tip: str) -> str:
    title = f"<title>{escape(tip)}</title>"
    if kind == 0:
        return f'<circle class="ks-first" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>'
    if kind == 1:
        return f'<rect class="ks-second" x="{x - 2.6:.1f}" y="{y - 2.6:.1f}" width="5.2" height="5.2">{title}</rect>'
    return f'<path class="ks-third" d="M{x:.1f} {y - 3.6:.1f}l3.4 6h-6.8z">{title}</path>'


def _kept(stage: str, depth: int, step: float) -> str:
    """The blocks that KOALA keeps, as grounds behind the curves; only where a transformer is as deep as SDXL's."""
    if depth != max(SDXL.depths().get(stage, (0,))) or depth <= 2:
        return ""
    grounds = []
    for spec, more, anchor, gap in ((KOALA_1B, " ks-more", "start", 4), (KOALA_700M, "", "end", -4)):
        if kept := max(spec.depths().get(stage, (0,))):
            name = spec.name.rpartition("-")[2].upper()
            grounds.append(
                f'<rect class="ks-kept{more}" x="{LEFT}" y="{TOP}" width="{step * kept:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/>'
                f'<text x="{LEFT + step * kept + gap:.1f}" y="{HEIGHT - BOTTOM - 6}" text-anchor="{anchor}">'
                f"{name} keeps {kept}</text>"
            )
    return "".join(grounds)


def panel(stage: str, curves: Sequence[Mapping], low: float) -> str:
    """One stage's curves as the inside of an SVG of WIDTH x HEIGHT: a line per transformer, a point per block."""
    depth = max(len(c["mean"]) for c in curves)
    step = (WIDTH - LEFT - RIGHT) / depth
    tall = HEIGHT - TOP - BOTTOM

    def y(value: float) -> float:
        return TOP + tall * (1 - (value - low) / (1 - low))

    parts = [f'<text class="ks-title" x="{LEFT}" y="18">{escape(stage)}</text>', _kept(stage, depth, step)]
    for value in (low, (1 + low) / 2, 1.0):
        parts.append(
            f'<path class="ks-grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
    for block in range(depth):
        x = LEFT + step * (block + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{block + 1}</text>')
    for kind, curve in enumerate(curves):
        points = [(LEFT + step * (k + 0.5), y(value)) for k, value in enumerate(curve["mean"])]
        line = " ".join(f"{x:.1f},{top:.1f}" for x, top in points)
        parts.append(f'<polyline class="ks-line ks-{ORDINALS[kind % 3]}" points="{line}"/>')
        for k, (x, top) in enumerate(points):
            tip = (
                f"{stage}, {ORDINALS[kind % 3]} transformer, block {k + 1}: "
                f"{curve['mean'][k]:.3f} ± {curve['spread'][k]:.3f}"
            )
            parts.append(_marker(kind % 3, x, top, tip))
    return "".join(parts)


def figure(found: Mapping) -> str:
    """The whole figure as one SVG that stands alone."""
    stages, low = found["stages"], floor(found)
    wide, tall = 16 + WIDTH * len(stages), HEIGHT + 62
    panels = "".join(
        f'<g transform="translate({8 + WIDTH * k} 34)">{panel(stage, curves, low)}</g>'
        for k, (stage, curves) in enumerate(stages.items())
    )
    keys = "".join(
        f'<g transform="translate({wide - 420 + 140 * k} {tall - 12})">{_marker(k, 0, -4, "")}'
        f'<text x="9" y="0">{name} transformer</text></g>'
        for k, name in enumerate(ORDINALS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" '
        f'role="img" aria-label="{escape(sentence(found))}"><style>{STYLE}</style>'
        f'<rect class="ks-paper" width="{wide}" height="{tall}"/>'
        f'<text class="ks-title" x="{8 + LEFT}" y="22">Cosine between each transformer block\'s output and its '
        f"predecessor's: {escape(found['title'])}</text>{panels}"
        f'<text x="{8 + LEFT}" y="{tall - 12}">block of the transformer; mean over {len(found["prompts"])} prompts and '
        f"{found['steps']} steps</text>{keys}</svg>\n"
    )
