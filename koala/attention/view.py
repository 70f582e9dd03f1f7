"""What the viewer shows of a capture: the description once, then the maps of every model for each of its questions."""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace

import torch
from PIL import Image, ImageDraw

from koala.attention import layer_maps, maps, render
from koala.attention.agreement import agreement
from koala.attention.capture import Capture, lacking, pace, stage_of, when, words_of
from koala.attention.kinds import DISTANCE, ENTROPY, KINDS, PAPER, PCA, RECEIVED, ROW, SEGMENTS, WORD
from koala.attention.plan import Layer
from koala.attention.questions import Asked, Box, Place, read
from koala.attention.recorded import AttentionRecord
from koala.errors import UserError
from koala.unet.specs import STAGES
from koala.words import many

PICTURE = 768  # px that a picture has on the page at most
PAINTED = 8  # layers and heads whose colours are kept
FINE = 16  # patches a side from which on UP-1, the paper's stage, is shown first

Shown = tuple[torch.Tensor, str]  # uint8, (N,) of heat or (N, 3) of colours, and what they say in words


def value(key: str, capture: Capture) -> dict:
    """What the viewer needs once: pictures, stages with their layers, and words."""
    record = capture.sides[0].record
    stages = [stage_of(name, capture) for name in STAGES]
    open_stages = [s for s in stages if not s["absent"]]
    fine = {s["name"]: min(s["grid"]) >= FINE for s in open_stages}
    first = next((s for s in ("UP-1", "UP-2") if fine.get(s)), open_stages[-1]["name"])
    return {
        "phase": "done",
        "status": "",
        "id": key,
        "prompt": capture.prompt,
        "width": record.width,
        "height": record.height,
        "models": [{"title": s.title, "picture": _url(s.picture)} for s in capture.sides],
        "stages": stages,
        "stage": first,
        "moments": [when(capture, moment) for moment in range(len(capture.moments))],
        "mean": when(capture, None),
        "pace": pace(capture),
        "kinds": [
            {"name": k.name, "title": k.title, "help": k.help, "heads": list(k.heads), "colour": k.colour}
            for k in KINDS.values()
        ],
        "words": words_of(capture),
        "two": len(capture.sides) == 2,
        "table": _encoded(torch.from_numpy(render.TABLE)),
        "told": capture.cost,
    }


def _url(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((PICTURE, PICTURE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def look(capture: Capture, asked: Mapping) -> dict:
    """The maps of all models, and a description in words."""
    if asked.get("kind") == "agreement":
        return alike(capture)
    one = read(capture, asked)
    sides = [_side(capture, k, one) for k in range(len(capture.sides))]
    return {"kind": "colour" if one.kind.colour else "heat", "sides": sides, "said": description(capture, one)}


def alike(capture: Capture) -> dict:
    """The agreement chart: per stage a value per step of the longer run, or the reason why there is none."""
    if len(capture.sides) != 2:
        raise UserError("agreement compares two models; this capture has one")
    if "alike" not in capture.computed:
        first, second = sorted((side.record for side in capture.sides), key=lambda r: r is not capture.longest)
        capture.computed["alike"] = [
            {
                "stage": a.stage,
                "values": list(a.cosine),
                "divergence": list(a.divergence),
                "absent": a.absent and lacking(a.stage, capture),
            }
            for a in agreement(first, second)
        ]
    return {"rows": capture.computed["alike"]}


def heads(capture: Capture, one: Asked) -> str:
    """How the heads of the shown layer are combined."""
    layer = capture.layer(one.stage, one.layer)
    if isinstance(one.head, int):
        return f"head {one.head + 1} of {layer.heads}"
    if one.head == PAPER:
        return f"{layer.heads} heads side by side, each step by itself"
    return f"{one.head} of {layer.heads} heads"


def description(capture: Capture, one: Asked) -> str:
    """Which map this is: stage, step, heads and patches."""
    layer = capture.layer(one.stage, one.layer)
    patches = f"{layer.grid[1]} × {layer.grid[0]} patches"
    return f"{one.stage}, {when(capture, one.step)}, {heads(capture, one)}, {patches}"


def _side(capture: Capture, k: int, one: Asked) -> dict:
    side, layer = capture.sides[k], capture.stages[one.stage][one.layer][k]
    if layer is None:
        return {"absent": side.absent(one.stage)}
    values, note = _VIEWS[one.kind](capture, k, layer, replace(one, step=capture.step(k, one.step)))
    block = layer.label.removeprefix(f"{one.stage}, ").capitalize()
    answer = {"grid": list(layer.grid), "data": _encoded(values), "said": f"{block}: {note}"}
    return answer | ({"marked": marked(layer, one.region).flatten().nonzero().flatten().tolist()} if one.region else {})


def pictures(capture: Capture, asked: Mapping, *, opacity: float = 0.75, gamma: float = 1.0) -> list[Image.Image | str]:
    """What the viewer shows, as pictures: each model's with its map on it, or the reason why there is none."""
    one, overlaid = read(capture, asked), []
    for k, (side, layer) in enumerate(zip(capture.sides, capture.stages[asked["stage"]][one.layer], strict=True)):
        if layer is None:
            overlaid.append(side.absent(one.stage))
            continue
        values, _ = _VIEWS[one.kind](capture, k, layer, replace(one, step=capture.step(k, one.step)))
        if one.kind.colour:
            over = render.components(values, layer.grid, side.picture.size)
            drawn = Image.blend(side.picture.convert("RGB"), over, opacity)
        else:
            drawn = render.heat(side.picture, values.float(), layer.grid, opacity=opacity, gamma=gamma, high=255.0)
        overlaid.append(_outlined(drawn, marked(layer, one.region)) if one.region else drawn)
    return overlaid


def _outlined(picture: Image.Image, mask: torch.Tensor) -> Image.Image:
    """The picture with a line around the marked patches."""
    height, width = mask.shape
    around = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    draw, thick = ImageDraw.Draw(picture), max(2, picture.width // 128)

    def line(*corners: tuple[int, int]) -> None:  # kept inside the picture
        at = [(x * (picture.width - thick) / width, y * (picture.height - thick) / height) for x, y in corners]
        draw.rectangle((at[0][0], at[0][1], at[1][0] + thick - 1, at[1][1] + thick - 1), fill=render.MARK)

    for y, x in (around[1:, 1:-1] != around[:-1, 1:-1]).nonzero().tolist():
        line((x, y), (x + 1, y))
    for y, x in (around[1:-1, 1:] != around[1:-1, :-1]).nonzero().tolist():
        line((x, y), (x, y + 1))
    return picture


def heat(values: torch.Tensor, low: float = 0.0) -> torch.Tensor:
    """Values -> uint8: `low` is 0, the largest 255."""
    span = max(float(values.max()) - low, 1e-12)
    return ((values - low) / span * 255).clamp(0, 255).round().to(torch.uint8)


def percent(share: float) -> str:
    """A fraction in percent, with one decimal below 10 %."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def marked(layer: Layer, region: Box | tuple[Place, ...]) -> torch.Tensor:
    """(h, w) of bool: the patches of a box, or those under a brush."""
    height, width = layer.grid
    mask = torch.zeros(layer.grid, dtype=torch.bool)
    if isinstance(region[0], tuple):
        for x, y in region:
            mask[int(y * height), int(x * width)] = True
        return mask
    left, top, right, bottom = region
    mask[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1] = True
    return mask


def row(record: AttentionRecord, layer: Layer, one: Asked) -> torch.Tensor:
    """(N,): where the marked patch, or the mean of the marked region, looks."""
    mask = marked(layer, one.region)
    return layer_maps.values(record, layer, ROW, one.step, head=one.head, diagonal=one.diagonal, mask=mask)


def _row(capture: Capture, k: int, layer: Layer, one: Asked) -> Shown:
    values = row(capture.sides[k].record, layer, one)
    mask = marked(layer, one.region).flatten()
    what = "itself" if mask.sum() == 1 else "the region itself"
    most = f"{percent(float(values.max()))} on the most looked at patch"
    own = f"{percent(float(values[mask].sum()))} on {what}" if one.diagonal else "without itself"
    return heat(values), f"{own}, {most}"


def _heat(capture: Capture, k: int, layer: Layer, one: Asked) -> Shown:
    values = layer_maps.values(capture.sides[k].record, layer, one.kind, one.step, head=one.head)
    least, most, mean = float(values.min()), float(values.max()), float(values.mean())
    if one.kind == RECEIVED:
        note = f"from {least:.2f} to {most:.2f} times a fair share"
    elif one.kind == ENTROPY:
        note = f"from {least:.2f} to {most:.2f}, mean {mean:.2f}; 1 is alike"
    else:
        note = f"{mean:.0f} px on average, {most:.0f} px at most"
    return heat(values, least), note


def _segments(capture: Capture, k: int, layer: Layer, one: Asked) -> Shown:
    labels = layer_maps.segments(capture.sides[k].record, layer, one.step)
    return render.segments(labels), many(int(labels.max()) + 1, "segment")


def _word(capture: Capture, k: int, layer: Layer, one: Asked) -> Shown:
    record = capture.sides[k].record
    text, tokens = maps.words(record.tokens)[one.word]
    values = layer_maps.word(record, layer, one.step, tokens)
    return heat(values), f"up to {percent(float(values.max()))} of a patch's attention on “{text}”"


def _pca(capture: Capture, k: int, layer: Layer, one: Asked) -> Shown:
    if one.head == PAPER and one.step is None:
        raise UserError("with the heads side by side each step is fitted by itself, so there is no mean; choose a step")
    painted, explained = _painted(capture, one)[k]
    at = -1 if one.step is None else one.step
    return painted[at], f"variance shown {layer_maps.variance_shown(explained[at])}"


def _painted(capture: Capture, one: Asked) -> list[layer_maps.Painted | None]:
    """Every model's colours of this layer, made once."""
    key = (one.stage, one.layer, one.head)
    if key not in capture.computed:
        records, layers = [side.record for side in capture.sides], capture.stages[one.stage][one.layer]
        if one.head == PAPER:
            painted = layer_maps.paper_colours(records, layers)
        else:
            painted = layer_maps.joint_colours(records, layers, one.head)
        for old in [k for k in list(capture.computed) if k != "alike"][: 1 - PAINTED]:
            capture.computed.pop(old, None)
        capture.computed[key] = painted
        return painted
    return capture.computed[key]


_VIEWS = {
    ROW: _row,
    RECEIVED: _heat,
    ENTROPY: _heat,
    DISTANCE: _heat,
    SEGMENTS: _segments,
    WORD: _word,
    PCA: _pca,
}


def _encoded(values: torch.Tensor) -> str:
    """uint8 of any shape as base64."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
