"""The largest body of a request, counted while it arrives, before it is parsed."""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koala.ui.gate.refusal import UPLOAD, path_of, refused

LIMIT = 10**6  # bytes; the page's own requests are a few kilobytes
SECONDS = 30.0  # for the whole body
LINGER = 5.0  # s to read on in a body that is too large, so that its sender gets the answer, not a broken pipe
BODILESS = ("GET", "HEAD", "OPTIONS")
TOO_LARGE = f"a request to this app may have {LIMIT / 1e6:g} MB; send files to {UPLOAD} and ask for less at a time"
TOO_SLOW = f"the request did not come within {SECONDS:g} s; send it again"


async def read(receive: Receive, limit: int) -> bytes | None:
    """The body; None if it is longer than `limit`. ConnectionError if the sender disconnects."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def drop(receive: Receive, seconds: float = LINGER) -> None:
    """Read the rest of a body and discard it."""

    async def rest() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), seconds)


def replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


class BodyLimit:
    """ASGI middleware: 413 for a body above `limit` bytes and 408 for one that takes longer than `seconds`.

    Uploads have limits of their own, see `uploads`.
    """

    def __init__(self, app: ASGIApp, limit: int = LIMIT, seconds: float = SECONDS):
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS or path_of(scope) == UPLOAD:
            return await self.app(scope, receive, send)
        try:
            body = None
            if int(Headers(scope=scope).get("content-length", 0)) <= self.limit:
                body = await asyncio.wait_for(read(receive, self.limit), self.seconds)
        except asyncio.TimeoutError:
            return await refused(scope, 408, TOO_SLOW)(scope, receive, send)
        except ConnectionError:
            return None
        if body is None:
            await drop(receive)
            return await refused(scope, 413, TOO_LARGE)(scope, receive, send)
        return await self.app(scope, replayed(body, receive), send)
