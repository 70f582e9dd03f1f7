"""Limits of uploads: files at once, and bytes of one visitor in a day. Interrupted uploads are removed.

Gradio's own parser only counts the bytes of each file, and keeps a partial file whose sender disconnected.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from gradio import route_utils, routes
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koala.ui.gate.refusal import UPLOAD, path_of
from koala.ui.limits import PUBLIC_UPLOAD
from koala.ui.sessions import visiting

FILES = 4  # in one request; no drop zone takes more than one
DAY = 25 * 3600.0  # s after which Gradio has deleted a file
SECONDS = 3600.0  # for one upload
SMALLEST = 10**5  # bytes that every upload counts in addition: its file, its folder, and what is recorded of it
TRACKED = 1000  # uploads whose progress Gradio keeps
GONE = "the upload was interrupted; send the file again"
SLOW = f"the upload did not come within {SECONDS / 60:g} minutes; send the file again"

_made: ContextVar[list[str] | None] = ContextVar("made", default=None)  # this upload's temporary files


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Bytes that may be uploaded in a day: by one visitor, and by all."""

    each: float = float("inf")
    all: float = float("inf")

    @classmethod
    def of(cls, *, local: bool) -> "Allowance":
        """That of an app. A local user can fill the disk by other means anyway."""
        return cls() if local else cls(each=10 * PUBLIC_UPLOAD * 10**6, all=2 * 10**9)


class Ledger:
    """Bytes uploaded within a day, by visitor."""

    def __init__(self, allowance: Allowance):
        self.allowance = allowance
        self._kept: deque[tuple[float, str, int]] = deque()  # the oldest first
        self._by: Counter[str] = Counter()

    def take(self, who: str, size: int) -> None:
        """Count `size` more bytes; MultiPartException beyond the allowance."""
        while self._kept and self._kept[0][0] < time.monotonic() - DAY:
            self.give_back(*self._kept.popleft()[1:])
        for used, most, whose in (
            (self._by[who], self.allowance.each, "one visitor"),
            (self._by.total(), self.allowance.all, "all visitors together"),
        ):
            if used + size > most:
                raise MultiPartException(
                    f"the maximum allowed size of uploads in a day is {most / 1e6:g} MB for {whose}, and it is used "
                    "up; come back tomorrow, or start the app on your own machine"
                )
        self._by[who] += size

    def give_back(self, who: str, size: int) -> None:
        """Forget `size` bytes of a visitor."""
        self._by[who] -= size
        self._by += Counter()

    def keep(self, who: str, size: int) -> None:
        """Bytes that were taken are on disk, for a day."""
        self._kept.append((time.monotonic(), who, size))


class Uploads:
    """ASGI middleware around Gradio's upload: counts its bytes and files, and removes interrupted uploads."""

    def __init__(self, app: ASGIApp, ledger: Ledger, seconds: float = SECONDS):
        self.app, self.ledger, self.seconds = app, ledger, seconds
        route_utils.NamedTemporaryFile = _remembered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or path_of(scope) != UPLOAD:
            return await self.app(scope, receive, send)
        who, status = visiting.get() or "", [0]
        upload = Taken(self.ledger, who, receive, self.seconds)

        async def answered(message: Message) -> None:
            status[0] = message.get("status", status[0])
            await send(message)

        try:
            with _only_finished():
                await self.app(scope, upload.receive, answered)
        finally:
            upload.settle(kept=status[0] == 200)
            _forget_progress()


class Taken:
    """One upload while it arrives. It fails like Gradio's parser, which then closes and removes its files."""

    def __init__(self, ledger: Ledger, who: str, receive: Receive, seconds: float):
        self._ledger, self._who, self._receive = ledger, who, receive
        self._until, self._size, self._whole = time.monotonic() + seconds, 0, False

    async def receive(self) -> Message:
        """The next chunk; MultiPartException if none arrives or the allowance is used up."""
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except asyncio.TimeoutError:
            raise MultiPartException(SLOW) from None
        if message["type"] == "http.disconnect":
            raise MultiPartException(GONE)
        size = len(message.get("body", b"")) + (0 if self._size else SMALLEST)
        self._ledger.take(self._who, size)
        self._size += size
        self._whole = not message.get("more_body")
        return message

    def settle(self, *, kept: bool) -> None:
        """The upload ended; from now on only what is on disk counts."""
        if kept:
            self._ledger.keep(self._who, self._size)
        else:
            self._ledger.give_back(self._who, self._size)


@contextmanager
def _only_finished() -> Iterator[None]:
    """Remove the temporary files that Gradio makes within the context and does not move to their place."""
    files: list[str] = []
    token = _made.set(files)
    try:
        yield
    finally:
        _made.reset(token)
        for name in files:
            Path(name).unlink(missing_ok=True)


def _remembered(*args, **options):
    """A temporary file of Gradio's multipart parser."""
    files = _made.get()
    if files is not None and len(files) >= FILES:
        raise MultiPartException(f"one upload may have {FILES} files; send the others after these")
    file = NamedTemporaryFile(*args, **options)  # noqa: SIM115 (the parser closes it)
    if files is not None:
        files.append(file.name)
    return file


def _forget_progress() -> None:
    """Gradio keeps the progress of every upload, and of every one that was queried; drop the oldest."""
    statuses = routes.file_upload_statuses
    for tracked in (statuses._signals, statuses._statuses):
        for oldest in list(tracked)[:-TRACKED]:
            tracked.pop(oldest, None)
