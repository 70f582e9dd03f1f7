"""Which requests are the app's own page's: a table of what browsers and other clients send."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse

from koala.errors import UserError
from koala.ui import main as app
from koala.ui.build import gates
from koala.ui.gate.same_origin import Rules, SameOrigin, complaint
from koala.ui.sessions import Sessions

OWN = {"host": "127.0.0.1:7860"}
NAVIGATES = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def scope(headers: dict[str, str], method: str = "POST", path: str = "/gradio_api/queue/join", **more) -> dict:
    """A request as the server hands it to the app, which listens on port 7860."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    plain = {"type": "http", "scheme": "http", "server": ("127.0.0.1", 7860), "path": path, "method": method}
    return plain | {"headers": raw} | more


def local(*allow: str, host: str = "127.0.0.1") -> Rules:
    return Rules.of(host, allow, local=True)


def public(*allow: str) -> Rules:
    return Rules.of("0.0.0.0", allow, local=False)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST:7860"])
@pytest.mark.parametrize("site", [None, "same-origin", "none"])
def test_the_page_and_other_clients_of_a_local_app_are_answered(host, site):
    own = {"host": host, "origin": f"http://{host.lower()}"} | ({"sec-fetch-site": site} if site else {})
    assert complaint(scope(own), local()) is None
    assert complaint(scope({"host": host}), local()) is None  # gradio_client, curl


@pytest.mark.parametrize(
    "host",
    [
        "x.localhost:7860",
        "localhost.:7860",
        "evil.example:7860",
        "127.0.0.1.evil.example:7860",
        "localhost:3000",
        "localhost",
        "0.0.0.0:7860",
        "127.0.0.2:7860",
        "2130706433:7860",
        "[::ffff:127.0.0.1]:7860",
        "evil@localhost:7860",
        "localhost:7860:7860",
        "localhost:7860/",
        "",
    ],
)
def test_a_local_app_answers_to_no_other_name(host):
    assert complaint(scope({"host": host}), local()) and complaint(scope({"host": host}, "GET", "/"), local())


def test_an_app_at_the_ipv6_loopback_is_local_too():
    for rules in (local(host="::1"), local(host="[::1]")):
        assert complaint(scope({"host": "[::1]:7860"}), rules) is None
        assert complaint(scope({"host": "[::2]:7860"}), rules)


def test_a_space_lives_in_a_frame_and_nothing_else_does(monkeypatch):
    kinds = [gate.cls for gate in gates(local(), Sessions(), local=True)]
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "koala/koala")
    assert kinds == [SameOrigin, *(gate.cls for gate in gates(public(), Sessions(), local=False))]


def test_every_answer_forbids_frames_whoever_gets_it():
    async def inside(scope, receive, send):
        await PlainTextResponse("hello", headers={"Content-Security-Policy": "default-src 'self'"})(
            scope, receive, send
        )

    for host, status in (("127.0.0.1:7860", 200), ("x.localhost:7860", 403)):
        sent = []

        async def send(message, sent=sent):
            sent.append(message)

        asyncio.run(SameOrigin(inside, local())(scope({"host": host}), None, send))
        output = [v for k, v in sent[0]["headers"] if k == b"content-security-policy"]
        assert sent[0]["status"] == status and b"frame-ancestors 'none'" in output
        assert (b"x-frame-options", b"DENY") in sent[0]["headers"]


def test_a_request_has_one_host():
    assert "one Host" in complaint(scope({}), local()) and "one Host" in complaint(scope({}), public())
    assert "one Host" in complaint(scope(OWN) | {"headers": [(b"host", b"127.0.0.1:7860")] * 2}, local())


@pytest.mark.parametrize("rules", [local(), public(), public("127.0.0.1")], ids=["local", "public", "named"])
@pytest.mark.parametrize("site", ["same-site", "cross-site", "", "SAME-ORIGIN"])
def test_a_page_of_another_site_is_refused_by_whatever_door(rules, site):
    foreign = OWN | {"sec-fetch-site": site}
    assert "open http://127.0.0.1:7860/" in complaint(scope(foreign), rules)
    for path in ("/config", "/gradio_api/upload", "/gradio_api/heartbeat/x", "/"):
        assert complaint(scope(foreign, "GET", path), rules)
    assert complaint(scope(foreign, "GET", type="websocket", scheme="ws"), rules)


@pytest.mark.parametrize("rules", [local(), public()], ids=["local", "public"])
def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(rules):
    link = OWN | NAVIGATES | {"sec-fetch-site": "cross-site"}
    assert complaint(scope(link, "GET", "/"), rules) is None
    assert complaint(scope(link, "POST", "/"), rules)
    assert complaint(scope(link, "GET", "/config"), rules)
    assert complaint(scope(link | {"sec-fetch-dest": "iframe"}, "GET", "/"), rules)
    assert complaint(scope(link | {"sec-fetch-mode": "no-cors"}, "GET", "/"), rules)
    assert complaint(scope(link | {"origin": "null"}, "GET", "/"), rules)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:7860",
        "http://127.0.0.1:3000",
        "http://127.0.0.1",
        "https://127.0.0.1:7860",
        "http://evil.example",
        "null",
        "",
        "file://",
        "http://127.0.0.1:7860.evil.example",
    ],
)
def test_an_origin_is_the_apps_own_to_the_letter(origin):
    assert complaint(scope(OWN | {"origin": origin}), local())
    assert complaint(scope(OWN | {"origin": origin, "sec-fetch-site": "same-origin"}), local())


@pytest.mark.parametrize(
    ("allow", "host", "answered"),
    [
        ("koala.example", "koala.example:7860", True),
        ("koala.example", "koala.example", True),  # a proxy at port 80 or 443
        ("koala.example", "koala.example:3000", False),
        ("koala.example", "x.koala.example", False),
        ("localhost:9000", "localhost:9000", True),  # a tunnel
        ("localhost:9000", "localhost:9001", False),
        ("koala.example:443", "koala.example:7860", False),
        ("koala.example", "127.0.0.1:7860", True),
    ],
)
def test_allow_host_names_whom_else_the_app_answers_to(allow, host, answered):
    for rules in (local(allow), public(allow)):
        assert (complaint(scope({"host": host}), rules) is None) == answered


def test_a_public_app_knows_its_name_only_if_it_is_told():
    assert complaint(scope({"host": "rebound.example:7860"}), public()) is None
    assert "--allow-host rebound.example" in complaint(scope({"host": "rebound.example:7860"}), public("koala.example"))


def test_a_proxy_may_hide_name_and_scheme_of_a_public_app():
    behind = {"host": "backend:7860", "origin": "https://koala.example"}
    assert complaint(scope(behind), public())
    assert complaint(scope(behind | {"sec-fetch-site": "same-origin"}), public()) is None
    output = {"host": "koala.example", "origin": "https://koala.example"}
    assert complaint(scope(output), public("koala.example")) is None
    assert complaint(scope(output | {"x-forwarded-host": "evil.example", "origin": "http://evil.example"}), public())


def test_the_remedies_of_a_refusal_work():
    words = complaint(scope({"host": "box.lan:7860"}), local())
    allow = words.rpartition("--allow-host ")[2]
    assert complaint(scope({"host": "box.lan:7860"}), local(allow)) is None


@pytest.mark.parametrize("name", ["", "http://koala.example", "koala.example/", "a b", "koala.example:port"])
def test_a_name_that_is_none_is_refused(name, capsys):
    with pytest.raises(UserError, match="NAME or NAME:PORT"):
        local(name)
    assert app.main(["--allow-host", name]) == 2
    assert "NAME or NAME:PORT" in capsys.readouterr().err


def test_a_foreign_websocket_is_closed_before_it_opens():
    sent, reached = [], []

    async def connect():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    async def inside(*_):
        reached.append(True)

    own = scope({**OWN, "origin": "http://127.0.0.1:7860"}, "GET", type="websocket", scheme="ws")
    asyncio.run(SameOrigin(inside, local())(own, connect, send))
    assert reached == [True]
    foreign = scope({**OWN, "origin": "http://evil.example"}, "GET", type="websocket", scheme="ws")
    asyncio.run(SameOrigin(inside, local())(foreign, connect, send))
    assert reached == [True] and sent == ["websocket.close"]
