"""Several models on one noise: the pictures, the times, and where a speed-up comes from."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from koala.generate import MAX_PREVIEWS, Step, generate, resolve
from koala.loading import Library
from koala.registry import find
from koala.request import GenerationRequest, RequestError, Timing
from koala.result import GenerationResult

MAX_MODELS = 8  # in one comparison


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
        """The factors as one line, which multiply to what it says."""
        return (
            f"U-Net {self.per_call:.2f}x per call x {self.calls:.2f}x by the number of calls = {self.unet:.2f}x; "
            f"with text and VAE {self.total:.2f}x"
        )


def speedup(baseline: Timing, other: Timing) -> Speedup:
    """`other` against `baseline`, both of one comparison."""
    calls = baseline.unet_calls / other.unet_calls
    unet = baseline.unet_total_ms / other.unet_total_ms
    return Speedup(per_call=unet / calls, calls=calls, unet=unet, total=baseline.total_ms / other.total_ms)


def same_noise(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """The requests with defaults filled in and one size for all: the first model's where none was asked for.

    Raises RequestError when they could not start from the same noise.
    """
    if len(requests) < 2:
        raise RequestError("a comparison needs at least two models, for example --models tiny-sdxl tiny-koala-700m")
    if len(requests) > MAX_MODELS:
        raise RequestError(f"a comparison takes at most {MAX_MODELS} models, not {len(requests)}; compare in groups")
    first = resolve(requests[0], find(requests[0].model))
    found = []
    for request in requests:
        if request.width is None or request.height is None:
            request = dataclasses.replace(
                request, width=request.width or first.width, height=request.height or first.height
            )
        found.append(resolve(request, find(request.model)))
    for name in ("prompt", "seed", "images", "width", "height"):
        if len({getattr(r, name) for r in found}) > 1:
            raise RequestError(f"the compared requests differ in {name}; give all models the same")
    return found


def compare(
    requests: Sequence[GenerationRequest],
    library: Library,
    *,
    on_step: Callable[[int, Step], None] | None = None,
    on_result: Callable[[int, GenerationResult], None] | None = None,
    cancel: threading.Event | None = None,
    num_previews: int = MAX_PREVIEWS,
) -> list[GenerationResult]:
    """Run the requests one after the other on the same noise; callbacks get the request's position.

    All models are loaded before the first starts, so that no load falls into a measured run, and all of torch's follow
    one memory plan: where not all fit on the device, the text is encoded once and one U-Net is there at a time.
    """
    requests = same_noise(requests)
    models = library.get_all([r.model for r in requests])
    together = library.place(models, requests)
    results = []
    for position, (request, model) in enumerate(zip(requests, models, strict=True)):
        watch = (lambda step, p=position: on_step(p, step)) if on_step else None
        placement = together if model.card.runtime == "torch" else None  # an export has one of its own
        results.append(
            generate(request, model, on_step=watch, cancel=cancel, num_previews=num_previews, placement=placement)
        )
        if on_result:
            on_result(position, results[-1])
    return results
