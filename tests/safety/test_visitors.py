"""Many visitors at once: each gets the picture that it asked for, or is told that the queue is full."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from koala.generate import generate
from koala.loading import Library
from koala.request import GenerationRequest
from koala.result import read_png
from tests.safety.conftest import QUICK, STUDENT, TEACHER

CLIENTS = 20
PROMPTS = ("a red circle", "a blue square", "a green star", "a yellow triangle")


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
        answers = list(clients.map(lambda k: public.call("generate", asked(k)), range(CLIENTS)))
    for k, answer in enumerate(answers):
        same(public, answer, k, own)


def test_who_comes_to_a_full_queue_is_told_so_and_the_others_get_their_pictures(public, own):
    long = {"model": TEACHER, **QUICK, "width": 256, "height": 256, "steps": 16}
    joined, told = [], []

    def join(values: dict) -> None:
        status, body = public.post("gradio_api/call/v2/generate", json.dumps(values).encode())
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
