"""Folders for T2I-CompBench and GenEval: exact layouts, whole requests, and a run that goes on where it stopped."""

import dataclasses
import json
import shutil

import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from koala.errors import UserError
from koala.evaluate import picture_folder
from koala.evaluate.picture_folder import draw_folder
from koala.evaluate.prompt_files import Prompt, of_shapes
from koala.evaluate.settings import Settings
from koala.models.library import Library
from koala.sampling.result import read_png

FAST = {"width": 64, "height": 64, "steps": (1,), "seed": 7, "images": 2}
TWO = [Prompt(text="a red circle"), Prompt(text="a blue star, above a ring")]
RECORD = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"}


@pytest.fixture(scope="module")
def model():
    return Library("cpu").get("tiny-koala-700m")


def silent(text):
    pass


def files(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_t2i_compbench_reads_the_prompt_and_the_number_from_the_name(model, tmp_path):
    report = draw_folder(model, TWO, Settings(layout="t2i-compbench", **FAST), tmp_path, silent)
    assert files(tmp_path) == [
        "samples/a blue star, above a ring_000002.png",
        "samples/a blue star, above a ring_000003.png",
        "samples/a red circle_000000.png",
        "samples/a red circle_000001.png",
    ]
    assert (report["drawn"], report["found"], report["images_per_prompt"]) == (4, 0, 2)
    # its scripts: the prompt is what stands before the first "_", the number what stands after the last
    names = sorted(
        (f.name for f in (tmp_path / "samples").iterdir()), key=lambda x: int(x.split("_")[-1].split(".")[0])
    )
    assert [n.split("_")[0] for n in names] == ["a red circle"] * 2 + ["a blue star, above a ring"] * 2


def test_geneval_finds_its_metadata_and_samples(model, tmp_path):
    prompts = [Prompt(text=RECORD["prompt"], record=RECORD)] * 2
    draw_folder(model, prompts, Settings(layout="geneval", **FAST), tmp_path, silent)
    one = ["metadata.jsonl", "samples/00000.png", "samples/00001.png"]
    assert files(tmp_path) == [f"{folder}/{name}" for folder in ("00000", "00001") for name in one]
    assert json.loads((tmp_path / "00001" / "metadata.jsonl").read_text()) == RECORD


def test_every_picture_carries_its_request_and_is_the_one_that_it_asks_for(model, tmp_path):
    draw_folder(model, TWO, Settings(layout="t2i-compbench", **FAST), tmp_path, silent)
    for name, prompt, seed in (("a red circle_000001", TWO[0], 8), ("a blue star, above a ring_000002", TWO[1], 7)):
        request = read_png(tmp_path / "samples" / f"{name}.png")["request"]
        assert (request.prompt, request.seed, request.steps) == (prompt.text, seed, 1)
        assert (request.model, request.width, request.guidance) == ("tiny-koala-700m", 64, 2.0)


def test_a_stopped_run_draws_only_what_is_missing_or_cut_off(model, tmp_path, monkeypatch):
    settings = Settings(layout="t2i-compbench", **FAST)
    draw_folder(model, TWO, settings, tmp_path, silent)
    gone, cut, *kept = sorted((tmp_path / "samples").iterdir())
    whole = {file: file.read_bytes() for file in (gone, cut, *kept)}
    gone.unlink()
    cut.write_bytes(whole[cut][:100])
    times = {file: file.stat().st_mtime_ns for file in kept}
    report = draw_folder(model, TWO, settings, tmp_path, silent)
    assert (report["drawn"], report["found"]) == (2, 2)
    assert {file: file.stat().st_mtime_ns for file in kept} == times
    assert {file: read_png(file)["request"] for file in whole} == {f: read_png(b)["request"] for f, b in whole.items()}
    monkeypatch.setattr(picture_folder, "draw", None)  # nothing is left to draw
    assert draw_folder(model, TWO, settings, tmp_path, silent)["drawn"] == 0


def test_pictures_of_other_settings_are_never_mixed_in(model, tmp_path):
    settings = Settings(layout="t2i-compbench", **FAST)
    draw_folder(model, TWO[:1], settings, tmp_path, silent)
    with pytest.raises(UserError, match="drawn with other settings: guidance; choose a new folder"):
        draw_folder(model, TWO[:1], dataclasses.replace(settings, guidance=1.0), tmp_path, silent)


ONE = Settings(layout="t2i-compbench", **FAST | {"images": 1})


@pytest.fixture
def own(embedded, tmp_path):
    """A model's folder, whose U-Net is its own."""
    folder = shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "models" / "mine")
    return Library("cpu").get(str(folder))


def written_as(file, **change):
    """The picture as an older version of the program would have written it; None takes a key away."""
    with Image.open(file) as picture:
        picture.load()
        metadata = {k: v for k, v in (json.loads(picture.text["koala"]) | change).items() if v is not None}
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("koala", json.dumps(metadata))
    picture.save(file, pnginfo=chunks)
    return metadata


def test_pictures_that_still_name_a_folder_are_those_of_that_folder(own, tmp_path):
    """Symptom: a folder of pictures of a week ago could not be finished."""
    draw_folder(own, TWO[:1], ONE, tmp_path / "out", silent)
    (file,) = (tmp_path / "out" / "samples").iterdir()
    request = json.loads(Image.open(file).text["koala"])["request"]
    before = {"folders": None, "weights_sha256": None}
    written_as(file, request=request | {"model": own.card.name}, **before)
    assert draw_folder(own, TWO[:1], ONE, tmp_path / "out", silent)["found"] == 1
    written_as(file, request=request | {"model": "/elsewhere/mine"}, **before)
    with pytest.raises(UserError, match="with other settings: model; .* or remove the picture to have it drawn"):
        draw_folder(own, TWO[:1], ONE, tmp_path / "out", silent)
    file.unlink()  # as it says
    assert draw_folder(own, TWO[:1], ONE, tmp_path / "out", silent)["drawn"] == 1


def test_a_model_is_known_by_its_files_wherever_they_lie(own, tmp_path):
    draw_folder(own, TWO[:1], ONE, tmp_path / "out", silent)
    moved = (tmp_path / "models" / "mine").rename(tmp_path / "moved")
    assert draw_folder(Library("cpu").get(str(moved)), TWO[:1], ONE, tmp_path / "out", silent)["found"] == 1
    weights = moved / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1  # a training run has gone on
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="with other settings: model; choose a new folder"):
        draw_folder(Library("cpu").get(str(moved)), TWO[:1], ONE, tmp_path / "out", silent)


@pytest.mark.parametrize(
    ("layout", "prompt", "message"),
    [
        ("t2i-compbench", "either/or", "which '/' breaks"),
        ("t2i-compbench", "snake_case", "which '_' breaks"),
        ("t2i-compbench", "long " * 60, "too long"),
        ("t2i-compbench", "ü" * 115, "too long"),
        ("geneval", "a photo of a car", 'scores by the "tag" and "include"'),
    ],
)
def test_prompts_that_a_layout_cannot_hold_are_refused_before_anything_is_drawn(
    model, tmp_path, layout, prompt, message
):
    prompts = [*of_shapes(1), Prompt(text=prompt)] if layout == "t2i-compbench" else [Prompt(text=prompt)]
    with pytest.raises(UserError, match=message):
        draw_folder(model, prompts, Settings(layout=layout, **FAST), tmp_path, silent)
    assert not list(tmp_path.iterdir())


def test_the_longest_prompt_that_fits_a_file_name_is_drawn(model, tmp_path):
    prompt = Prompt(text="a red circle " + "x" * (picture_folder.LONGEST - 13 - len("_000000.png")))
    draw_folder(model, [prompt], Settings(layout="t2i-compbench", **FAST | {"images": 1}), tmp_path, silent)
    assert files(tmp_path) == [f"samples/{prompt.text}_000000.png"]


def test_benchmarks_count_their_own_number_of_pictures(model, tmp_path):
    for layout, prompt, images in (
        ("t2i-compbench", TWO[0], 10),
        ("geneval", Prompt(text=RECORD["prompt"], record=RECORD), 4),
    ):
        assert len(picture_folder.planned(model, [prompt], Settings(layout=layout), tmp_path)) == images
