"""What recording attention costs: runs with and without a recorder, and a click on a map."""

import statistics
import time
from collections.abc import Callable

import torch

from koala.attention import view
from koala.attention.capture import Capture, Side
from koala.attention.plan import AttentionPlan, plan
from koala.attention.record import capture
from koala.benchmark.matrix import PROMPT
from koala.gpu_report.budget import Limit, Say
from koala.gpu_report.scale import Scale
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate, resolve


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
