"""A torch that leaves the card unused is told, with a line that helps; the driver is a folder of this test."""

import importlib.util
import re
import shlex
import stat
import sys
import time
from pathlib import Path

import pytest
import torch

from koala.cli.main import main
from koala.errors import UserError
from koala.hardware import torch_build
from koala.hardware.torch_build import INDEX, WHEELS, Build, Card, Host, advice, command, find_card, installed
from koala.ui import widgets
from koala.ui.session import Session

CPU = Build(version="2.13.0+cpu", cuda=None)
ADA = Card(name="NVIDIA GeForce RTX 4090", driver="580.95.05", capability=8.9)
LINE = "install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
KERNEL = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build  (root@host)\nGCC version:\n"
)


def nvidia_smi(folder: Path, says: str, status: int = 0, name: str = "nvidia-smi") -> Path:
    """A program of this name that says this to whatever it is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def host(tmp_path: Path, system: str = "linux") -> Host:
    """A machine in a temporary folder, with nothing in it yet."""
    return Host(system=system, root=tmp_path, path=str(tmp_path / "bin"), windows=tmp_path / "Windows")


def touch(file: Path, text: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


# --- the driver


def test_a_machine_without_a_driver_has_no_card(tmp_path):
    assert find_card(host(tmp_path)) is find_card(host(tmp_path, "win32")) is None


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_nvidia_smi_tells_card_and_driver(tmp_path, system):
    where = tmp_path / "bin" if system == "linux" else tmp_path / "Windows" / "System32"
    name = "nvidia-smi" if system == "linux" else "nvidia-smi.exe"
    nvidia_smi(where, "580.95.05, 8.9, NVIDIA GeForce RTX 4090\n580.95.05, 7.5, Quadro RTX 4000, or so", name=name)
    assert find_card(host(tmp_path, system)) == ADA


@pytest.mark.parametrize("name", ["nvcuda.dll", "nvml.dll"])
def test_on_windows_the_drivers_library_is_a_trace(tmp_path, name):
    touch(tmp_path / "Windows" / "System32" / name)
    assert find_card(host(tmp_path, "win32")) == Card()
    assert find_card(host(tmp_path, "linux")) is None


@pytest.mark.parametrize("place", ["usr/lib/x86_64-linux-gnu/libcuda.so.1", "usr/lib/wsl/lib/libcuda.so.1"])
def test_on_linux_the_drivers_library_is_a_trace(tmp_path, place):
    touch(tmp_path / place)
    assert find_card(host(tmp_path)) == Card()
    assert find_card(host(tmp_path, "darwin")) is None


def test_the_kernels_driver_names_the_card(tmp_path):
    touch(tmp_path / "proc/driver/nvidia/version", KERNEL)
    assert find_card(host(tmp_path)) == Card()
    touch(tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t NVIDIA A10\nIRQ:   42\n")
    assert find_card(host(tmp_path)) == Card(name="NVIDIA A10", driver="535.183.01")
    nvidia_smi(tmp_path / "bin", "Failed to initialize NVML: Driver/library version mismatch", status=18)
    assert find_card(host(tmp_path)).name == "NVIDIA A10"  # it is there, whatever is wrong with its programs


@pytest.mark.parametrize("says", ["No devices were found", ""])
def test_a_driver_without_a_card_is_no_card(tmp_path, says):
    """As in a container that was given none, or on a laptop whose card is off."""
    touch(tmp_path / "usr/lib64/libcuda.so.1")
    touch(tmp_path / "Windows/System32/nvcuda.dll")
    nvidia_smi(tmp_path / "bin", says, status=6 if says else 0)
    assert find_card(host(tmp_path)) is find_card(host(tmp_path, "win32")) is None


def test_an_nvidia_smi_that_hangs_does_not_hang_us(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_build, "_SECONDS", 0.2)
    nvidia_smi(tmp_path / "bin", "").write_text("#!/bin/sh\nexec sleep 30\n")
    assert find_card(host(tmp_path)) is None


# --- the build


def test_the_installed_build_is_torchs_own_word():
    assert installed() == Build(version=torch.__version__, cuda=torch.version.cuda, other=torch.version.hip)


def test_without_torch_there_is_nothing_to_say(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installed() is None and advice(installed(), ADA) is None


# --- what is said


@pytest.mark.parametrize(
    ("card", "wheel", "also"),
    [
        (ADA, "cu130", "is here (NVIDIA GeForce RTX 4090, driver 580.95.05): install the build for CUDA 13.0: "),
        (Card(name="GTX 1080", driver="580.1", capability=6.1), "cu126", "install the build for CUDA 12.6: "),
        (Card(name="A10", driver="535.183.01", capability=8.6), "cu126", "install the build for CUDA 12.6: "),
        (Card(name="RTX 5090", driver="570.1", capability=12.0), "cu130", "update its driver to 580 or newer, then in"),
        (Card(name="A10", driver="470.1", capability=8.6), "cu130", "update its driver to 580 or newer, then install"),
        (Card(), "cu130", "(for a card before the RTX 20 series, cu126 in place of cu130)"),
        (Card(driver="535.1"), "cu126", "an NVIDIA card is here (driver 535.1): install"),
    ],
)
def test_a_cpu_build_is_told_which_one_to_install(card, wheel, also):
    output = str(advice(CPU, card))
    assert output.startswith("this torch is a CPU build, but an NVIDIA card is here") and also in output
    assert f"install torch==2.13.0+{wheel} --index-url {INDEX}{wheel}" in output


def test_a_card_for_which_there_is_no_build_is_told_so():
    output = advice(CPU, Card(name="K40", driver="470.1", capability=3.5))
    assert not output.command and "no build of torch 2.13.0 is known" in str(output)
    blackwell = Card(name="RTX 5090", driver="580.1", capability=12.0)
    assert not advice(Build(version="2.8.0", cuda=None), blackwell).command  # CUDA 12.6 has not heard of it


@pytest.mark.parametrize(
    "build",
    [
        Build(version="2.13.0", cuda="13.0"),
        Build(version="2.13.0+cu126", cuda="12.6"),
        Build(version="2.12.0+cu132", cuda="13.2"),  # not in the table: it may run
        Build(version="2.13.0+rocm7.2", cuda=None, other="7.2"),
    ],
)
def test_a_build_that_goes_with_the_card_is_left_alone(build):
    assert advice(build, ADA) is None
    assert advice(build, None) is None and advice(CPU, None) is None


def test_a_build_that_is_too_new_for_the_driver_is_told_too():
    """The package index's own build for Linux, where the driver is of last year."""
    output = str(advice(Build(version="2.13.0", cuda="13.0"), Card(name="A10", driver="535.1", capability=8.6)))
    assert output.startswith(
        "this torch is built for CUDA 13.0, which the NVIDIA card here (A10, driver 535.1) cannot "
    )
    assert "torch==2.13.0+cu126" in output


def test_the_line_installs_into_the_environment_that_runs(monkeypatch, tmp_path):
    words = shlex.split(advice(CPU, ADA).command)
    assert words[-4:] == shlex.split(LINE)[-4:] and words[1:4] == ["-m", "pip", "install"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for place, message in ((".venv/bin/python", ".venv/bin/python"), ("my tools/python", '"my tools/python"')):
        monkeypatch.setattr(sys, "executable", str(tmp_path / place))
        assert advice(CPU, ADA).command == f"{message} -m pip {LINE}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as uv makes environments
    assert advice(CPU, ADA).command == f"uv pip {LINE}"


def test_every_build_of_the_table_has_its_own_name():
    assert [w.title for w in WHEELS] == ["CUDA 13.0", "CUDA 12.6"]
    assert [w.since for w in WHEELS] == sorted((w.since for w in WHEELS), reverse=True)


def test_the_readme_has_the_same_line_for_windows():
    root = Path(__file__).parents[2]
    text = (root / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```powershell\n(.*?)```", text, re.DOTALL)
    pinned = re.search(r"^torch==(\S+)$", (root / "requirements.txt").read_text(), re.M)[1]
    line = command(pinned, WHEELS[0]).partition(" -m ")[2]
    assert [words.split(maxsplit=1) for words in block.splitlines()] == [
        ["py", "-m venv .venv"],
        [r".venv\Scripts\python", f"-m {line}"],
        [r".venv\Scripts\python", "-m pip install -r requirements.txt"],
        [r".venv\Scripts\python", "app.py"],
    ]
    assert f"put {WHEELS[1].name} in both places" in text and f"({WHEELS[1].branch} and newer)" in text
    assert f"built for {WHEELS[0].title}, for drivers from {WHEELS[0].branch}" in text


# --- who says it


@pytest.fixture
def with_card(tmp_path, monkeypatch):
    """This process finds a driver on its PATH."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip("needs a CPU build of torch, as CI has")
    nvidia_smi(tmp_path / "bin", "580.95.05, 8.9, NVIDIA GeForce RTX 4090")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    torch_build.advice_here.cache_clear()
    yield
    torch_build.advice_here.cache_clear()


def test_koala_models_says_it_on_stderr(with_card, capsys):
    assert main(["models", "tiny-sdxl"]) == 0
    message = capsys.readouterr()
    assert "this torch is a CPU build, but an NVIDIA card is here (NVIDIA GeForce RTX 4090" in message.err
    assert "CPU build" not in message.out and len(message.err.splitlines()) == 1


def loaded(**settings) -> Session:
    """A session whose models are in memory: a thread that still loads would outlive its test."""
    session = Session(**settings).start()
    session.loader.library()
    end = time.monotonic() + 60
    while not session.loader.settled:
        assert time.monotonic() < end
        time.sleep(0.05)
    return session


def test_the_apps_status_line_says_it_to_the_user_of_this_machine(with_card):
    session = loaded()
    assert "CPU build" in session.loader.advice.wrong
    assert session.note.startswith("The GPU here is not used, so the app runs its embedded models")
    shown = widgets.states([], session.note, session.loader.advice)
    assert "This torch is a CPU build" in shown and "<code>" in shown and "--index-url" in shown
    assert loaded(models=["tiny-koala-700m"], device="cpu").loader.advice is None  # the CPU was asked for
    assert (
        loaded(models=["tiny-koala-700m"], local=False).loader.advice is None
    )  # strangers cannot install anything here


def test_what_a_driver_says_is_escaped():
    output = advice(CPU, Card(name="<img src=x>", driver="580.1"))
    assert "<img" not in widgets.states([], "", output)


def test_a_device_that_was_asked_for_and_cannot_be_used_says_why(with_card):
    with pytest.raises(UserError, match=r"no CUDA GPU is visible \(this torch is a CPU build.*\); use --device cpu"):
        Session(device="cuda")
