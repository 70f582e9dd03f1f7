"""AttentionPlan: which attention layers of a run are recorded, and how many bytes that takes, computed from a spec."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from koala import words
from koala.errors import UserError
from koala.request import MAX_SIDE
from koala.unet.costs import LATENT_FACTOR, TOKENS
from koala.unet.layer_map import self_attention_pairs
from koala.unet.specs import STAGES, UNetSpec

BUDGET = 2 * 10**9  # bytes of host memory for one capture
MOST_PATCHES = (MAX_SIDE // 16) ** 2  # of one layer; a map of all pairs has 268 million elements
BYTES = {"float16": 2, "float32": 4}  # per element of what is kept
LEVELS = {"DW-1": 0, "DW-2": 1, "DW-3": 2, "MID": 2, "UP-1": 2, "UP-2": 1, "UP-3": 0}  # how often latents were halved


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One attention layer of a run: `path` is its diffusers module, `grid` the (h, w) of its queries."""

    stage: str
    path: str
    kind: str  # self, or cross to the prompt's tokens
    heads: int
    dim: int  # of one head
    grid: tuple[int, int]

    @property
    def queries(self) -> int:
        """The number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def keys(self) -> int:
        """The number of patches, or of the prompt's tokens, that are attended to."""
        return self.queries if self.kind == "self" else TOKENS

    @property
    def elements(self) -> int:
        """Of q and k, of one picture at one step."""
        return self.heads * self.dim * (self.queries + self.keys)

    @property
    def cross(self) -> str:
        """Path of the cross-attention in the same block as this self-attention."""
        return self.path.removesuffix("attn1") + "attn2"

    @property
    def label(self) -> str:
        """The layer in words, counted from 1."""
        numbers = [int(part) + 1 for part in self.path.removeprefix(STAGES[self.stage]).split(".") if part.isdigit()]
        return f"{self.stage}, transformer {numbers[0]}, block {numbers[1]}"


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The layers to record at every step of a run of this size, in forward order."""

    layers: tuple[Layer, ...]
    width: int  # px
    height: int  # px
    steps: int
    images: int = 1
    dtype: str = "float16"  # of what is kept

    @property
    def bytes(self) -> int:
        """Of all that will be kept."""
        return sum(x.elements for x in self.layers) * BYTES[self.dtype] * self.steps * self.images

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are recorded, in forward order."""
        return tuple(dict.fromkeys(x.stage for x in self.layers))


def attention_stages(spec: UNetSpec) -> tuple[str, ...]:
    """The stages in which this model has attention, in forward order."""
    return tuple(stage for stage, depths in spec.depths().items() if depths[0])


def grid(stage: str, width: int, height: int) -> tuple[int, int]:
    """(h, w) of a stage's tokens for a picture of this size in px."""
    scale = LATENT_FACTOR * 2 ** LEVELS[stage]
    return height // scale, width // scale


size = partial(words.size, mb=2, first_gb=1e8)  # bytes -> text


def check_stages(spec: UNetSpec, stages: Sequence[str]) -> None:
    """UserError for the first stage in which the model has no attention."""
    attending = attention_stages(spec)
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"there is no stage {stage!r}; {spec.name} has attention in {', '.join(attending)}")
        if stage not in attending:
            lacks = "no attention in" if stage in spec.depths() else "no"
            raise UserError(f"{spec.name} has {lacks} {stage}; it has attention in {', '.join(attending)}")


def _chosen(spec: UNetSpec, stages: Sequence[str] | None, layers: str | Sequence[str]) -> list[tuple[str, str]]:
    """(stage, path of attn1) of the requested layers, in forward order."""
    check_stages(spec, stages or ())
    every = [(s, p) for s, p in spec.self_attentions() if stages is None or s in stages]
    if layers == "all":
        return every
    if layers == "last":
        return list(dict(every).items())
    if isinstance(layers, str):
        raise UserError(f"layers are 'last', 'all' or a list of module paths, not {layers!r}")
    paths = [p for _, p in every]
    for path in layers:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=1) or paths[-1:]
            raise UserError(f"{spec.name} has no self-attention {path!r} in these stages; did you mean {near[0]}?")
    return [(s, p) for s, p in every if p in layers]


def _build(
    spec: UNetSpec, stages: Sequence[str] | None, layers: str | Sequence[str], cross: bool, run: AttentionPlan
) -> AttentionPlan:
    chosen = []
    for stage, path in _chosen(spec, stages, layers):
        heads = spec.heads[LEVELS[stage]]
        one = Layer(
            stage=stage,
            path=path,
            kind="self",
            heads=heads,
            dim=spec.channels[LEVELS[stage]] // heads,
            grid=grid(stage, run.width, run.height),
        )
        chosen.append(one)
        if cross:
            chosen.append(replace(one, kind="cross", path=one.cross))
    return replace(run, layers=tuple(chosen))


def _part(full: AttentionPlan, stages: Sequence[str], *, last: bool, cross: bool) -> AttentionPlan:
    """The plan with only these stages, optionally only the last block of each, and without cross-attention."""
    blocks = {x.stage: x.path.rpartition(".")[0] for x in full.layers}
    layers = [x for x in full.layers if x.stage in stages and (cross or x.kind == "self")]
    return replace(full, layers=tuple(x for x in layers if not last or x.path.rpartition(".")[0] == blocks[x.stage]))


def _smaller(full: AttentionPlan) -> Iterator[tuple[str, AttentionPlan]]:
    """Smaller plans, each with a description of what it keeps, the largest first."""
    yield "the same without words", _part(full, full.stages, last=False, cross=False)
    yield "the last layer of each stage", _part(full, full.stages, last=True, cross=True)
    yield "the last layer of each stage, without words,", _part(full, full.stages, last=True, cross=False)
    coarse = sorted(full.stages, key=lambda s: grid(s, full.width, full.height))
    for count in range(len(coarse) - 1, 0, -1):
        stages = [s for s in full.stages if s in coarse[:count]]
        what = f"the last layer of {' and '.join(stages)} alone, without words,"
        yield what, _part(full, stages, last=True, cross=False)


def plan(
    spec: UNetSpec,
    width: int,
    height: int,
    steps: int,
    *,
    stages: Sequence[str] | None = None,
    layers: str | Sequence[str] = "last",
    cross: bool = True,
    images: int = 1,
    dtype: str = "float16",
    budget_bytes: int = BUDGET,
) -> AttentionPlan:
    """What to record of a run: the last or all self-attention layers of the stages, or those of the given paths.

    `cross` adds the cross-attention of the same transformer blocks, for maps of the prompt's words. UserError for
    a stage or layer that the model lacks, and for a plan above the budget, with one that fits.
    """
    run = AttentionPlan(layers=(), width=width, height=height, steps=steps, images=images, dtype=dtype)
    full = _build(spec, stages, layers, cross, run)
    large = next((x for x in full.layers if x.queries > MOST_PATCHES), None)
    if large:
        raise UserError(
            f"{large.stage} of {spec.name} has {large.queries:,} patches at {width}x{height} px, and at most "
            f"{MOST_PATCHES:,} of a layer can be shown; draw a smaller picture, or leave out this stage"
        )
    if full.bytes <= budget_bytes:
        return full
    asked = (
        f"recording {len(full.layers)} layers of {spec.name} over {steps} steps at {width}x{height} px takes "
        f"{size(full.bytes)}, the budget is {size(budget_bytes)}"
    )
    for what, smaller in _smaller(full):
        if smaller.bytes <= budget_bytes:
            raise UserError(f"{asked}; {what} takes {size(smaller.bytes)}")
    coarsest = min(full.stages, key=lambda s: grid(s, width, height))
    least = replace(_part(full, [coarsest], last=True, cross=False), steps=1)
    fitting = budget_bytes // least.bytes
    if fitting < 1:
        raise UserError(f"{asked}; the least, one step of one layer of {coarsest}, takes {size(least.bytes)}")
    raise UserError(f"{asked}; {fitting} steps of the last layer of {coarsest}, without words, fit")


def ordered(first: UNetSpec, second: UNetSpec) -> tuple[UNetSpec, UNetSpec]:
    """(student, teacher): which of the two is cut from the other. UserError if neither is."""
    for student, teacher in ((first, second), (second, first)):
        try:
            self_attention_pairs(student, teacher)
        except UserError:
            continue
        return student, teacher
    raise UserError(f"neither of {first.name} and {second.name} is cut from the other, so their layers do not pair")
