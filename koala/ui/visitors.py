"""Who asks, and each visitor's share of a public app, so that one alone cannot keep the others out."""

import os
from contextlib import AbstractContextManager

from gradio.context import LocalContext
from gradio.queueing import Queue

from koala.ui.line import MOST, TOO_MANY, Line


def visitor(request, username: str | None) -> str:
    """Who asks: the name that came with a password, or the address.

    On a Space every address is the proxy's, and the forwarded address can be forged: no visitor is mistaken for another
    there, but one can pose as many.
    """
    forwarded = request.headers.get("x-forwarded-for") if os.environ.get("SYSTEM") == "spaces" else None
    return username or forwarded or (request.client.host if request.client else "")


class Share:
    """Each visitor's share of a public app. Requests beyond it are refused: in the line, in Gradio's queue and outside
    both."""

    def __init__(self, queue: Queue, line: Line):
        self._queue, self._push, self._line = queue, queue.push, line
        queue.push = self._pushed
        line.share, line.elsewhere = MOST, self._queued

    def who(self, request) -> str:
        """The visitor that sent a request."""
        return visitor(request, _username(request))

    def without_device(self, request) -> AbstractContextManager[None]:
        """Count a request that needs no device within the context; UserError beyond the visitor's share."""
        return self._line.without_device(self.who(request))

    async def _pushed(self, body, request, username):
        """The queue's own `push`. Events without a concurrency limit are free: the line counts those that draw."""
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
    """The user who logged in: Gradio keeps the name under a token that it gave the browser as a cookie."""
    return next((request.app.tokens[c] for c in request.cookies.values() if c in request.app.tokens), None)


def listens() -> bool:
    """Whether the client that called this endpoint still waits for its answer; only valid within the call."""
    blocks, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or event is None:
        return True  # not called by a client
    called = blocks._queue.event_ids_to_events.get(event)
    return called is not None and called.alive
