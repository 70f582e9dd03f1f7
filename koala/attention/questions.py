"""A capture, made of one record or of several, and what may be asked of it: every view, and every bound checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from koala.attention import maps
from koala.attention.figures import Side
from koala.attention.plan import Layer
from koala.attention.recorded import beside
from koala.request import RequestError
from koala.specs import STAGES

MEAN = "mean"  # of all steps, or of all heads
EVERY_HEAD = [MEAN, "max", "each"]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One prompt drawn by one model or by several."""

    prompt: str
    sides: tuple[Side, ...]
    told: str = ""  # what recording cost
    made: dict = field(default_factory=dict)  # what takes long and was computed once

    @cached_property
    def stages(self) -> dict[str, list[tuple[Layer | None, ...]]]:
        """Stage -> rows of recorded self-attention layers that stand beside each other; None where a model has none."""
        return beside([side.record for side in self.sides])

    @property
    def bytes(self) -> int:
        return sum(side.record.bytes for side in self.sides)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to look at one layer at one step."""

    title: str
    help: str
    heads: list[str]
    colour: bool = False  # its values are colours already


KINDS = {
    "row": Kind(
        title="Where it looks",
        help="Point at a patch of either picture, click to keep it, drag for a region, or use the arrow keys.",
        heads=EVERY_HEAD,
    ),
    "received": Kind(
        title="Looked at", help="How much all patches together look at each: dark least, bright most.", heads=EVERY_HEAD
    ),
    "entropy": Kind(
        title="How widely",
        help="Entropy of each patch's attention: the darkest look at the fewest places, the brightest most widely.",
        heads=EVERY_HEAD,
    ),
    "distance": Kind(
        title="How far", help="How far away each patch looks, on average: bright is far.", heads=EVERY_HEAD
    ),
    "pca": Kind(
        title="PCA",
        help="Patches that look at the same places have the same colour: the first three principal components, "
        "one basis for both models and all steps.",
        heads=[MEAN, "paper", "each"],
        colour=True,
    ),
    "segments": Kind(
        title="Segments", help="Patches gathered by where they look, with no word involved.", heads=[MEAN], colour=True
    ),
    "word": Kind(title="Words", help="Where this word of the prompt is drawn: cross-attention.", heads=[MEAN]),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the page shows, checked against the capture."""

    kind: str
    stage: str
    layer: int  # of the stage's pairs
    head: str | int
    step: int | None  # None: the mean of all
    box: tuple[float, float, float, float] | None  # left, top, right, bottom, as shares of the picture
    word: int | None
    diagonal: bool


def stage_of(name: str, capture: Capture) -> dict:
    rows = capture.stages.get(name)
    if rows is None:
        has = any(name in dict(s.record.spec.self_attentions()) for s in capture.sides)
        absent = f"{name} was not recorded" if has else f"there is no attention in {name}"
        return {"name": name, "absent": absent}
    layers = [next(x for x in row if x) for row in rows]
    return {
        "name": name,
        "absent": "",
        "grid": list(layers[-1].grid),
        "heads": layers[-1].heads,
        "layers": [layer.label.removeprefix(f"{name}, ") for layer in layers],
    }


def words_of(capture: Capture) -> list[dict]:
    record = capture.sides[0].record
    if not all(any(x.kind == "cross" for x in s.record.layers) for s in capture.sides):
        return []
    return [{"text": text, "special": text.startswith("<|")} for text, _ in maps.words(record.tokens)]


def read(capture: Capture, asked: Mapping) -> Asked:
    """What the page asks for; RequestError says what this capture has instead."""
    kind, stage, steps = str(asked.get("kind")), str(asked.get("stage")), capture.sides[0].record.steps
    if kind not in KINDS:
        raise RequestError(f"there is no view {kind!r}; choose one of {', '.join(KINDS)}")
    if stage not in capture.stages:
        raise RequestError(
            f"{stage_of(stage, capture)['absent'] if stage in STAGES else f'there is no stage {stage!r}'}; "
            f"this capture has {', '.join(capture.stages)}"
        )
    count = len(capture.stages[stage])
    index = _number("layer", asked.get("layer", count - 1), count)
    step = None if asked.get("step") == MEAN else _number("step", asked.get("step", 0), steps)
    word = None
    if kind == "word":
        words = words_of(capture)
        if not words:
            raise RequestError("words were not recorded in this capture; tick Words and capture again")
        word = _number("word", asked.get("word", 0), len(words))
    choices = KINDS[kind].heads
    head = asked.get("head", MEAN)
    if head not in choices or head == "each":
        found = next(x for x in capture.stages[stage][index] if x)
        if "each" not in choices:
            raise RequestError(f"{KINDS[kind].title} is the {choices[0]} of all heads")
        head = _number("head", head, found.heads)
    box = _box(asked.get("box")) if kind == "row" else None
    return Asked(
        kind=kind,
        stage=stage,
        layer=index,
        head=head,
        step=step,
        box=box,
        word=word,
        diagonal=asked.get("diagonal") is not False,
    )


def _number(name: str, given: object, count: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < count:
        raise RequestError(f"{name} {given!r} is not in this capture; they count from 0 to {count - 1}")
    return given


def _box(given: object) -> tuple[float, float, float, float]:
    whole = isinstance(given, list) and len(given) == 4 and all(isinstance(v, int | float) for v in given)
    if not whole or not all(0 <= v < 1 for v in given) or given[0] > given[2] or given[1] > given[3]:
        raise RequestError("this place is outside the picture; click within it")
    return tuple(given)
