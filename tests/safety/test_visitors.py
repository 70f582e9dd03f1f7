"""Many visitors at once: each gets the picture that it asked for, or is told that there is no place for more."""

import asyncio
import io
import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import gradio as gr
import pytest
from gradio.data_classes import PredictBodyInternal
from gradio.routes import App
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from starlette.datastructures import Headers
from starlette.requests import Request

from koala.errors import UserError
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from koala.sampling.result import read_png
from koala.ui.line import FULL, MOST, PLACES, TOO_MANY, Line
from koala.ui.messages import sentence
from koala.ui.visitors import Share, visitor
from tests.safety.conftest import QUICK, STUDENT, TEACHER, Refused

CLIENTS = 20
PROMPTS = ("a red circle", "a blue square", "a green star", "a yellow triangle")


def address(k: int) -> str:
    return f"198.51.100.{k}"


def asked(k: int) -> dict:
    """Client k's own request."""
    return {"model": STUDENT, **QUICK, "prompt": PROMPTS[k % len(PROMPTS)], "seed": 1000 + k}


@pytest.fixture(scope="module")
def own():
    """What each client must get, drawn here."""
    model = Library("cpu").get(STUDENT)
    return [generate(GenerationRequest(**asked(k)), model).images[0] for k in range(CLIENTS)]


def picture(public, answer: list) -> tuple[Image.Image, GenerationRequest]:
    """The first picture of an answer, fetched as a client does, and the request that it carries."""
    ((file,), _) = answer
    status, content = public.get(f"gradio_api/file={file['path']}")
    assert status == 200
    return Image.open(io.BytesIO(content)), read_png(content)["request"]


def same(public, answer: list, k: int, own: list) -> None:
    image, request = picture(public, answer)
    assert (request.prompt, request.seed) == (asked(k)["prompt"], asked(k)["seed"])
    assert image.tobytes() == own[k].tobytes()


def test_twenty_clients_at_once_get_each_its_own_picture(public, own):
    assert len({image.tobytes() for image in own}) == CLIENTS
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda k: public.call("generate", asked(k), address(k)), range(CLIENTS)))
    for k, answer in enumerate(answers):
        same(public, answer, k, own)


def begin(public, values: dict, address: str, door: str = "generate") -> str:
    """An endpoint is called: the event, whose answer can be read later."""
    status, body = public.post(f"gradio_api/call/v2/{door}", json.dumps(values).encode(), address=address)
    assert status == 200, body
    return json.loads(body)["event_id"]


def ended(public, event: str) -> tuple[str, object]:
    """How an event ended, "complete" or "error", and what was told."""
    _, body = public.get(f"gradio_api/call/generate/{event}")
    kind, _, data = body.decode().rpartition("event: ")[2].partition("\ndata: ")
    return kind, json.loads(data)


def test_who_comes_to_a_full_queue_is_told_so_and_the_others_get_their_pictures(public, own):
    with public.holding():
        events = [begin(public, asked(k % CLIENTS), address(k)) for k in range(PLACES + 3)]
        *events, last = events
        kind, output = ended(public, last)
        assert (kind, output["error"]) == ("error", sentence(FULL))
    result = [ended(public, event) for event in events]
    assert [kind for kind, _ in result].count("error") == 2
    for k, (kind, output) in enumerate(result):
        if kind == "complete":
            same(public, output, k % CLIENTS, own)
        else:
            assert output["error"] == sentence(FULL)
    assert public.draws()


def test_one_visitor_does_not_fill_the_queue(public):
    """By whatever door they come; others are served meanwhile, and so are they when they have waited."""
    greedy = "203.0.113.9"
    client = Client(public.url, verbose=False, headers={"X-Forwarded-For": greedy})
    with public.holding():
        events = [begin(public, asked(k), greedy) for k in range(MOST)]
        _refused(public, client, greedy)
    assert public.draws()
    assert [ended(public, event)[0] for event in events] == ["complete"] * MOST
    assert public.call("generate", asked(0), greedy)
    assert "no longer kept" in served(public, "look", greedy)["problem"]


def _refused(public, client: Client, greedy: str) -> None:
    """Whatever this visitor asks for, and nobody else."""
    with pytest.raises(AppError) as output:  # the sentence, where it was "400 Bad Request"
        client.predict(model=STUDENT, prompt="a star", api_name="/generate")
    assert str(output.value) == sentence(TOO_MANY)
    forged = f"192.0.2.77, {greedy}"  # their own claim stands before what the proxy adds
    for who in (greedy, forged):
        with pytest.raises(Refused, match=TOO_MANY[1:]):
            public.call("generate", asked(0), who)
    both = {"models": [STUDENT, TEACHER], **QUICK}
    for door in ("compare", "attention"):
        with pytest.raises(Refused, match=TOO_MANY[1:]):
            public.call(door, both, greedy)
    page = public.event("k-generate", "click", fields(0), "page-of-the-greedy", greedy)
    assert sentence(TOO_MANY) in json.dumps(page)
    with pytest.raises(Refused, match=TOO_MANY):
        public.event("kv-open", "upload", [None, ""], "page", greedy)  # a saved capture, of some megabytes
    for ask in ("look", "take"):  # the Attention tab's, which Gradio answers outside its queue
        assert served(public, ask, greedy) == {"problem": TOO_MANY}
        assert "no longer kept" in served(public, ask, address(0))["problem"]


def served(public, ask: str, who: str) -> dict:
    """What the Attention tab answers a visitor who asks for a capture that is not there."""
    (viewer,) = (c["id"] for c in public.config["components"] if is_viewer(c))
    body = {"data": {"id": "0" * 32}, "component_id": viewer, "session_hash": "page", "fn_name": ask}
    status, answer = public.post("gradio_api/component_server", json.dumps(body).encode(), address=who)
    assert status == 200, answer
    return json.loads(answer)


def is_viewer(component: dict) -> bool:
    return component["props"].get("elem_id") == "kv-viewer"


@pytest.fixture
def shared():
    """A queue with an event, each visitor's share of it, and a request of a visitor."""
    with gr.Blocks() as demo:
        gr.Button().click(lambda: None)
    demo.queue()
    app = App.create_app(demo)
    app.tokens["secret"] = "koala"

    def request(host: str, **headers: str) -> Request:
        return Request({"type": "http", "client": (host, 1), "headers": Headers(headers).raw, "app": app})

    return demo._queue, Share(demo._queue, Line()), request


def test_what_runs_beside_the_queue_counts_in_a_visitors_share(shared):
    """Symptom: one visitor could have the app compute as many attention maps at once as it has threads."""
    queue, share, request = shared
    greedy, other = request("203.0.113.9"), request("203.0.113.10")

    def push(who: Request) -> tuple:
        body = PredictBodyInternal(fn_index=0, data=[], session_hash="page", request=who)
        return asyncio.run(queue.push(body=body, request=who, username=None))

    with ExitStack() as looks:
        for _ in range(MOST):
            looks.enter_context(share.without_device(greedy))
        with pytest.raises(UserError, match=f"{MOST} requests"), share.without_device(greedy):
            pass
        assert push(greedy) == (False, TOO_MANY, "error")
        with share.without_device(other):
            assert push(other)[0]
    assert push(greedy)[0]  # each look gave its place back, one that was refused had none
    for _ in range(MOST):
        with pytest.raises(ZeroDivisionError), share.without_device(greedy):
            _ = 1 / 0
    with share.without_device(greedy):
        pass


def test_a_look_counts_for_the_name_that_came_with_a_password_wherever_it_comes_from(shared):
    _, share, request = shared
    with ExitStack() as looks:
        for k in range(MOST):
            looks.enter_context(share.without_device(request(f"10.0.0.{k}", cookie="access-token-x=secret")))
        with pytest.raises(UserError), share.without_device(request("10.0.0.99", cookie="access-token-x=secret")):
            pass
        with share.without_device(request("10.0.0.99", cookie="access-token-x=guessed")):
            pass


@pytest.mark.parametrize(
    ("space", "name", "headers", "who"),
    [
        (False, None, {}, "10.0.0.7"),
        (False, None, {"x-forwarded-for": "1.2.3.4"}, "10.0.0.7"),  # uvicorn has read it where the proxy is trusted
        (True, None, {"x-forwarded-for": "1.2.3.4"}, "1.2.3.4"),
        (True, None, {}, "10.0.0.7"),
        (True, "koala", {"x-forwarded-for": "1.2.3.4"}, "koala"),
    ],
)
def test_a_visitor_is_a_name_or_an_address(monkeypatch, space, name, headers, who):
    monkeypatch.setenv("SYSTEM", "spaces" if space else "")
    assert visitor(Request({"type": "http", "client": ("10.0.0.7", 1), "headers": Headers(headers).raw}), name) == who


def fields(k: int) -> list:
    """What the Compare tab sends for client k's own request."""
    shared = [asked(k)["prompt"], "", str(1000 + k), "", 64, 64, 1, "quality", None, 1]
    return [*shared, *[STUDENT, 1, 1] * 2, *[None, 1, 1] * 2, False, None]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("door", ["page", "api"])
def test_whoever_hangs_up_leaves_the_line(public, door):
    """Their places are free again while the run before them still has the device."""
    gone = f"203.0.113.{20 + len(door)}"
    with public.holding():
        if door == "api":
            streams = [f"gradio_api/call/generate/{begin(public, asked(k), gone)}" for k in range(MOST)]
        else:
            for k in range(MOST):
                public.join("k-generate", "click", fields(k), f"gone-{k}", gone)
            streams = [f"gradio_api/queue/data?session_hash=gone-{k}" for k in range(MOST)]
        until(lambda: served(public, "look", gone)["problem"] == TOO_MANY)
        for stream in streams:
            with urllib.request.urlopen(public.url + stream, timeout=60):
                pass
        until(lambda: served(public, "look", gone)["problem"] != TOO_MANY)
    assert public.call("generate", asked(0), gone)


def test_visits_never_mix(public):
    """Four pages press Generate at once: each is shown its own prompt and seed, and only that in its history."""

    def visit(k: int) -> str:
        messages = public.event("k-generate", "click", fields(k), f"visit-{k}")
        assert messages[-1]["msg"] != "process_completed" or messages[-1]["success"], messages[-1]
        return json.dumps(messages)

    with ThreadPoolExecutor(4) as pages:
        shown = list(pages.map(visit, range(4)))
    for k, message in enumerate(shown):
        assert f"Done. Seed {1000 + k}." in message and f"{asked(k)['prompt']} (seed {1000 + k})" in message
        for other in set(range(4)) - {k}:
            assert f"eed {1000 + other}" not in message
