"""Several models on one noise: the pictures, the times, and whether a speed-up is the model's or its settings'."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from koala.models.cards import ModelCard
from koala.models.library import Library
from koala.models.loaded import LoadedModel, Placement
from koala.request import GenerationRequest, Timing
from koala.sampling.generate import Step, generate, warm_up
from koala.sampling.guidance import unet_calls
from koala.sampling.previews import MAX_PREVIEWS
from koala.sampling.resolve import same_noise
from koala.sampling.result import GenerationResult


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster than the baseline: per U-Net step, by fewer U-Net calls, and in total.

    per_call x calls = unet. Much of KOALA-Lightning's gain is its fewer steps, so the two are never merged.
    """

    per_call: float
    calls: float
    unet: float
    total: float

    def sentence(self) -> str:
        """The factors on one line, with their product."""
        return (
            f"U-Net {self.per_call:.2f}x per call x {self.calls:.2f}x by the number of calls = {self.unet:.2f}x; "
            f"with text and VAE {self.total:.2f}x"
        )


def speedup(baseline: Timing, other: Timing) -> Speedup:
    """`other` against `baseline`, both of one comparison."""
    calls = baseline.unet_calls / other.unet_calls
    unet = baseline.unet_total_ms / other.unet_total_ms
    return Speedup(per_call=unet / calls, calls=calls, unet=unet, total=baseline.total_ms / other.total_ms)


def compare(
    requests: Sequence[GenerationRequest],
    library: Library,
    *,
    cards: Sequence[ModelCard] | None = None,
    on_step: Callable[[int, Step], None] | None = None,
    on_result: Callable[[int, GenerationResult], None] | None = None,
    cancel: threading.Event | None = None,
    num_previews: int = MAX_PREVIEWS,
    small_previews: bool = False,
) -> list[GenerationResult]:
    """Run the requests one after the other on the same noise, the one with the least work first, so that a picture is
    soon there; results are in the order of the requests, and callbacks get the request's position.

    `cards` are those of their models, one per request; without them the names are looked up.
    All models are loaded before the first starts, so that no load falls into a measured run, and all of torch's follow
    one memory plan: where not all fit on the device, the text is encoded once and one U-Net is there at a time.
    """
    results = {}
    for position, request, model, placement in _planned(requests, library, cards):
        watch = (lambda step, p=position: on_step(p, step)) if on_step else None
        results[position] = generate(
            request,
            model,
            on_step=watch,
            cancel=cancel,
            num_previews=num_previews,
            small_previews=small_previews,
            placement=placement,
        )
        if on_result:
            on_result(position, results[position])
    return [results[position] for position in sorted(results)]


def warm_up_together(
    requests: Sequence[GenerationRequest],
    library: Library,
    *,
    cards: Sequence[ModelCard] | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Let every model draw two uncounted steps ahead; `compare` of these requests then does not have to.

    Setting `cancel` raises Cancelled before the next step ends.
    """
    for _, request, model, placement in _planned(requests, library, cards):
        warm_up(request, model, cancel=cancel, placement=placement)


def _planned(
    requests: Sequence[GenerationRequest], library: Library, cards: Sequence[ModelCard] | None
) -> list[tuple[int, GenerationRequest, LoadedModel, Placement | None]]:
    """Position, request, model and memory plan of each run, the one with the least work first."""
    requests = same_noise(requests, cards)
    models = library.get_all(cards or [r.model for r in requests])
    together = library.place(models, requests)
    runs = [
        (position, request, model, together if model.card.runtime == "torch" else None)  # an export has its own plan
        for position, (request, model) in enumerate(zip(requests, models, strict=True))
    ]
    return sorted(runs, key=lambda run: unet_calls(run[1]) * run[2].parameters)
