"""Hugging Face's ZeroGPU: a GPU is lent for one run at a time, to a fork of this process.

Everything between the processes is pickled, so a run is a generator of events without locks, threads or callbacks:
`events` is that generator, in the fork; `drawing` turns it back into a `draw` of `Device.run`. torch is not imported.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import gradio as gr

from koala.errors import Cancelled, UserError
from koala.hardware.latency import GPUS, predict
from koala.models.cards import CARDS
from koala.request import GenerationRequest
from koala.ui.messages import readable

if TYPE_CHECKING:
    from koala.models.library import Library

HEARTBEAT = 0.5  # s between events of a run without news: a stop is noticed at the next event
START = 8  # s to fork and to move the weights to the GPU
SPARE = 1.4  # of the predicted time
LEAST, MOST = 10, 110  # s; about 120 is what a visitor without an account may ask for
# Half of an RTX PRO 6000 Blackwell is lent; no figure of SDXL on it is published, and its compute lies near this one's.
HARDWARE = GPUS["rtx-4090"]

# Title of a refusal -> what it means and what to do. The titles are those of the package `spaces` 0.51.
REFUSALS = {
    "ZeroGPU quota exceeded": (
        "your share of free GPU time on Hugging Face is used up, or too small for this request. Sign in for a larger "
        "share, ask for fewer steps or a smaller picture, choose the embedded models, or come back tomorrow"
    ),
    "ZeroGPU illegal duration": (
        "this request would take longer than a visitor may have the GPU. Ask for fewer steps, fewer pictures, a "
        "smaller size or a single model"
    ),
    "ZeroGPU queue timeout": (
        "every GPU was busy for a minute, so this request left the queue. Try again in a moment; visitors who are "
        "signed in, and shorter requests, come first"
    ),
    "ZeroGPU pending credits exceeded": (
        "runs of yours that are still under way have reserved all your GPU time. Wait until they have ended, or stop "
        "them, and try again"
    ),
    "ZeroGPU worker error": (
        "the process that had the GPU ended before the picture was done: its time was up, or its memory full. Ask "
        "for fewer steps or a smaller picture, and try again"
    ),
    "ZeroGPU client error": (
        "Hugging Face gave this Space no GPU at the moment. Reload the page and try again; if it happens again, see "
        "status.huggingface.co"
    ),
}


def seconds(requests: Sequence[GenerationRequest], *_, **__) -> int:
    """GPU seconds to ask for: predicted from models, sizes, steps and pictures, with the warm-up and a reserve."""
    predicted = 0.0
    for request in requests:
        card = CARDS[request.model]
        guidance = card.guidance if request.guidance is None else request.guidance
        settings = {
            "width": request.width or card.width,
            "height": request.height or card.height,
            "images": request.images,
            "guided": guidance > 1,
            "preset": request.preset,
        }
        steps = (request.steps or card.steps, 2)  # the run and its warm-up
        predicted += sum(predict(card.spec, HARDWARE, steps=s, **settings).total_ms / 1000 for s in steps)
    return min(max(round(START + SPARE * predicted), LEAST), MOST)


def explained(refusal: gr.Error) -> UserError:
    """A refusal of ZeroGPU in plain words; an unknown one keeps its own."""
    words = REFUSALS.get(refusal.title)
    return UserError(f"{words} ({refusal.title})" if words else f"{refusal.title}: {refusal.message}")


def events(requests: Sequence[GenerationRequest], draw: Callable, library: "Library") -> Iterator[tuple | None]:
    """A run as ("step" | "result", position, what), with None while nothing happens; an error is ("error", 0, it).

    Closing it stops the run within one step.
    """
    happened: queue.Queue = queue.Queue()
    cancel = threading.Event()

    def work() -> None:
        try:
            draw(
                requests,
                library,
                on_step=lambda position, step: happened.put(("step", position, step)),
                on_result=lambda position, result: happened.put(("result", position, result)),
                cancel=cancel,
            )
            happened.put(("end", 0, None))
        except Exception as error:  # as words: not every exception can be pickled
            happened.put(("error", 0, UserError(readable(error))))

    worker = threading.Thread(target=work, name="koala-zerogpu", daemon=True)
    worker.start()
    try:
        while True:
            try:
                event = happened.get(timeout=HEARTBEAT)
            except queue.Empty:
                yield None
                continue
            if event[0] == "end":
                return
            yield event
    finally:
        cancel.set()
        worker.join()


def drawing(lent: Callable, draw: Callable) -> Callable:
    """`draw` of `Device.run`, done by `lent(requests, draw)`: a generator of events that has a GPU."""

    def drawn(requests, library, *, cards, on_step, on_result, cancel) -> None:
        try:
            with closing(lent(requests, partial(draw, cards=cards))) as happened:
                for event in happened:
                    if cancel.is_set():
                        raise Cancelled
                    match event:
                        case ("step", position, step):
                            on_step(position, step)
                        case ("result", position, result):
                            on_result(position, result)
                        case ("error", _, error):
                            raise error
        except gr.Error as refusal:
            raise explained(refusal) from refusal

    return drawn
