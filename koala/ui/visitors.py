"""Each visitor's share of a public app, in its queue and beside it, so that one alone cannot keep the others out."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gradio.queueing import Queue

from koala.request import RequestError

MOST = 4  # requests of one visitor that wait or run; the queue has five times as many places
TOO_MANY = (
    f"you have {MOST} requests here that wait or run, the most that this public server takes of one visitor; "
    "wait until one of them is done, or stop it"
)


def visitor(request, username: str | None) -> str:
    """Who asks: the name that came with a password, or the address.

    On a Space every address is its proxy's, and what that forwards can be forged: nobody is taken for another there,
    but whoever wants to can be many.
    """
    forwarded = request.headers.get("x-forwarded-for") if os.environ.get("SYSTEM") == "spaces" else None
    return username or forwarded or (request.client.host if request.client else "")


class Share:
    """Each visitor's share of a public app: what they ask for beyond it is refused, in the queue and beside it."""

    def __init__(self, queue: Queue):
        self._queue, self._push = queue, queue.push
        self._beside: Counter[str] = Counter()  # what runs outside the queue, by visitor
        self._lock = threading.Lock()
        queue.push = self._pushed

    @contextmanager
    def beside(self, request) -> Iterator[None]:
        """Meanwhile the visitor has a request of which the queue does not know; RequestError beyond their share."""
        who = visitor(request, _username(request))
        with self._lock:
            if self._used_up(who):
                raise RequestError(TOO_MANY)
            self._beside[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._beside[who] -= 1
                self._beside += Counter()  # forgets who has nothing left

    async def _pushed(self, body, request, username):
        """The queue's own `push`; events that nobody waits behind are free."""
        asked = self._queue.blocks.fns.get(body.fn_index)
        if asked and asked.concurrency_limit is not None and self._used_up(visitor(request, username)):
            return False, TOO_MANY, "error"
        return await self._push(body=body, request=request, username=username)

    def _used_up(self, who: str) -> bool:
        queued = sum(
            event.fn.concurrency_limit is not None and visitor(event.request, event.username) == who
            for event in list(self._queue.event_ids_to_events.values())
        )
        return queued + self._beside[who] >= MOST


def _username(request) -> str | None:
    """Who said a password: Gradio keeps the name under a token that it gave the browser as a cookie."""
    return next((request.app.tokens[c] for c in request.cookies.values() if c in request.app.tokens), None)
