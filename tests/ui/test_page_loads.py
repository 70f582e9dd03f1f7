"""What loading the page costs: Gradio copies its configuration for every visitor, and all that it reaches."""

import gc
import resource
import time
import types
from collections.abc import Iterator

import gradio as gr
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from koala.attention.capture import Capture, Side
from koala.models.cards import CARDS
from koala.ui.attention.recording import Store
from koala.ui.build import build
from koala.ui.session import Session
from koala.ui.theme import Eucalyptus
from tests import forked
from tests.attention.conftest import random_record

MODELS = ("tiny-sdxl", "tiny-koala-700m")
PLAIN = (str, bytes, int, float, bool, type(None), types.FunctionType, types.BuiltinFunctionType)  # copied as they are
LARGE = 200_000_000  # bytes


def reached(value: object, path: str = "config") -> Iterator[tuple[str, object]]:
    """Whatever is no plain data in a configuration, with its place: a copy goes on into it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from reached(key, f"{path} key")
            yield from reached(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple | set):
        for number, inner in enumerate(value):
            yield from reached(inner, f"{path}[{number}]")
    elif type(value) not in PLAIN:
        yield path, value


@pytest.mark.parametrize("local", [True, False])
def test_a_page_is_given_plain_data_and_functions_alone(local):
    """A bound method or a partial would take its object with it: the session, its models, every capture."""
    demo = build(Session(MODELS, local=local))
    assert not list(reached(demo.config))
    states = [block for block in demo.blocks.values() if isinstance(block, gr.State)]
    assert len(states) > 3 and not [result for state in states for result in reached(state.value)]  # of each visit


def loads(client: TestClient, number: int) -> tuple[float, int]:
    """Seconds that so many page loads take, and how far the memory of the process rises meanwhile, in bytes."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(number):
        assert client.get("/").status_code == 200 and client.get("/config").status_code == 200
    return time.process_time() - begun, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def load_pages_beside_a_capture() -> int:
    """In a process of its own: the cost of five loads, without a capture and with a large one."""
    demo = build(Session(MODELS))
    demo.theme = Eucalyptus()
    client = TestClient(gr.routes.App.create_app(demo))
    loads(client, 1)
    without, _ = loads(client, 5)
    (store,) = (result for result in gc.get_objects() if isinstance(result, Store))
    record = random_record(CARDS["tiny-sdxl"].spec, (1.0,), stages=["UP-1"])
    (layer,) = record.frames[0]
    record.frames[0][layer] = (torch.zeros(LARGE // 8), torch.zeros(LARGE // 8))
    store.add(Capture(prompt="", sides=(Side(title="", picture=Image.new("RGB", (64, 64)), record=record),)))
    assert LARGE <= store.bytes < LARGE + 10**5  # with its picture
    beside, grown = loads(client, 5)
    print(f"five loads: {without:.2f} s, beside {LARGE / 1e6:.0f} MB {beside:.2f} s and {grown / 1e6:.1f} MB more")
    assert grown < LARGE / 10
    assert beside < 2 * without + 0.2
    return 0


def test_a_page_load_costs_the_same_whatever_is_recorded(tmp_path):
    process = forked.start(tmp_path / "said.txt", load_pages_beside_a_capture)
    assert forked.end_of(process, 120) == 0, (tmp_path / "said.txt").read_text()
    print((tmp_path / "said.txt").read_text())
