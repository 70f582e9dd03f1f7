"""A fingerprint of files by what they hold: touching a file changes nothing, repainting a picture does."""

import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from koala.distill.data.files import Between, is_file, nothing, printable

_BLOCK = 1 << 22  # bytes between two looks at whether to stop


@dataclass(frozen=True, kw_only=True)
class Absent:
    """What an earlier run found out of reach, by name below the data's folder: it is to count as that once more."""

    missing: frozenset[str] = frozenset()  # files that a folder lists or a table of pictures names
    unlisted: frozenset[str] = frozenset()  # pictures that a metadata file names, which no folder listed

    @classmethod
    def of(cls, identity: Mapping[str, object]) -> "Absent":
        """As a source's identity tells it."""
        return cls(**{name: frozenset(identity.get(name, ())) for name in ("missing", "unlisted")})


NOTHING = Absent()


@dataclass(frozen=True, kw_only=True)
class Content:
    """What files hold."""

    digest: str
    missing: tuple[str, ...]  # those out of reach: not there, or not to be read

    @property
    def out_of_reach(self) -> dict[str, tuple[str, ...]]:
        """What an identity tells of them; nothing where all are there."""
        return {"missing": self.missing} if self.missing else {}


def fingerprint(
    files: Iterable[Path], base: Path, between: Between = nothing, missing: Collection[str] = ()
) -> Content:
    """Of names below `base` and contents; a file that is out of reach, or among `missing`, counts as that."""
    found, lacking = hashlib.sha256(), []
    for file in dict.fromkeys(files):
        between()
        name = name_below(file, base)
        digest = None if name in missing else _digest(file, between)
        if digest is None:
            lacking.append(name)
        found.update(f"{name}\0{digest or 'missing'}\n".encode())
    return Content(digest=found.hexdigest(), missing=tuple(lacking))


def name_below(file: Path, base: Path) -> str:
    """A file's name below `base` as it is written everywhere: with slashes, composed."""
    return unicodedata.normalize("NFC", printable(os.path.relpath(file, base)).replace(os.sep, "/"))


def _digest(file: Path, between: Between) -> str | None:
    if not is_file(file):
        return None
    found = hashlib.sha256()
    try:
        with open(file, "rb") as opened:
            while block := opened.read(_BLOCK):
                found.update(block)
                between()
    except OSError:
        return None
    return found.hexdigest()
