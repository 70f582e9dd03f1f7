"""The runner that is documentation: the same picture as torch from the same noise, with torch out of reach."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from PIL import Image

from koala.export import numpy_runner
from koala.export.gates.pictures import psnr
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate, initial_noise, noise_sources
from koala.sampling.result import GenerationResult

RUNNER = Path(__file__).resolve().parents[2] / "koala" / "export" / "numpy_runner.py"
# Runs a script in a process in which none of these can be imported.
WITHOUT = """
import runpy, sys
for name in ("torch", "diffusers", "transformers", "koala"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT, str(RUNNER), *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | {"HOME": str(cwd)}, capture_output=True, text=True)


SMALL = {"steps": 4, "width": 160, "height": 128}


def apart(export: Path, drawn: GenerationResult, folder: Path) -> float:
    """PSNR in dB between a result and what the runner draws of the same request and noise, in an empty folder."""
    asked = drawn.request
    sources = noise_sources(asked)
    noises = 1 + asked.steps if asked.scheduler == "euler-ancestral-trailing" else 1
    np.save(folder / "noise.npy", np.concatenate([initial_noise(asked, 4, 8, sources).numpy() for _ in range(noises)]))
    given = ["--negative-prompt", asked.negative_prompt, "--guidance", str(asked.guidance), "--steps", str(asked.steps)]
    done = run(str(export), asked.prompt, *given, "--noise", "noise.npy", "--out", "a.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    decibels = psnr(Image.open(folder / "a.png").convert("RGB"), drawn.images[0])
    print(f"PSNR {decibels:.1f} dB")
    return decibels


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance", "seed"),
    [
        pytest.param("a red circle left of a blue square", "", 5.0, 5, marks=pytest.mark.slow),
        ("A RED  circle, and it's 2 squares! " + "very " * 90, "a blue star", 3.0, 6),
        pytest.param("a yellow star", "", 1.0, 6, marks=pytest.mark.slow),
    ],
    ids=["guided", "negative-and-too-long", "unguided"],
)
def test_the_picture_is_torch_s(tmp_path, exported_700m, prompt, negative, guidance, seed):
    """Seeds that hang on no rounding: with 6 the first prompt's torch in fp16 is 32 dB from fp32. See the next test."""
    asked = GenerationRequest(
        model="tiny-koala-700m", prompt=prompt, negative_prompt=negative, guidance=guidance, seed=seed, **SMALL
    )
    decibels = apart(exported_700m, generate(asked, Library("cpu").get(asked.model), num_previews=0), tmp_path)
    assert decibels > 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "noise.npy"]  # no reports to ONNX Runtime's makers


@pytest.mark.slow
def test_the_picture_is_the_app_s_own_of_the_same_file(tmp_path, exported_700m):
    """Numbers for numbers the same sampler: what hangs on roundings falls to the same side."""
    prompt = "A RED  circle, and it's 2 squares! " + "very " * 90
    asked = GenerationRequest(
        model=str(exported_700m), prompt=prompt, negative_prompt="a blue star", guidance=3.0, seed=5, **SMALL
    )
    drawn = generate(asked, Library("cpu").get(asked.model), num_previews=0)
    assert apart(exported_700m, drawn, tmp_path) > 50


def test_defaults_are_the_model_s_and_bad_use_is_one_line(tmp_path, exported_700m):
    defaults = json.loads((exported_700m / "export.json").read_text())["defaults"]
    done = run(str(exported_700m), "a red circle", "--steps", "1", "--seed", "3", "--out", "a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (defaults["width"], defaults["height"])
        assert picture.text["parameters"].startswith("a red circle\n")
    for arguments, message in (
        ([str(tmp_path), "x"], "is not an export"),
        ([str(exported_700m), "x", "--width", "100"], "multiples of 8"),
        ([str(exported_700m), "x", "--steps", "0"], "at least 1"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr


@pytest.fixture
def copy(tmp_path, exported_700m):
    """An export of which a test may change the small files."""
    folder = tmp_path / "export"
    folder.mkdir()
    for part in exported_700m.iterdir():
        (folder / part.name).mkdir() if part.is_dir() else shutil.copy(part, folder)
        for file in part.iterdir() if part.is_dir() else ():
            (folder / part.name / file.name).symlink_to(file)
    return folder


def say(folder, file, **values):
    """The JSON file with these values; None takes a key away."""
    content = json.loads((folder / file).read_text()) | values
    (folder / file).unlink()
    (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("euler-trailing", {}),
        ("euler-linspace", {"timestep_spacing": None}),
        ("euler-leading", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("euler-leading", {"timestep_spacing": "leading", "steps_offset": None}),
        ("euler-leading", {"timestep_spacing": None, "_class_name": "DDIMScheduler", "steps_offset": 3}),
        ("euler-leading", {"timestep_spacing": "trailing"}),  # SDXL's offset, 1
    ],
)
def test_timesteps_and_noise_levels_are_those_of_diffusers(copy, scheduler, settings):
    """Symptom: an export of a model with leading timesteps was drawn with trailing ones."""
    say(copy, SCHEDULER, **settings)
    config = json.loads((copy / SCHEDULER).read_text())
    offset = config.get("steps_offset", 0) if settings.get("timestep_spacing") != "trailing" else 1
    stock = EulerDiscreteScheduler(
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        timestep_spacing=scheduler.removeprefix("euler-"),
        steps_offset=offset,
    )
    for steps in (1, 6, 25):
        stock.set_timesteps(steps)
        timesteps, sigmas = numpy_runner.euler(copy, steps, scheduler)
        assert np.allclose(timesteps, stock.timesteps.numpy(), atol=1e-3)
        assert np.allclose(sigmas, stock.sigmas.numpy(), rtol=1e-4)


def test_latents_are_whitened_by_channel_where_the_folder_says_so(copy):
    """The reverse of (latents - mean) * factor / std, in which such a U-Net learned."""
    mean, std, factor = [-1.6, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2], 0.5
    own = np.random.default_rng(0).standard_normal((1, 4, 5, 3))
    learned = np.stack([(own[0, k] - mean[k]) * factor / std[k] for k in range(4)])[None]
    say(copy, "vae_decoder/config.json", latents_mean=mean, latents_std=std, scaling_factor=factor)
    assert np.allclose(numpy_runner.unscaled(copy, learned.astype(np.float32)), own, atol=1e-5)
    say(copy, "vae_decoder/config.json", latents_mean=None, latents_std=None, scaling_factor=factor)
    assert np.allclose(numpy_runner.unscaled(copy, (own * factor).astype(np.float32)), own, atol=1e-5)


DEFAULTS = {"scheduler": "euler-trailing", "steps": 1, "guidance": 1.0, "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("export.json", {"defaults": None}, "has no defaults; export the model again"),
        ("export.json", {"defaults": DEFAULTS | {"out": "/etc/x"}}, "default out: '/etc/x', which is unknown here"),
        ("export.json", {"defaults": DEFAULTS | {"steps": "25"}}, "default steps: '25', which is unknown here"),
        ("export.json", {"defaults": {"steps": 1}}, "has no default scheduler; export the model again"),
        (
            "export.json",
            {"defaults": DEFAULTS | {"scheduler": "ddim-trailing"}},
            "asks for 'ddim-trailing'; this runner",
        ),
        (SCHEDULER, {"beta_end": None}, "has no beta_end; export the model again"),
        (SCHEDULER, {"prediction_type": "v_prediction"}, "says scaled_linear, v_prediction; this runner knows"),
        (SCHEDULER, {"use_karras_sigmas": True}, "says use_karras_sigmas True, which this runner does not support"),
        ("vae_decoder/config.json", {"scaling_factor": None}, "has no scaling_factor; export the model again"),
        ("tokenizer/tokenizer_config.json", {"bos_token": None}, "has no bos_token; export the model again"),
    ],
)
def test_a_damaged_or_unknown_key_is_one_line(copy, monkeypatch, capsys, file, values, says):
    say(copy, file, **values)
    monkeypatch.setattr(sys, "argv", ["runner", str(copy), "a star", "--steps", "1", "--width", "64", "--height", "64"])
    monkeypatch.chdir(copy)
    with pytest.raises(SystemExit) as end:
        numpy_runner.main()
    line = capsys.readouterr().err.splitlines()[-1] if end.value.code == 2 else str(end.value.code)
    assert says in line and str(copy / file) in line


def test_what_has_no_word_of_its_own_is_one_line_too(copy):
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    done = run(str(copy), "a star", "--steps", "1", cwd=copy)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Exception: ") and done.stderr.endswith("; export the model again\n")


def test_it_is_one_readable_file():
    assert len(RUNNER.read_text().splitlines()) < 240
