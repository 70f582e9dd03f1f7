"""Downloads of a capture: strips and films over its steps, the paper's figures, and a page that needs no server."""

import base64
import io
import re
from collections.abc import Mapping
from functools import partial

from PIL import Image

from koala.attention import view
from koala.attention.figures import Choices, figure
from koala.attention.page import page
from koala.attention.questions import KINDS, Capture, read
from koala.attention.render import gif, table
from koala.request import RequestError

MOST = 8  # steps in a strip
SIDE = 256  # px of a picture in a film


def take(capture: Capture, asked: Mapping) -> dict:
    """The file that the page asks for: its name, type and content as base64."""
    kind = str(asked.get("file"))
    if kind not in _FILES:
        raise RequestError(f"there is no download {kind!r}; choose one of {', '.join(_FILES)}")
    ending, mime, make = _FILES[kind]
    content = make(capture, asked)
    words = re.sub(r"[^a-z0-9]+", "-", capture.prompt.lower()).strip("-")[:40].strip("-") or "picture"
    name = f"koala-attention-{words}-{kind}.{ending}"
    return {"name": name, "mime": mime, "data": base64.b64encode(content).decode()}


def _look(asked: Mapping) -> dict:
    """How strong a map lies on its picture."""
    found = {}
    for name, low, high in (("opacity", 0.0, 1.0), ("gamma", 0.2, 2.0)):
        value = asked.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise RequestError(f"{name} must be a number from {low} to {high}, not {value!r}")
        found[name] = value
    return found


def _frames(capture: Capture, asked: Mapping, steps: list[int]) -> list[list[Image.Image | str]]:
    """Per step: each model's picture with its map."""
    return [view.pictures(capture, {**asked, "step": step}, **_look(asked)) for step in steps]


def _note(capture: Capture, asked: Mapping) -> str:
    """The choices behind a picture, which it prints itself."""
    record = capture.sides[0].record
    one = read(capture, asked)
    title = KINDS[one.kind].title
    layers = " and ".join(x.label for x in capture.stages[one.stage][one.layer] if x)
    return (
        f"{title}. {layers}; {view.heads(capture, one)}; {record.half} half. “{capture.prompt}”, seed {record.seed}, "
        f"{record.steps} steps, guidance {record.guidance:g}."
    )


def _strip(capture: Capture, asked: Mapping) -> bytes:
    count = capture.sides[0].record.steps
    number = min(MOST, count)
    steps = sorted({round(k * (count - 1) / max(1, number - 1)) for k in range(number)})
    columns = list(zip(*_frames(capture, asked, steps), strict=True))
    drawn = table(
        columns,
        columns=[f"step {step + 1}" for step in steps],
        rows=[side.title for side in capture.sides],
        note=_note(capture, asked),
        cell=_cell(capture),
    )
    return png(drawn)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _film(capture: Capture, asked: Mapping) -> bytes:
    steps = list(range(capture.sides[0].record.steps))
    titles, note = [side.title for side in capture.sides], _note(capture, asked)
    return gif(
        [
            table([frame], columns=titles, rows=[f"{step + 1}".rjust(3)], note=note, cell=_cell(capture))
            for step, frame in zip(steps, _frames(capture, asked, steps), strict=True)
        ]
    )


def _cell(capture: Capture) -> tuple[int, int]:
    record = capture.sides[0].record
    scale = SIDE / max(record.width, record.height)
    return round(record.width * scale), round(record.height * scale)


def _figure(kind: str, capture: Capture, asked: Mapping) -> bytes:
    """The paper's figure over all recorded stages, at the step, heads and patch that the page shows."""
    one = read(capture, {**asked, "kind": "row" if kind == "rows" else "pca"})
    record = capture.sides[0].record
    pixel = None
    if one.box:
        left, top, right, bottom = one.box
        pixel = (left + right) / 2 * record.width, (top + bottom) / 2 * record.height
    choices = Choices(
        kind=kind,
        step="mean" if one.step is None else one.step,
        head="mean" if one.head == "paper" else one.head,
        pixel=pixel,
        diagonal=one.diagonal or kind == "pca",
        paper=one.head == "paper",
        **_look(asked),
    )
    return png(figure(capture.sides, list(capture.stages), choices))


def _page(capture: Capture, asked: Mapping) -> bytes:
    return page(capture, asked.get("stage")).encode()


_FILES = {
    "strip": ("png", "image/png", _strip),
    "gif": ("gif", "image/gif", _film),
    "pca": ("png", "image/png", partial(_figure, "pca")),
    "rows": ("png", "image/png", partial(_figure, "rows")),
    "page": ("html", "text/html", _page),
}
