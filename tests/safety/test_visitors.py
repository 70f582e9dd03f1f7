"""Many visitors at once: each gets the picture that it asked for, or is told that there is no place for more."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gradio_client import Client
from PIL import Image
from starlette.datastructures import Headers
from starlette.requests import Request

from koala.generate import generate
from koala.loading import Library
from koala.request import GenerationRequest
from koala.result import read_png
from koala.ui.visitors import MOST, TOO_MANY, visitor
from tests.safety.conftest import QUICK, STUDENT, TEACHER

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
    assert public.draws()
    for _, event in joined:
        assert "event: complete" in public.get(f"gradio_api/call/generate/{event['event_id']}")[1].decode()
    assert public.call("generate", asked(0), greedy)


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
