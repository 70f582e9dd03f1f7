"""A third and a fourth model: added, removed, restored from a picture and from a link."""

import dataclasses

import gradio as gr
import pytest

from koala.request import GenerationRequest
from koala.ui.compare.tab import Compare
from koala.ui.session import Session
from koala.ui.settings import FIELDS, MORE, SLOTS
from tests.ui.conftest import PAIR

EMPTY = {"phase": "empty"}


@pytest.fixture(scope="module")
def tab():
    with gr.Blocks():
        result = Compare(Session(device="cpu"))
    return result


def after(tab: Compare, updates: list) -> tuple[dict, list[bool], bool]:
    """Updates of the form -> the fields that were set, which columns are visible, and whether one may be added."""
    count = len(FIELDS)
    values = {name: value for name, value in zip(FIELDS, updates[:count], strict=True) if value != gr.skip()}
    columns, add = updates[count : count + len(MORE)], updates[count + len(MORE)]
    return values, [column["visible"] for column in map(plain, columns)], plain(add)["visible"]


def plain(update) -> dict:
    return update if isinstance(update, dict) else update.constructor_args | {"visible": update.visible}


def test_models_are_added_until_there_are_four(tab):
    models = [*PAIR, None, None]
    values, visible, may_add = after(tab, list(tab.one_more(*models, EMPTY)))
    third = values["model_c"]
    assert third not in PAIR and visible == [True, False] and may_add
    card = tab.session.catalogue.card(third)
    assert (values["steps_c"], values["guidance_c"]) == (card.steps, card.guidance) and card.teacher
    values, visible, may_add = after(tab, list(tab.one_more(*PAIR, third, None, EMPTY)))
    assert values["model_d"] not in (*PAIR, third) and visible == [True, True] and not may_add


def test_a_removed_model_leaves_the_others_where_they_are(tab):
    updates = tab.one_less("c", *PAIR, "tiny-koala-1b", "tiny-lightning", EMPTY)
    values, visible, may_add = after(tab, list(updates))
    assert values == {"model_c": None, "model_d": "tiny-lightning"} and visible == [False, True] and may_add
    assert [model["name"] for model in updates[-1]["models"]] == [*PAIR, "tiny-lightning"]


def test_a_picture_of_three_models_brings_all_of_them_back_and_one_of_two_hides_the_third(tab, tmp_path, monkeypatch):
    from PIL import Image, PngImagePlugin

    def picture(names) -> str:
        """A file of this project's format, by hand."""
        import json

        requests = [
            GenerationRequest(model=name, prompt="a red circle", seed=3, steps=2, guidance=1.0, width=256, height=256,
                              scheduler=tab.session.catalogue.card(name).scheduler)
            for name in names
        ]  # fmt: skip
        metadata = {
            "request": dataclasses.asdict(requests[0]),
            "compared": [dataclasses.asdict(request) for request in requests],
            "folders": [None] * (len(names) + 1),
            "index": 0,
            "lora_sha256": None,
        }
        text = PngImagePlugin.PngInfo()
        text.add_text("koala", json.dumps(metadata))
        path = tmp_path / f"{len(names)}.png"
        Image.new("RGB", (8, 8)).save(path, pnginfo=text)
        return str(path)

    for names, shown in ((("tiny-sdxl", "tiny-koala-1b", "tiny-lightning"), [True, False]), (PAIR, [False, False])):
        *_, updates = tab.restore(picture(names))
        values, visible, _ = after(tab, updates)
        assert visible == shown
        assert [values[f"model_{slot}"] for slot in SLOTS] == [*names, None, None][:4]
    warned = []
    monkeypatch.setattr("koala.ui.compare.tab.warn", lambda text, title: warned.append(text))
    *_, updates = tab.restore(picture(["tiny-sdxl"] * 5))
    assert warned == ["5 models were compared; the first 4 of them are restored"]
    assert after(tab, updates)[1] == [True, True]
