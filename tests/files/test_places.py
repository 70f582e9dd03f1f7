"""Where a result cannot be written, the command says so before it loads a model, not after hours of work."""

import pytest

from koala.cli.main import main

ASK = ["--model", "tiny-koala-700m", "--prompt", "a red circle", "--width", "64", "--height", "64", "--steps", "1"]
COMMANDS = {
    "generate": ["generate", *ASK, "--out", "{place}/a.png"],
    "compare": ["compare", "--models", "tiny-sdxl", *ASK[1:], "--out", "{place}/new"],
    "attention": ["attention", *ASK, "--out", "{place}/new"],
    "eval": ["eval", "--model", "tiny-koala-700m", "--num-prompts", "1", "--out", "{place}/a.json"],
    "prompts": [
        "eval",
        "--model",
        "tiny-koala-700m",
        "--suite",
        "prompts",
        "--layout",
        "t2i-compbench",
        "--out",
        "{place}/new",
    ],
    "bench": ["bench", "--models", "tiny-koala-700m", "--steps", "1", "--sizes", "64", "--out", "{place}/a.json"],
    "similarity": ["similarity", "--model", "tiny-koala-700m", "--steps", "1", "--out", "{place}/a.json"],
    "compress": ["compress", "--teacher", "tiny-sdxl", "--spec", "koala-700m", "--out", "{place}/new"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_drawn(arguments, tmp_path, capsys, monkeypatch):
    place = tmp_path / "file"
    place.write_text("")
    monkeypatch.setattr("koala.models.library.Library.get", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr("koala.models.library.Library.get_all", lambda *_: pytest.fail("models were loaded"))
    filled = [a.format(place=place) for a in arguments]
    assert main(filled) == 2
    message = capsys.readouterr().err
    assert "cannot be written: " in message and "is a file, not a folder; choose another place" in message
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and place.read_text() == ""
