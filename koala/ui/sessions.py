"""A bound on what the server keeps of each open page: Gradio's session states, messages and events.

Gradio drops the oldest state once there are too many, and does not call its `delete_callback`. Here closed pages go
before open ones, every callback is called, and no visitor takes the room of the others.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import datetime, timedelta

import gradio as gr
from gradio.blocks import Blocks
from gradio.queueing import Event, Queue
from gradio.routes import App
from gradio.server_messages import EventMessage
from gradio.state_holder import SessionState, StateHolder
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from koala.ui.visitors import _username, visitor

log = logging.getLogger(__name__)

CAPACITY = 500  # sessions of all visitors; each has some kilobytes, and what its states hold
EACH = 20  # of one visitor
UNREAD = 500  # messages of one session; with more than that its page no longer listens
LEFT = timedelta(hours=1)  # how long a closed page may come back to its state
EVENTS = 100  # that Gradio keeps for statistics, which this app does not show
_HEARTBEAT = "/gradio_api/heartbeat/"

visiting: ContextVar[str | None] = ContextVar("visiting", default=None)  # who sent the current request


class State(SessionState):
    """One session's state without Gradio's copy of the whole page and of every value that it sent, 0.4 MB and more.

    Only deep links read that copy, and this app has none.
    """

    def __init__(self, blocks: Blocks):
        self.blocks_config = copy(blocks.default_config)
        self.config_values: dict[int, dict] = {}
        self.state_data: dict[int, object] = {}
        self._state_ttl: dict[int, tuple] = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = LEFT.total_seconds()

    def __setitem__(self, key: int, value: object) -> None:
        if isinstance(block := self.blocks_config.blocks.get(key), gr.State):
            self._state_ttl[key] = block.time_to_live, datetime.now()
            self.state_data[key] = value
        else:
            self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        """Do nothing: there is no copy."""

    def _update_value_in_config(self, key: int, value: object) -> None:
        """Do nothing: there is no copy."""


class Sessions(StateHolder):
    """Gradio's holder of states, with `capacity` sessions of all and `each` of one visitor. One event loop uses it."""

    def __init__(self, capacity: int = CAPACITY, each: int = EACH):
        super().__init__()
        self.most, self.each = capacity, each
        self._owners: dict[str, str] = {}
        self._open: Counter[str] = Counter()  # heartbeats, by session

    def __getitem__(self, session: str) -> State:
        if session not in self.session_data:
            owner = self._owner(session)
            self._make_room(owner)
            self.session_data[session], self._owners[session] = State(self.blocks), owner
        self.session_data.move_to_end(session)
        self.time_last_used[session] = datetime.now()
        return self.session_data[session]

    def update(self, session_id: str) -> None:
        """Do nothing: `__getitem__` keeps the order and makes room."""

    @contextmanager
    def visit(self, session: str) -> Iterator[None]:
        """The page of this session is open within the context."""
        self._open[session] += 1
        self._mark(session)
        try:
            yield
        finally:
            self._open[session] -= 1
            self._open += Counter()
            self._mark(session)

    def delete_all_expired_state(self) -> None:
        """Forget the sessions whose page was closed an hour ago. Gradio calls this every second."""
        past = datetime.now() - LEFT
        for session in [s for s in self.session_data if not self._open[s] and self.time_last_used[s] < past]:
            if session not in self._busy():
                self._evict(session)

    def _mark(self, session: str) -> None:
        if session in self.session_data:
            self.session_data[session].is_closed = not self._open[session]

    def _owner(self, session: str) -> str:
        """The visitor of a new session. The session of an API call is made when it runs, outside any request."""
        events = list(self.blocks._queue.event_ids_to_events.values())
        for event in events:
            if event.session_hash == session:
                return visitor(event.request, event.username)
        return visiting.get() or ""

    def _busy(self) -> set[str]:
        return {event.session_hash for event in list(self.blocks._queue.event_ids_to_events.values())}

    def _make_room(self, owner: str) -> None:
        """For one more session: this visitor's own go first, then any. Sessions with a run in progress stay."""
        owned = Counter(self._owners.values())
        if owned[owner] < self.each and len(self.session_data) < self.most:
            return
        busy = self._busy()

        def rank(session: str) -> tuple[bool, int]:
            return self._open[session] > 0, -owned[self._owners[session]]

        idle = [s for s in self.session_data if s not in busy]  # least recently used first, which `sorted` keeps
        going = sorted((s for s in idle if self._owners[s] == owner), key=rank)[: max(0, owned[owner] + 1 - self.each)]
        for session in going:
            self._evict(session)
        going = sorted((s for s in idle if s in self.session_data), key=rank)
        for session in going[: max(0, len(self.session_data) + 1 - self.most)]:
            self._evict(session)
        self._forget_strays(busy)

    def _evict(self, session: str) -> None:
        """Forget all of a session and call the `delete_callback` of its states."""
        try:
            self.delete_state(session)
        except Exception:
            log.exception("the state of a session could not be deleted")
        for table in (self.session_data, self._owners, self.time_last_used):
            table.pop(session, None)
        queue = self.blocks._queue
        for table in (queue.pending_messages_per_session, queue.pending_event_ids_session):
            table.pop(session, None)
        for table in (self.blocks.pending_streams, self.blocks.pending_diff_streams):
            table.pop(session, None)

    def _forget_strays(self, busy: set[str]) -> None:
        """Forget what the queue keeps of sessions without a state: calls that were cancelled while they waited."""
        queue = self.blocks._queue
        for table in (queue.pending_messages_per_session, queue.pending_event_ids_session):
            for session in [s for s in table if s not in self.session_data and s not in busy]:
                del table[session]

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Keep the states of this app here while it runs."""
        app.state_holder = self
        self.set_blocks(app.get_blocks())
        yield


def bound(demo: Blocks) -> None:
    """Bound what the queue keeps: unread messages, and Gradio's own statistics."""
    queue: Queue = demo._queue
    queue.ANALYTICS_MAX_EVENTS, queue.ANAYLTICS_CACHE_FREQUENCY = EVENTS, 10**9
    send = queue.send_message

    def sent(event: Event, event_message: EventMessage) -> None:
        unread = queue.pending_messages_per_session.get(event.session_hash)
        if unread is None or unread.qsize() >= UNREAD:
            event.alive = False  # the run ends at its next step
        else:
            send(event, event_message)

    queue.send_message = sent


class Visits:
    """ASGI middleware: records who asks, and in `sessions` which pages are open."""

    def __init__(self, app: ASGIApp, sessions: Sessions):
        self.app, self.sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        token = visiting.set(visitor(request, _username(request)))
        try:
            if scope["path"].startswith(_HEARTBEAT):
                with self.sessions.visit(scope["path"].removeprefix(_HEARTBEAT)):
                    return await self.app(scope, receive, send)
            return await self.app(scope, receive, send)
        finally:
            visiting.reset(token)
