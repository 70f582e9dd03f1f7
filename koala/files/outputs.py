"""Atomic output: files and folders are written under a temporary name next to their place, then renamed."""

import hashlib
import itertools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from koala import process
from koala.errors import UserError
from koala.words import gigabytes

_LONGEST = 180  # bytes of a name that a partial's name repeats; file systems take 255
_PARTIAL = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<pid>\d+)-(?P<since>\d+)-\d+\.(?P<kind>partial|earlier).*", re.DOTALL
)
_COUNT = itertools.count(1)  # distinguishes the writers of one process
_SWAPPING = threading.Lock()


def user_cache() -> Path:
    """The cache folder: $XDG_CACHE_HOME/koala, else ~/.cache/koala."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "koala"


def _stem(out: Path) -> str:
    return out.name if len(out.name.encode()) <= _LONGEST else hashlib.sha256(out.name.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _since(pid: int) -> int:
    return int(process.started(pid))


def _partial(out: Path) -> Path:
    """A temporary name that no other writer of this file uses; it names the process that writes it."""
    pid = os.getpid()
    return out.with_name(f".{_stem(out)}.{process.machine()}-{pid}-{_since(pid)}-{next(_COUNT)}.partial")


def _existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def check_space(out: Path, needed: int) -> None:
    """UserError when the disk of `out` has fewer than `needed` bytes free."""
    existing = next(p for p in out.absolute().parents if p.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{out} needs {gigabytes(needed, 2)}, and the disk at {existing} has {gigabytes(free, 2)} free; "
            "make room or choose another place"
        )


def check_file(out: Path, needed: int = 0) -> None:
    """UserError where a file `out` of `needed` bytes cannot be written; call it before the work, not after."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file, for example {out / 'out'}{out.suffix}")
    _check_place(out, out.absolute().parent, needed)


def check_folder(out: Path, needed: int = 0) -> None:
    """UserError where files of `needed` bytes cannot be written into a folder `out`, whether or not it exists yet."""
    _check_place(out, out.absolute(), needed)


def check_new_folder(out: Path, needed: int = 0) -> None:
    """UserError where `new_folder` could not make `out`: it holds something, or its place cannot be written."""
    _check_vacant(out)
    _check_place(out, out.absolute().parent, needed)


def _check_vacant(out: Path) -> None:
    if out.is_file() or out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists already; choose a new folder, or remove it first")


def _check_place(out: Path, folder: Path, needed: int) -> None:
    existing = _existing(folder)
    if not existing.is_dir():
        raise UserError(f"{out} cannot be written: {existing} is a file, not a folder; choose another place")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {existing} takes no new file ({error.strerror or error}); choose another place"
        ) from error
    check_space(existing / "any", needed)


@contextmanager
def new_folder(out: Path, needed: int, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write `needed` bytes into, which becomes `out` if the block ends well and is removed if not.

    A folder that exists and is not empty is refused, or with `replace` kept until the new one is complete.
    """
    out = out.absolute()
    if out.is_file() or not replace:
        _check_vacant(out)
    check_space(out, needed)
    remove_abandoned(out.parent)
    partial = _partial(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush_all(partial)
        if replace:
            _swap(partial, out)
        else:
            with suppress(FileNotFoundError):  # an empty one may be there
                out.rmdir()
            partial.rename(out)
        flush(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Move a complete folder into place; one that is there is removed once its successor is in place."""
    earlier = new.with_suffix(".earlier")
    with _SWAPPING:
        with suppress(FileNotFoundError):
            out.rename(earlier)
        try:
            new.rename(out)
        except OSError:
            with suppress(FileNotFoundError):
                earlier.rename(out)
            raise
    shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def new_file(out: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write to, which becomes the file `out`, old or new, if the block ends well and is removed if not.

    It then survives a power cut, unless `durable` is false, as for a file that is only handed on.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out.parent)
    partial = _partial(out)
    try:
        yield partial
        if durable:
            flush(partial)
        partial.replace(out)
        if durable:
            flush(out.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or folder to disk, so that a power cut cannot keep a rename and lose the bytes."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and keeps the order by itself
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_all(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            flush(Path(place, name))
        flush(Path(place))


def _partials(folder: Path) -> Iterator[tuple[Path, re.Match]]:
    """The unfinished files in a folder, each with the parts of its name."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".")]
    except (FileNotFoundError, PermissionError):  # no folder yet, or one that may be written to but not listed
        return
    for name in names:
        if match := _PARTIAL.fullmatch(name):
            yield folder / name, match


def remove_abandoned(folder: Path) -> None:
    """Remove what writers that no longer run left in `folder`; files of other machines are left alone.

    A folder that was being replaced when its writer was killed is put back.
    """
    for path, parts in _partials(folder):
        if parts["machine"] != process.machine() or _writes(int(parts["pid"]), int(parts["since"])):
            continue
        with suppress(OSError):  # another process was faster, or it is another user's: neither is in the way
            if parts["kind"] == "earlier" and not (folder / parts["name"]).exists():
                path.rename(folder / parts["name"])
            else:
                _remove(path)


def _writes(pid: int, since: int) -> bool:
    return process.runs(pid) and int(process.started(pid)) == since


def remove_partials(folder: Path) -> None:
    """Remove everything unfinished in `folder`; call it only where no other writer can be active."""
    for path in folder.glob(".*.partial") if folder.is_dir() else ():
        _remove(path)


def remove_partial(out: Path, pid: int) -> None:
    """Remove what process `pid`, which was killed, left of `out` and of its earlier version."""
    for path, parts in _partials(out.parent):
        if parts["name"] == _stem(out) and int(parts["pid"]) == pid and parts["machine"] == process.machine():
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
