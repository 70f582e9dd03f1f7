"""The PNG carries its request: awkward prompts survive, broken and foreign files are refused with a remedy."""

import dataclasses
import io
import json
import re
from pathlib import PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from koala.errors import UserError
from koala.presets import PRESETS
from koala.request import MAX_IMAGES, MAX_LORA_STRENGTH, MAX_SEED, MAX_STEPS, SCHEDULERS, GenerationRequest, Timing
from koala.sampling.result import GenerationResult, folder_mark, read_png, shared

AWKWARD = "<script>alert('x')</script> ${1+1} {{y}} \"quotes\" 🐨\nnew line, ünïcödé"


def result(prompt=AWKWARD, images=2, seed=5):
    request = GenerationRequest(
        model="tiny-sdxl", prompt=prompt, negative_prompt="dull", seed=seed, steps=4, guidance=5.0,
        scheduler="euler-trailing", width=64, height=64, images=images,
    )  # fmt: skip
    return GenerationResult(
        request=request,
        images=tuple(Image.new("RGB", (64, 64), (k, 0, 0)) for k in range(images)),
        timing=Timing(text_ms=1, unet_ms=(1,) * 4, unet_calls=8, vae_ms=1, total_ms=6, peak_memory_bytes=None),
        parameters=1,
        revision="local",
        dtype="float32",
        device="CPU",
        versions={"torch": "2"},
    )


def test_request_and_comparison_survive_the_png_round_trip():
    drawn = result()
    other = GenerationRequest(model="tiny-koala-700m", prompt=AWKWARD, seed=5)
    metadata = read_png(drawn.png(1, compared=(drawn.request, other)))
    assert metadata["request"].prompt == AWKWARD
    assert (metadata["request"].seed, metadata["request"].images) == (6, 1)  # picture 1 on its own
    assert metadata["compared"] == [drawn.request, other]
    assert metadata["versions"] == {"torch": "2"}


TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8) | st.sampled_from(
    ["\x00", "a\x00b", "\ud83d\udc28", "\udc80", "🐨" * 2000, "a" * 2000, "\x7f\u2028", " \t\n x", "tEXt\0koala\0{}"]
)
ASKED = {
    "negative_prompt": TEXT | st.just(""),
    "seed": st.integers(0, MAX_SEED) | st.integers(MAX_SEED - MAX_IMAGES, MAX_SEED),
    "steps": st.none() | st.sampled_from([1, MAX_STEPS]),
    "guidance": st.none() | st.integers(0, 30) | st.floats(0, 30),
    "scheduler": st.none() | st.sampled_from(SCHEDULERS),
    "width": st.none() | st.integers(2, 64).map(lambda k: 32 * k),
    "height": st.none() | st.integers(2, 64).map(lambda k: 32 * k),
    "images": st.integers(1, MAX_IMAGES),
    "preset": st.sampled_from(list(PRESETS)),
    "lora": st.none() | TEXT.map(lambda name: f"{name}.safetensors"),
    "lora_strength": st.floats(-MAX_LORA_STRENGTH, MAX_LORA_STRENGTH),
}


@settings(max_examples=80, derandomize=True, database=None, deadline=None)
@given(model=TEXT, prompt=TEXT, change=st.fixed_dictionaries({}, optional=ASKED))
def test_whatever_request_is_accepted_its_last_picture_restores_it(model, prompt, change):
    """Symptom: the second picture of the largest seed had a seed that no request may have."""
    try:
        asked = GenerationRequest(model=model, prompt=prompt, **change)
    except UserError:
        return
    drawn = dataclasses.replace(result(), request=asked, images=(Image.new("RGB", (8, 8)),) * asked.images)
    metadata = read_png(drawn.png(asked.images - 1, compared=(asked,)))
    lora = asked.lora and PurePath(asked.lora).name
    asked = dataclasses.replace(asked, model=(model.startswith("/") and PurePath(model).name) or model)
    assert metadata["compared"] == [dataclasses.replace(asked, lora=lora)]
    assert metadata["request"] == dataclasses.replace(asked, lora=lora, seed=asked.seed + asked.images - 1, images=1)


def test_a_lora_is_named_without_the_folders_of_this_machine():
    drawn = result()
    asked = dataclasses.replace(
        drawn.request, lora="/home/somebody/style.safetensors", lora_strength=0.5, preset="fast"
    )
    drawn = dataclasses.replace(drawn, request=asked, lora_sha256="ab12")
    content = drawn.png(compared=(asked,))
    assert b"somebody" not in content
    metadata = read_png(content)
    assert metadata["lora_sha256"] == "ab12"
    assert (metadata["request"].lora, metadata["request"].lora_strength) == ("style.safetensors", 0.5)
    assert metadata["compared"][0].lora == "style.safetensors"
    with Image.open(io.BytesIO(content)) as picture:
        assert "Preset: fast, LoRA: style.safetensors (0.5)" in picture.text["parameters"]


def test_a_folder_is_named_without_where_it_lies_and_told_from_others_of_its_name():
    drawn = result()
    of_ann, of_bob = (dataclasses.replace(drawn.request, model=f"/home/{who}/models/mine") for who in ("ann", "bob"))
    content = dataclasses.replace(drawn, request=of_ann).png(compared=(of_ann, of_bob, drawn.request))
    assert b"/home" not in content and b"ann" not in content
    metadata = read_png(content)
    assert [r.model for r in (metadata["request"], *metadata["compared"])] == ["mine", "mine", "mine", "tiny-sdxl"]
    own, same, other, name = metadata["folders"]
    assert own == same == folder_mark(of_ann.model) != other and name is None
    assert shared(of_ann) == dataclasses.replace(of_ann, model="mine")
    with Image.open(io.BytesIO(content)) as picture:
        assert ", Model: mine, " in picture.text["parameters"]


def test_commas_in_a_setting_are_quoted_as_automatic1111_reads_them():
    """Its reader's own pattern for the last line, with the unquoting that goes with it."""
    drawn = result()
    asked = dataclasses.replace(drawn.request, lora='/x/ink, "wet": b.safetensors', model="/x/a, b")
    with Image.open(io.BytesIO(dataclasses.replace(drawn, request=asked).png())) as picture:
        line = picture.text["parameters"].splitlines()[-1]
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line)
    read = {k: json.loads(v) if v.startswith('"') else v for k, v in pairs}
    assert read["LoRA"] == 'ink, "wet": b.safetensors (1)' and read["Model"] == "a, b"
    assert (read["Steps"], read["Size"], read["Dtype"]) == ("4", "64x64", "float32")


def test_other_tools_find_the_usual_parameters_text():
    with Image.open(io.BytesIO(result().png())) as picture:
        text = picture.text["parameters"]
    assert text.startswith(AWKWARD)
    assert "Negative prompt: dull" in text
    assert "Steps: 4, Sampler: euler-trailing, CFG scale: 5.0, Seed: 5, Size: 64x64, Model: tiny-sdxl" in text


def test_several_pictures_become_several_files(tmp_path):
    paths = result().save(tmp_path / "new" / "a.png")
    assert [p.name for p in paths] == ["a.png", "a-2.png"]
    assert [read_png(p)["request"].seed for p in paths] == [5, 6]


def _png(**text):
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable PNG"),
        (b"hello", "not a readable PNG"),
        (_png()[:-40], "not a readable PNG"),
        (_png(), "carries no KOALA settings"),
        (_png(koala="{"), "damaged"),
        (_png(koala="[]"), "damaged"),
        (_png(koala='{"request": {"model": "m"}}'), "lacks prompt"),
        (
            _png(koala=json.dumps({"request": {"model": "m", "prompt": "x", "steps": 0}})),
            "steps must lie between",
        ),
        (_png(koala=json.dumps({"request": {"model": "m", "prompt": "x"}, "compared": 3})), "damaged"),
    ],
    ids=["empty", "text", "cut", "foreign", "half", "list", "incomplete", "steps", "compared"],
)
def test_bad_files_are_refused_with_a_remedy(data, message):
    with pytest.raises(UserError) as caught:
        read_png(data)
    assert message in str(caught.value)
