"""koala attention: captures, figures and figures' numbers in one new folder; every bad use one line and exit 2."""

import json

import pytest
from PIL import Image

from koala.attention.capture import Side
from koala.attention.figures import Choices, figure
from koala.attention.recorded import AttentionRecord
from koala.cli.main import main
from koala.models.library import Library
from koala.sampling.generate import generate
from koala.sampling.result import read_png

PROMPT = ["--prompt", "a red circle left of a blue square"]
QUICK = [*PROMPT, "--steps", "2", "--width", "128", "--height", "64", "--device", "cpu"]


def test_a_model_beside_its_teacher_gives_captures_figures_and_agreement(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["attention", "--model", "tiny-sdxl", "--compare", "tiny-koala-700m", *QUICK, "--stages", "MID", "UP-2"]
    assert (
        main([*command, "--figure", "rows", "pca", "words", "--pixel", "40,20", "--page", "--out", str(out), "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert [m["model"] for m in report["models"]] == ["tiny-sdxl", "tiny-koala-700m"]
    for one in report["models"]:
        record = AttentionRecord.load(out / one["capture"].rsplit("/", 1)[1], model=one["model"])
        assert record.bytes == one["bytes"] and one["overhead_ms"] > 0 and record.steps == 2
        request = read_png(one["image"])["request"]
        assert request.prompt == PROMPT[1]
        with Image.open(one["image"]) as picture:
            plain = generate(request, Library("cpu").get(one["model"])).images[0]
            assert picture.tobytes() == plain.tobytes(), "recording changed the picture"
    for kind in ("figures", "strips", "films"):
        assert report[kind]
        for path in report[kind].values():
            with Image.open(path) as picture:
                assert getattr(picture, "n_frames", 1) == (2 if kind == "films" else 1)
    assert PROMPT[1] in (out / "page.html").read_text() and report["page"] == str(out / "page.html")
    stages = {s["stage"]: s for s in report["agreement"][0]["stages"]}
    assert len(stages["UP-2"]["divergence"]) == 2 and stages["MID"]["absent"] == "tiny-koala-700m has no MID"


def test_saved_captures_are_drawn_without_a_run_and_to_the_same_figures(tmp_path, capsys):
    assert (
        main(["attention", "--model", "tiny-koala-700m", *QUICK, "--stages", "UP-2", "--out", str(tmp_path / "a")]) == 0
    )
    text = capsys.readouterr().out
    assert "recording took" in text and " %\n" in text
    capture = str(tmp_path / "a" / "1-tiny-koala-700m")
    assert main(["attention", "--captures", capture, "--out", str(tmp_path / "b"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["models"] == [] and report["agreement"] == []
    for name in ("rows.png", "pca.png", "pca-UP-2.png", "pca-UP-2.gif"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_the_teacher_on_the_students_input_is_titled_so(tmp_path, capsys):
    command = ["attention", "--model", "tiny-sdxl", "--compare", "tiny-koala-1b", "--same-input", *QUICK]
    assert main([*command, "--stages", "MID", "--figure", "pca", "--out", str(tmp_path / "a"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    titles = [m["title"] for m in report["models"]]
    assert titles == ["Tiny SDXL (teacher) on the student's input", "Tiny KOALA-1B"]
    assert {s["stage"]: s["layers"] for s in report["agreement"][0]["stages"]}["MID"] == 1


def test_a_box_segments_and_another_layer_are_drawn_as_asked(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["attention", "--model", "tiny-koala-700m", *QUICK, "--stages", "up-1", "--layer", "1", "--step", "mean"]
    kinds = ["rows", "segments", "received", "entropy", "distance"]
    assert main([*command, "--figure", *kinds, "--box", "0,0,40,40", "--head", "max", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["figures"]) == kinds and [f"{k}-UP-1" for k in kinds] == list(report["films"])
    assert len([path for path in report["models"][0]["layers"] if path.endswith("attn1")]) == 10, "all were recorded"
    assert len({(out / f"{kind}.png").read_bytes() for kind in kinds}) == 5
    record = AttentionRecord.load(out / "1-tiny-koala-700m")
    with Image.open(report["models"][0]["image"]) as picture:
        side = Side(title="Tiny KOALA-700M", picture=picture.convert("RGB"), record=record)
    expected = figure([side], ["UP-1"], Choices(layer=0, step="mean", head="max", box=(0, 0, 40, 40)))
    with Image.open(report["figures"]["rows"]) as drawn:
        assert drawn.tobytes() == expected.tobytes(), "the library draws the same"


def test_a_capture_whose_picture_is_not_its_own_is_refused(tmp_path, capsys):
    out = tmp_path / "a"
    assert main(["attention", *MODEL, "--stages", "UP-1", "--figure", "rows", "--out", str(out)]) == 0
    picture = out / "1-tiny-koala-700m" / "picture.png"
    whole = picture.read_bytes()
    small = tmp_path / "small.png"
    Image.new("RGB", (64, 64)).save(small)
    for content, message in (
        (whole[: len(whole) // 2], "picture.png is damaged"),
        (b"no picture", "picture.png is damaged"),
        (small.read_bytes(), "is of 64x64 px, the capture of 128x64: of another run"),
        (None, "lacks its picture.png"),
    ):
        picture.unlink() if content is None else picture.write_bytes(content)
        assert main(["attention", "--captures", str(picture.parent), "--out", str(tmp_path / "b")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "b").exists()


MODEL = ["--model", "tiny-koala-700m", *QUICK]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "MID"], "tiny-koala-700m has no MID; it has attention in DW-2"),
        (["--stages", "UP-3"], "tiny-koala-700m has no attention in UP-3"),
        (["--pixel", "200,10"], "pixel 200,10 is outside the picture of 128x64 px"),
        (["--box", "9,9,128,12"], "box 9,9,128,12 is outside the picture of 128x64 px"),
        (["--layer", "3"], "layer 3 is not among the 2 recorded of Tiny KOALA-700M's DW-2"),
        (["--step", "3"], "step 3 is not in Tiny KOALA-700M's run of 2; choose 1 to 2"),
        (["--step", "0"], "step 0 is not in"),
        (["--step", "first"], "step 'first' is neither middle nor mean"),
        (["--head", "3"], "head 3 is not one of DW-2's 2"),
        (["--figure", "svd"], "there is no figure 'svd'"),
        (["--figure", "words", "--no-words"], "words need cross-attention"),
        (["--paper-mode", "--step", "mean", "--figure", "pca"], "each step is fitted alone"),
        (["--same-input"], "a student"),
        (["--preset", "slow"], "unknown preset"),
        (
            ["--captures", "x"],
            "leave out the options of a new run: --model, --prompt, --steps, --width, --height, --device",
        ),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    assert main(["attention", *MODEL, *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and len([line for line in error.splitlines() if line.startswith("koala:")]) == 1
    assert not list(tmp_path.iterdir())


def test_bad_use_without_a_run(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for options, message in (
        (["--model", "tiny-sdxl", "--out", str(tmp_path / "a")], "name a --model and a --prompt"),
        (["--captures", str(tmp_path), "--out", str(tmp_path / "a")], "is not a capture"),
        (["--captures", str(tmp_path), "--budget", "1", "--no-words", "--out", "a"], "new run: --no-words, --budget"),
        ([*MODEL, "--out", str(tmp_path / "full")], "exists already"),
        (["--model", "tiny-sdx", *PROMPT, "--out", str(tmp_path / "a")], "did you mean tiny-sdxl"),
    ):
        assert main(["attention", *options]) == 2
        assert message in capsys.readouterr().err
    for options, message in (
        (["--pixel", "here"], "'here' is not a pixel; give x,y"),
        (["--pixel", "1,nan"], "'1,nan' is not a pixel"),
        (["--box", "1,2"], "'1,2' is not a box; give left,top,right,bottom"),
        (["--layer", "0"], "'0' is not a layer; layers count from 1"),
        (["--opacity", "2"], "'2' is not a number from 0 to 1"),
        (["--gamma", "bright"], "'bright' is not a number from 0.2 to 2"),
        (["--budget", "0"], "'0' is not a memory size"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["attention", *MODEL, *options, "--out", str(tmp_path / "a")])
        assert message in capsys.readouterr().err


def test_a_capture_above_the_budget_is_refused_with_what_fits(tmp_path, capsys):
    command = ["attention", "--model", "tiny-sdxl", *PROMPT, "--steps", "50", "--width", "1024", "--height", "1024"]
    assert main([*command, "--all-layers", "--budget", "0.5", "--device", "cpu", "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "the budget is 0.50 GB" in error and "the last layer of each stage takes" in error
