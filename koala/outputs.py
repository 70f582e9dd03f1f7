"""What a command writes is whole or absent: written beside its place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from koala.request import RequestError


def _partial(out: Path, process: int | None = None) -> Path:
    return out.with_name(f".{out.name}.{process or os.getpid()}.partial")


def check_space(out: Path, needed: int) -> None:
    """RequestError when the disk of `out` has not `needed` bytes to spare."""
    there = next(p for p in out.absolute().parents if p.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise RequestError(
            f"{out} needs {needed / 1e9:.2f} GB, and the disk at {there} has {free / 1e9:.2f} GB free; "
            "make room or choose another place"
        )


@contextmanager
def new_folder(out: Path, needed: int, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write `needed` bytes into, which becomes `out` if the block ends well and is removed if not.

    A folder that is there with something in it is refused, or with `replace` stays until the new one is whole.
    """
    out = out.absolute()
    if out.is_file() or not replace and out.is_dir() and any(out.iterdir()):
        raise RequestError(f"{out} exists already; choose a new folder, or remove it first")
    check_space(out, needed)
    partial = _partial(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        if replace and out.is_dir():
            _swap(partial, out)
        else:
            if out.is_dir():  # an empty one
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Put a whole folder where another is, which goes when its successor is there."""
    earlier = out.rename(out.with_name(f".earlier{new.name}"))
    try:
        new.rename(out)
    except OSError:
        earlier.rename(out)
        raise
    shutil.rmtree(earlier)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path to write to, which becomes the file `out`, old or new, if the block ends well and is removed if not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(out)
    try:
        yield partial
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed left unfinished in `folder`; call it where no other writer can be."""
    for path in folder.glob(".*.partial") if folder.is_dir() else ():
        _remove(path)


def remove_partial(out: Path, process: int) -> None:
    """Remove what the process of this number, which was killed, left of `out`, and what it had beside that."""
    for path in out.parent.glob(f"*{escape(_partial(out, process).name)}*"):
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
