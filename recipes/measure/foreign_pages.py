"""Pages of other sites in a real browser, which try to read the app, to drive it, to upload to it and to frame it.

For the tests and for `recipes.measure.reliability`.
"""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from playwright.sync_api import Browser, Error, Page, sync_playwright

REBOUND = "evil.example"  # a name that its owner points at this machine, once its page is open
ANSWERS = {403, "blocked", "opaque"}  # all that a foreign page may get: "opaque" tells it nothing, not even the status
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


class _Foreign(BaseHTTPRequestHandler):
    """Any page of another site."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title><p>Hello.")

    def log_message(self, *_):
        """Says nothing."""


@contextmanager
def foreign_site() -> Iterator[int]:
    """The port of a site that is not the app."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()


@contextmanager
def rebinding_browser(chromium: str) -> Iterator[Browser]:
    """A browser for which REBOUND is this machine."""
    rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", rules])
        yield browser
        browser.close()


def start_of_a_distillation(url: str) -> str:
    """What the Distill tab's Start sends, with the fields as the page has them at first."""
    config = json.loads(urllib.request.urlopen(f"{url}config", timeout=30).read())
    parts = {c["id"]: c for c in config["components"]}
    button = next(i for i, c in parts.items() if c["props"].get("elem_id") == "kd-start")
    event = next(d for d in config["dependencies"] if [button, "click"] in d["targets"])
    data = [parts[i]["props"].get("value") for i in event["inputs"]]
    return json.dumps({"data": data, "fn_index": event["id"], "session_hash": "foreign", "trigger_id": button})


def framed(page: Page) -> list[bool]:
    """For each frame in a page, whether it shows the app."""
    shown = []
    for frame in page.frames[1:]:
        try:
            shown.append(bool(frame.locator("gradio-app, #k-prompt").count()))
        except Error:
            shown.append(False)
    return shown
