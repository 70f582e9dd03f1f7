"""Which layers of several models stand beside each other, by the one layer map, and the plans that record them."""

from collections.abc import Sequence

from koala.attention.plan import BUDGET, AttentionPlan, attention_stages, check_stages, ordered, plan
from koala.errors import UserError
from koala.unet.layer_map import self_attention_pairs
from koala.unet.specs import STAGES, UNetSpec

Row = tuple[str | None, ...]  # a module path per model; None where it has no such layer


def _layers(spec: UNetSpec, stage: str) -> list[str]:
    return [path for s, path in spec.self_attentions() if s == stage]


def _counterparts(student: UNetSpec, other: UNetSpec, stage: str) -> dict[str, str]:
    """Path of the student -> path of the other. Of a model that it is no cut of, the last layers of the stage pair."""
    try:
        return {path: its for _, path, its in self_attention_pairs(student, other)}
    except UserError:
        return {_layers(student, stage)[-1]: _layers(other, stage)[-1]}


def paired(
    specs: Sequence[UNetSpec], *, stages: Sequence[str] | None = None, every: bool = False
) -> dict[str, tuple[Row, ...]]:
    """Stage -> rows of layers that stand beside each other, in forward order: all of them, or the last one.

    In each stage the smallest model that has it leads. UserError for a stage in which no model has attention.
    """
    there = [attention_stages(spec) for spec in specs]
    for stage in stages or ():
        if not any(stage in own for own in there):
            check_stages(specs[0], [stage])
    found = {}
    for stage in STAGES:
        having = [spec for spec, own in zip(specs, there, strict=True) if stage in own]
        if not having or stages is not None and stage not in stages:
            continue
        leader = min(having, key=lambda spec: len(_layers(spec, stage)))
        tables = [_counterparts(leader, spec, stage) if spec in having else {} for spec in specs]
        rows = [tuple(table.get(path) for table in tables) for path in _layers(leader, stage)]
        found[stage] = tuple(rows if every else rows[-1:])
    return found


def plans(
    specs: Sequence[UNetSpec],
    rows: dict[str, tuple[Row, ...]],
    width: int,
    height: int,
    steps: Sequence[int],
    *,
    cross: bool = True,
    images: int = 1,
    dtype: str = "float16",
    budget_bytes: int = BUDGET,
) -> list[AttentionPlan]:
    """One plan per model, all within one budget; `steps` of each. UserError, with what fits, above the budget."""
    found: list[AttentionPlan] = []
    for k, spec in enumerate(specs):
        paths = [row[k] for stage in rows.values() for row in stage if row[k]]
        if not paths:
            raise UserError(
                f"{spec.name} has no attention in {' or '.join(rows)}; it has it in {', '.join(attention_stages(spec))}"
            )
        found.append(
            plan(
                spec,
                width,
                height,
                steps[k],
                layers=paths,
                cross=cross,
                images=images,
                dtype=dtype,
                budget_bytes=budget_bytes - sum(p.bytes for p in found),
            )
        )
    return found


def planned(
    specs: Sequence[UNetSpec],
    width: int,
    height: int,
    steps: Sequence[int],
    *,
    stages: Sequence[str] | None = None,
    every: bool = False,
    words: bool = True,
    shared: bool = False,
    images: int = 1,
    budget_bytes: int = BUDGET,
) -> list[AttentionPlan]:
    """One plan per model for layers that stand beside each other: the last one of each stage, or every one that pairs.

    With `shared` the teacher runs on what its student sees, so it takes the student's steps.
    """
    if shared:
        if len(specs) != 2 or specs[0] == specs[1]:
            raise UserError("the same input needs a teacher and a student of it; choose two such models")
        student, _ = ordered(*specs)
        steps = [steps[list(specs).index(student)]] * 2
    rows = paired(specs, stages=stages, every=every)
    return plans(specs, rows, width, height, steps, cross=words, images=images, budget_bytes=budget_bytes)
