"""python -m koala compress: the JSON contract, the text for people, and bad use."""

import json

import pytest

from koala.cli.main import main


def test_compress_prints_its_report_as_one_json_object(tmp_path, capsys):
    out = tmp_path / "student"
    assert main(["compress", "--teacher", "tiny-sdxl", "--spec", "koala-700m", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("out") == str(out)
    assert result == json.loads((out / "surgery.json").read_text())
    assert result["copied"] == {"tensors": 584, "parameters": 1_967_636, "bytes": 3_935_272}
    assert result["student_depths"] == "0,2,5/-/5+5,2+2,0+0"
    assert [s["stage"] for s in result["stages"]] == ["DW-1", "DW-2", "DW-3", "MID", "UP-1", "UP-2", "UP-3"]


def test_compress_tells_people_what_was_kept_and_what_came_out(tmp_path, capsys, embedded):
    teacher = embedded / "tiny-sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
    out = tmp_path / "student"
    assert main(["compress", "--teacher", str(teacher), "--spec", "koala-1b", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "MID  residual blocks kept: all of 1, transformer blocks: 6 of 10" in text
    assert f"{out} is a U-Net for diffusers" in text
    assert {f.name for f in out.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors", "surgery.json"}


def test_the_compressed_teacher_draws(tmp_path, capsys):
    out = str(tmp_path / "student")
    assert main(["compress", "--teacher", "tiny-sdxl", "--spec", "0,1,3/-/3+3,1+1,0+0", "--out", out]) == 0
    picture = tmp_path / "a.png"
    draw = ["generate", "--model", out, "--prompt", "a red circle", "--steps", "1", "--out", str(picture)]
    assert main(draw) == 0
    assert picture.exists()


@pytest.mark.parametrize(
    ("teacher", "spec", "out", "says"),
    [
        ("tiny-sdlx", "koala-700m", "new", "did you mean tiny-sdxl"),
        ("tiny-sdxl", "koala-9b", "new", "'koala-9b' is not a spec"),
        ("tiny-koala-700m", "koala-1b", "new", "6 transformer blocks, tiny-koala-700m only 5"),
        ("tiny-sdxl", "koala-700m", "full", "full exists already; choose a new folder"),
        ("model.ckpt", "koala-700m", "new", "model.ckpt is a pickle"),
        ("full", "koala-700m", "new", "full is not a diffusers pipeline"),
    ],
)
def test_bad_use_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, teacher, spec, out, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    assert main(["compress", "--teacher", teacher, "--spec", spec, "--out", out]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert {p.name for p in tmp_path.iterdir()} == {"full", "model.ckpt"}
