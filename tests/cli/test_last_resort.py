"""Every entry point: whatever goes wrong, its person reads one line, with --debug the traceback as well."""

import importlib.util
from pathlib import Path

import pytest
import torch

import koala.cli.main
import koala.export.command
from koala.cli import distill
from koala.console import finish
from koala.distill.settings import read
from koala.errors import UserError
from koala.models.cards import CARDS
from koala.ui import main as app

ROOT = Path(__file__).resolve().parents[2]


def deploy():
    spec = importlib.util.spec_from_file_location("deploy", ROOT / "spaces" / "deploy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def broken(*_, **__):
    raise KeyError("block_out_channels\nand a second line")


# Entry point -> its function, a command line without --debug, and what of it to break.
ENTRIES = {
    "koala": (lambda: koala.cli.main.main, ["models"], "koala.cli.models._table"),
    "export": (lambda: koala.export.command.main, ["--model", "tiny-sdxl", "--out", "x"], "koala.export.writing.plan"),
    "export verify": (lambda: koala.export.command.main, ["verify", "x"], "koala.export.verify.verify"),
    "app": (lambda: app.main, ["--port", "1"], "koala.ui.main.launch"),
    "deploy": (deploy, ["--out", "x", "--dry-run"], "pathlib.Path.rglob"),
}


@pytest.mark.parametrize(("entry", "arguments", "place"), ENTRIES.values(), ids=ENTRIES)
def test_an_unforeseen_error_is_one_line_and_with_debug_a_traceback(entry, arguments, place, monkeypatch, capsys):
    main = entry()
    monkeypatch.setattr(place, broken)
    lines = [(arguments, False), ([*arguments, "--debug"], True)]
    lines += [(["--debug", *arguments], True)] if main in (koala.cli.main.main, koala.export.command.main) else []
    for line, traced in lines:
        assert main(line) == 1
        message = capsys.readouterr().err
        assert ("Traceback" in message and "in broken" in message) == traced
        assert "KeyError: 'block_out_channels" in message.splitlines()[-1]
        assert traced or len(message.splitlines()) == 1 and message.endswith("(--debug shows where)\n")


def raising(error: BaseException):
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no such\nmodel"), 2, "koala: no such model"),
        (OSError(28, "No space left on device", "a.png"), 1, "koala: [Errno 28] No space left on device: 'a.png'"),
        (AssertionError(), 1, "koala: AssertionError (--debug shows where)"),
        (KeyboardInterrupt(), 1, "koala: stopped"),
        (RecursionError("too deep"), 1, "koala: RecursionError: too deep (--debug shows where)"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
            1,
            "koala: memory ran out: the allocation that failed was 2.7 GB. Choose less, or close other programs that "
            "use memory",
        ),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_each_kind_of_error_says_and_returns(error, status, line, capsys):
    assert finish("koala", raising(error), debug=False, smaller="less") == status
    assert capsys.readouterr().err == f"{line}\n"


def test_memory_that_ran_out_in_a_run_is_explained_on_the_command_line_too(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    asked = ["--prompt", "a", "--width", "64", "--height", "64", "--steps", "1"]
    for words in (
        ["generate", "--model", "tiny-koala-700m", "--out", str(tmp_path / "a.png")],
        ["compare", "--models", "tiny-koala-700m", "tiny-sdxl", "--out", str(tmp_path / "b")],
        ["attention", "--model", "tiny-koala-700m", "--stages", "UP-1", "--out", str(tmp_path / "c")],
    ):
        assert koala.cli.main.main([*words, *asked]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("koala: memory ran out on cpu: the allocation that failed was 2.7 GB")
        assert "a smaller size than 64x64 px" in message and "--debug" not in message
    assert koala.cli.main.main([*words, *asked, "--debug"]) == 1
    assert "in refuse" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_remedies_of_distill_are_settings_of_a_run():
    settings = [word.split()[-1].replace("=N", "=32") for word in distill.SMALLER.split(", ") if "=" in word]
    config = read(None, ["batch_size=64", *settings])
    assert (config.gradient_checkpointing, config.accumulation, config.resolution) == (True, 32, 32)
    assert read(None, ["teacher=koala-700m"]).teacher in CARDS


def test_a_damaged_bundle_is_not_pushed(tmp_path, capsys):
    main = deploy()
    module = main.__globals__
    for content in ("", "[1]", '{"hardware": 1}', "{}"):
        (tmp_path / module["STAMP"]).write_text(content)
        with pytest.raises(UserError, match=rf"{module['STAMP']}.*; build the bundle again"):
            module["push"](tmp_path, "owner/name")
