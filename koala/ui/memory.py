"""After a run that ended with an error: where memory was the reason, it goes back, and the error says what helps."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from koala.registry import find
from koala.request import GenerationRequest
from koala.shortage import explained, ran_out, release

if TYPE_CHECKING:
    from koala.loading import Library

log = logging.getLogger(__name__)


def told(error: Exception, requests: Sequence[GenerationRequest], library: "Library | None") -> Exception:
    """The error, or for one of memory a RequestError, after all that the run held was freed; models stay loaded."""
    if library is None or not ran_out(error):
        return error
    from koala.device import device_memory, give_back
    from koala.generate import resolve

    log.warning("memory ran out: %s", str(error))  # the error itself would hold the run
    there = device_memory(library.device)
    release(error)
    with library.residence.lock:
        library.residence.bring(())
    library.embeddings.clear()
    give_back()
    requests = [resolve(r, find(r.model)) for r in requests]
    predicted = None
    if all(library.loaded(r.model) for r in requests):
        plan = library.place([library.get(r.model) for r in requests], requests).plan
        predicted = plan and plan.predicted_peak_bytes
    return explained(error, requests[0], device=library.device.type, predicted=predicted, there=there)
