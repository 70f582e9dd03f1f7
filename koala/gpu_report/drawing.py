"""Latency and memory of whole runs: every model at every size, and the presets against diffusers' own pipeline."""

import dataclasses
from collections.abc import Sequence

from koala.benchmark.matrix import PRESET_NAMES, STOCK, Matrix
from koala.benchmark.measure import Skipped, measure
from koala.errors import UserError
from koala.gpu_report.budget import Limit, Say
from koala.gpu_report.scale import Scale, alike
from koala.models.cards import CARDS
from koala.models.library import Library

_FIRST_SIZE = 0.7  # of a group's time, for the most important size at most


def latencies(scale: Scale, library: Library, results: dict, limit: Limit, say: Say) -> None:
    """Every group of models in turns at every size; each group has a share of the time that earlier groups left."""
    results |= {"rows": [], "not_measured": []}
    for group, share in zip(scale.groups, scale.group_shares, strict=True):
        own = Limit(limit.left * share, limit.clock)
        for number, size in enumerate(scale.sizes, 1):
            seconds = own.left * (1 if number == len(scale.sizes) else _FIRST_SIZE)
            _cells(_matrix(scale, group, size, seconds), library, results, say)
    for row in results["rows"]:
        row["speaks_for"] = alike(row["model"]) if row["model"] in CARDS else []


def presets(scale: Scale, library: Library, results: dict, limit: Limit, say: Say) -> None:
    """Every preset and diffusers' own pipeline in turns, model by model."""
    results |= {"rows": [], "not_measured": [], "against_stock": []}
    chosen = (STOCK, *(name for name in PRESET_NAMES if name != STOCK))
    for number, model in enumerate(scale.preset_models, 1):
        seconds = limit.left / (1 if number == len(scale.preset_models) else 2)
        _cells(_matrix(scale, (model,), scale.preset_size, seconds, chosen), library, results, say)
    results["against_stock"] = against_stock(results["rows"])


def _matrix(
    scale: Scale, models: tuple[str, ...], size: int, seconds: float, presets: tuple[str, ...] = ("quality",)
) -> Matrix:
    return Matrix(
        models=models,
        sizes=(size,),
        presets=presets,
        steps=scale.steps,
        repeats=scale.repeats,
        time_limit=max(seconds, 1.0),  # the benchmark itself reports a limit that is over
    )


def _cells(matrix: Matrix, library: Library, results: dict, say: Say) -> None:
    try:
        for cell in measure(matrix, library, on_run=say):
            results["not_measured" if isinstance(cell, Skipped) else "rows"].append(dataclasses.asdict(cell))
    except UserError as error:  # the models were not even loaded in time; other groups may still be
        results["not_measured"].append({"model": ", ".join(matrix.models), "reason": str(error)})


def against_stock(rows: Sequence[dict]) -> list[dict]:
    """How many times faster each preset is than stock diffusers, and its peak memory as a fraction of the latter's."""
    stock = {row["model"]: row for row in rows if row["preset"] == STOCK}
    ratios = []
    for row in rows:
        base = stock.get(row["model"])
        if base is None or row is base:
            continue
        memory = row["peak_memory_bytes"] and base["peak_memory_bytes"]
        ratios.append(
            {
                "model": row["model"],
                "preset": row["preset"],
                "total": base["total_ms"] / row["total_ms"],
                "unet_step": base["unet_step_ms"] / row["unet_step_ms"],
                "peak_memory": row["peak_memory_bytes"] / base["peak_memory_bytes"] if memory else None,
            }
        )
    return ratios
