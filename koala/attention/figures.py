"""The paper's figures for any models, and strips and films over their steps; every picture prints its own settings.

KOALA's figure 3b and 10: principal components of self-attention, stage by stage. Figure 3c: where one marked patch
looks. The paper names neither layer, step, heads nor half of the batch; here they are printed below the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from koala.attention import layer_maps, maps, render
from koala.attention.capture import Side
from koala.attention.kinds import FIGURES, PCA, ROW, SEGMENTS, WORD, Kind
from koala.attention.plan import AttentionPlan, Layer, check_stages
from koala.attention.recorded import AttentionRecord, beside
from koala.errors import UserError

MOST_WORDS = 16  # in a figure


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a figure shows of its stages."""

    kind: str = "rows"  # of FIGURES
    step: int | str = "middle"  # of the schedule, a number from 0, or "mean" of all
    head: int | str = "mean"
    layer: int | None = None  # of each stage's recorded ones, from 0; None: the last
    pixel: tuple[float, float] | None = None  # x, y of the marked patch; None: the middle
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom of several, instead of a pixel
    diagonal: bool = True  # False: without what a patch sees of itself
    paper: bool = False  # components as the paper's: each step fitted alone, heads side by side
    opacity: float = 0.75
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FIGURES:
            raise UserError(f"there is no figure {self.kind!r}; choose one of {', '.join(FIGURES)}")
        if self.map == PCA and self.paper and self.step == "mean":
            raise UserError("in paper mode each step is fitted alone, so there is no mean; choose a step")

    @property
    def map(self) -> Kind:
        """What its maps show."""
        return FIGURES[self.kind]

    def place(self, run: AttentionPlan | AttentionRecord) -> tuple[float, float, float, float]:
        """left, top, right, bottom in px of the marked place: a pixel is a box of one."""
        return self.box or (self.pixel or (run.width / 2, run.height / 2)) * 2

    def where(self, run: AttentionPlan | AttentionRecord) -> str:
        """The marked place, in words."""
        left, top, right, bottom = self.place(run)
        return f"box {left:g},{top:g},{right:g},{bottom:g}" if self.box else f"pixel {left:g},{top:g}"

    def steps(self, record: AttentionRecord) -> int | None:
        """The step from 0; None for the mean of all."""
        return {"mean": None, "middle": record.steps // 2}.get(self.step, self.step)

    def check(self, run: AttentionPlan | AttentionRecord, title: str) -> None:
        """UserError for what cannot be drawn of a run; with its plan as `run`, before the run starts."""
        left, top, right, bottom = self.place(run)
        if not (0 <= left <= right < run.width and 0 <= top <= bottom < run.height):
            raise UserError(
                f"{self.where(run)} is outside the picture of {run.width}x{run.height} px; x goes from 0 to "
                f"{run.width - 1}, y to {run.height - 1}"
                + (", left before right and top before bottom" * bool(self.box))
            )
        if self.step not in ("mean", "middle") and not isinstance(self.step, int):
            raise UserError(f"step {self.step!r} is neither middle nor mean nor a number")
        if isinstance(self.step, int) and not 0 <= self.step < run.steps:
            raise UserError(
                f"step {self.step + 1} is not in {title}'s run of {run.steps}; choose 1 to {run.steps}, middle or mean"
            )
        if self.head not in ("mean", "max") and not isinstance(self.head, int):
            raise UserError(f"there is no head {self.head!r}; choose mean, max or a number")
        for stage in run.stages if self.layer is not None else ():
            count = sum(x.stage == stage and x.kind == "self" for x in run.layers)
            if not 0 <= self.layer < count:
                raise UserError(
                    f"layer {self.layer + 1} is not among the {count} recorded of {title}'s {stage}; choose 1 to "
                    f"{count}, record all layers, or leave the stage out"
                )
        for layer in run.layers:
            if isinstance(self.head, int) and not 0 <= self.head < layer.heads:
                raise UserError(
                    f"head {self.head + 1} is not one of {layer.stage}'s {layer.heads}; choose 1 to {layer.heads}, "
                    "mean or max, or leave the stage out"
                )
        if self.map == WORD and not any(x.kind == "cross" for x in run.layers):
            raise UserError("words need cross-attention, which is not recorded here; record it with them")


def _layers(sides: Sequence[Side], stage: str, choices: Choices) -> tuple[Layer | None, ...]:
    """The stage's chosen layers, which pair; None for a model without attention there."""
    recorded = beside([side.record for side in sides])
    rows = recorded.get(stage)
    if not rows:
        check_stages(sides[0].record.spec, [stage])
        recorded_stages = ", ".join(recorded) or "no stage in common"
        raise UserError(
            f"{stage} was not recorded, there is {recorded_stages}; capture the models together, with {stage}"
        )
    if choices.layer is not None and choices.layer >= len(rows):
        raise UserError(f"{stage} has {len(rows)} layers that were recorded in all of these models; choose one")
    return rows[-1 if choices.layer is None else choices.layer]


def _heat(sides: Sequence[Side], stage: str, choices: Choices, wanted: Sequence[Sequence[int | None]]):
    """The pictures of the wanted steps under a map, per side."""
    pictures: list[list[Image.Image] | str] = []
    for side, layer, steps in zip(sides, _layers(sides, stage, choices), wanted, strict=True):
        if layer is None:
            pictures.append(side.absent(stage))
            continue
        own = [_overlaid(side, layer, step, choices) for step in steps]
        pictures.append(own)
    return pictures, ""


def _overlaid(side: Side, layer: Layer, step: int | None, choices: Choices) -> Image.Image:
    """The picture under the map of one step, or of all steps' mean."""
    how = {"head": choices.head, "diagonal": choices.diagonal}
    if choices.map == SEGMENTS:
        labels = layer_maps.segments(side.record, layer, step, **how)
        over = render.components(render.segments(labels), layer.grid, side.picture.size)
        return Image.blend(side.picture.convert("RGB"), over, choices.opacity)
    if choices.map != ROW:
        return _shown(side, layer_maps.values(side.record, layer, choices.map, step, **how), layer, choices)
    mask = torch.zeros(layer.grid, dtype=torch.bool)
    left, top, right, bottom = side.record.cells(layer, choices.place(side.record))
    mask[top:bottom, left:right] = True
    values = layer_maps.values(side.record, layer, ROW, step, mask=mask, **how)
    return _marked(side, _shown(side, values, layer, choices), layer, choices)


def _shown(side: Side, values: torch.Tensor, layer: Layer, choices: Choices) -> Image.Image:
    """The picture under a map."""
    return render.heat(side.picture, values, layer.grid, opacity=choices.opacity, gamma=choices.gamma)


def _marked(side: Side, picture: Image.Image, layer: Layer, choices: Choices) -> Image.Image:
    return render.marked(picture, side.record.cells(layer, choices.place(side.record)), layer.grid)


def _components(sides: Sequence[Side], stage: str, choices: Choices, wanted: Sequence[Sequence[int | None]]):
    """The colours of the wanted steps, per side: one basis for all steps and means, or as in the paper."""
    layers, records = _layers(sides, stage, choices), [side.record for side in sides]
    if choices.paper:
        painted = layer_maps.paper_colours(records, layers, diagonal=choices.diagonal)
    else:
        painted = layer_maps.joint_colours(records, layers, choices.head, diagonal=choices.diagonal)
    pictures: list[list[Image.Image] | str] = []
    variances = []
    for side, layer, one, steps in zip(sides, layers, painted, wanted, strict=True):
        if layer is None:
            pictures.append(side.absent(stage))
            continue
        each, shares = ([own[-1 if s is None else s] for s in steps] for own in one)
        pictures.append([render.components(c, layer.grid, side.picture.size) for c in each])
        share = layer_maps.variance_shown(torch.tensor(shares).mean(0).tolist())
        variances.append(f"{side.title} {share}" if choices.paper else share)
    return pictures, f"{stage} {', '.join(variances if choices.paper else variances[:1])}"


def _drawn(sides: Sequence[Side], stage: str, choices: Choices, wanted: Sequence[Sequence[int | None]]):
    return (_components if choices.map == PCA else _heat)(sides, stage, choices, wanted)


def _note(sides: Sequence[Side], stages: Sequence[str], choices: Choices, shares: Sequence[str], steps: str) -> str:
    """What the figure shows, with all its settings."""
    record = sides[0].record
    heads = f"head {choices.head + 1}" if isinstance(choices.head, int) else f"{choices.head} of all heads"
    itself = "" if choices.diagonal or choices.map == WORD else ", without what a patch sees of itself"
    what = f"{choices.map.caption.capitalize()}. {heads.capitalize()}{itself}"
    if choices.map != SEGMENTS:
        what = f"{what}; each map goes from 0 to its own maximum"
    if choices.map == ROW:
        what = f"{what}; marked is {choices.where(record)}"
    if choices.map == PCA:
        how = f"{heads}{itself}, one basis per stage for all models and steps"
        if choices.paper:
            how = f"heads side by side{itself}, each model and step fitted alone"
        what = f"{PCA.caption.capitalize()}; {how}. Variance shown: {'; '.join(shares)}"
    layers = "; ".join(f"{stage}, {_blocks(sides, stage, choices)}" for stage in stages)
    run = [f"“{record.prompt}”"] if record.prompt else []
    run += [] if record.seed is None else [f"seed {record.seed}"]
    run += [] if record.guidance is None else [f"guidance {record.guidance:g}"]
    return (
        f"{what}. {steps}. Layers: {layers}. {record.half.capitalize()} half. "
        f"{', '.join([*run, f'{record.width}x{record.height} px'])}."
    )


def _when(sides: Sequence[Side], steps: Sequence[int | None]) -> str:
    """The step that is shown of every model."""
    texts = []
    for side, step in zip(sides, steps, strict=True):
        count = side.record.steps
        if step is None:
            texts.append(f"mean of {count} steps")
        else:
            texts.append(f"step {step + 1} of {count}, t = {side.record.timesteps[step]:.0f}")
    text = _together([side.title for side in sides], texts)
    return text[:1].upper() + text[1:]


def _together(titles: Sequence[str], texts: Sequence[str]) -> str:
    """One text per model, joined: once if all are equal, else with the models' titles."""
    if len(set(texts)) == 1:
        return texts[0]
    whose = {text: [title for title, shown in zip(titles, texts, strict=True) if shown == text] for text in texts}
    return " and ".join(f"{text} ({', '.join(own)})" for text, own in whose.items())


def _blocks(sides: Sequence[Side], stage: str, choices: Choices) -> str:
    """The transformer block of each model's layer."""
    shown = [(s.title, x) for s, x in zip(sides, _layers(sides, stage, choices), strict=True) if x]
    return _together([title for title, _ in shown], [x.label.removeprefix(f"{stage}, ") for _, x in shown])


def _pictures(sides: Sequence[Side], stages: Sequence[str], choices: Choices) -> list[Image.Image]:
    """Every model's picture; in figures of rows with the marked place, in patches of the finest stage."""
    if choices.map != ROW:
        return [side.picture for side in sides]
    layers = zip(*(_layers(sides, stage, choices) for stage in stages), strict=True)
    finest = [max((x for x in own if x), key=lambda x: x.queries, default=None) for own in layers]
    return [_marked(s, s.picture, x, choices) if x else s.picture for s, x in zip(sides, finest, strict=True)]


def figure(
    sides: Sequence[Side], stages: Sequence[str], choices: Choices, steps: Sequence[int | None] | None = None
) -> Image.Image:
    """Models as rows, their pictures and then the stages as columns, at one step: each model's own in `steps`."""
    steps = steps or [choices.steps(side.record) for side in sides]
    columns, headings, shares = [_pictures(sides, stages, choices)], ["picture"], []
    for stage in stages:
        pictures, share = _drawn(sides, stage, choices, [[step] for step in steps])
        columns.append([own if isinstance(own, str) else own[0] for own in pictures])
        height, width = next(x.grid for x in _layers(sides, stage, choices) if x)
        headings.append(f"{stage} ({width}x{height})")
        shares.append(share)
    return render.table(
        list(zip(*columns, strict=True)),
        columns=headings,
        rows=[side.title for side in sides],
        note=_note(sides, stages, choices, shares, _when(sides, steps)),
        cell=render.cell_of(sides[0].picture),
    )


def words(sides: Sequence[Side], stage: str, choices: Choices) -> Image.Image:
    """Models as rows, the words of the prompt as columns, at one step."""
    steps = [choices.steps(side.record) for side in sides]
    every = [(text, tokens) for text, tokens in maps.words(sides[0].record.tokens) if not text.startswith("<|")]
    shown, when = every[:MOST_WORDS], _when(sides, steps)
    if len(every) > MOST_WORDS:
        when = f"{when}; the first {MOST_WORDS} of {len(every)} words"
    lines = []
    for side, layer, step in zip(sides, _layers(sides, stage, choices), steps, strict=True):
        if layer is None:
            lines.append([side.absent(stage)] * len(shown))
            continue
        over = (layer_maps.word(side.record, layer, step, tokens, choices.head) for _, tokens in shown)
        lines.append([_shown(side, values, layer, choices) for values in over])
    return render.table(
        lines,
        columns=[text for text, _ in shown],
        rows=[side.title for side in sides],
        note=_note(sides, [stage], choices, [], when),
        cell=render.cell_of(sides[0].picture),
    )


def over_steps(sides: Sequence[Side], stage: str, choices: Choices) -> tuple[Image.Image, bytes]:
    """A strip of at most eight steps, models as rows, and a film of all steps as a GIF, models side by side.

    A model with more steps than another shows steps spread evenly over its run.
    """
    count = min(side.record.steps for side in sides)
    pictures, share = _drawn(sides, stage, choices, [render.spread(side.record.steps, count) for side in sides])
    timesteps = sides[0].record.timesteps
    noise = [f"t = {timesteps[k]:.0f}" for k in render.spread(len(timesteps), count)]
    steps = f"{count} steps; t is the noise level, of 0 to 1000"
    below = {"titles": [side.title for side in sides], "note": _note(sides, [stage], choices, [share], steps)}
    frames = [[own if isinstance(own, str) else own[k] for own in pictures] for k in range(count)]
    shown = render.spread(count, render.STRIP)
    strip = render.strip([frames[k] for k in shown], [noise[k] for k in shown], **below)
    return strip, render.film(frames, noise, **below)
