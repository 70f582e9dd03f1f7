"""A capture: one prompt drawn by one model or several, with what was recorded of each, and how it is described."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image

from koala.attention import maps
from koala.attention.agreement import nearest
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord, beside


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model of a capture or of a figure."""

    title: str
    picture: Image.Image
    record: AttentionRecord

    def absent(self, stage: str) -> str:
        """Why the model has no attention in a stage."""
        has = stage in self.record.spec.depths()
        return f"{self.title} has no attention in {stage}" if has else f"{self.title} has no {stage}"


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One prompt drawn by one model or by several."""

    prompt: str
    sides: tuple[Side, ...]
    cost: str = ""  # what recording took, in words
    files: tuple[bytes, ...] = ()  # every model's picture as a PNG that carries its request
    computed: dict = field(default_factory=dict)  # what takes long, kept for the next question

    @cached_property
    def stages(self) -> dict[str, list[tuple[Layer | None, ...]]]:
        """Stage -> rows of recorded self-attention layers that pair across models; None where a model has none."""
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

    def layer(self, stage: str, row: int) -> Layer:
        """The layer of a row that describes it: that of the first model that has one."""
        return next(x for x in self.stages[stage][row] if x)

    @property
    def bytes(self) -> int:
        """Of the records of all its models, of their pictures and of the pictures' files."""
        pixels = sum(3 * side.picture.width * side.picture.height for side in self.sides)
        return sum(side.record.bytes for side in self.sides) + pixels + sum(map(len, self.files))


def stage_of(name: str, capture: Capture) -> dict:
    """One stage for the viewer: its layers, or the reason why it has none."""
    rows = capture.stages.get(name)
    if rows is None:
        has = any(name in dict(s.record.spec.self_attentions()) for s in capture.sides)
        absent = f"{name} was not recorded" if has else f"there is no attention in {name}"
        return {"name": name, "absent": absent}
    layers = [capture.layer(name, k) for k in range(len(rows))]
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
        return without[0].absent(name)
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
    """How steps of runs of different lengths are matched; empty where all have the same number."""
    counts = [side.record.steps for side in capture.sides]
    if len(set(counts)) == 1:
        return ""
    return (
        f"The runs have {_each(counts)} steps. The slider follows the longer one; of the other it shows the step whose "
        "noise, of 0 to 1000, is nearest."
    )


def settings(capture: Capture) -> str:
    """What the runs were made with, as far as is known: a pipeline that was called directly has no seed to report."""
    records = [side.record for side in capture.sides]
    seed, guidance = records[0].seed, [r.guidance for r in records]
    known = [] if seed is None else [f"seed {seed}"]
    known.append(f"{_each(r.steps for r in records)} steps")
    if None not in guidance:
        known.append(f"guidance {_each(guidance)}")
    return ", ".join([*known, f"{records[0].half} half"])


def words_of(capture: Capture) -> list[dict]:
    """The prompt's words, or none where a model's cross-attention was not recorded."""
    record = capture.sides[0].record
    if not all(any(x.kind == "cross" for x in s.record.layers) for s in capture.sides):
        return []
    return [{"text": text, "special": text.startswith("<|")} for text, _ in maps.words(record.tokens)]
