"""python -m koala lora: the JSON contract, the text for people, and bad use."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from koala.cli.main import main

TEACHERS = "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q"
STUDENTS = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
GONE = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def lora(tmp_path):
    keys = {}
    for layer, value in ((TEACHERS, 1.0), (GONE, 2.0)):
        keys |= {f"unet.{layer}.lora_A.weight": torch.full((2, 64), value)}
        keys |= {f"unet.{layer}.lora_B.weight": torch.full((64, 2), value)}
    save_file(keys, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_lora_prints_its_report_as_one_json_object(lora, tmp_path, capsys):
    out = tmp_path / "new" / "moved.safetensors"
    assert main(["lora", "--lora", str(lora), "--spec", "koala-700m", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == str(out)
    assert (result["teacher"], result["student"]) == ("tiny-sdxl", "tiny-koala-700m")
    assert (result["kept"], result["moved"], result["dropped"]) == ([], {TEACHERS: STUDENTS}, [GONE])
    assert (result["coverage"], result["stages"]) == (0.5, {"UP-1": [1, 2]})
    moved = load_file(out)
    name = f"lora_unet_{STUDENTS.replace('.', '_')}"
    assert moved.keys() == {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"}
    assert moved.pop(f"{name}.alpha") == 2  # its rank
    assert all((tensor == 1).all() for tensor in moved.values())


def test_lora_tells_people_how_much_is_left(lora, tmp_path, capsys):
    out = tmp_path / "moved.safetensors"
    assert main(["lora", "--lora", str(lora), "--spec", "koala-1b", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "2 layers of tiny-sdxl: 0 kept, 1 moved to another number, 1 dropped" in text
    assert "coverage: 50.0% of the LoRA" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"--spec": "koala-9b"}, "'koala-9b' is not a spec"),
        ({"--lora": "nowhere.safetensors"}, "there is no file nowhere.safetensors"),
        ({"--lora": "lora.ckpt"}, "is a pickle, which can run any code"),
        ({"--out": "moved.pt"}, "does not end in .safetensors"),
        ({"--teacher-spec": "sdxl"}, "for another architecture: 2 of its 2 layers fit no layer of sdxl"),
        ({"--teacher-spec": "sd15"}, "invalid choice: 'sd15'"),
    ],
)
def test_bad_use_writes_nothing_and_exits_2(lora, tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    options = {"--lora": str(lora), "--spec": "koala-700m", "--out": "moved.safetensors"} | options
    try:
        status = main(["lora", *(text for pair in options.items() for text in pair)])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert says in captured.err
    assert captured.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]
