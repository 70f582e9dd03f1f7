"""SHA-256 of files: it identifies weights that several models share, and verifies downloads."""

import hashlib
from functools import lru_cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Of the file's content, in hexadecimal."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


@lru_cache(maxsize=512)
def _remembered(path: Path, inode: int, size: int, modified: int, changed: int) -> str:
    return sha256(path)


def digest(path: Path) -> str:
    """The same, remembered until the file changes."""
    path = path.resolve()
    stat = path.stat()
    return _remembered(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
