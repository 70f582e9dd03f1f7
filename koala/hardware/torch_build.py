"""Whether the installed torch can use this machine's NVIDIA card, and which build to install where it cannot.

On Windows the package index serves torch without CUDA: everything would run on the CPU, without a word. torch itself is
not imported here, so that every face can say so at once. Sources: RELEASE.md of PyTorch 2.13 has the builds and the
cards that each is for (pull requests 182849 and 187075); NVIDIA's "Minor Version Compatibility" the drivers.
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/"
ANY = "https://pytorch.org/get-started/locally/"  # PyTorch's own instructions for every machine
_QUERY = ("--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader")
_LINUX_LIBRARIES = (
    "usr/lib/*/libcuda.so.1",
    "usr/lib64/libcuda.so.1",
    "usr/lib/libcuda.so.1",
    "usr/lib/wsl/lib/libcuda.so.1",
)
_SECONDS = 20  # timeout of nvidia-smi, which may have to wake a sleeping card


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine to inspect: its system, the root of its files, its program path, and Windows' folder."""

    system: str = sys.platform  # linux, win32 or darwin
    root: Path = Path("/")
    path: str | None = None  # of programs; None is this process's own
    windows: Path = field(default_factory=lambda: Path(os.environ.get("SYSTEMROOT", r"C:\Windows")))


@dataclass(frozen=True, kw_only=True)
class Card:
    """An NVIDIA card with its driver; what is not known is None."""

    name: str | None = None
    driver: str | None = None  # such as 580.95.05
    capability: float | None = None  # compute capability: 8.9 is Ada

    @property
    def branch(self) -> int | None:
        """The driver's first number, which says how new a CUDA it can run."""
        match = re.match(r"\d+", self.driver or "")
        return int(match[0]) if match else None


@dataclass(frozen=True, kw_only=True)
class Build:
    """The installed torch: `cuda` is the version that it was built for, None without; `other` another vendor's."""

    version: str
    cuda: str | None
    other: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A build that PyTorch offers: its name, since which torch, the driver's least branch, and the cards it is for."""

    name: str
    since: tuple[int, int]
    branch: int
    capabilities: tuple[float, float]

    @property
    def title(self) -> str:
        """Its CUDA version as shown to users: CUDA 13.0."""
        return f"CUDA {self.name[2:-1]}.{self.name[-1]}"

    def runs(self, card: Card) -> bool:
        """Whether the card can run it; true where that is not known."""
        least, most = self.capabilities
        return (card.branch is None or card.branch >= self.branch) and (
            card.capability is None or least <= card.capability <= most
        )


# The newest first. For Linux and Windows; CUDA 12.6 is for the cards that CUDA 13 no longer supports.
WHEELS = (
    Wheel(name="cu130", since=(2, 9), branch=580, capabilities=(7.5, math.inf)),  # from the RTX 20 series on
    Wheel(name="cu126", since=(2, 6), branch=525, capabilities=(5.0, 9.0)),  # from the GTX 900 to the RTX 40 series
)


def installed() -> Build | None:
    """The installed torch from its version.py, without importing it; None where there is no torch."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("torch_version", Path(package.origin).with_name("version.py"))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError:  # a custom build of torch
        return None
    others = (getattr(module, name, None) for name in ("hip", "xpu"))
    return Build(version=module.__version__, cuda=getattr(module, "cuda", None), other=next(filter(None, others), None))


def find_card(host: Host | None = None) -> Card | None:
    """The first NVIDIA card with a driver: from nvidia-smi, else from the driver's own files."""
    host = host or Host()
    if host.system not in ("linux", "win32"):
        return None
    if program := _nvidia_smi(host):
        return _asked(program) or _seen(host, alone=False)
    return _seen(host, alone=True)


def _nvidia_smi(host: Host) -> str | None:
    inside = (
        host.windows / "System32" / "nvidia-smi.exe"
        if host.system == "win32"
        else host.root / "usr/lib/wsl/lib/nvidia-smi"
    )
    return shutil.which("nvidia-smi", path=host.path) or (str(inside) if inside.is_file() else None)


def _asked(program: str) -> Card | None:
    """What nvidia-smi says of the first card; None where it sees none, or no driver."""
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",", 2)]
    if done.returncode or len(values) < 3:
        return None
    driver, capability, name = values
    number = float(capability) if re.fullmatch(r"\d+\.\d+", capability) else None
    return Card(name=name, driver=driver, capability=number)


def _seen(host: Host, *, alone: bool) -> Card | None:
    """A card by the files of its driver. Where nvidia-smi is installed and saw none, a library alone does not count."""
    if host.system == "win32":
        libraries = (host.windows / "System32" / name for name in ("nvcuda.dll", "nvml.dll"))
        return Card() if alone and any(map(Path.is_file, libraries)) else None
    kernel = host.root / "proc/driver/nvidia"
    for card in sorted(kernel.glob("gpus/*/information")):
        return Card(name=_after(card, r"Model:\s*(.+)"), driver=_after(kernel / "version", r"\s(\d+\.\d+(?:\.\d+)?)\s"))
    return Card() if alone and ((kernel / "version").is_file() or _libraries(host)) else None


def _libraries(host: Host) -> bool:
    return any(file for pattern in _LINUX_LIBRARIES for file in host.root.glob(pattern))


def _after(file: Path, pattern: str) -> str | None:
    try:
        match = re.search(pattern, file.read_text(errors="replace"))
    except OSError:
        return None
    return match[1].strip() if match else None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Why torch does not use a card, and the remedy: a `command` where there is one, and when not to use it."""

    wrong: str
    remedy: str
    command: str = ""
    unless: str = ""

    def __str__(self) -> str:
        text = f"{self.wrong}: {self.remedy}" + (f" {self.command}" if self.command else "")
        return text + (f" ({self.unless})" if self.unless else "")


def advice(build: Build | None, card: Card | None) -> Advice | None:
    """Advice for this torch on this card; None where they match, or where nothing is known."""
    if build is None or card is None or build.other or _fits(build, card):
        return None
    known = ", ".join(filter(None, (card.name, card.driver and f"driver {card.driver}")))
    known = f" ({known})" if known else ""
    if build.cuda is None:
        wrong = f"this torch is a CPU build, but an NVIDIA card is here{known}"
    else:
        wrong = f"this torch is built for CUDA {build.cuda}, which the NVIDIA card here{known} cannot run"
    return _helping(wrong, build, card)


def _fits(build: Build, card: Card) -> bool:
    """Whether a build with CUDA runs on the card; one that is not in the table may."""
    if build.cuda is None:
        return False
    return next((w.runs(card) for w in WHEELS if w.name == f"cu{build.cuda.replace('.', '')}"), True)


def _helping(wrong: str, build: Build, card: Card) -> Advice:
    match = re.match(r"(\d+)\.(\d+)", build.version)
    offered = [w for w in WHEELS if match and (int(match[1]), int(match[2])) >= w.since]
    if wheel := next((w for w in offered if w.runs(card)), None):
        unsure = card.capability is None and wheel is not offered[-1]
        unless = f"for a card before the RTX 20 series, {offered[-1].name} in place of {wheel.name}" if unsure else ""
        return Advice(
            wrong=wrong,
            remedy=f"install the build for {wheel.title}:",
            command=command(build.version, wheel),
            unless=unless,
        )
    if wheel := next((w for w in offered if w.runs(Card(capability=card.capability))), None):
        remedy = f"update its driver to {wheel.branch} or newer, then install the build for {wheel.title}:"
        return Advice(wrong=wrong, remedy=remedy, command=command(build.version, wheel))
    plain = build.version.partition("+")[0]
    return Advice(wrong=wrong, remedy=f"no build of torch {plain} is known for it; {ANY} has them all")


def command(version: str, wheel: Wheel) -> str:
    """The command that replaces the installed build; unless the build is named, pip keeps the installed one."""
    plain = version.partition("+")[0]
    return f"{_pip()} install torch=={plain}+{wheel.name} --index-url {INDEX}{wheel.name}"


def _pip() -> str:
    """The command that installs into this process's own environment, activated or not."""
    if not importlib.util.find_spec("pip"):
        return "uv pip"  # uv makes environments without pip
    python = shutil.which("python")
    if python and Path(python).absolute().parent == Path(sys.executable).parent:
        return "python -m pip"
    here = Path(sys.executable)
    name = str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
    return f'"{name}" -m pip' if " " in name else f"{name} -m pip"


@lru_cache(maxsize=1)
def advice_here() -> Advice | None:
    """`advice` for this machine, computed once."""
    return advice(installed(), find_card())
