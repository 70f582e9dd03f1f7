"""Memory plans compared with torch's allocator, which is limited to the memory of the card that was planned for."""

from collections.abc import Iterator
from contextlib import contextmanager

from koala.benchmark.matrix import PROMPT
from koala.errors import UserError
from koala.gpu_report.budget import Limit, Say
from koala.gpu_report.scale import Scale
from koala.hardware.cuda import cards
from koala.hardware.device import give_back
from koala.hardware.memory_plan import CONTEXT
from koala.hardware.shortage import ran_out, release
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.request import GenerationRequest
from koala.sampling.generate import generate, resolve
from koala.words import gigabytes

STEPS = 2  # all steps take the same memory
_SECONDS = 15.0  # assumed for a row while none is measured


def plans(scale: Scale, library: Library, results: dict, limit: Limit, say: Say) -> None:
    """One row per model and card size: the predictions with and without the workspace factor, and the measured peak.

    A card that no plan fits is a row too, with the refusal. The allocator is limited to the card's size minus the
    driver's context, so that a plan that predicts too little runs out of memory.
    """
    results |= {"rows": [], "not_measured": []}
    longest, free = 0.0, library.memory
    for name in scale.plan_models:
        for memory in scale.plan_memories:
            what = {"model": name, "card_bytes": memory}
            if memory > free:
                reason = f"{gigabytes(free)} of this card are free"
            elif not limit.allows(longest or _SECONDS):
                reason = "no time was left"
            else:
                began = limit.left
                say(f"{name} on {gigabytes(memory)}")
                results["rows"].append(what | _row(library, name, scale.plan_size, memory))
                longest = max(longest, began - limit.left)
                continue
            results["not_measured"].append(what | {"reason": reason})


@contextmanager
def _as_large_as(library: Library, memory: int) -> Iterator[None]:
    """Inside, the library plans for a card of so many bytes, and torch may allocate no more than such a card has."""
    before, device = library.memory, library.device
    library.memory = memory
    if device.type == "cuda":
        cards().cap(memory - CONTEXT["cuda"], device)
    try:
        yield
    finally:
        library.memory = before
        if device.type == "cuda":
            cards().cap(None, device)


def _clear(library: Library) -> None:
    """Remove everything of earlier plans from the device and from the caches."""
    library.residence.bring(())
    library.embeddings.clear()
    give_back()


def _row(library: Library, name: str, size: int, memory: int) -> dict:
    _clear(library)
    model = library.get(name)
    asked = GenerationRequest(model=name, prompt=PROMPT, steps=STEPS, width=size, height=size)
    request = resolve(asked, model.card)
    with _as_large_as(library, memory):
        try:
            plan = model.place(request).plan
        except UserError as error:
            return {"refused": str(error)}
        row = {
            "refused": None,
            "size": size,
            "guided": request.guidance > 1,
            "plan": {"dtype": plan.dtype, "text": plan.text, "unet": plan.unet, "vae_tile": plan.vae_tile},
            "predicted_bytes": plan.predicted_peak_bytes,
            "live_bytes": plan.live_peak_bytes,
            "budget_bytes": plan.budget_bytes,
        }
        try:
            return row | _drawn(model, request)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            release(error)
            _clear(library)
            return row | {"ran_out": True, "peak_bytes": None, "reserved_bytes": None, "swap_ms": None}


def _drawn(model: LoadedModel, request: GenerationRequest) -> dict:
    timing = generate(request, model, num_previews=0).timing
    cuda = model.device.type == "cuda"
    return {
        "ran_out": False,
        "peak_bytes": timing.peak_memory_bytes,
        "reserved_bytes": cards().reserved_peak(model.device) if cuda else None,
        "swap_ms": timing.swap_ms,
    }
