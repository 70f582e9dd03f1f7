"""The answer of /attention: the paper's figure, and every number behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from koala.attention import view
from koala.attention.capture import Capture
from koala.attention.figures import Choices, figure
from koala.attention.kinds import MEAN, ROW
from koala.attention.questions import read
from koala.errors import UserError

DIGITS = 6  # of a share in the JSON


def _from_one(name: str, given: object, count: int) -> int:
    """People count steps and heads from 1, the viewer's questions from 0."""
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= count:
        raise UserError(f"{name} {given!r} is not in this capture; they count from 1 to {count}")
    return given - 1


def _moment(capture: Capture, step: int | str | None) -> int | None:
    """The step from 0; None is the mean of all."""
    if step is None:
        return len(capture.moments) // 2
    return None if step == MEAN else _from_one("step", step, len(capture.moments))


def asked(capture: Capture, stage: str, pixel: Sequence[float] | None, step: int | None, head: str | int) -> dict:
    """The viewer's question for this pixel of the picture (None is the middle) at a step from 0 (None is the mean)."""
    record = capture.sides[0].record
    place = [record.width / 2, record.height / 2] if pixel is None else pixel
    numbers = isinstance(place, list | tuple) and all(isinstance(v, int | float) for v in place)
    if not numbers or len(place) != 2:
        raise UserError(f"pixel must be [x, y] in px of the picture, not {pixel!r}")
    box = [place[0] / record.width, place[1] / record.height] * 2
    layer = capture.layer(stage, -1)
    which = head if isinstance(head, str) else _from_one("head", head, layer.heads)
    return {"kind": ROW.name, "stage": stage, "head": which, "step": MEAN if step is None else step, "box": box}


def answer(capture: Capture, pixel: Sequence[float] | None, step: int | str | None, head: str | int) -> dict:
    """What the patch under a pixel attends to, in the last layer of every recorded stage of every model.

    Steps and heads count from 1, as on the page and in the command line.
    """
    record, moment = capture.sides[0].record, _moment(capture, step)
    stages = {stage: _stage(capture, stage, pixel, moment, head) for stage in capture.stages}
    return {
        "prompt": capture.prompt,
        "models": [
            {
                "model": side.record.model,
                "revision": side.record.revision,
                "seed": side.record.seed,
                "steps": side.record.steps,
                "guidance": side.record.guidance,
                "recorded_bytes": side.record.bytes,
                "recording_ms": round(side.record.overhead_ms, 1),
                "step": MEAN if moment is None else capture.step(k, moment) + 1,
            }
            for k, side in enumerate(capture.sides)
        ],
        "width": record.width,
        "height": record.height,
        "half": record.half,
        "step": MEAN if moment is None else moment + 1,
        "head": head,
        "stages": stages,
        "agreement": view.alike(capture)["rows"] if len(capture.sides) == 2 else None,
    }


def _stage(capture: Capture, stage: str, pixel: Sequence[float] | None, step: int | None, head: str | int) -> list:
    question = asked(capture, stage, pixel, step, head)
    one, rows = read(capture, question), []
    shown = view.look(capture, question)["sides"]
    layers = capture.stages[stage][one.layer]
    for k, (side, layer, side_view) in enumerate(zip(capture.sides, layers, shown, strict=True)):
        if layer is None:
            rows.append(side_view)
            continue
        row = view.row(side.record, layer, replace(one, step=capture.step(k, one.step)))
        top, left = divmod(side_view["marked"][0], layer.grid[1])
        rows.append(
            {
                "layer": layer.path,
                "grid": list(layer.grid),
                "patch": [left, top],
                "row": [round(v, DIGITS) for v in row.tolist()],
            }
        )
    return rows


def picture(capture: Capture, given: Mapping, pixel: Sequence[float] | None):
    """The figure of an `answer`."""
    step, head = (v - 1 if isinstance(v, int) else v for v in (given["step"], given["head"]))
    choices = Choices(step=step, head=head, pixel=tuple(pixel) if pixel else None)
    steps = [None if step == MEAN else one["step"] - 1 for one in given["models"]]
    return figure(capture.sides, list(capture.stages), choices, steps)
