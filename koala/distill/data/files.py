"""Local files as a source's content: which there are, each folder visited once, and how their names compare."""

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError

SHARDS = ("tar", "tar.gz", "tgz")  # file endings

Between = Callable[[], object]  # called between two files; raises where the work is to stop


def nothing() -> None:
    """The default of `Between`: never stops."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder holds, hidden files left out."""

    files: list[Path]  # in the order of their names; links that lead nowhere and pipes among them
    closed: list[str]  # folders that cannot be opened, and why


def look_through(folder: Path, between: Between = nothing) -> Listing:
    """Every file of a folder and its subfolders. A folder that links lead to as well is visited once.

    UserError where the folder itself cannot be opened.
    """
    files, closed, seen = [], [], set()
    ahead, linked = [folder], []
    while ahead or linked:
        place = ahead.pop() if ahead else linked.pop(0)  # links last, so that files go by their own folder's name
        between()
        try:
            about = place.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(place) as entries:
                inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if place == folder:
                raise UserError(f"{folder} cannot be opened ({error.strerror or error})") from error
            closed.append(f"{printable(os.path.relpath(place, folder))} ({error.strerror or error})")
            continue
        for entry in inside:
            if not _is_folder(entry):
                files.append(Path(place, entry.name))
            else:
                (linked if entry.is_symlink() else ahead).append(Path(place, entry.name))
    return Listing(files=sorted(files, key=lambda file: _order(file, folder)), closed=closed)


def files_under(folder: Path, between: Between = nothing) -> list[Path]:
    """Every file of a folder and its subfolders, as `look_through` finds them."""
    return look_through(folder, between).files


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example: a file that cannot be read
        return False


def _order(file: Path, folder: Path) -> tuple[tuple[str, ...], str]:
    """Folder by folder, as a composed or a decomposed name alike."""
    return tuple(composed(part) for part in file.relative_to(folder).parts), str(file)


def is_file(file: Path) -> bool:
    """Whether there is a file that ends: no folder, no pipe, no link that leads nowhere."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def ending(file: Path) -> str:
    """a/B.JPG -> jpg."""
    return same(file.suffix)


def is_shard(file: Path) -> bool:
    """Whether a name is that of a tar file, compressed or not."""
    return file.name.lower().endswith(tuple(f".{name}" for name in SHARDS))


def same(name: str) -> str:
    """A file ending or a column's name as it is compared: .TXT and txt are the same, composed or not."""
    return unicodedata.normalize("NFC", name.strip()).removeprefix(".").lower()


def match(name: str, names: Collection[str]) -> str | None:
    """The one of `names` that is meant: the very same, or else the only one that compares as the same."""
    if name in names:
        return name
    alike = [one for one in names if same(one) == same(name)]
    return alike[0] if len(alike) == 1 else None


def composed(path: str | Path) -> str:
    """A path as it is compared: é is one character in it, not e and an accent, as macOS once wrote names."""
    return unicodedata.normalize("NFC", str(path))


def stem_of(file: Path) -> str:
    """a/1.PNG -> a/1, composed: what a picture shares with its caption's file."""
    return composed(file.with_suffix(""))


def printable(name: str) -> str:
    """A name that can be written to a terminal and into JSON; bytes that are not UTF-8 as \\xNN."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which no file system gives
        return name.encode("ascii", "backslashreplace").decode()


def is_printable(name: str) -> bool:
    """Whether a name is UTF-8, as everything that a run writes must be."""
    return printable(name) == name


_WILD = re.compile(r"\*\*/|\*|\?")


def is_pattern(text: str) -> bool:
    """Whether a path is a pattern for several, with * or ?."""
    return bool(_WILD.search(text)) and not os.path.lexists(text)


def matching(pattern: Path, files: Collection[Path]) -> list[Path]:
    """The files that a pattern means: * and ? stay within a name, **/ is any folders, letters may be of either case."""
    text, expression, at = composed(pattern.as_posix()), "", 0
    for wild in _WILD.finditer(text):
        expression += re.escape(text[at : wild.start()]) + {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}[wild[0]]
        at = wild.end()
    meant = re.compile(expression + re.escape(text[at:]), re.IGNORECASE | re.DOTALL)
    return [file for file in files if meant.fullmatch(composed(file.as_posix()))]


def base_of(pattern: Path) -> Path:
    """The folder in which a pattern is searched: what precedes its first * or ?."""
    fixed = []
    for part in pattern.parts:
        if _WILD.search(part):
            break
        fixed.append(part)
    return Path(*fixed)


_BLOCK = 1 << 22  # bytes between two looks at whether to stop


@dataclass(frozen=True, kw_only=True)
class Absent:
    """What an earlier run found out of reach, by name below the data's folder; it counts as out of reach again."""

    missing: frozenset[str] = frozenset()  # files that a folder lists or a table of pictures names
    unlisted: frozenset[str] = frozenset()  # pictures that a metadata file names, which no folder listed

    @classmethod
    def of(cls, identity: Mapping[str, object]) -> "Absent":
        """From the identity of a source."""
        return cls(**{name: frozenset(identity.get(name, ())) for name in ("missing", "unlisted")})


NOTHING = Absent()


@dataclass(frozen=True, kw_only=True)
class Content:
    """What files hold."""

    digest: str
    missing: tuple[str, ...]  # those out of reach: not there, or not to be read

    @property
    def out_of_reach(self) -> dict[str, tuple[str, ...]]:
        """Their entry in an identity; empty where all are there."""
        return {"missing": self.missing} if self.missing else {}


def fingerprint(
    files: Iterable[Path], base: Path, between: Between = nothing, missing: Collection[str] = ()
) -> Content:
    """Of names below `base` and contents; a file that is out of reach, or among `missing`, counts as that."""
    hasher, lacking = hashlib.sha256(), []
    for file in dict.fromkeys(files):
        between()
        name = name_below(file, base)
        digest = None if name in missing else _digest(file, between)
        if digest is None:
            lacking.append(name)
        hasher.update(f"{name}\0{digest or 'missing'}\n".encode())
    return Content(digest=hasher.hexdigest(), missing=tuple(lacking))


def name_below(file: Path, base: Path) -> str:
    """A file's name below `base` as it is written everywhere: with slashes, composed."""
    return unicodedata.normalize("NFC", printable(os.path.relpath(file, base)).replace(os.sep, "/"))


def _digest(file: Path, between: Between) -> str | None:
    if not is_file(file):
        return None
    hasher = hashlib.sha256()
    try:
        with open(file, "rb") as opened:
            while block := opened.read(_BLOCK):
                hasher.update(block)
                between()
    except OSError:
        return None
    return hasher.hexdigest()
