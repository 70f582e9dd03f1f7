"""Which layers of several models pair, by the layer map, and the plans that record them."""

from collections.abc import Sequence

from koala.attention.plan import BUDGET, AttentionPlan, attention_stages, check_stages, ordered, plan
from koala.errors import UserError
from koala.unet.layer_map import self_attention_pairs
from koala.unet.specs import STAGES, UNetSpec

Row = tuple[str | None, ...]  # a module path per model; None if it has no such layer


def _layers(spec: UNetSpec, stage: str) -> list[str]:
    return [path for s, path in spec.self_attentions() if s == stage]


def _counterparts(student: UNetSpec, other: UNetSpec, stage: str) -> dict[str, str]:
    """Path of the student -> path of the other. If it is not cut from the other, the last layers of the stage pair."""
    try:
        return {path: counterpart for _, path, counterpart in self_attention_pairs(student, other)}
    except UserError:
        return {_layers(student, stage)[-1]: _layers(other, stage)[-1]}


def paired(
    specs: Sequence[UNetSpec], *, stages: Sequence[str] | None = None, every: bool = False
) -> dict[str, tuple[Row, ...]]:
    """Stage -> rows of layers that pair, in forward order: all of them, or the last one.

    In each stage the smallest model that has it decides. UserError for a stage in which no model has attention.
    """
    attending = [attention_stages(spec) for spec in specs]
    for stage in stages or ():
        if not any(stage in own for own in attending):
            check_stages(specs[0], [stage])
    by_stage = {}
    for stage in STAGES:
        having = [spec for spec, own in zip(specs, attending, strict=True) if stage in own]
        if not having or stages is not None and stage not in stages:
            continue
        leader = min(having, key=lambda spec: len(_layers(spec, stage)))
        tables = [_counterparts(leader, spec, stage) if spec in having else {} for spec in specs]
        rows = [tuple(table.get(path) for table in tables) for path in _layers(leader, stage)]
        by_stage[stage] = tuple(rows if every else rows[-1:])
    return by_stage


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
    """One plan per model, each with its own `steps`, all within one budget. UserError, with what fits, above it."""
    planned_models: list[AttentionPlan] = []
    for k, spec in enumerate(specs):
        paths = [row[k] for stage in rows.values() for row in stage if row[k]]
        if not paths:
            raise UserError(
                f"{spec.name} has no attention in {' or '.join(rows)}; it has it in {', '.join(attention_stages(spec))}"
            )
        planned_models.append(
            plan(
                spec,
                width,
                height,
                steps[k],
                layers=paths,
                cross=cross,
                images=images,
                dtype=dtype,
                budget_bytes=budget_bytes - sum(p.bytes for p in planned_models),
            )
        )
    return planned_models


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
    """One plan per model for layers that pair: the last of each stage, or every one.

    With `shared` the teacher runs on its student's inputs, so it takes the student's steps.
    """
    if shared:
        if len(specs) != 2 or specs[0] == specs[1]:
            raise UserError("the same input needs a teacher and a student of it; choose two such models")
        student, _ = ordered(*specs)
        steps = [steps[list(specs).index(student)]] * 2
    rows = paired(specs, stages=stages, every=every)
    return plans(specs, rows, width, height, steps, cross=words, images=images, budget_bytes=budget_bytes)
