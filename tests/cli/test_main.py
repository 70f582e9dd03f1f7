"""The command line: JSON contracts, and every bad use as one line with exit 2."""

import json
import re
import subprocess
import sys

import pytest

import koala
from koala.cli.main import OTHERS, VERBS, main
from koala.sampling.result import read_png

STUDENT = ["--model", "tiny-koala-700m"]


def test_generate_writes_a_picture_and_one_json_object(tmp_path, capsys):
    out = tmp_path / "a.png"
    prompt = "a red circle <b>🐨</b> ${1+1}"
    assert (
        main(
            [
                "generate",
                *STUDENT,
                "--prompt",
                prompt,
                "--steps",
                "2",
                "--seed",
                "9",
                "--json",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "tiny-koala-700m"
    assert result["image"] == str(out)
    assert result["parameters"] == 1_967_636
    assert set(result["timing"]) == {
        "text_ms",
        "unet_ms",
        "unet_calls",
        "vae_ms",
        "total_ms",
        "peak_memory_bytes",
        "swap_ms",
    }
    assert len(result["timing"]["unet_ms"]) == 2
    assert {c["kind"] for c in result["claims"]} == {"count", "attribute", "binding"}
    request = read_png(out)["request"]
    assert (request.prompt, request.seed, request.steps) == (prompt, 9, 2)


def test_compare_gives_both_models_and_a_speed_up_that_multiplies(tmp_path, capsys):
    models = ["tiny-sdxl", "tiny-koala-700m"]
    arguments = [
        "compare",
        "--models",
        *models,
        "--prompt",
        "a green star",
        "--steps",
        "3",
        "--json",
        "--out",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [m["model"] for m in result["models"]] == models
    assert result["speedup"]["baseline"] == "tiny-sdxl"
    (ratio,) = result["speedup"]["models"]
    assert ratio["model"] == "tiny-koala-700m"
    assert ratio["per_call"] * ratio["calls"] == pytest.approx(ratio["unet"])
    assert result["device"]
    assert "torch" in result["versions"]
    compared = read_png(result["models"][1]["image"])["compared"]
    assert [r.model for r in compared] == models
    assert "tiny-sdxl: step 3 of 3" in captured.err


def test_models_lists_every_card(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    by_name = {r["name"]: r for r in rows}
    assert by_name["tiny-sdxl"]["available"]
    assert not by_name["koala-lightning-700m"]["available"]
    assert "koala fetch koala-lightning-700m" in by_name["koala-lightning-700m"]["needs"]
    assert {"name", "parameters", "location", "available", "licence"} <= set(rows[0])


def test_eval_writes_its_report_with_command_and_date(tmp_path, capsys):
    out = tmp_path / "new" / "score.json"
    assert main(["eval", *STUDENT, "--suite", "shapes", "--num-prompts", "2", "--steps", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["scores"]) == {"one_object", "two_objects", "held_out"}
    assert {"model", "suite", "num_prompts", "command", "device", "date"} <= set(report)
    assert report["scores"]["one_object"]["all"]["count"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", *STUDENT, "--prompt", "", "--out", "x.png"], "the prompt is empty"),
        (["generate", *STUDENT, "--prompt", "x" * 10_000, "--out", "x.png"], "shorten it to 2,000"),
        (["generate", *STUDENT, "--prompt", "x", "--steps", "0", "--out", "x.png"], "steps must lie between"),
        (
            ["generate", *STUDENT, "--prompt", "x", "--steps", "10000", "--out", "x.png"],
            "steps must lie between",
        ),
        (["generate", *STUDENT, "--prompt", "x", "--width", "13", "--out", "x.png"], "64 is the nearest"),
        (
            ["generate", *STUDENT, "--prompt", "x", "--width", "100000", "--out", "x.png"],
            "2048 is the nearest",
        ),
        (
            ["generate", *STUDENT, "--prompt", "x", "--seed", "lucky", "--out", "x.png"],
            "seed must be a whole number",
        ),
        (["generate", *STUDENT, "--prompt", "x", "--seed", "-1", "--out", "x.png"], "seed must lie between"),
        (["generate", "--model", "tiny-sdlx", "--prompt", "x", "--out", "x.png"], "did you mean tiny-sdxl"),
        (
            ["generate", "--model", "koala-1b", "--prompt", "x", "--out", "x.png"],
            "python -m koala fetch koala-1b",
        ),
        (["generate", *STUDENT, "--prompt", "x", "--out", "x.jpg"], "does not end in .png"),
        (
            ["generate", *STUDENT, "--prompt", "x", "--device", "gpu", "--out", "x.png"],
            "unknown device 'gpu'",
        ),
        (["compare", "--models", "tiny-sdxl", "--prompt", "x", "--out", "d"], "at least two models"),
        (["eval", *STUDENT, "--num-prompts", "0"], "--num-prompts must lie between"),
        (["draw"], "there is no verb 'draw'; python -m koala --help lists them"),
        (["genrate"], "did you mean generate?"),
        (["exprot"], "did you mean export?"),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else None,
)
def test_bad_use_is_one_line_and_exit_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_python_dash_m_koala_runs():
    done = subprocess.run([sys.executable, "-m", "koala", "models"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiny-koala-700m" in done.stdout


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"koala {koala.__version__}\n"


def test_bare_koala_prints_the_help_with_every_verb(capsys):
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for verb in (*VERBS, *OTHERS):
        assert re.search(rf"^ +{verb}\s+\w", captured.out, re.M), verb


@pytest.mark.parametrize("verb", [*VERBS, *OTHERS])
def test_every_verb_has_a_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_koala_export_is_the_exports_command(capsys, tmp_path):
    """Its commands and its errors, with --debug before the verb as well."""
    assert main(["export", "inspect", str(tmp_path)]) == 2
    first = capsys.readouterr().err
    assert len(first.splitlines()) == 1 and "no export" in first
    assert main(["--debug", "export", "inspect", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_koala_app_takes_the_apps_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["app", "--vram", "0"])
    assert stop.value.code == 2
    assert "--vram takes gigabytes" in capsys.readouterr().err


def test_the_first_names_are_those_of_their_modules():
    """`koala.generate` and `koala.compare` are functions, whatever modules of these names were imported before."""
    import koala.cli.compare
    import koala.sampling.compare
    import koala.sampling.generate
    from koala import GenerationRequest, Library, compare, generate
    from koala.models import library
    from koala.request import GenerationRequest as of_its_module

    assert generate is koala.sampling.generate.generate
    assert compare is koala.sampling.compare.compare
    assert Library is library.Library and GenerationRequest is of_its_module
    assert {"GenerationRequest", "Library", "compare", "generate"} <= set(koala.__all__) <= set(dir(koala))
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        koala.draw  # noqa: B018


@pytest.mark.parametrize(
    ("started", "name"), [("/usr/bin/koala", "koala export"), ("/x/koala/__main__.py", "python -m koala export")]
)
def test_the_exports_help_is_typed_as_it_was_called(started, name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [started])
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: {name} [-h]") and f"{name} verify" in text
