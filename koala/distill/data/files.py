"""Local files as a source's content: which there are, and a fingerprint that changes when one of them does."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

Between = Callable[[], object]  # called between two files; raises where the work is to stop


def nothing() -> None:
    """What is done between two files where nobody wants to stop."""


def files_under(folder: Path, between: Between = nothing) -> list[Path]:
    """Every file of a folder and its subfolders, hidden ones left out, in the order of their names."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        between()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def ending(file: Path) -> str:
    """a/B.JPG -> jpg."""
    return file.suffix.removeprefix(".").lower()


def fingerprint(files: Iterable[Path], base: Path, between: Between = nothing) -> str:
    """Of names below `base`, sizes and times of change: to read them all would take longer than to train."""
    found = hashlib.sha256()
    for file in files:
        between()
        stat = file.stat()
        found.update(f"{os.path.relpath(file, base)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return found.hexdigest()
