"""After a run that failed: if memory ran out, it is freed, and the error says what helps."""

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from koala.hardware.shortage import explained, ran_out, release
from koala.models.cards import ModelCard
from koala.models.registry import find
from koala.request import GenerationRequest

if TYPE_CHECKING:
    from koala.models.library import Library

log = logging.getLogger(__name__)


@contextmanager
def advising(requests: Sequence[GenerationRequest], library: "Library") -> Iterator[None]:
    """Raise the errors of a run as `with_advice` explains them."""
    try:
        yield
    except Exception as error:
        better = with_advice(error, requests, library)
        if better is error:
            raise
        failure = better
    else:
        return
    raise failure  # raised here, where it holds no reference to the run


def with_advice(
    error: Exception,
    requests: Sequence[GenerationRequest],
    library: "Library | None",
    cards: Sequence[ModelCard] | None = None,
) -> Exception:
    """The error itself, or RanOut if memory ran out, once all that the run held is freed; models stay loaded.

    `cards` are those of the requests' models; without them the names are looked up.
    """
    if library is None or not ran_out(error):
        return error
    from koala.hardware.device import device_memory, give_back
    from koala.sampling.generate import resolve

    log.warning("memory ran out: %s", str(error))  # the error itself would hold the run
    where = "".join(traceback.format_exception(error))
    free = device_memory(library.device)
    release(error)
    with library.residence.lock:
        library.residence.bring(())
    library.embeddings.clear()
    give_back()
    cards = cards or [find(r.model) for r in requests]
    requests = [resolve(request, card) for request, card in zip(requests, cards, strict=True)]
    predicted = None
    if all(library.loaded(card.name) for card in cards):
        plan = library.place([library.get(card) for card in cards], requests).plan
        predicted = plan and plan.predicted_peak_bytes
    explanation = explained(error, requests[0], device=library.device.type, predicted=predicted, there=free)
    explanation.add_note(where)
    return explanation
