"""Latency and memory of whole runs: every model at every size, and the presets against diffusers' own pipeline."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from koala.attention import view
from koala.attention.capture import Capture, Side
from koala.attention.plan import AttentionPlan, plan
from koala.attention.record import capture
from koala.benchmark.matrix import PRESET_NAMES, PROMPT, STOCK, Matrix
from koala.benchmark.measure import Skipped, measure
from koala.errors import UserError
from koala.gpu_report.budget import Limit, Say
from koala.gpu_report.scale import Scale, alike
from koala.models.cards import CARDS
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate, resolve

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


def attention(scale: Scale, library: Library, results: dict, limit: Limit, say: Say) -> None:
    """Runs without and with a recorder in turns, after a warm-up of each; then clicks on what was recorded.

    One layer of each stage, with its words. Times of a run are in ms, as `Timing` has them.
    """
    model, size = library.get(scale.attention_model), scale.attention_size
    asked = GenerationRequest(
        model=model.card.name, prompt=PROMPT, steps=scale.attention_steps, width=size, height=size
    )
    request = resolve(asked, model.card)
    planned = plan(model.spec, size, size, request.steps)
    results |= {"model": model.card.name, "size": size, "steps": request.steps, "planned_bytes": planned.bytes}
    took: dict[str, list[float]] = {"plain": [], "recorded": []}
    longest = 0.0
    for turn in range(scale.repeats + 1):
        if took["recorded"] and not limit.allows(longest):
            break
        began = limit.left
        say(f"{model.card.name}, plain and recorded: " + (f"run {turn} of {scale.repeats}" if turn else "warm-up"))
        plain = generate(request, model, num_previews=0).timing.total_ms
        result, record = capture(model, request, planned, num_previews=0)
        longest = max(longest, began - limit.left)
        if turn:
            took["plain"].append(plain)
            took["recorded"].append(result.timing.total_ms)
    results |= {f"{name}_ms": statistics.median(own) for name, own in took.items()}
    results |= {
        "overhead": results["recorded_ms"] / results["plain_ms"] - 1,
        "runs": len(took["plain"]),
        "record_bytes": record.bytes,
        "words": any(layer.kind == "cross" for layer in planned.layers),
    }
    side = Side(title=model.card.title, picture=result.images[0], record=record)
    results["click"] = _clicks(Capture(prompt=PROMPT, sides=(side,)), planned, scale.clicks)


def _clicks(shown: Capture, planned: AttentionPlan, count: int) -> dict:
    """Milliseconds of a click in the finest stage, at random places: on one step's map, and on the mean of all."""
    layer = max((x for x in planned.layers if x.kind == "self"), key=lambda x: x.queries)
    places = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)).tolist()
    asked = {"kind": "row", "stage": layer.stage, "head": "mean"}

    def milliseconds(step: int | str) -> dict:
        took = [_ms(lambda at=at: view.look(shown, asked | {"step": step, "box": at * 2})) for at in places]
        return {"median_ms": statistics.median(took), "most_ms": max(took)}

    return {"stage": layer.stage, "grid": list(layer.grid), "heads": layer.heads} | {
        "one_step": milliseconds(0),
        "mean_of_steps": milliseconds("mean"),
    }


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)
