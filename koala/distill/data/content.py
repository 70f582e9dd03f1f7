"""A fingerprint of files by what they hold: touching a file changes nothing, repainting a picture does."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from koala.distill.data.files import Between, is_file, nothing, printable

_BLOCK = 1 << 22  # bytes between two looks at whether to stop


def fingerprint(files: Iterable[Path], base: Path, between: Between = nothing) -> str:
    """Of names below `base` and contents; a file that cannot be read, or is missing, counts as that."""
    found = hashlib.sha256()
    for file in dict.fromkeys(files):
        between()
        name = unicodedata.normalize("NFC", printable(os.path.relpath(file, base)).replace(os.sep, "/"))
        found.update(f"{name}\0{_digest(file, between)}\n".encode())
    return found.hexdigest()


def _digest(file: Path, between: Between) -> str:
    if not is_file(file):
        return "missing"
    found = hashlib.sha256()
    try:
        with open(file, "rb") as opened:
            while block := opened.read(_BLOCK):
                found.update(block)
                between()
    except OSError:
        return "unreadable"
    return found.hexdigest()
