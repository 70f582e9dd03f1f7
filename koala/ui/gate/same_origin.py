"""Only the app's own page may use the app: no page of another site, and no host name that another site points here.

A browser states in `Sec-Fetch-Site`, `Origin` and `Host` where a request comes from, and no page can change them. Other
clients send only `Host`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koala.errors import UserError
from koala.ui.gate.refusal import path_of, refused

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WILDCARDS = ("0.0.0.0", "::")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.I)
_DEFAULT_PORT = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A host as a browser names it; without a port where none was given."""

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Authority | None":
        """From `NAME`, `NAME:PORT` or `[IPv6]:PORT`; None for anything else."""
        match = _AUTHORITY.fullmatch(text)
        return cls(name=match[1].lower(), port=int(match[2]) if match[2] else None) if match else None

    def at(self, scheme: str) -> tuple[str, int]:
        """Name and port, the scheme's own port where none was given."""
        return self.name, self.port or _DEFAULT_PORT[scheme]

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which host names the app answers to: `own` at its own port, `allowed` from --allow-host; without both, any.

    With `exact` the scheme of an Origin must match, too. Behind a proxy the app does not know it.
    """

    own: tuple[Authority, ...] = ()
    allowed: tuple[Authority, ...] = ()
    exact: bool = True

    @classmethod
    def of(cls, host: str, allow: Sequence[str], *, local: bool) -> "Rules":
        """For an app that listens on `host`. UserError for an invalid --allow-host."""
        allowed = []
        for text in allow:
            if (authority := Authority.parse(text)) is None:
                raise UserError(f"--allow-host takes NAME or NAME:PORT, such as koala.example:7860, not {text!r}")
            allowed.append(authority)
        if not local and not allowed:
            return cls(exact=False)
        names = dict.fromkeys((*LOOPBACK, *([] if host.strip("[]") in WILDCARDS else [bracketed(host)])))
        return cls(own=tuple(Authority(name=n) for n in names), allowed=tuple(allowed), exact=local)

    def answers_to(self, host: Authority, scheme: str, port: int) -> bool:
        """Whether the app answers to this host; `port` is the one that it listens on."""
        if not self.own:
            return True
        name, asked = host.at(scheme)
        if any(name == own.name and asked == port for own in self.own):
            return True
        return any(
            name == other.name and (asked == other.port if other.port else asked == port or host.port is None)
            for other in self.allowed
        )


def bracketed(host: str) -> str:
    """A host as in a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def complaint(scope: Scope, rules: Rules) -> str | None:
    """Why this request is refused; None if it is not."""
    headers, scheme = Headers(scope=scope), scope["scheme"]
    given = headers.getlist("host")
    host = Authority.parse(given[0]) if len(given) == 1 else None
    if host is None:
        return "a request to this app needs one Host header, such as localhost:7860"
    port = scope["server"][1]
    if not rules.answers_to(host, scheme, port):
        names = ", ".join([*(f"{own}:{port}" for own in rules.own), *map(str, rules.allowed)])
        return (
            f"this app answers to {names}, not to {host}; if that name is yours, start the app with --allow-host {host}"
        )
    site = headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none") and not _page_load(scope, headers):
        return f"this app answers its own page alone, and this request came from another ({site}); open http://{host}/"
    origin = headers.get("origin")
    if origin is not None and (rules.exact or site != "same-origin") and not _is_own(origin, host, scheme, rules):
        return f"this app answers its own page alone, and this request came from {origin[:100]}; open http://{host}/"
    return None


def _page_load(scope: Scope, headers: Headers) -> bool:
    """The page itself, opened by a link in a tab and not in a frame: it is only read."""
    return (
        scope["type"] == "http"
        and scope["method"] == "GET"
        and path_of(scope) == ""
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_own(origin: str, host: Authority, scheme: str, rules: Rules) -> bool:
    of, _, rest = origin.partition("://")
    authority = Authority.parse(rest)
    if authority is None or of not in ("http", "https"):
        return False  # `null`: a sandboxed page or a file
    if rules.exact:
        return of == {"ws": "http", "wss": "https"}.get(scheme, scheme) and authority.at(of) == host.at(of)
    return authority.at(of) == host.at(of) or any(authority.name == other.name for other in rules.allowed)


class SameOrigin:
    """ASGI middleware: refuses requests with a `complaint`, and forbids frames."""

    def __init__(self, app: ASGIApp, rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if (why := complaint(scope, self.rules)) is None:
            return await self.app(scope, receive, _unframed(send))
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": why[:120]})
        return await refused(scope, 403, why)(scope, receive, _unframed(send))


def _unframed(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Frame-Options"] = "DENY"
            headers.append("Content-Security-Policy", "frame-ancestors 'none'")
        await send(message)

    return sent
