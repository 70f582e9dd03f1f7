"""What a request may ask of Gradio, checked before Gradio handles it: open paths, and the form of a body.

Gradio answers a body that it does not expect with status 500 and a traceback.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from gradio.block_function import BlockFunction
from gradio.blocks import Blocks
from gradio.queueing import Queue
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koala.ui.gate.body_limit import BODILESS, LIMIT, read, replayed
from koala.ui.gate.refusal import UPLOAD, invalid, path_of, refused
from koala.ui.messages import safe
from koala.ui.visitors import _username

API = "/gradio_api"
RUN = "/gradio_api/run/"  # events that do not wait in the queue
CLOSED = (  # the parts of Gradio that this app does not use
    "/gradio_api/api",
    "/gradio_api/stream",
    "/gradio_api/proxy=",
    "/gradio_api/deep_link",
    "/gradio_api/dev",
    "/gradio_api/process_recording",
    "/gradio_api/vibe",
    "/gradio_api/undo-vibe",
    "/monitoring",
)
UNASKED = ("/gradio_api/reset", "/gradio_api/cancel")  # Gradio needs no password for these
DEEPEST = 64  # brackets within brackets; the page's own requests have ten
MOST = 50_000  # values of one body, which Gradio copies one by one
SESSION = re.compile(r"[A-Za-z0-9._-]{1,100}")
NOT_FOUND = {"msg": "unexpected_error", "success": False, "session_not_found": True}
_RESULT = re.compile(API + r"/call/(?:v2/)?[^/]+/([^/]+)")
_CALL = re.compile(API + r"/call/(v2/)?([^/]+)")


class Unfit(Exception):
    """Why a body is refused, in a sentence; `parameter` is the field at fault."""

    def __init__(self, sentence: str, parameter: str = "data", status: int = 422):
        super().__init__(sentence)
        self.parameter, self.status = parameter, status


def parse(body: bytes) -> Any:
    """JSON of a bounded depth and number of values; Unfit for anything else."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST:
        raise Unfit(f"a body may hold {MOST:,} values; send fewer at a time", status=413)
    try:
        value = json.loads(body, parse_float=_finite, parse_constant=_finite)
        if b"\\ud" in body.lower():  # half of a character, which cannot be encoded again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise Unfit(f"the body is nested deeper than {DEEPEST} brackets") from None
    except ValueError as error:
        raise Unfit(f"the body is not JSON ({error})") from None
    inside = [value]
    for _ in range(DEEPEST):
        inside = [child for part in inside for child in _inside(part)]
        if not inside:
            return value
    raise Unfit(f"the body is nested deeper than {DEEPEST} brackets")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _inside(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def check(blocks: Blocks, endpoints: dict[str, dict], path: str, body: Any) -> None:
    """Unfit for a body that does not fit its path; `endpoints` are the public ones by path."""
    if not isinstance(body, dict):
        raise Unfit(f"the body must be a JSON object, not {_kind(body)}")
    if call := _CALL.fullmatch(path):
        if f"/{call[2]}" not in endpoints:
            raise Unfit(f"there is no endpoint /{call[2][:60]}; there are {', '.join(endpoints)}", status=404)
        (_named if call[1] else _listed)(call[2], endpoints[f"/{call[2]}"]["parameters"], body)
    elif path == f"{API}/queue/join" or path.startswith(RUN):
        _joined(blocks, body)
    elif path == f"{API}/component_server":
        _served(blocks, body)


def _named(name: str, parameters: list[dict], body: dict) -> None:
    """A call with its values by name."""
    known = [p["parameter_name"] for p in parameters]
    for key in body:
        if key not in known:
            raise Unfit(f"/{name} has no parameter {key[:60]!r}; it takes {', '.join(known)}", key[:60])
    for p in parameters:
        if not p["parameter_has_default"] and p["parameter_name"] not in body:
            raise Unfit(f"/{name} needs a value for {p['parameter_name']!r}; it takes {', '.join(known)}", "data")


def _listed(name: str, parameters: list[dict], body: dict) -> None:
    """A call with all its values in a list."""
    known = ", ".join(p["parameter_name"] for p in parameters)
    if not isinstance(body.get("data"), list) or len(body["data"]) != len(parameters):
        raise Unfit(
            f"/{name} takes a list `data` of {len(parameters)} values ({known}); {API}/call/v2/{name} takes names"
        )
    if body.get("session_hash") is not None:
        _session(body)


def _joined(blocks: Blocks, body: dict) -> None:
    """An event of the page."""
    _session(body)
    index = body.get("fn_index")
    if not _whole(index) or index not in blocks.fns or blocks.fns[index].fn is None:
        raise Unfit("fn_index is not an event of this page; reload it", "fn_index")
    function: BlockFunction = blocks.fns[index]
    if not isinstance(body.get("data"), list) or len(body["data"]) != len(function.inputs):
        raise Unfit(f"this event takes a list `data` of {len(function.inputs)} values; reload the page")
    if body.get("trigger_id") is not None and not _whole(body["trigger_id"]):
        raise Unfit("trigger_id is not a part of this page; reload it", "trigger_id")
    if body.get("batched") or body.get("event_id") is not None:
        raise Unfit("batched and event_id are not allowed here; leave them out", "batched")


def _served(blocks: Blocks, body: dict) -> None:
    """A call of a function of one of the page's components."""
    _session(body)
    part, name = body.get("component_id"), body.get("fn_name")
    if not _whole(part) or part not in blocks.blocks:
        raise Unfit("component_id is not a part of this page; reload it", "component_id")
    if not isinstance(name, str) or not getattr(getattr(blocks.blocks[part], name, None), "_is_server_fn", False):
        raise Unfit("fn_name is not a function of this part of the page; reload it", "fn_name")
    if "data" not in body:
        raise Unfit("data is missing")


def unheard(queue: Queue, scope: Scope) -> str:
    """The event stream for a reader whose session the server has forgotten; empty for any other request."""
    path, words = path_of(scope), "this session is no longer kept; send the request again"
    if path == f"{API}/queue/data":
        session = Request(scope).query_params.get("session_hash")
        if session is not None and session not in queue.pending_messages_per_session:
            return f"data: {json.dumps(NOT_FOUND | {'message': words})}\n\n"
    elif call := _RESULT.fullmatch(path):
        known = call[1] in queue.event_ids_to_events or call[1] in queue.pending_messages_per_session
        if not known and not any(call[1] in ids for ids in list(queue.pending_event_ids_session.values())):
            return f"event: error\ndata: {json.dumps(words)}\n\n"
    return ""


def _session(body: dict) -> None:
    session = body.get("session_hash")
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise Unfit("session_hash must be up to 100 letters, digits and dashes", "session_hash")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return {list: "an array", str: "text", type(None): "null", bool: "a truth value"}.get(type(value), "a number")


class Calls:
    """ASGI middleware: refuses closed paths, and bodies that do not pass `check`. BodyLimit comes before it."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self._endpoints: dict[str, dict] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = path_of(scope)
        if path.startswith(CLOSED):
            return await refused(scope, 404, "this app has nothing at this address")(scope, receive, send)
        blocks: Blocks = scope["app"].get_blocks()
        known = scope["app"].auth is None or _username(Request(scope)) is not None
        if scope["method"] in BODILESS and known and (stream := unheard(blocks._queue, scope)):
            return await Response(stream, media_type="text/event-stream")(scope, receive, send)
        if scope["method"] in BODILESS or path == UPLOAD or not path.startswith(API):
            return await self._stream(scope, receive, send)
        if not known and path not in UNASKED:
            return await refused(scope, 401, "this app asks for a password; log in first")(scope, receive, send)
        self._endpoints = self._endpoints or blocks.get_api_info()["named_endpoints"]
        try:
            if Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise Unfit("send JSON, with the header Content-Type: application/json", status=415)
            body = await read(receive, LIMIT)
            check(blocks, self._endpoints, path, parse(body))
        except Unfit as error:
            return await _answer(scope, error)(scope, receive, send)
        return await self.app(scope, replayed(body, receive), _no_fault(send) if path.startswith(RUN) else send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An answer that may take long. If its session is forgotten meanwhile, Gradio reports that and raises."""
        try:
            await self.app(scope, receive, send)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b""})


def _no_fault(send: Send) -> Send:
    """A refused event outside the queue is the client's fault, a 400; Gradio answers 500."""

    async def sent(message: Message) -> None:
        await send(message | {"status": 400} if message.get("status") == 500 else message)

    return sent


def _answer(scope: Scope, error: Unfit) -> Response:
    sentence = safe(str(error))
    return invalid(sentence, error.parameter) if error.status == 422 else refused(scope, error.status, sentence)
