"""An installed wheel does what a clone does, in a fresh environment outside the checkout."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77", reason="builds the wheel")
pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
BIN = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the checkout: building leaves folders behind."""
    copy = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc", "build", "*.egg-info")
    for name in ("koala", "export", "spaces", "recipes", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE.md", "app.py"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def koala(wheel, tmp_path_factory) -> Path:
    """The command `koala` of a fresh environment that has the wheel, and this interpreter's packages for the rest."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / BIN / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run(install, check=True, cwd=environment)
    return environment / BIN / "koala"


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """An empty working folder outside the checkout, and a home to match."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run(koala: Path, *arguments: object) -> str:
    """The standard output of one command that succeeds."""
    done = subprocess.run([koala, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_koala_and_no_other_package(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    files = (f for f in (ROOT / "koala").rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    here = {f.relative_to(ROOT).as_posix() for f in files}
    assert {name for name in names if ".dist-info/" not in name} == here
    for name in ("export/web/page/index.html", "attention/assets", "embedded/hashes.json", "ui/assets"):
        assert any(f"koala/{name}" in file for file in names), name


def test_the_command_says_its_version(koala, outside):
    assert re.fullmatch(r"koala \d+\.\d+\.\d+\n", run(koala, "--version"))


def test_it_imports_the_installed_package(koala, outside):
    code = "import koala; from koala import GenerationRequest, Library, compare, generate; print(koala.__file__)"
    done = subprocess.run([koala.parent / "python", "-c", code], capture_output=True, text=True, check=True)
    assert koala.parents[1] in Path(done.stdout.strip()).parents


def test_it_lists_the_shipped_models(koala, outside):
    rows = {row["name"]: row for row in json.loads(run(koala, "models", "--json"))}
    assert rows["tiny-sdxl"]["available"] and str(koala.parents[1]) in rows["tiny-sdxl"]["location"]


def test_it_draws_a_picture(koala, outside):
    request = ("--model", "tiny-koala-700m", "--prompt", "a red circle", "--steps", 2)
    drawn = json.loads(run(koala, "generate", *request, "--out", outside / "a.png", "--json"))
    assert Path(drawn["image"]).read_bytes().startswith(b"\x89PNG")


def test_it_exports_a_unet(koala, outside):
    run(koala, "export", "--model", "tiny-koala-700m", "--components", "unet", "--pictures", 1, "--out", outside / "o")
    assert (outside / "o" / "unet" / "model.onnx").stat().st_size > 1_000_000


def test_it_serves_the_app(koala, outside):
    """The first line names the address; the page and our stylesheet load; an interrupt ends it."""
    process = subprocess.Popen([koala, "app"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        for path, words in (("", "<gradio-app"), ("config", "tiny-koala-700m"), ("theme.css", "--k-")):
            with urllib.request.urlopen(f"{address.rstrip('/')}/{path}", timeout=60) as answer:
                assert words in answer.read().decode(), path
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
