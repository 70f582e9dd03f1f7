"""koala attention: captures, figures and figures' numbers in one new folder; every bad use one line and exit 2."""

import json

import pytest
from PIL import Image

from koala.attention.recorded import AttentionRecord
from koala.cli import main
from koala.generate import generate
from koala.loading import Library
from koala.result import read_png

PROMPT = ["--prompt", "a red circle left of a blue square"]
QUICK = [*PROMPT, "--steps", "2", "--width", "128", "--height", "64", "--device", "cpu"]


def test_a_model_beside_its_teacher_gives_captures_figures_and_agreement(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["attention", "--model", "tiny-sdxl", "--compare", "tiny-koala-700m", *QUICK, "--stages", "MID", "UP-2"]
    assert (
        main([*command, "--figure", "rows", "pca", "words", "--pixel", "40,20", "--page", "--out", str(out), "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [m["model"] for m in found["models"]] == ["tiny-sdxl", "tiny-koala-700m"]
    for one in found["models"]:
        record = AttentionRecord.load(out / one["capture"].rsplit("/", 1)[1], model=one["model"])
        assert record.bytes == one["bytes"] and one["overhead_ms"] > 0 and record.steps == 2
        request = read_png(one["image"])["request"]
        assert request.prompt == PROMPT[1]
        with Image.open(one["image"]) as picture:
            plain = generate(request, Library("cpu").get(one["model"])).images[0]
            assert picture.tobytes() == plain.tobytes(), "recording changed the picture"
    for kind in ("figures", "strips", "films"):
        assert found[kind]
        for path in found[kind].values():
            with Image.open(path) as picture:
                assert getattr(picture, "n_frames", 1) == (2 if kind == "films" else 1)
    assert PROMPT[1] in (out / "page.html").read_text() and found["page"] == str(out / "page.html")
    stages = {s["stage"]: s for s in found["agreement"][0]["stages"]}
    assert len(stages["UP-2"]["divergence"]) == 2 and stages["MID"]["absent"] == "tiny-koala-700m has no MID"


def test_saved_captures_are_drawn_without_a_run_and_to_the_same_figures(tmp_path, capsys):
    assert (
        main(["attention", "--model", "tiny-koala-700m", *QUICK, "--stages", "UP-2", "--out", str(tmp_path / "a")]) == 0
    )
    text = capsys.readouterr().out
    assert "recording took" in text and " %\n" in text
    capture = str(tmp_path / "a" / "1-tiny-koala-700m")
    assert main(["attention", "--captures", capture, "--out", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"] == [] and found["agreement"] == []
    for name in ("rows.png", "pca.png", "pca-UP-2.png", "pca-UP-2.gif"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_teacher_on_the_students_input_is_titled_so(tmp_path, capsys):
    command = ["attention", "--model", "tiny-sdxl", "--compare", "tiny-koala-1b", "--same-input", *QUICK]
    assert main([*command, "--stages", "MID", "--figure", "pca", "--out", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    titles = [m["title"] for m in found["models"]]
    assert titles == ["Tiny SDXL (teacher) on the student's input", "Tiny KOALA-1B"]
    assert {s["stage"]: s["layers"] for s in found["agreement"][0]["stages"]}["MID"] == 1


MODEL = ["--model", "tiny-koala-700m", *QUICK]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "MID"], "tiny-koala-700m has no MID; it has attention in DW-2"),
        (["--stages", "UP-3"], "tiny-koala-700m has no attention in UP-3"),
        (["--pixel", "200,10"], "pixel 200,10 is outside the picture of 128x64 px"),
        (["--step", "3"], "step 3 is not in Tiny KOALA-700M's run of 2; choose 1 to 2"),
        (["--step", "0"], "step 0 is not in"),
        (["--step", "first"], "step 'first' is neither middle nor mean"),
        (["--head", "3"], "head 3 is not in DW-2's 2"),
        (["--figure", "svd"], "there is no figure 'svd'"),
        (["--figure", "words", "--no-words"], "words need cross-attention"),
        (["--paper-mode", "--step", "mean", "--figure", "pca"], "each step is fitted alone"),
        (["--same-input"], "name these two models"),
        (["--preset", "slow"], "unknown preset"),
        (["--captures", "x"], "leave out the models and the settings"),
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
        (["--captures", str(tmp_path), "--out", str(tmp_path / "a")], "is no capture"),
        ([*MODEL, "--out", str(tmp_path / "full")], "exists already"),
        (["--model", "tiny-sdx", *PROMPT, "--out", str(tmp_path / "a")], "did you mean tiny-sdxl"),
    ):
        assert main(["attention", *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["attention", *MODEL, "--pixel", "here", "--out", str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="2"):
        main(["attention", *MODEL, "--budget", "0", "--out", str(tmp_path / "a")])


def test_a_capture_above_the_budget_is_refused_with_what_fits(tmp_path, capsys):
    command = ["attention", "--model", "tiny-sdxl", *PROMPT, "--steps", "50", "--width", "1024", "--height", "1024"]
    assert main([*command, "--all-layers", "--budget", "0.5", "--device", "cpu", "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "the budget is 0.50 GB" in error and "the last layer of each stage takes" in error
