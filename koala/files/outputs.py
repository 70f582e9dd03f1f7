"""What a command writes is whole or absent: written beside its place, then renamed."""

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
_COUNT = itertools.count(1)  # tells the writers of one process apart
_SWAPPING = threading.Lock()


def user_cache() -> Path:
    """Where this program keeps what it can make again: $XDG_CACHE_HOME/koala, else ~/.cache/koala."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "koala"


def _stem(out: Path) -> str:
    return out.name if len(out.name.encode()) <= _LONGEST else hashlib.sha256(out.name.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _since(pid: int) -> int:
    return int(process.started(pid))


def _partial(out: Path) -> Path:
    """A name that no other writer of this file has, and that says which process writes it."""
    pid = os.getpid()
    return out.with_name(f".{_stem(out)}.{process.machine()}-{pid}-{_since(pid)}-{next(_COUNT)}.partial")


def _existing(path: Path) -> Path:
    """The nearest of a path and the folders around it that is there."""
    return next(p for p in (path, *path.parents) if p.exists())


def check_space(out: Path, needed: int) -> None:
    """UserError when the disk of `out` has not `needed` bytes to spare."""
    there = next(p for p in out.absolute().parents if p.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{out} needs {gigabytes(needed, 2)}, and the disk at {there} has {gigabytes(free, 2)} free; "
            "make room or choose another place"
        )


def check_file(out: Path, needed: int = 0) -> None:
    """UserError where a file `out` of `needed` bytes cannot be written; ask before the work, not after it."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file, for example {out / 'out'}{out.suffix}")
    _check_place(out, out.absolute().parent, needed)


def check_folder(out: Path, needed: int = 0) -> None:
    """UserError where files of `needed` bytes cannot be written into a folder `out`, there or not there yet."""
    _check_place(out, out.absolute(), needed)


def check_new_folder(out: Path, needed: int = 0) -> None:
    """UserError where `new_folder` could not make `out`: it holds something, or its place cannot be written."""
    _check_vacant(out)
    _check_place(out, out.absolute().parent, needed)


def _check_vacant(out: Path) -> None:
    if out.is_file() or out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists already; choose a new folder, or remove it first")


def _check_place(out: Path, folder: Path, needed: int) -> None:
    there = _existing(folder)
    if not there.is_dir():
        raise UserError(f"{out} cannot be written: {there} is a file, not a folder; choose another place")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {there} takes no new file ({error.strerror or error}); choose another place"
        ) from error
    check_space(there / "any", needed)


@contextmanager
def new_folder(out: Path, needed: int, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write `needed` bytes into, which becomes `out` if the block ends well and is removed if not.

    A folder that is there with something in it is refused, or with `replace` stays until the new one is whole.
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
    """Put a whole folder where another may be, which goes when its successor is there."""
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

    It survives a power cut from then on, unless it need not be `durable`, as a file that is only handed on.
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
    """A file or folder to the disk itself: a rename must not outlive a power cut that the bytes did not."""
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
    """What writers have unfinished in a folder, with what each name says."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".")]
    except (FileNotFoundError, PermissionError):  # none yet, or one that may be written and not looked into
        return
    for name in names:
        if found := _PARTIAL.fullmatch(name):
            yield folder / name, found


def remove_abandoned(folder: Path) -> None:
    """Remove what writers left in `folder` whose process is gone; those of other machines are left alone.

    A folder that was being replaced when its writer was killed is put back.
    """
    for path, found in _partials(folder):
        if found["machine"] != process.machine() or _writes(int(found["pid"]), int(found["since"])):
            continue
        with suppress(OSError):  # another process was faster, or it is another user's: neither is in the way
            if found["kind"] == "earlier" and not (folder / found["name"]).exists():
                path.rename(folder / found["name"])
            else:
                _remove(path)


def _writes(pid: int, since: int) -> bool:
    return process.runs(pid) and int(process.started(pid)) == since


def remove_partials(folder: Path) -> None:
    """Remove whatever is unfinished in `folder`; call it where no other writer can be."""
    for path in folder.glob(".*.partial") if folder.is_dir() else ():
        _remove(path)


def remove_partial(out: Path, pid: int) -> None:
    """Remove what the process of this number, which was killed, left of `out`, and what it had beside that."""
    for path, found in _partials(out.parent):
        if found["name"] == _stem(out) and int(found["pid"]) == pid and found["machine"] == process.machine():
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
