"""Who asks, and each visitor's share of a public app, so that one alone cannot keep the others out."""

import os
from contextlib import AbstractContextManager

from gradio.context import LocalContext
from gradio.queueing import Queue

from koala.ui.line import MOST, TOO_MANY, Line


def visitor(request, username: str | None) -> str:
    """Who asks: the name that came with a password, or the address.

    On a Space every address is its proxy's, and what that forwards can be forged: nobody is taken for another there,
    but whoever wants to can be many.
    """
    forwarded = request.headers.get("x-forwarded-for") if os.environ.get("SYSTEM") == "spaces" else None
    return username or forwarded or (request.client.host if request.client else "")


class Share:
    """Each visitor's share of a public app: what they ask for beyond it is refused, in the line, in Gradio's queue and
    beside both."""

    def __init__(self, queue: Queue, line: Line):
        self._queue, self._push, self._line = queue, queue.push, line
        queue.push = self._pushed
        line.share, line.elsewhere = MOST, self._queued

    def who(self, request) -> str:
        """The visitor that sent a request."""
        return visitor(request, _username(request))

    def beside(self, request) -> AbstractContextManager[None]:
        """Meanwhile the visitor has a request that needs no device; UserError beyond their share."""
        return self._line.beside(self.who(request))

    async def _pushed(self, body, request, username):
        """The queue's own `push`; events that nobody waits behind are free, as the line counts those that draw."""
        asked = self._queue.blocks.fns.get(body.fn_index)
        if asked and asked.concurrency_limit is not None and self._used_up(visitor(request, username)):
            return False, TOO_MANY, "error"
        return await self._push(body=body, request=request, username=username)

    def _used_up(self, who: str) -> bool:
        return self._queued(who) + self._line.of(who) >= MOST

    def _queued(self, who: str) -> int:
        """Events of this visitor that wait or run in Gradio's queue, where others wait behind them."""
        return sum(
            event.fn.concurrency_limit is not None and visitor(event.request, event.username) == who
            for event in list(self._queue.event_ids_to_events.values())
        )


def _username(request) -> str | None:
    """Who said a password: Gradio keeps the name under a token that it gave the browser as a cookie."""
    return next((request.app.tokens[c] for c in request.cookies.values() if c in request.app.tokens), None)


def listens() -> bool:
    """Whether the client that called this endpoint still waits for its answer; to be asked within the call alone."""
    blocks, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or event is None:
        return True  # called by no client
    found = blocks._queue.event_ids_to_events.get(event)
    return found is not None and found.alive
