"""`--push` against a hub on the loopback: the Space is made for its hardware, mirrored, and refusals are one line."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.spaces.conftest import ROOT

STALE = "koala/removed_long_ago.py"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks when it makes a repository and commits a folder to it; all is written down."""

    asked: dict[str, list]
    refuse = False

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        names = (STALE, ".gitattributes", "app.py")
        if "/tree/" in self.path:
            return self.answer([{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names])
        self.answer({"id": "me/koala", "sha": "c0ffee", "siblings": [{"rfilename": n} for n in names]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        what = self.path.split("?")[0].rstrip("/").split("/")
        space = f"http://{self.headers['Host']}/spaces/me/koala"
        if self.refuse:
            return self.answer({"error": "this token may only read"}, 403)
        if what[-1] == "create":
            self.asked["create"].append(json.loads(body) | {"token": self.headers["Authorization"]})
            self.answer({"url": space})
        elif what[-2] == "preupload":
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif what[-2] == "commit":
            self.asked["commit"] += [json.loads(line) for line in body.splitlines()]
            self.answer({"success": True, "commitOid": "c0ffee", "commitUrl": f"{space}/commit/c0ffee"})
        else:
            self.answer({})

    def answer(self, body: object, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub():
    handler = type("Bound", (Hub,), {"asked": {"create": [], "commit": []}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def push(endpoint, out, *arguments):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_write"}
    command = [sys.executable, str(ROOT / "spaces" / "deploy.py"), "--out", str(out), "--push", "me/koala", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_bundle_is_mirrored_to_a_space_of_its_hardware(hub, tmp_path):
    handler, endpoint = hub
    done = push(endpoint, tmp_path / "space", "--zerogpu")
    assert done.returncode == 0, done.stderr
    assert f"{endpoint}/spaces/me/koala" in done.stdout
    (created,) = handler.asked["create"]
    assert (created["type"], created["sdk"], created["hardware"]) == ("space", "gradio", "zero-a10g")
    assert created["token"] == "Bearer hf_write"
    sent = {e["value"]["path"]: e["value"] for e in handler.asked["commit"] if e["key"] == "file"}
    gone = [e["value"]["path"] for e in handler.asked["commit"] if e["key"] == "deletedFile"]
    files = {f.relative_to(tmp_path / "space").as_posix() for f in (tmp_path / "space").rglob("*") if f.is_file()}
    assert set(sent) == files and gone == [STALE]
    assert b"suggested_hardware: zero-a10g" in base64.b64decode(sent["README.md"]["content"])


def test_a_token_that_may_not_write_is_one_line(hub, tmp_path):
    handler, endpoint = hub
    handler.refuse = True
    done = push(endpoint, tmp_path / "space")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "hf auth login" in done.stderr
    assert (tmp_path / "space" / "app.py").is_file()


def test_without_a_network_the_bundle_is_there_and_the_cause_is_one_line(tmp_path):
    done = push("http://127.0.0.1:9", tmp_path / "space")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "Connection refused" in done.stderr
    assert (tmp_path / "space" / "app.py").is_file()
