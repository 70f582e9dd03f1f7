"""A capture, made of one record or of several, and what may be asked of it: every view, and every bound checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from koala.attention import maps
from koala.attention.agreement import nearest
from koala.attention.figures import Side, absent
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord, beside
from koala.errors import UserError
from koala.unet.specs import STAGES

MEAN = "mean"  # of all steps, or of all heads
EVERY_HEAD = [MEAN, "max", "each"]
STROKE = 1 << 14  # points of a brush at most: every one of its grid

Place = tuple[float, float]  # x, y as shares of the picture
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One prompt drawn by one model or by several."""

    prompt: str
    sides: tuple[Side, ...]
    told: str = ""  # what recording cost
    files: tuple[bytes, ...] = ()  # every model's picture as a PNG that carries its request
    made: dict = field(default_factory=dict)  # what takes long and was computed once

    @cached_property
    def stages(self) -> dict[str, list[tuple[Layer | None, ...]]]:
        """Stage -> rows of recorded self-attention layers that stand beside each other; None where a model has none."""
        return beside([side.record for side in self.sides])

    @cached_property
    def longest(self) -> AttentionRecord:
        """Of the run with the most steps, which the step slider counts."""
        return max((side.record for side in self.sides), key=lambda record: record.steps)

    @cached_property
    def moments(self) -> list[tuple[int, ...]]:
        """Each model's step at every position of the slider: of shorter runs the one whose noise is nearest."""
        runs = [side.record.timesteps for side in self.sides]
        lead = self.longest.timesteps
        return [tuple(k if run is lead else nearest(t, run) for run in runs) for k, t in enumerate(lead)]

    def step(self, model: int, moment: int | None) -> int | None:
        """The model's own step; None is the mean of all."""
        return None if moment is None else self.moments[moment][model]

    @property
    def bytes(self) -> int:
        """Of the records of all its models, of their pictures and of the pictures' files."""
        pixels = sum(3 * side.picture.width * side.picture.height for side in self.sides)
        return sum(side.record.bytes for side in self.sides) + pixels + sum(map(len, self.files))


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
    step: int | None  # of the slider; None: the mean of all
    region: "Box | tuple[Place, ...]"  # a box, or the points of a brush; empty where nothing is marked
    word: int | None
    diagonal: bool


def stage_of(name: str, capture: Capture) -> dict:
    """What the page is told of one stage: its layers, or why it has none."""
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


def lacking(name: str, capture: Capture) -> str:
    """Why there is nothing to compare in a stage."""
    without = [s for s in capture.sides if not any(s.record.spec.depths().get(name, ()))]
    if without and len(without) < len(capture.sides):
        return absent(without[0], name)
    return stage_of(name, capture)["absent"] or f"{name} was not recorded in both"


def _each(values: Iterable[object]) -> str:
    """One for all models, or each one's."""
    return " and ".join(dict.fromkeys(f"{value:g}" for value in values))


def when(capture: Capture, moment: int | None) -> str:
    """A position of the step slider: one step for all, or the noise and each model's own step."""
    counts = [side.record.steps for side in capture.sides]
    if moment is None:
        return f"mean of {_each(counts)} steps"
    steps = [f"{step + 1} of {count}" for step, count in zip(capture.moments[moment], counts, strict=True)]
    if len(set(steps)) == 1:
        return f"step {steps[0]}"
    return f"noise {capture.longest.timesteps[moment]:.0f}, steps {' and '.join(steps)}"


def pace(capture: Capture) -> str:
    """How runs of different lengths are set beside each other; empty where they are alike."""
    counts = [side.record.steps for side in capture.sides]
    if len(set(counts)) == 1:
        return ""
    return (
        f"The runs have {_each(counts)} steps. The slider follows the longer one; of the other it shows the step whose "
        "noise, of 0 to 1000, is nearest."
    )


def settings(capture: Capture) -> str:
    """What the runs were made with, as far as it is known: a pipeline that was called directly tells no seed."""
    records = [side.record for side in capture.sides]
    seed, guidance = records[0].seed, [r.guidance for r in records]
    found = [] if seed is None else [f"seed {seed}"]
    found.append(f"{_each(r.steps for r in records)} steps")
    if None not in guidance:
        found.append(f"guidance {_each(guidance)}")
    return ", ".join([*found, f"{records[0].half} half"])


def words_of(capture: Capture) -> list[dict]:
    """The prompt's words, or none where a model's cross-attention was not recorded."""
    record = capture.sides[0].record
    if not all(any(x.kind == "cross" for x in s.record.layers) for s in capture.sides):
        return []
    return [{"text": text, "special": text.startswith("<|")} for text, _ in maps.words(record.tokens)]


def read(capture: Capture, asked: Mapping) -> Asked:
    """What the page asks for; UserError says what this capture has instead."""
    kind, stage = str(asked.get("kind")), str(asked.get("stage"))
    if kind not in KINDS:
        raise UserError(f"there is no view {kind!r}; choose one of {', '.join(KINDS)}")
    if stage not in capture.stages:
        raise UserError(
            f"{stage_of(stage, capture)['absent'] if stage in STAGES else f'there is no stage {stage!r}'}; "
            f"this capture has {', '.join(capture.stages)}"
        )
    count = len(capture.stages[stage])
    index = _number("layer", asked.get("layer", count - 1), count)
    step = None if asked.get("step") == MEAN else _number("step", asked.get("step", 0), len(capture.moments))
    word = None
    if kind == "word":
        words = words_of(capture)
        if not words:
            raise UserError("words were not recorded in this capture; tick Words and capture again")
        word = _number("word", asked.get("word", 0), len(words))
    choices = KINDS[kind].heads
    head = asked.get("head", MEAN)
    if head not in choices or head == "each":
        found = next(x for x in capture.stages[stage][index] if x)
        if "each" not in choices:
            raise UserError(f"{KINDS[kind].title} is the {choices[0]} of all heads")
        head = _number("head", head, found.heads)
    return Asked(
        kind=kind,
        stage=stage,
        layer=index,
        head=head,
        step=step,
        region=_region(asked) if kind == "row" else (),
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
