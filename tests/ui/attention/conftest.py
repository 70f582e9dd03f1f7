"""The Attention tab without a browser: one capture of the embedded pair, and what the page asks of it."""

import base64
import json
import re
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from koala.ui.attention.recording import Store
from koala.ui.attention.tab import Attention
from koala.ui.session import Session

FIELDS = {
    "prompt": """a red circle </script><script>alert(1)</script> left of a blue square & "q" ${x}""",
    "first": "tiny-sdxl",
    "second": "tiny-koala-700m",
    "seed": "7",
    "random": False,
    "first_steps": 4,
    "second_steps": 4,
    "first_guidance": 5.0,
    "second_guidance": 5.0,
    "width": 256,
    "height": 256,
    "stages": ["DW-2", "DW-3", "MID", "UP-1", "UP-2"],
    "every": False,
    "words": True,
    "inputs": "own",
}
ASKED = {
    "kind": "row",
    "stage": "UP-2",
    "layer": 0,
    "head": "mean",
    "step": 2,
    "box": [0.3, 0.6, 0.3, 0.6],
    "diagonal": True,
    "word": 2,
    "opacity": 0.75,
    "gamma": 1.0,
}


@pytest.fixture(scope="session")
def fields():
    """The page's fields in order; `steps` and `guidance` are those of both models."""

    def filled(**change) -> list:
        for name in {"steps", "guidance"} & set(change):
            change |= dict.fromkeys((f"first_{name}", f"second_{name}"), change.pop(name))
        return list((FIELDS | change).values())

    return filled


@pytest.fixture(scope="session")
def asked():
    """What the page asks while one looks at a patch."""
    return ASKED


@pytest.fixture(scope="package")
def tab():
    session = Session(device="cpu")
    with gr.Blocks():
        tab = Attention(session, Store())
    session.start()
    return tab


@pytest.fixture(scope="package")
def run(tab, fields):
    """Draws; gives the last thing that the page is told, by the components' names."""

    def drawn(before: str = "", **change) -> dict:
        output: dict = {}
        for update in tab.run(SimpleNamespace(session_hash="one"), *fields(**change), before):
            output |= {
                name: update[c] for name, c in vars(tab).items() if isinstance(c, gr.blocks.Block) and c in update
            }
        return output

    return drawn


@pytest.fixture(scope="package")
def drawn(run):
    return run()


@pytest.fixture(scope="package")
def capture(tab, drawn):
    return tab.store.get(drawn["capture"])


@pytest.fixture
def ask(tab, drawn):
    """Asks as the page does, and gets what the page gets."""
    return lambda **change: json.loads(json.dumps(tab.look({"id": drawn["capture"]} | ASKED | change)))


@pytest.fixture
def take(tab, drawn):
    def download(file: str, **change) -> bytes:
        result = tab.take({"id": drawn["capture"], "file": file} | ASKED | change)
        assert "problem" not in result, result
        assert re.fullmatch(rf"koala-attention-[a-z0-9-]+-{file}\.(png|gif|html)", result["name"])
        return base64.b64decode(result["data"])

    return download


@pytest.fixture(scope="session")
def decoded():
    """The values of one side of an answer."""
    return lambda side: torch.frombuffer(bytearray(base64.b64decode(side["data"])), dtype=torch.uint8)
