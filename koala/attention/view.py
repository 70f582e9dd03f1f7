"""What the viewer shows of a capture: its value once, then the maps of every model for whatever it asks."""

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial

import torch
from PIL import Image, ImageDraw

from koala.attention import colours, maps, render
from koala.attention.agreement import agreement
from koala.attention.figures import absent
from koala.attention.plan import Layer
from koala.attention.questions import KINDS, Asked, Capture, read, stage_of, words_of
from koala.attention.recorded import AttentionRecord
from koala.request import RequestError
from koala.specs import STAGES

PICTURE = 768  # px that a picture has on the page at most
FINE = 16  # patches a side from which on UP-1, the paper's stage, is shown first


def value(key: str, capture: Capture) -> dict:
    """What the viewer needs once: pictures, stages with their layers, words, and the agreement chart."""
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
        "numbers": list(range(1, record.steps + 1)),
        "steps": record.steps,
        "kinds": [
            {"name": name, "title": k.title, "help": k.help, "heads": k.heads, "colour": k.colour}
            for name, k in KINDS.items()
        ],
        "words": words_of(capture),
        "two": len(capture.sides) == 2,
        "table": _encoded(torch.from_numpy(render.TABLE)),
        "told": capture.told,
    }


def _url(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((PICTURE, PICTURE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def look(capture: Capture, asked: Mapping) -> dict:
    """The maps of both models, side by side, and what they are in words."""
    if asked.get("kind") == "agreement":
        return alike(capture)
    one = read(capture, asked)
    sides = [_side(capture, k, one) for k in range(len(capture.sides))]
    return {"kind": "colour" if KINDS[one.kind].colour else "heat", "sides": sides, "said": said(capture, one)}


def alike(capture: Capture) -> dict:
    """The agreement chart: per stage a value per step, or why there is none."""
    if len(capture.sides) != 2:
        raise RequestError("agreement is between two models; this capture has one")
    if "alike" not in capture.made:
        found = agreement(*(side.record for side in capture.sides))
        capture.made["alike"] = [
            {"stage": a.stage, "values": list(a.cosine), "divergence": list(a.divergence), "absent": a.absent}
            for a in found
        ]
    return {"rows": capture.made["alike"]}


def heads(capture: Capture, one: Asked) -> str:
    """How the heads of the shown layer are joined."""
    layer = next(x for x in capture.stages[one.stage][one.layer] if x)
    if isinstance(one.head, int):
        return f"head {one.head + 1} of {layer.heads}"
    if one.head == "paper":
        return f"{layer.heads} heads side by side, each step by itself"
    return f"{one.head} of {layer.heads} heads"


def said(capture: Capture, one: Asked) -> str:
    """Which map this is: stage, step, heads and patches."""
    record = capture.sides[0].record
    layer = next(x for x in capture.stages[one.stage][one.layer] if x)
    when = f"mean of {record.steps} steps" if one.step is None else f"step {one.step + 1} of {record.steps}"
    return f"{one.stage}, {when}, {heads(capture, one)}, {layer.grid[1]} × {layer.grid[0]} patches"


def _side(capture: Capture, k: int, one: Asked) -> dict:
    side, layer = capture.sides[k], capture.stages[one.stage][one.layer][k]
    if layer is None:
        return {"absent": absent(side, one.stage)}
    found, cells, note = _VIEWS[one.kind](capture, k, layer, one)
    block = layer.label.removeprefix(f"{one.stage}, ").capitalize()
    answer = {"grid": list(layer.grid), "data": _encoded(found), "said": f"{block}: {note}"}
    return answer | ({"cells": list(cells)} if cells else {})


def pictures(capture: Capture, asked: Mapping, *, opacity: float = 0.75, gamma: float = 1.0) -> list[Image.Image | str]:
    """What the viewer shows, as pictures: each model's with its map on it, or why there is none."""
    one, found = read(capture, asked), []
    for k, (side, layer) in enumerate(zip(capture.sides, capture.stages[asked["stage"]][one.layer], strict=True)):
        if layer is None:
            found.append(absent(side, one.stage))
            continue
        values, cells, _ = _VIEWS[one.kind](capture, k, layer, one)
        if KINDS[one.kind].colour:
            over = render.components(values, layer.grid, side.picture.size)
            drawn = Image.blend(side.picture.convert("RGB"), over, opacity)
        else:
            drawn = render.heat(side.picture, values.float(), layer.grid, opacity=opacity, gamma=gamma, high=255.0)
        found.append(_boxed(drawn, cells, layer) if cells else drawn)
    return found


def _boxed(picture: Image.Image, cells: tuple[int, int, int, int], layer: Layer) -> Image.Image:
    """The picture with the marked region's outline."""
    height, width = picture.height / layer.grid[0], picture.width / layer.grid[1]
    left, top, right, bottom = cells
    edges = (left * width, top * height, right * width - 1, bottom * height - 1)
    ImageDraw.Draw(picture).rectangle(edges, outline=render.MARK, width=max(2, picture.width // 128))
    return picture


def _over_steps(record: AttentionRecord, layer: Layer, step: int | None, work: Callable) -> torch.Tensor:
    """One step's map, or the mean of all steps'."""
    steps = range(record.steps) if step is None else (step,)
    return maps.mean([work(*record.at(layer, s)) for s in steps])


def heat(values: torch.Tensor, low: float = 0.0) -> torch.Tensor:
    """Values -> uint8: `low` is 0, the largest 255."""
    span = max(float(values.max()) - low, 1e-12)
    return ((values - low) / span * 255).clamp(0, 255).round().to(torch.uint8)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def cells_of(layer: Layer, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """left, top, right, bottom in patches, the last two exclusive."""
    height, width = layer.grid
    left, top, right, bottom = box
    return int(left * width), int(top * height), int(right * width) + 1, int(bottom * height) + 1


def row(record: AttentionRecord, layer: Layer, one: Asked) -> torch.Tensor:
    """(N,): where the marked patch, or the mean of the marked region, looks."""
    left, top, right, bottom = cells_of(layer, one.box)
    mask = torch.zeros(layer.grid, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    work = partial(maps.region, mask=mask, head=one.head, diagonal=one.diagonal)
    return _over_steps(record, layer, one.step, work)


def _row(capture: Capture, k: int, layer: Layer, one: Asked):
    found = row(capture.sides[k].record, layer, one)
    cells = cells_of(layer, one.box)
    left, top, right, bottom = cells
    own = float(found.unflatten(0, layer.grid)[top:bottom, left:right].sum())
    what = "itself" if (right - left) * (bottom - top) == 1 else "the region itself"
    most = f"{percent(float(found.max()))} on the most looked at patch"
    note = f"{percent(own)} on {what}, {most}" if one.diagonal else f"without itself, {most}"
    return heat(found), cells, note


def _received(capture: Capture, k: int, layer: Layer, one: Asked):
    found = _over_steps(capture.sides[k].record, layer, one.step, partial(maps.received, head=one.head))
    least, most = float(found.min()), float(found.max())
    return heat(found, least), None, f"from {least:.2f} to {most:.2f} times a fair share"


def _entropy(capture: Capture, k: int, layer: Layer, one: Asked):
    found = _over_steps(capture.sides[k].record, layer, one.step, partial(maps.entropy, head=one.head))
    return (
        heat(found, float(found.min())),
        None,
        f"from {float(found.min()):.2f} to {float(found.max()):.2f}, mean {float(found.mean()):.2f}; 1 is alike",
    )


def _distance(capture: Capture, k: int, layer: Layer, one: Asked):
    record = capture.sides[k].record
    patch = record.width / layer.grid[1]
    work = partial(maps.mean_distance, grid=layer.grid, head=one.head, patch=patch)
    found = _over_steps(record, layer, one.step, work)
    return (
        heat(found, float(found.min())),
        None,
        f"{float(found.mean()):.0f} px on average, {float(found.max()):.0f} px at most",
    )


def _segments(capture: Capture, k: int, layer: Layer, one: Asked):
    rows = _over_steps(capture.sides[k].record, layer, one.step, maps.probabilities)
    found = maps.segments(rows, layer.grid)
    count = int(found.max()) + 1
    return render.segments(found), None, f"{count} segment{'s' * (count > 1)}"


def _word(capture: Capture, k: int, layer: Layer, one: Asked):
    record = capture.sides[k].record
    text, tokens = maps.words(record.tokens)[one.word]
    cross = record.layer(one.stage, "cross", layer.path.removesuffix("attn1") + "attn2")
    found = _over_steps(record, cross, one.step, partial(maps.word_map, tokens=tokens))
    return heat(found), None, f"up to {percent(float(found.max()))} of a patch's attention on “{text}”"


def _pca(capture: Capture, k: int, layer: Layer, one: Asked):
    if one.head == "paper" and one.step is None:
        raise RequestError(
            "with the heads side by side each step is fitted by itself, so there is no mean; choose a step"
        )
    painted, explained = _painted(capture, one)[k]
    at = -1 if one.step is None else one.step
    return painted[at], None, f"variance shown {colours.share(explained[at])}"


def _painted(capture: Capture, one: Asked) -> list[colours.Painted | None]:
    """Every model's colours of this layer, made once."""
    key = (one.stage, one.layer, one.head)
    if key not in capture.made:
        records, layers = [side.record for side in capture.sides], capture.stages[one.stage][one.layer]
        paper = one.head == "paper"
        capture.made[key] = colours.alone(records, layers) if paper else colours.joint(records, layers, one.head)
    return capture.made[key]


_VIEWS = {
    "row": _row,
    "received": _received,
    "entropy": _entropy,
    "distance": _distance,
    "segments": _segments,
    "word": _word,
    "pca": _pca,
}


def _encoded(values: torch.Tensor) -> str:
    """uint8 of any shape as base64."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
