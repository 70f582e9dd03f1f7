"""python -m koala eval: every suite writes its report, and every option is read by something or refused by name."""

import json
import random
import re

import pytest

from koala.cli.main import main
from koala.evaluate.settings import SUITES, Settings
from koala.sampling.result import read_png
from koala.shapes.render import render
from koala.shapes.scene import random_scene

STUDENT = ["--model", "tiny-koala-700m"]
FAST = ["--num-prompts", "2", "--width", "64", "--height", "64"]


def run(*arguments) -> int:
    try:
        return main(["eval", *map(str, arguments)])
    except SystemExit as stop:  # argparse's own
        return stop.code


def test_agreement_finds_the_teacher_on_the_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("koala.evaluate.agreement.TIMESTEPS", (550,))
    out = tmp_path / "new" / "agreement.json"
    assert run(*STUDENT, "--suite", "agreement", *FAST, "--num-prompts", 1, "--out", out) == 0
    report = json.loads(out.read_text())
    assert (report["suite"], report["model"], report["teacher"]) == ("agreement", "tiny-koala-700m", "tiny-sdxl")
    assert report["scores"]["self_attention"]["layers"] == 21
    assert {"command", "device", "versions", "date"} <= set(report)
    assert "tiny-sdxl draws the next 1" in capsys.readouterr().err


def test_clip_against_a_folder_with_a_broken_picture(tmp_path, tiny_clip):
    folder = tmp_path / "reference"
    folder.mkdir()
    rng = random.Random(0)
    for k in range(3):
        render(random_scene(rng, 1)).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    prompts, out = tmp_path / "prompts.txt", tmp_path / "clip.json"
    prompts.write_text("a red circle\na blue star\na green ring\n")
    chosen = ["--clip", tiny_clip, "--reference", folder, "--prompts", prompts, "--steps", 1, "--out", out]
    assert run(*STUDENT, "--suite", "clip", *FAST, *chosen) == 0
    report = json.loads(out.read_text())
    assert report["reference"] == {"source": str(folder), "pictures": 3, "broken": ["broken.png"]}
    low, high = report["scores"]["clip_score"]["interval"]
    assert low <= report["scores"]["clip_score"]["mean"] <= high
    assert report["scores"]["cmmd"]["minimum_variance"] > 0
    assert (report["num_prompts"], report["steps"], report["width"]) == (2, 1, 64)


def test_clip_against_the_teachers_pictures_and_without_any(tmp_path, tiny_clip, capsys):
    chosen = ["--clip", tiny_clip, "--steps", 1, "--json"]
    assert run(*STUDENT, "--suite", "clip", *FAST, *chosen, "--teacher", "tiny-koala-1b") == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["reference"] == {"source": "tiny-koala-1b", "pictures": 2, "broken": []}
    assert run(*STUDENT, "--suite", "clip", *FAST, *chosen) == 0
    alone = json.loads(capsys.readouterr().out)
    assert set(alone["scores"]) == {"clip_score"}
    assert alone["scores"]["clip_score"] == compared["scores"]["clip_score"]


def test_prompts_fill_a_folder_with_its_report(tmp_path, capsys):
    out = tmp_path / "pictures"
    chosen = ["--layout", "t2i-compbench", "--images", 1, "--steps", 1, "--out", out]
    assert run(*STUDENT, "--suite", "prompts", *FAST, *chosen) == 0
    assert len(list((out / "samples").iterdir())) == 2
    report = json.loads((out / "report.json").read_text())
    assert (report["drawn"], report["layout"]) == (2, "t2i-compbench")
    assert run(*STUDENT, "--suite", "prompts", *FAST, *chosen) == 0
    assert json.loads((out / "report.json").read_text())["found"] == 2
    assert read_png(next((out / "samples").iterdir()))["request"].steps == 1


def test_shapes_may_be_drawn_on_another_canvas(capsys, monkeypatch):
    sizes = set()
    monkeypatch.setattr("koala.evaluate.shapes.verdict", lambda picture, _: sizes.add(picture.size) or Right())
    chosen = ["--num-prompts", 1, "--steps", 1, "--width", 320, "--height", 192, "--json"]
    assert run(*STUDENT, "--suite", "shapes", *chosen) == 0
    report = json.loads(capsys.readouterr().out)
    assert sizes == {(320, 192)} == {(report["width"], report["height"])}


class Right:
    all, results = True, ()


def test_judge_reads_scenes_before_and_after_the_vae(capsys):
    assert run(*STUDENT, "--suite", "judge", "--num-prompts", 3) == 0
    output = capsys.readouterr().out
    assert "read perfectly: 100.00 % of clean pictures" in output
    assert "dB inside objects" in output


def test_steps_of_two_models_is_one_command_with_a_plot(tmp_path, tiny_clip):
    models, out = ["--model", "tiny-sdxl", "tiny-koala-700m"], tmp_path / "steps.json"
    chosen = ["--metric", "clip", "--clip", tiny_clip, "--steps", 1, 2, "--out", out]
    assert run(*models, "--suite", "steps", *FAST, *chosen) == 0
    report = json.loads(out.read_text())
    assert [m["model"] for m in report["models"]] == models[1:]
    assert [p["steps"] for m in report["models"] for p in m["points"]] == [1, 2, 1, 2]
    svg = (tmp_path / "steps.svg").read_text()
    assert all(name in svg for name in ("tiny-sdxl", "tiny-koala-700m", "CLIPScore"))
    assert len(re.findall("<circle", svg)) == 4
    tables = (tmp_path / "steps.md").read_text()
    assert re.search(r"^\| tiny-koala-700m \| tiny-sdxl \| 2 \| 2 \| 2\.0 M \| 4 \| [\d.]+ \|", tables, re.M)


@pytest.mark.parametrize("suite", SUITES)
def test_every_option_is_read_by_its_suite_or_refused_by_name(suite, capsys, tmp_path):
    """No option of a suite does nothing: whatever it does not read ends in one line that names it."""
    values = {"layout": "geneval", "metric": "shapes", "preset": "fast", "scheduler": "ddim-trailing"}
    reads = {*SUITES[suite].reads, *(("metric", "also_unguided", *SUITES["shapes"].reads) if suite == "steps" else ())}
    for name in Settings.__dataclass_fields__:
        if name in reads:
            continue
        option = f"--{name.replace('_', '-')}"
        value = [] if name == "also_unguided" else [values.get(name, "5")]
        assert run(*STUDENT, "--suite", suite, option, *value) == 2
        assert f"{option} is not read by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "agreement", "--model", "tiny-sdxl"], "names no teacher; name one with --teacher"),
        (["--suite", "agreement", "--teacher", "tiny-sdlx"], "did you mean tiny-sdxl"),
        (["--suite", "clip"], "hf download openai/clip-vit-large-patch14 --include"),
        (["--suite", "clip", "--clip", "nowhere/clip"], "nowhere/clip is not on this machine"),
        (["--suite", "clip", "--teacher", "tiny-sdxl", "--reference", "d"], "give one of them"),
        (["--suite", "clip", "--model", "tiny-sdxl", "tiny-koala-1b"], "one model at a time, not 2"),
        (["--suite", "prompts", "--out", "d"], "--layout t2i-compbench or geneval"),
        (["--suite", "prompts", "--layout", "geneval"], "name it with --out DIR"),
        (["--suite", "prompts", "--layout", "geneval", "--out", "x.json"], "name it with --out DIR"),
        (["--suite", "prompts", "--layout", "geneval", "--out", "d", "--prompts", "no.txt"], "no prompts file no.txt"),
        (["--suite", "steps"], "say where with --out FILE.json"),
        (["--suite", "shapes", "--steps", "1", "2"], "takes one number of steps"),
        (["--suite", "shapes", "--steps", "0"], "steps must lie between"),
        (["--suite", "shapes", "--out", "."], "--out names the report's file, FILE.json"),
        (["--suite", "shapes", "--batch-size", "0"], "--batch-size must lie between"),
        (["--suite", "clip", "--width", "13"], "64 is the nearest"),
        (["--suite", "steps", "--steps", "many", "--out", "x.json"], "invalid int value: 'many'"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None,
)
def test_bad_use_is_one_line_and_leaves_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in arguments else STUDENT
    assert run(*model, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())
