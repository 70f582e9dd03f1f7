"""Memory plans against torch's allocator, which may have no more than a card of the plan's size would give it."""

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

STEPS = 2  # a step is the same as the next
_SECONDS = 15.0  # for a row at most, where none was measured yet


def plans(scale: Scale, library: Library, found: dict, limit: Limit, say: Say) -> None:
    """One row for each model and each size of a card: predicted with and without the workspace factor, and the peak.

    A card for which there is no plan is a row, too, with the refusal. The allocator is held to the card's size less the
    driver's context, so that a plan that does not keep its word ends in a lack of memory.
    """
    found |= {"rows": [], "not_measured": []}
    longest, there = 0.0, library.memory
    for name in scale.plan_models:
        for memory in scale.plan_memories:
            what = {"model": name, "card_bytes": memory}
            if memory > there:
                reason = f"{gigabytes(there)} of this card are free"
            elif not limit.allows(longest or _SECONDS):
                reason = "no time was left"
            else:
                began = limit.left
                say(f"{name} on {gigabytes(memory)}")
                found["rows"].append(what | _row(library, name, scale.plan_size, memory))
                longest = max(longest, began - limit.left)
                continue
            found["not_measured"].append(what | {"reason": reason})


@contextmanager
def _as_large_as(library: Library, memory: int) -> Iterator[None]:
    """Meanwhile the library plans for a card of so many bytes, and torch has no more of them than such a card would."""
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
    """Nothing of an earlier plan is on the device or remembered."""
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
