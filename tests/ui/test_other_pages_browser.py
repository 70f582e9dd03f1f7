"""Pages of other sites in a real browser: none reads the app, drives it, uploads to it or shows it in a frame."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

REBOUND = "evil.example"  # a name that its owner points at this machine, once its page is open
ATTACK = """async ([app, start]) => {
  const said = {};
  const knock = async (name, path, how) => {
    for (const mode of ["cors", "no-cors"]) {
      try {
        const answer = await fetch(app + path, {...how, mode});
        said[name + ", " + mode] = mode === "cors" ? answer.status : answer.type;
      } catch (error) { said[name + ", " + mode] = "blocked"; }
    }
  };
  const form = new FormData();
  form.append("files", new Blob(["planted"]), "planted.png");
  await knock("config", "config", {});
  await knock("upload", "gradio_api/upload", {method: "POST", body: form});
  if (start) {
    const headers = {"Content-Type": "application/json"};
    await knock("start", "gradio_api/queue/join", {method: "POST", headers, body: start});
    await knock("start as text", "gradio_api/queue/join", {method: "POST", body: start});
  }
  const frame = document.createElement("iframe");
  frame.src = app;
  await new Promise(done => { frame.onload = done; document.body.append(frame); setTimeout(done, 5000); });
  return said;
}"""


class Foreign(BaseHTTPRequestHandler):
    """Any page of another site."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title><p>Hello.")

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture(scope="module")
def foreign_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def rebinding(chromium: str) -> Iterator[Browser]:
    rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", rules])
        yield found
        found.close()


def start_of_a_distillation(app) -> str:
    """What the Distill tab's Start sends, with the fields as the page has them at first."""
    config = json.loads(urllib.request.urlopen(app.url + "config", timeout=30).read())
    parts = {c["id"]: c for c in config["components"]}
    button = next(i for i, c in parts.items() if c["props"].get("elem_id") == "kd-start")
    event = next(d for d in config["dependencies"] if [button, "click"] in d["targets"])
    data = [parts[i]["props"].get("value") for i in event["inputs"]]
    return json.dumps({"data": data, "fn_index": event["id"], "session_hash": "foreign", "trigger_id": button})


def runs(app) -> list[Path]:
    folder = app.log.parent / "runs"
    return list(folder.iterdir()) if folder.exists() else []


def planted(app) -> list[Path]:
    return list((app.log.parent / "files").rglob("planted.png"))


def shown(page) -> list[bool]:
    """For each frame in the page, whether it shows the app."""
    found = []
    for frame in page.frames[1:]:
        try:
            found.append(bool(frame.locator("gradio-app, #k-prompt").count()))
        except Error:
            found.append(False)
    return found


@pytest.mark.parametrize(
    ("name", "targets"),
    [("localhost", ["127.0.0.1", "localhost", "x.localhost"]), (REBOUND, ["127.0.0.1", "localhost.", REBOUND])],
    ids=["same site", "another site"],
)
def test_no_page_of_another_site_drives_the_app(app, rebinding, foreign_port, name, targets):
    port = app.url.rstrip("/").rpartition(":")[2]
    begun, there = runs(app), planted(app)
    page = rebinding.new_page()
    page.goto(f"http://{name}:{foreign_port}/")
    start = start_of_a_distillation(app)
    for target in targets:
        said = page.evaluate(ATTACK, [f"http://{target}:{port}/", start])
        assert len(said) == 8 and set(said.values()) <= {403, "blocked", "opaque"}, (target, said)
    assert len(page.frames) == 1 + len(targets) and not any(shown(page))
    assert planted(app) == there and runs(app) == begun
    page.close()


@pytest.mark.parametrize("name", ["x.localhost", "localhost.", REBOUND])
def test_a_name_that_points_here_opens_no_page(app, rebinding, name):
    """After rebinding the foreign page and the app are one origin for the browser; only the name tells."""
    page = rebinding.new_page()
    answer = page.goto(app.url.replace("127.0.0.1", name))
    assert answer.status == 403 and "this app answers to 127.0.0.1" in page.content()
    page.close()


def test_the_apps_own_page_does_all_that(app, rebinding, foreign_port):
    """The attack works where it is none; and a link on another site opens the page."""
    url = app.url.replace("127.0.0.1", "localhost")
    page = rebinding.new_page()
    page.goto(f"http://x.localhost:{foreign_port}/")
    page.evaluate("url => { location.href = url }", url)
    page.wait_for_selector("#k-prompt")
    said = page.evaluate(ATTACK, [url, None])
    assert (said["config, cors"], said["upload, cors"]) == (200, 200)
    assert shown(page) == [False]  # in no frame, of its own neither
    page.close()
    for file in planted(app):
        file.unlink()
