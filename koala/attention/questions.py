"""What may be asked of a capture: every view and every bound is checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass

from koala.attention.capture import Capture, stage_of, words_of
from koala.attention.kinds import EACH, KINDS, MEAN, ROW, WORD, Kind
from koala.errors import UserError
from koala.unet.specs import STAGES

STROKE = 1 << 14  # points of a brush at most: every one of its grid

Place = tuple[float, float]  # x, y as shares of the picture
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the page shows, checked against the capture."""

    kind: Kind
    stage: str
    layer: int  # of the stage's pairs
    head: str | int
    step: int | None  # of the slider; None: the mean of all
    region: Box | tuple[Place, ...]  # a box, or the points of a brush; empty where nothing is marked
    word: int | None
    diagonal: bool


def read(capture: Capture, asked: Mapping) -> Asked:
    """What the page asks for; UserError says what this capture has instead."""
    name, stage = str(asked.get("kind")), str(asked.get("stage"))
    if name not in KINDS:
        raise UserError(f"there is no view {name!r}; choose one of {', '.join(KINDS)}")
    if stage not in capture.stages:
        raise UserError(
            f"{stage_of(stage, capture)['absent'] if stage in STAGES else f'there is no stage {stage!r}'}; "
            f"this capture has {', '.join(capture.stages)}"
        )
    kind, count = KINDS[name], len(capture.stages[stage])
    row = _number("layer", asked.get("layer", count - 1), count)
    step = None if asked.get("step") == MEAN else _number("step", asked.get("step", 0), len(capture.moments))
    word = None
    if kind == WORD:
        words = words_of(capture)
        if not words:
            raise UserError("words were not recorded in this capture; tick Words and capture again")
        word = _number("word", asked.get("word", 0), len(words))
    head = asked.get("head", MEAN)
    if head not in kind.heads or head == EACH:
        if EACH not in kind.heads:
            raise UserError(f"{kind.title} is the {kind.heads[0]} of all heads")
        head = _number("head", head, capture.layer(stage, row).heads)
    return Asked(
        kind=kind,
        stage=stage,
        layer=row,
        head=head,
        step=step,
        region=_region(asked) if kind == ROW else (),
        word=word,
        diagonal=asked.get("diagonal") is not False,
    )


def _number(name: str, given: object, count: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < count:
        raise UserError(f"{name} {given!r} is not in this capture; they count from 0 to {count - 1}")
    return given


def _region(asked: Mapping) -> Box | tuple[Place, ...]:
    """What is marked: the patches of a box, or those under the points of a brush."""
    if "brush" in asked and asked["brush"] is not None:
        points = asked["brush"]
        whole = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
        if not whole or not 1 <= len(points) <= STROKE or not all(_inside(v) for p in points for v in p):
            raise UserError(f"a brush is 1 to {STROKE} points within the picture; paint it again")
        return tuple((x, y) for x, y in points)
    box = asked.get("box")
    whole = isinstance(box, list) and len(box) == 4 and all(_inside(v) for v in box)
    if not whole or box[0] > box[2] or box[1] > box[3]:
        raise UserError("this place is outside the picture; click within it")
    return tuple(box)


def _inside(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1
