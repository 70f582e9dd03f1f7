"""Latency and memory of whole runs: every model at every size, and the presets beside diffusers' own pipeline."""

import dataclasses
from collections.abc import Sequence

from koala.bench import Skipped, measure
from koala.bench_matrix import PRESET_NAMES, STOCK, Matrix
from koala.gpu_report.budget import Limit, Say
from koala.gpu_report.scale import Scale, alike
from koala.loading import Library
from koala.registry import CARDS
from koala.request import RequestError


def latencies(scale: Scale, library: Library, found: dict, limit: Limit, say: Say) -> None:
    """Every group of models in turns at every size; the first takes half of the time at most, and so does the next."""
    found |= {"rows": [], "not_measured": []}
    for number, group in enumerate(scale.groups, 1):
        seconds = limit.left / (1 if number == len(scale.groups) else 2)
        matrix = Matrix(
            models=group, sizes=scale.sizes, steps=scale.steps, repeats=scale.repeats, time_limit=max(seconds, 1)
        )
        _cells(matrix, library, found, say)
    for row in found["rows"]:
        row["speaks_for"] = alike(row["model"]) if row["model"] in CARDS else []


def presets(scale: Scale, library: Library, found: dict, limit: Limit, say: Say) -> None:
    """Every preset and diffusers' own pipeline in turns, each against the latter of the same model."""
    found |= {"rows": [], "not_measured": [], "against_stock": []}
    matrix = Matrix(
        models=scale.preset_models,
        sizes=(scale.preset_size,),
        presets=(STOCK, *(name for name in PRESET_NAMES if name != STOCK)),
        steps=scale.steps,
        repeats=scale.repeats,
        time_limit=max(limit.left, 1),
    )
    _cells(matrix, library, found, say)
    found["against_stock"] = against_stock(found["rows"])


def _cells(matrix: Matrix, library: Library, found: dict, say: Say) -> None:
    try:
        for cell in measure(matrix, library, on_run=say):
            found["not_measured" if isinstance(cell, Skipped) else "rows"].append(dataclasses.asdict(cell))
    except RequestError as error:  # the models were not even loaded in time: the other groups may be
        found["not_measured"].append({"model": ", ".join(matrix.models), "reason": str(error)})


def against_stock(rows: Sequence[dict]) -> list[dict]:
    """How many times faster each preset is than stock diffusers, and its peak memory as a share of the latter's."""
    stock = {row["model"]: row for row in rows if row["preset"] == STOCK}
    found = []
    for row in rows:
        base = stock.get(row["model"])
        if base is None or row is base:
            continue
        memory = row["peak_memory_bytes"] and base["peak_memory_bytes"]
        found.append(
            {
                "model": row["model"],
                "preset": row["preset"],
                "total": base["total_ms"] / row["total_ms"],
                "unet_step": base["unet_step_ms"] / row["unet_step_ms"],
                "peak_memory": row["peak_memory_bytes"] / base["peak_memory_bytes"] if memory else None,
            }
        )
    return found
