"""How large and how slow a request may be, with or without a password, whatever it says of its length."""

import asyncio
import json
import socket
import time
from contextlib import closing
from pathlib import Path

import gradio as gr
import pytest
from gradio.routes import App
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from koala.ui.gate import body_limit, uploads
from koala.ui.gate.body_limit import LIMIT, BodyLimit
from koala.ui.gate.calls import DEEPEST, MOST
from koala.ui.gate.uploads import FILES, SMALLEST, Allowance, Ledger, Uploads
from koala.ui.limits import PUBLIC_UPLOAD

JOIN = "/gradio_api/queue/join"


def spoken(public, head: str, body: bytes, *, leave: bool = False) -> bytes:
    """What the app answers on a connection of its own; `leave` closes it in the middle of the body."""
    with closing(socket.create_connection(("127.0.0.1", int(public.url.rstrip("/").rpartition(":")[2])), 30)) as line:
        line.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        if leave:
            time.sleep(0.2)
            return b""
        answer = b""
        while piece := line.recv(65536):
            answer += piece
            if b"\r\n\r\n" in answer and answer.endswith((b"}", b"]", b"file again", b"after these")):
                break
        return answer


def chunked(size: int) -> bytes:
    return (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * (size // 0x10000) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "path", [JOIN, "/gradio_api/call/v2/generate", "/login", "/nothing", "/gradio_api/component_server"]
)
def test_a_large_body_is_refused_before_it_is_read(public, path):
    status, answer = public.post(path[1:], b'{"data": "' + b"x" * 3 * LIMIT + b'"}')
    assert status == 413 and "1 MB" in json.loads(answer)["detail"]


def test_a_large_body_of_unknown_length_is_refused(public):
    head = f"POST {JOIN} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: application/json\nTransfer-Encoding: chunked"
    answer = spoken(public, head, chunked(3 * LIMIT))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"1 MB" in answer


def test_many_values_or_deep_ones_within_the_limit_cost_nothing(public):
    begun = public.cpu_s()
    for body, status, words in (
        (b"[" + b"[]," * (LIMIT // 3 - 9) + b"[]]", 413, f"{MOST:,} values"),
        (b'{"data":' + b"[" * (LIMIT // 3) + b"]" * (LIMIT // 3) + b"}", 413, f"{MOST:,} values"),
        (b'{"data":' + b"[" * 900 + b"]" * 900 + b"}", 422, f"deeper than {DEEPEST}"),
        (b'{"data":' + b"[" * 9000 + b"]" * 9000 + b"}", 422, f"deeper than {DEEPEST}"),
    ):
        for _ in range(3):
            result, answer = public.post(JOIN[1:], body)
            assert result == status and words in answer.decode()
    if begun is not None:
        assert public.cpu_s() - begun < 2


def test_a_slow_body_is_given_up():
    async def inside(*_):
        raise AssertionError("the app was reached")

    async def never():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": JOIN, "headers": []}
    asyncio.run(BodyLimit(inside, seconds=0.05)(scope, never, send))
    assert sent[0]["status"] == 408 and b"send it again" in sent[1]["body"]


def test_a_sender_who_leaves_reaches_nobody():
    async def inside(*_):
        raise AssertionError("the app was reached")

    async def left():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": JOIN, "headers": []}
    asyncio.run(BodyLimit(inside)(scope, left, None))


# --- uploads


def part(content: bytes, name: str = "a.png", field: str = "files") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n"


def temporary(public) -> list[Path]:
    """Files that no upload finished, once their time to go is over: those in a folder of their own are whole."""
    for _ in range(50):
        if not (result := [f for f in (public.log.parent / "files").iterdir() if f.is_file()]):
            break
        time.sleep(0.1)
    return result


def test_an_upload_that_breaks_off_leaves_nothing(public):
    head = "POST /gradio_api/upload HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary=b\n"
    for _ in range(3):
        spoken(public, head + f"Content-Length: {LIMIT}", part(b"x" * 200_000), leave=True)
    assert not temporary(public) and public.tracebacks() == 0


@pytest.mark.parametrize(
    "body",
    [part(b"no end"), part(b"x", field="others") + b"--b--\r\n", part(b"whole") + part(b"no end")],
    ids=["no end", "another field", "the second has no end"],
)
def test_what_an_upload_does_not_finish_is_removed(public, body):
    public.post("gradio_api/upload", body, "multipart/form-data; boundary=b")
    assert not temporary(public)


def test_one_upload_has_few_files(public):
    many = b"".join(part(b"x", f"{k}.png") for k in range(FILES + 1)) + b"--b--\r\n"
    status, answer = public.post("gradio_api/upload", many, "multipart/form-data; boundary=b")
    assert status == 400 and f"{FILES} files" in answer.decode() and not temporary(public)


def test_a_public_file_has_a_largest_size(public):
    large = part(b"x" * (PUBLIC_UPLOAD * 2**20 + 1)) + b"--b--\r\n"
    status, answer = public.post("gradio_api/upload", large, "multipart/form-data; boundary=b")
    assert status == 413 and b"maximum allowed size" in answer and not temporary(public)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An app that takes half a megabyte of uploads of one visitor in a day."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    ledger = Ledger(Allowance(each=5 * SMALLEST, all=8 * SMALLEST))
    with gr.Blocks() as demo:
        gr.File()
    demo.max_file_size = None
    app = App.create_app(demo, app_kwargs={"middleware": [Middleware(Uploads, ledger=ledger)]})
    return TestClient(app), ledger


def sent(client, size: int) -> int:
    return client.post("/gradio_api/upload", files={"files": ("a.bin", b"x" * size)}).status_code


def test_a_visitor_uploads_so_much_in_a_day(small, monkeypatch):
    client, ledger = small
    assert sent(client, 2 * SMALLEST) == 200  # counts as three with what it counts at least
    assert sent(client, 3 * SMALLEST) == 413
    assert sent(client, SMALLEST // 2) == 200  # what was refused does not count
    assert sent(client, SMALLEST) == 413
    monkeypatch.setattr(uploads, "DAY", 0.0)
    assert sent(client, 3 * SMALLEST) == 200


def test_all_visitors_upload_so_much_in_a_day(small):
    _, ledger = small
    accepted = 0
    for k in range(20):
        try:
            ledger.take(f"visitor{k}", SMALLEST)
        except Exception as error:
            assert "all visitors together" in str(error) and "maximum allowed size" in str(error)
        else:
            accepted += 1
    assert accepted == 8


def test_the_limits_are_those_of_security_md():
    text = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text()
    allowance = Allowance.of(local=False)
    assert f"{PUBLIC_UPLOAD} MB a file, {FILES} files a request" in text
    assert f"a day's limit of {allowance.each / 1e6:g} MB per visitor and {allowance.all / 1e9:g} GB in all" in text
    assert f"{body_limit.LIMIT / 1e6:g} MB in {body_limit.SECONDS:g} s" in text
