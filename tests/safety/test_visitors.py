"""Many visitors at once: each gets the picture that it asked for, or is told that there is no place for more."""

import asyncio
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import gradio as gr
import httpx
import pytest
from gradio.data_classes import PredictBodyInternal
from gradio.routes import App
from gradio_client import Client
from PIL import Image
from starlette.datastructures import Headers
from starlette.requests import Request

from koala.generate import generate
from koala.loading import Library
from koala.request import GenerationRequest, RequestError
from koala.result import read_png
from koala.ui.visitors import MOST, TOO_MANY, Share, visitor
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


def test_who_comes_to_a_full_queue_is_told_so_and_the_others_get_their_pictures(public, own):
    long = {"model": TEACHER, **QUICK, "width": 256, "height": 256, "steps": 16}
    joined, told = [], []

    def join(values: dict) -> None:
        where = address(len(joined))
        status, body = public.post("gradio_api/call/v2/generate", json.dumps(values).encode(), address=where)
        joined.append(json.loads(body)["event_id"]) if status == 200 else told.append((status, body.decode()))

    join(long)  # holds the device
    while len(told) < 3 and len(joined) < 60:
        join(asked(len(joined) % CLIENTS))
    assert len(told) == 3 and 20 <= len(joined) < 60
    assert all(status == 503 and "queue is full" in words.lower() for status, words in told)
    for place, event in enumerate(joined):
        _, body = public.get(f"gradio_api/call/generate/{event}")
        kind, _, data = body.decode().rpartition("event: ")[2].partition("\ndata: ")
        assert kind == "complete"
        if place:
            same(public, json.loads(data), place % CLIENTS, own)
    assert public.draws()


def test_one_visitor_does_not_fill_the_queue(public):
    """By whatever door they come; others are served meanwhile, and so are they when they have waited."""
    greedy = "203.0.113.9"
    client = Client(public.url, verbose=False, headers={"X-Forwarded-For": greedy})

    def join(values: dict, address: str = greedy, door: str = "generate") -> tuple[int, dict]:
        status, body = public.post(f"gradio_api/call/v2/{door}", json.dumps(values).encode(), address=address)
        return status, json.loads(body)

    refused = 400, {"detail": TOO_MANY}
    long = {"model": TEACHER, **QUICK, "width": 256, "height": 256, "steps": 16}  # holds the device
    joined = [join(values) for values in (long, *map(asked, range(1, MOST)))]
    assert [status for status, _ in joined] == [200] * MOST
    with pytest.raises(httpx.HTTPStatusError) as told:
        client.predict(model=STUDENT, prompt="a star", api_name="/generate")
    assert (told.value.response.status_code, told.value.response.json()) == refused
    assert join(asked(0)) == refused
    assert join(asked(0), f"192.0.2.77, {greedy}") == refused  # their own claim stands before what the proxy adds
    both = {"models": [STUDENT, TEACHER], **QUICK}
    assert [join(both, door=door) for door in ("compare", "attention")] == [refused] * 2
    with pytest.raises(Refused, match=TOO_MANY):
        public.event("kv-open", "upload", [None, ""], "page", greedy)  # a saved capture, of some megabytes
    for ask in ("look", "take"):  # the Attention tab's, which Gradio answers outside its queue
        assert served(public, ask, greedy) == {"problem": TOO_MANY}
        assert "no longer kept" in served(public, ask, address(0))["problem"]
    assert public.draws()
    for _, event in joined:
        assert "event: complete" in public.get(f"gradio_api/call/generate/{event['event_id']}")[1].decode()
    assert public.call("generate", asked(0), greedy)
    assert "no longer kept" in served(public, "look", greedy)["problem"]


def served(public, ask: str, who: str) -> dict:
    """What the Attention tab answers a visitor who asks for a capture that is not there."""
    (viewer,) = (c["id"] for c in json.loads(public.get("config")[1])["components"] if is_viewer(c))
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

    return demo._queue, Share(demo._queue), request


def test_what_runs_beside_the_queue_counts_in_a_visitors_share(shared):
    """Symptom: one visitor could have the app compute as many attention maps at once as it has threads."""
    queue, share, request = shared
    greedy, other = request("203.0.113.9"), request("203.0.113.10")

    def push(who: Request) -> tuple:
        body = PredictBodyInternal(fn_index=0, data=[], session_hash="page", request=who)
        return asyncio.run(queue.push(body=body, request=who, username=None))

    with ExitStack() as looks:
        for _ in range(MOST):
            looks.enter_context(share.beside(greedy))
        with pytest.raises(RequestError, match=f"{MOST} requests"), share.beside(greedy):
            pass
        assert push(greedy) == (False, TOO_MANY, "error")
        with share.beside(other):
            assert push(other)[0]
    assert push(greedy)[0]  # each look gave its place back, one that was refused had none
    for _ in range(MOST):
        with pytest.raises(ZeroDivisionError), share.beside(greedy):
            _ = 1 / 0
    with share.beside(greedy):
        pass


def test_a_look_counts_for_the_name_that_came_with_a_password_wherever_it_comes_from(shared):
    _, share, request = shared
    with ExitStack() as looks:
        for k in range(MOST):
            looks.enter_context(share.beside(request(f"10.0.0.{k}", cookie="access-token-x=secret")))
        with pytest.raises(RequestError), share.beside(request("10.0.0.99", cookie="access-token-x=secret")):
            pass
        with share.beside(request("10.0.0.99", cookie="access-token-x=guessed")):
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


def test_visits_never_mix(public):
    """Four pages press Generate at once: each is shown its own prompt and seed, and only that in its history."""

    def visit(k: int) -> str:
        fields = [asked(k)["prompt"], "", str(1000 + k), "", 64, 64, 1, "quality", None, 1]
        fields += [STUDENT, 1, 1, STUDENT, 1, 1]
        messages = public.event("k-generate", "click", [*fields, False, None], f"visit-{k}")
        assert messages[-1]["msg"] != "process_completed" or messages[-1]["success"], messages[-1]
        return json.dumps(messages)

    with ThreadPoolExecutor(4) as pages:
        shown = list(pages.map(visit, range(4)))
    for k, said in enumerate(shown):
        assert f"Done. Seed {1000 + k}." in said and f"{asked(k)['prompt']} (seed {1000 + k})" in said
        for other in set(range(4)) - {k}:
            assert f"eed {1000 + other}" not in said
