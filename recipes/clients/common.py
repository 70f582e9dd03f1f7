"""What the recipes of other programs share; it imports nothing of koala, as it runs in their own environments."""

import argparse
import datetime
import hashlib
import importlib.abc
import importlib.machinery
import json
import platform
import struct
import subprocess
import sys
import types
from pathlib import Path

import torch


class _Absent(types.ModuleType):
    """A package that the other program imports and that neither detection nor loading of SDXL needs."""

    __path__: list = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: tuple[str, ...]):
        self.packages, self.taken = packages, set()

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] not in self.packages:
            return None
        self.taken.add(name.split(".")[0])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec) -> _Absent:
        return _Absent(spec.name)

    def exec_module(self, module) -> None:
        """Nothing to run."""


def stand_in(*packages: str) -> set[str]:
    """Let these packages be imported where they are not installed; the set fills with those that were asked for."""
    finder = _Finder(packages)
    sys.meta_path.append(finder)  # behind the finders of what is installed
    return finder.taken


def header(file: Path) -> dict[str, dict]:
    """Tensor -> dtype and shape, of a safetensors file."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header


def shapes_only(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file as its name and shape; no memory."""
    return {
        name: torch.empty(entry["shape"], dtype=torch.float16, device="meta") for name, entry in header(file).items()
    }


def against(file: dict[str, torch.Tensor], model: dict[str, torch.Tensor]) -> dict:
    """What a network lacks in a file's tensors, what is too much, and what has another shape."""
    both = file.keys() & model.keys()
    return {
        "tensors": len(model),
        "missing": sorted(model.keys() - file.keys()),
        "unexpected": sorted(file.keys() - model.keys()),
        "wrong_shapes": sorted(name for name in both if file[name].shape != model[name].shape),
    }


def revision(source: Path) -> str:
    """The commit of a source folder, where it is a clone."""
    try:
        done = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def sha256(file: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def arguments(text: str) -> argparse.Namespace:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="the other program's source folder")
    parser.add_argument("--version", default="", help="what the program calls it, where its folder is no clone")
    parser.add_argument("--files", type=Path, required=True, metavar="DIR", help="what recipes.clients.files wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    options, sys.argv = parser.parse_args(), sys.argv[:1]  # the other program reads its own options from there
    return options


def write(args: argparse.Namespace, command: str, result: dict) -> None:
    """The report, with what it was made with."""
    report = {
        "command": command,
        "source": args.version or revision(args.source),
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    args.out.write_text(json.dumps(report | result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
