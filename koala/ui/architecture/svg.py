"""The teacher's U-Net as an SVG, once wide for a desk and once tall for a phone; architecture.js fills it in.

The drawing always has the whole teacher. A student is shown by the parts that it keeps: `data-path` names the teacher's
module, and the script sets each part's `data-state` to kept or removed and marks the transformer blocks that it keeps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from koala.charts import Markup, element
from koala.unet.specs import SDXL, STAGES

SKIPS = (("DW-1", "UP-3"), ("DW-2", "UP-2"), ("DW-3", "UP-1"))
HEAD, FOOT, SIDE = 25, 9, 9  # px of a stage's box around its blocks


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of the stages and the sizes of their parts, in units of the drawing."""

    name: str
    width: int
    height: int
    corners: Mapping[str, tuple[float, float]]  # top left of each stage's box
    widths: Mapping[str, float]  # of each box
    tall: Mapping[str, float]  # height of its blocks: higher where the picture is larger
    resnet: float
    cell: float  # one transformer block
    pitch: float  # from one to the next
    gap: float  # between the pairs of a stage


@dataclass(frozen=True, kw_only=True)
class Part:
    """A block of a stage: `kind` as in koala.unet.costs, `cells` transformer blocks."""

    path: str
    kind: str
    cells: int = 0


def parts() -> dict[str, list[Part]]:
    """Stage, "in" and "out" -> its parts in forward order, in SDXL's topology, which all of its students share."""
    stages: dict[str, list[Part]] = {
        "in": [
            Part(path="time_embedding", kind="embedding"),
            Part(path="add_embedding", kind="embedding"),
            Part(path="conv_in", kind="convolution"),
        ]
    }
    for stage, depths in SDXL.depths().items():
        block = STAGES[stage]
        inside = []
        for k, depth in enumerate(depths):
            inside.append(Part(path=f"{block}.resnets.{k}", kind="resnet"))
            if depth:
                inside.append(Part(path=f"{block}.attentions.{k}", kind="attention", cells=depth))
        if stage == "MID":
            inside.append(Part(path=f"{block}.resnets.1", kind="resnet"))
        sampler = {"DW-1": "downsampler", "DW-2": "downsampler", "UP-1": "upsampler", "UP-2": "upsampler"}.get(stage)
        if sampler:
            inside.append(Part(path=f"{block}.{sampler}s.0", kind=sampler))
        stages[stage] = inside
    stages["out"] = [
        Part(path="conv_norm_out", kind="convolution"),
        Part(path="conv_out", kind="convolution"),
    ]
    return stages


def _wide() -> Layout:
    order = ("DW-1", "DW-2", "DW-3", "MID", "UP-1", "UP-2", "UP-3", "in", "out")
    width, left, right = 800, 8, 792
    widths = dict(zip(order, (206, 206, 254, 206, 400, 246, 206, 206, 206), strict=True))
    tall = dict(zip(order, (84, 68, 54, 54, 54, 68, 84, 24, 24), strict=True))
    rows, y = {}, 6
    for level in (("in", "out"), ("DW-1", "UP-3"), ("DW-2", "UP-2"), ("DW-3", "UP-1"), ("MID",)):
        rows |= dict.fromkeys(level, y)
        y += HEAD + tall[level[0]] + FOOT + 32
    down, up = ("in", "DW-1", "DW-2", "DW-3"), ("UP-1", "UP-2", "UP-3", "out")
    corners = {s: (left, rows[s]) for s in down} | {s: (right - widths[s], rows[s]) for s in up}
    middle = (left + widths["DW-3"] + right - widths["UP-1"]) / 2
    corners["MID"] = (middle - widths["MID"] / 2, rows["MID"])
    return Layout(
        name="wide",
        width=width,
        height=y - 20,
        corners=corners,
        widths=widths,
        tall=tall,
        resnet=20,
        cell=7,
        pitch=9,
        gap=10,
    )


def _tall() -> Layout:
    order = ("in", "DW-1", "DW-2", "DW-3", "MID", "UP-1", "UP-2", "UP-3", "out")
    tall = dict(zip(order, (22, 38, 34, 30, 30, 30, 34, 38, 22), strict=True))
    corners, y = {}, 4
    for stage in order:
        corners[stage] = (4, y)
        y += HEAD + tall[stage] + FOOT + 15
    return Layout(
        name="tall",
        width=360,
        height=y - 8,
        corners=corners,
        widths=dict.fromkeys(order, 302),
        tall=tall,
        resnet=18,
        cell=4.7,
        pitch=6.1,
        gap=7,
    )


WIDE, TALL = _wide(), _tall()


def _size(part: Part, layout: Layout) -> float:
    if part.kind == "attention":
        return layout.pitch * part.cells - (layout.pitch - layout.cell)
    return layout.resnet * (0.8 if part.kind.endswith("sampler") else 1)


def placed(inside: Sequence[Part], layout: Layout) -> Iterator[tuple[Part, float, float]]:
    """Each part with its left edge and width inside its stage's box."""
    x = SIDE
    for k, part in enumerate(inside):
        if k:  # a transformer follows its residual block closely; MID is one group
            x += 4 if part.kind == "attention" or part.path.startswith("mid") else layout.gap
        yield part, x, _size(part, layout)
        x += _size(part, layout)


def _part(part: Part, x: float, y: float, width: float, height: float, layout: Layout) -> Markup:
    grow = 3  # px around the shape that can be clicked, too
    size = {"width": float(width + 2 * grow), "height": float(height + 2 * grow)}
    hit = element("rect", class_="ka-hit", x=float(x - grow), y=float(y - grow), **size, rx=5)
    if part.kind == "attention":
        places = (float(x + k * layout.pitch) for k in range(part.cells))
        size = {"width": layout.cell, "height": height, "rx": 1.5}
        shapes = [
            element("rect", class_="ka-shape", data_cell=k, x=at, y=float(y), **size) for k, at in enumerate(places)
        ]
    elif part.kind.endswith("sampler"):
        lean = min(10, height / 3) * (1 if part.kind == "downsampler" else -1)  # narrows where the picture shrinks
        left, right = (0, lean) if lean > 0 else (-lean, 0)
        shape = (
            f"M{x:.1f} {y + left:.1f}L{x + width:.1f} {y + right:.1f}"
            f"V{y + height - right:.1f}L{x:.1f} {y + height - left:.1f}Z"
        )
        shapes = [element("path", class_="ka-shape", d=shape)]
    else:
        size = {"width": float(width), "height": height, "rx": 4}
        shapes = [element("rect", class_="ka-shape", x=float(x), y=float(y), **size)]
    role = {"data_state": "kept", "role": "button", "tabindex": -1}
    return element("g", hit, *shapes, class_=f"ka-part ka-{part.kind}", data_path=part.path, **role)


def _stage(stage: str, inside: Sequence[Part], layout: Layout) -> Markup:
    x, y = layout.corners[stage]
    height = layout.tall[stage]
    size = {"width": layout.widths[stage], "height": HEAD + height + FOOT}
    title = {"in": "Input", "out": "Output"}.get(stage, stage)
    return element(
        "g",
        element("rect", class_="ka-box", x=float(x), y=y, **size, rx=9),
        element(
            "text",
            element("tspan", title, class_="ka-name"),
            element("tspan", "", class_="ka-note", dx=7),
            x=float(x + SIDE),
            y=y + 17,
        ),
        *(_part(part, x + left, y + HEAD, width, height, layout) for part, left, width in placed(inside, layout)),
        class_="ka-stage",
        data_stage=stage,
    )


def _edges(stage: str, layout: Layout) -> tuple[float, float, float, float]:
    """left, top, right, bottom of a stage's box"""
    x, y = layout.corners[stage]
    return x, y, x + layout.widths[stage], y + HEAD + layout.tall[stage] + FOOT


def _wires(layout: Layout) -> list[Markup]:
    """The path of the picture, the skip connections, and the path around a missing MID."""
    box = {stage: _edges(stage, layout) for stage in layout.corners}
    flow, skips = [], []
    if layout.name == "tall":
        order = list(layout.corners)
        for above, below in zip(order, order[1:], strict=False):
            flow.append((f"M22 {box[above][3]}V{box[below][1] - 1}", "MID" in (above, below)))
        for k, (down, up) in enumerate(SKIPS):
            x, first, last = box[down][2], box[down], box[up]
            turn = x + 44 - 15 * k
            top, bottom = (first[1] + first[3]) / 2, (last[1] + last[3]) / 2
            skips.append(f"M{x} {top}H{turn - 8}q8 0 8 8V{bottom - 8}q0 8 -8 8H{x + 1}")
        bypass = f"M22 {box['DW-3'][3]}V{box['UP-1'][1] - 1}"
    else:
        for above, below in (("in", "DW-1"), ("DW-1", "DW-2"), ("DW-2", "DW-3")):
            x = box[above][0] + 40
            flow.append((f"M{x} {box[above][3]}V{box[below][1] - 1}", False))
        for below, above in (("UP-1", "UP-2"), ("UP-2", "UP-3"), ("UP-3", "out")):
            x = box[above][2] - 40
            flow.append((f"M{x} {box[below][1]}V{box[above][3] + 1}", False))
        mid, down, up = box["MID"], box["DW-3"], box["UP-1"]
        level, turn = (mid[1] + mid[3]) / 2, up[2] - 40
        flow.append((f"M48 {down[3]}V{level - 10}q0 10 10 10H{mid[0] - 1}", True))
        flow.append((f"M{mid[2]} {level}H{turn - 10}q10 0 10 -10V{up[3] + 1}", True))
        over = (down[3] + mid[1]) / 2  # between DW-3 and where MID was
        bypass = f"M48 {down[3]}V{over - 10}q0 10 10 10H{turn - 10}q10 0 10 -10V{up[3] + 1}"
        for down_stage, up_stage in SKIPS:
            y = (box[down_stage][1] + box[down_stage][3]) / 2
            skips.append(f"M{box[down_stage][2]} {y}H{box[up_stage][0] - 1}")
    name = f"ka-tip-{layout.name}"
    tip = element("path", class_="ka-tip", d="M0 .5 8 4 0 7.5z")
    size = {"viewBox": "0 0 8 8", "refX": 7, "refY": 4, "markerWidth": 7, "markerHeight": 7, "orient": "auto"}
    wires = [(f"ka-flow{' ka-by-mid' * by_mid}", path) for path, by_mid in flow]
    wires += [("ka-flow ka-bypass", bypass), *(("ka-skip", path) for path in skips)]
    return [
        element("defs", element("marker", tip, id=name, **size)),
        *(element("path", class_=class_, d=path, marker_end=f"url(#{name})") for class_, path in wires),
    ]


def draw(layout: Layout) -> Markup:
    """The drawing, without any number in it."""
    titles = []
    if layout.name == "wide":
        middle = layout.width / 2
        titles = [
            element("text", "", class_=f"ka-{kind}", x=middle, y=y) for kind, y in (("headline", 40), ("subline", 62))
        ]
    return element(
        "svg",
        *titles,
        *_wires(layout),
        *(_stage(stage, inside, layout) for stage, inside in parts().items()),
        class_=f"ka-net ka-{layout.name}",
        viewBox=f"0 0 {layout.width} {layout.height}",
        role="group",
        aria_label="The U-Net, stage by stage; arrow keys move from block to block",
    )
