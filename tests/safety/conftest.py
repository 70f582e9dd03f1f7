"""A public app, as strangers reach it: python app.py --host 0.0.0.0, once for all tests that attack it."""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import pytest

from tests.ui.conftest import Server, places

STUDENT, TEACHER = "tiny-koala-700m", "tiny-sdxl"
QUICK = {"prompt": "a red circle", "steps": 1, "guidance": 1.0, "width": 64, "height": 64}


class Refused(Exception):
    """An error in the app's own words."""


class Public(Server):
    """The running app and its API, spoken to in plain HTTP: any JSON may be sent."""

    def post(
        self, path: str, body: bytes, kind: str = "application/json", address: str = "192.0.2.1"
    ) -> tuple[int, bytes]:
        """What a visitor of this address is answered, told by a proxy on this machine."""
        headers = {"Content-Type": kind, "X-Forwarded-For": address}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def call(self, name: str, values: dict, address: str = "192.0.2.1") -> list:
        """An endpoint's answer; Refused with its words where it has none, AssertionError where there are no words."""
        status, body = self.post(f"gradio_api/call/v2/{name}", json.dumps(values).encode(), address=address)
        if status != 200:
            raise Refused(f"{status} {body.decode()[:500]}")
        event = json.loads(body)["event_id"]
        status, body = self.get(f"gradio_api/call/{name}/{event}")
        kind, _, data = body.decode().rpartition("event: ")[2].partition("\ndata: ")
        if kind == "complete":
            return json.loads(data)
        words = json.loads(data)
        assert words, f"{kind} without a word: {body.decode()[-500:]}"
        raise Refused(words.get("error") if isinstance(words, dict) else str(words))

    def upload(self, name: str, content: bytes) -> str:
        """A file in the app's upload folder, as the page's drop zones send it: its path there."""
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        status, body = self.post(
            "gradio_api/upload", head + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
        )
        if status != 200:
            raise Refused(f"{status} {body.decode()[:500]}")
        return json.loads(body)[0]

    def event(self, elem_id: str, trigger: str, data: list, visitor: str, address: str = "192.0.2.1") -> list[dict]:
        """What a component's event answers a page of this visitor, message by message."""
        self.join(elem_id, trigger, data, visitor, address)
        _, stream = self.get(f"gradio_api/queue/data?session_hash={visitor}")
        lines = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines]

    def join(self, elem_id: str, trigger: str, data: list, visitor: str, address: str = "192.0.2.1") -> None:
        """A component's event of a page of this visitor, whose answer nobody reads yet."""
        status, answer = self._send("queue/join", elem_id, trigger, data, visitor, address)
        if status != 200:
            raise Refused(f"{status} {answer.decode()[:500]}")

    def _send(self, path: str, elem_id: str, trigger: str, data: list, visitor: str, address: str) -> tuple[int, bytes]:
        ids = [c["id"] for c in self.config["components"] if c["props"].get("elem_id") == elem_id]
        (endpoint,) = (d["id"] for d in self.config["dependencies"] if [ids[0], trigger] in d["targets"])
        body = {"data": data, "fn_index": endpoint, "session_hash": visitor, "trigger_id": ids[0], "event_data": None}
        return self.post(f"gradio_api/{path}", json.dumps(body).encode(), address=address)

    @cached_property
    def config(self) -> dict:
        """The page as Gradio describes it."""
        return json.loads(self.get("config")[1])

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Meanwhile a page of somebody else draws; then it presses Stop."""
        page, address = f"holder-{secrets.token_hex(4)}", "192.0.2.99"
        fields = ["a star", "", "1", "", 256, 256, 4, "quality", None, 1, TEACHER, 50, 1, STUDENT, 50, 1]
        self.join("k-generate", "click", [*fields, *[None, 1, 1] * 2, False, None], page, address)
        with urllib.request.urlopen(f"{self.url}gradio_api/queue/data?session_hash={page}", timeout=60) as stream:
            for line in stream:
                if b"step 1 of 50" in line or b"Starting" in line:
                    break
            yield
            status, answer = self._send("run/predict", "k-stop", "click", [], page, address)
            assert status == 200, answer

    def refusal(self, elem_id: str, file: dict, visitor: str, *more) -> str:
        """What a drop zone says of a file that it does not take: an error's words, or those of a toast."""
        messages = self.event(elem_id, "upload", [file, *more], visitor)
        toasts = [m["log"] for m in messages if m["msg"] == "log"]
        last = next(m for m in messages if m["msg"] == "process_completed")
        return "; ".join([*toasts, *([] if last["success"] else [str(last["output"].get("error"))])])

    def draws(self, seed: int = 3) -> dict:
        """The app is alive: the result of a plain request."""
        _, result = self.call("generate", {"model": STUDENT, **QUICK, "seed": seed})
        assert result["request"]["seed"] == seed
        return result

    def tracebacks(self) -> int:
        """How often something went wrong inside, from the log."""
        return self.log.read_text().count("Traceback")


@pytest.fixture(scope="package")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Public]:
    folder = tmp_path_factory.mktemp("public")
    server = Public(folder / "log.txt", "--host", "0.0.0.0", **places(folder))
    server.draws()
    yield server
    server.stop()
