"""Downloads of a capture: strips, films, the paper's figures, a page that needs no server, and the capture itself."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image

from koala.attention import archive, view
from koala.attention.capture import Capture, settings
from koala.attention.figures import Choices, figure
from koala.attention.kinds import MEAN, PAPER, PCA, ROW, Kind
from koala.attention.page import page
from koala.attention.questions import Box, Place, read
from koala.attention.render import STRIP, film, spread, stacked, strip
from koala.errors import UserError


def take(capture: Capture, asked: Mapping) -> dict:
    """The file that the page asks for: its name, type and content as base64."""
    kind = str(asked.get("file"))
    if kind not in _FILES:
        raise UserError(f"there is no download {kind!r}; choose one of {', '.join(_FILES)}")
    ending, mime, make = _FILES[kind]
    name, content = _name(capture, kind, ending), make(capture, asked)
    if isinstance(content, Path):  # large: the page fetches it from there
        return {"name": name, "path": str(content)}
    return {"name": name, "mime": mime, "data": base64.b64encode(content).decode()}


def _name(capture: Capture, kind: str, ending: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", capture.prompt.lower()).strip("-")[:40].strip("-") or "picture"
    return f"koala-attention-{words}-{kind}.{ending}"


def _look(asked: Mapping) -> dict:
    """The opacity and gamma of a map over its picture."""
    look = {}
    for name, low, high in (("opacity", 0.0, 1.0), ("gamma", 0.2, 2.0)):
        value = asked.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{name} must be a number from {low} to {high}, not {value!r}")
        look[name] = value
    return look


def _frames(capture: Capture, asked: Mapping, steps: Sequence[int]) -> list[list[Image.Image | str]]:
    """Per step: each model's picture with its map."""
    return [view.pictures(capture, {**asked, "step": step}, **_look(asked)) for step in steps]


def _note(capture: Capture, asked: Mapping) -> str:
    """The choices behind a picture, printed below it."""
    one = read(capture, asked)
    title = one.kind.title
    layers = " and ".join(x.label for x in capture.stages[one.stage][one.layer] if x)
    prompt = f" “{capture.prompt}”." if capture.prompt else ""
    return f"{title}. {layers}; {view.heads(capture, one)}.{prompt} {settings(capture).capitalize()}."


def _moment(capture: Capture, moment: int) -> str:
    """A label for all models: the step if they have the same number of steps, else the noise."""
    alike = len({side.record.steps for side in capture.sides}) == 1
    return f"step {moment + 1}" if alike else f"noise {capture.longest.timesteps[moment]:.0f}"


def _strip(capture: Capture, asked: Mapping) -> bytes:
    return png(_over_steps(strip, capture, asked, spread(len(capture.moments), STRIP)))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _film(capture: Capture, asked: Mapping) -> bytes:
    return _over_steps(film, capture, asked, range(len(capture.moments)))


def _over_steps(make: Callable, capture: Capture, asked: Mapping, steps: Sequence[int]):
    labels, titles = [_moment(capture, step) for step in steps], [side.title for side in capture.sides]
    return make(_frames(capture, asked, steps), labels, titles=titles, note=_note(capture, asked))


def _figures(capture: Capture, asked: Mapping) -> bytes:
    """The paper's figures over all recorded stages, at the step, heads and patch that the page shows."""
    return png(stacked([_figure(kind, capture, asked) for kind in (PCA, ROW)]))


def _figure(kind: Kind, capture: Capture, asked: Mapping) -> Image.Image:
    head = asked.get("head")
    if isinstance(head, str) and head not in kind.heads:
        head = MEAN
    one = read(capture, {**asked, "kind": kind.name, "head": head})
    choices = Choices(
        kind=kind.figure,
        step=MEAN if one.step is None else one.step,
        head=MEAN if one.head == PAPER else one.head,
        diagonal=one.diagonal or kind == PCA,
        paper=one.head == PAPER,
        **_place(capture, one.region),
        **_look(asked),
    )
    steps = [capture.step(k, one.step) for k in range(len(capture.sides))]
    return figure(capture.sides, list(capture.stages), choices, steps)


def _place(capture: Capture, region: Box | tuple[Place, ...]) -> dict:
    """What a figure marks: a patch or a box; for a brush, the patch that was painted last."""
    size = (capture.longest.width, capture.longest.height)
    if not region:
        return {}
    if isinstance(region[0], tuple):
        region = region[-1] * 2
    box = tuple(v * s for v, s in zip(region, size * 2, strict=True))
    return {"pixel": box[:2]} if box[:2] == box[2:] else {"box": box}


def _page(capture: Capture, asked: Mapping) -> bytes:
    return page(capture, asked.get("stage")).encode()


def _capture(capture: Capture, asked: Mapping) -> Path:
    """In the folder that Gradio serves and cleans, under the capture's own id, which cannot be guessed."""
    out = Path(get_upload_folder()).resolve() / str(asked["id"]) / _name(capture, "capture", "zip")
    return out if out.exists() else archive.save(capture, out)


_FILES = {
    "strip": ("png", "image/png", _strip),
    "gif": ("gif", "image/gif", _film),
    "figures": ("png", "image/png", _figures),
    "page": ("html", "text/html", _page),
    "capture": ("zip", "application/zip", _capture),
}
